"""Quality of a checkpoint on held-out frames, streamed as in inference, at full frame size.

    python benchmarks/quality.py                                              Streets, 16 test videos
    python benchmarks/quality.py --dataset kitti_step --data_root data/KittiSTEP
    python benchmarks/quality.py --dataset cityscapes --data_root data/Cityscapes
    python benchmarks/quality.py --settings 1,1,0 4,2,0.5 --history_steps 2   other samplings, the published stream
    python benchmarks/quality.py --components --references                    what the figures are to be read by

Beside the metrics a row says what is lost where: `AQ seg` is AQ with the truth's id for each predicted segment (what
tracking loses), `AQ pix` with the truth's id for each pixel of a tracked class (what finding instances loses).
--components keeps the classes and takes their connected components as instances, tracked by overlap.
--references predicts the truth of the frame before, and of the first frame.
"""

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cli

with cli.imports():
    import numpy as np
    import torch
    from torch.nn import functional as F
    from tqdm import tqdm

    from data.io.pixels import nearest
    from data.labels import CLASS_NAMES
    from data.sets.frames import FrameSource
    from data.sets.registry import DATASETS
    from metrics import Evaluation
    from model import StreamConfig, VideoPredictor

OPTIONS = {
    "what": [
        cli.Option("checkpoint", Path("results/pretrained/model-tiny.pt"), "weights"),
        cli.Option("settings", None, "first_steps,steps,time_difference; none, here and below: recommended", nargs="+"),
        cli.Option("image_size", None, "area that frames are brought to; none: the model's", kind=int, nargs=2),
        cli.Option("components", False, "also connected components of the same classes"),
        cli.Option("references", False, "also the trivial references"),
        cli.Option("json", None, "file for the figures", kind=Path),
    ],
    "frames": [
        cli.Option("dataset", "streets", "which data set", choices=tuple(DATASETS)),
        cli.Option("data_root", None, "its folder; none: the default one", kind=Path),
        cli.Option("split", None, "none: test of Streets, val of the others", kind=str),
        cli.Option("videos", None, "videos or images at most; none: 16 of Streets, all of the others", kind=int),
        cli.Option("frames", None, "frames of each at most; none: 24 of Streets, all of the others", kind=int),
        cli.Option("device", "cpu", "where to compute", ("cpu", "cuda")),
    ],
}
STREETS_SIZE = (96, 320)
Labels = tuple[np.ndarray, np.ndarray]
Frame = tuple[str | None, np.ndarray, Labels]  # sequence, image, truth
Answer = Callable[[Frame], Labels]


def main() -> None:
    parser = cli.Parser(__doc__)
    cli.add_options(parser, OPTIONS)
    in_settings = ("first_steps", "steps", "time_difference")
    cli.add_dataclass(parser, StreamConfig, "sampling (none: recommended)", skip=in_settings)
    args = parser.parse_args()
    source = open_source(args)
    things = source.tracked
    names = ("STQ", "AQ", "AQ seg", "AQ pix", "SQ", "PQ", "PQ th", "PQ st", "mIoU")
    print(f"{'':<22}" + "".join(f"{name:>8}" for name in names) + "   s a frame")
    rows = []
    for setting in args.settings or [None]:
        predictor = predictor_of(args, setting)
        name = f"{predictor.config.first_steps} + {predictor.config.steps}, {predictor.config.time_difference:g}"
        rows.append(show(name, evaluate(source, args, streaming(predictor), things), names))
        if args.components:
            rows.append(show("  its components", evaluate(source, args, components(predictor, things), things), names))
    for name in ("previous", "hold") if args.references and source.is_video else ():
        rows.append(show(f"truth, {name}", evaluate(source, args, reference(name), things), names))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


def open_source(args) -> FrameSource:
    if args.dataset == "streets":
        args.frames, args.videos = args.frames or 24, args.videos or 16
        split = args.split or "test"
        return DATASETS["streets"](args.data_root, split, args.videos, args.frames, STREETS_SIZE)
    return DATASETS[args.dataset](args.data_root, args.split or "val")


def predictor_of(args, setting: str | None) -> VideoPredictor:
    sampling = cli.given(args, StreamConfig)
    if setting:
        try:
            first_steps, steps, time_difference = setting.split(",")
            sampling |= {"first_steps": int(first_steps), "steps": int(steps)}
            sampling |= {"time_difference": float(time_difference)}
        except ValueError:
            raise cli.UsageError(f"a setting is first_steps,steps,time_difference, not {setting!r}") from None
    size = tuple(args.image_size) if args.image_size else None
    predictor = VideoPredictor.from_checkpoint(args.checkpoint, device=args.device, image_size=size, **sampling)
    predictor.only_infer()
    return predictor


def frames_of(source: FrameSource, args) -> Iterator[Frame]:
    """The first frames of the first videos, or the first images, by --videos and --frames."""
    videos = itertools.groupby(range(len(source.frames)), key=lambda i: source.frames[i].sequence)
    for sequence, positions in itertools.islice(videos, args.videos):
        for i in itertools.islice(positions, args.frames):
            image, *truth = source.read(i)
            yield sequence if source.is_video else None, image, tuple(truth)


def evaluate(source: FrameSource, args, answer: Answer, things: tuple[int, ...]) -> dict[str, float | None]:
    """The metrics of the answers to all frames, and the mean seconds of an answer."""
    plain, by_segment, by_pixel = (Evaluation(things, things, class_names=CLASS_NAMES) for _ in range(3))
    seconds, count = 0.0, 0
    for frame in tqdm(frames_of(source, args), leave=False, disable=None):
        sequence, _, truth = frame
        begin = time.perf_counter()
        predicted = answer(frame)
        seconds, count = seconds + time.perf_counter() - begin, count + 1
        plain.update(truth, predicted, sequence)
        if sequence is not None:
            by_segment.update(truth, (predicted[0], named_by_segment(truth, predicted, things)), sequence)
            ids = np.where(np.isin(truth[0], things), truth[1], 0)
            by_pixel.update(truth, (predicted[0], np.where(np.isin(predicted[0], things), ids, 0)), sequence)
    result = plain.result()
    figures = {name: result["stq"][name] for name in ("STQ", "AQ")}
    figures |= {"AQ seg": by_segment.result()["stq"]["AQ"], "AQ pix": by_pixel.result()["stq"]["AQ"]}
    figures |= {"SQ": result["stq"]["SQ"], "PQ": result["pq"]["All"]["PQ"], "PQ th": result["pq"]["Things"]["PQ"]}
    figures |= {"PQ st": result["pq"]["Stuff"]["PQ"], "mIoU": result["miou"]["mIoU"], "seconds": seconds / count}
    return figures


def named_by_segment(truth: Labels, predicted: Labels, things: tuple[int, ...]) -> np.ndarray:
    """Give each predicted segment the id of most of its true thing pixels."""
    ids = np.zeros_like(predicted[1])
    is_thing = np.isin(truth[0], things) & (truth[1] > 0)
    for track in np.unique(predicted[1])[1:]:
        here = predicted[1] == track
        inside = truth[1][here & is_thing]
        ids[here] = np.bincount(inside).argmax() if inside.size else 60_000 + track % 5_000
    return ids


# ---------------------------------------------------------------------------------------------------------------------
# Sources of answers
# ---------------------------------------------------------------------------------------------------------------------


def streaming(predictor: VideoPredictor) -> Answer:
    """The predictor, one video after another; each image of a set of images is a video of its own."""
    last, numbers = "no video yet", itertools.count()

    def answer(frame: Frame) -> Labels:
        nonlocal last
        sequence, image, _ = frame
        if sequence is None or sequence != last:
            predictor.reset(next(numbers))
        last = sequence
        panoptic = predictor(image)
        return panoptic.semantic, panoptic.track

    return answer


def reference(name: str) -> Answer:
    """Answers with the truth of the previous frame (for the first its own), or of the first frame."""
    held: dict[str, Labels] = {}

    def answer(frame: Frame) -> Labels:
        sequence, _, truth = frame
        predicted = held.get(sequence, truth)
        if name == "previous" or sequence not in held:
            held[sequence] = truth
        return predicted

    return answer


def components(predictor: VideoPredictor, things: tuple[int, ...]) -> Answer:
    """The predictor's classes; instances are their connected components at mask size, tracked by overlap."""
    plain = streaming(predictor)
    state: dict = {"sequence": "no video yet"}

    def answer(frame: Frame) -> Labels:
        sequence, image, _ = frame
        if sequence is None or sequence != state["sequence"]:
            state.update(sequence=sequence, before=None, next_id=1)
        semantic, _ = plain(frame)
        small = nearest(semantic, predictor.sizes(image)[1])
        labels = np.zeros(small.shape, np.int64)
        for c in things:
            part = _components(small == c)
            labels = np.where(part > 0, part * 256 + c, labels)
        keys, areas = np.unique(labels[labels > 0], return_counts=True)
        ids, taken = np.zeros(small.shape, np.int64), set()
        for key in keys[np.argsort(-areas, kind="stable")]:
            here = labels == key
            if here.sum() < predictor.config.min_area:
                continue
            track = 0
            if state["before"] is not None and state["before"].shape == small.shape:
                seen = state["before"][here]
                seen = seen[(seen > 0) & (seen % 256 == key % 256) & ~np.isin(seen // 256, [*taken])]
                track = int(np.bincount(seen // 256).argmax()) if seen.size else 0
            if not track:
                track, state["next_id"] = state["next_id"], state["next_id"] + 1
            taken.add(track)
            ids[here] = track * 256 + key % 256
        state["before"] = ids
        return semantic, np.where(np.isin(semantic, things), nearest(ids // 256, semantic.shape), 0).astype(np.int32)

    return answer


def _components(mask: np.ndarray) -> np.ndarray:
    """4-connected components of a bool mask (h, w): int (h, w), 0 outside, a different number in each.

    Each pixel takes the largest number of its neighbours until nothing changes.
    """
    inside = torch.from_numpy(mask)[None, None]
    labels = torch.arange(1, mask.size + 1, dtype=torch.float32).view(1, 1, *mask.shape) * inside
    while True:
        spread = torch.maximum(
            F.max_pool2d(labels, (3, 1), stride=1, padding=(1, 0)),
            F.max_pool2d(labels, (1, 3), stride=1, padding=(0, 1)),
        )
        spread = spread * inside
        if torch.equal(spread, labels):
            return labels[0, 0].long().numpy()
        labels = spread


def show(name: str, figures: dict[str, float | None], names: tuple[str, ...]) -> dict:
    values = "".join("       -" if figures[n] is None else f"{figures[n]:8.3f}" for n in names)
    print(f"{name:<22}{values}   {figures['seconds']:.3f}", flush=True)
    return {"setting": name, **figures}


if __name__ == "__main__":
    cli.run(main)
