"""Quality over sampling: STQ on held-out Streets videos for numbers of steps, time differences and samplers.

    python benchmarks/sampling.py --checkpoint results/pretrained/model-tiny.pt              the curve over steps
    python benchmarks/sampling.py --settings 20,8,0 20,8,0.4 --frames 200 --videos 4      chosen ones, longer videos

A setting is first_steps,steps,time_difference[,sampler]. Videos are of Streets' split `test`, which no training sees,
at full frame size; all are predicted side by side. --references adds the figures of doing nothing: the truth of the
frame before, and of the first frame, as the prediction.
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cli

with cli.imports():
    import numpy as np
    from tqdm import tqdm

    from data.labels import CLASS_NAMES
    from data.streets.source import TRACKED, render_video, tracked_only
    from metrics import Evaluation
    from model import StreamConfig, StreamState, VideoPredictor

OPTIONS = {
    "what": [
        cli.Option("checkpoint", Path("results/pretrained/model-tiny.pt"), "weights"),
        cli.Option(
            "settings", ("1,1,0", "4,2,0", "8,4,0", "20,8,0", "50,20,0"), "first_steps,steps,time_difference ..."
        ),
        cli.Option("references", False, "also the trivial references"),
        cli.Option("min_area", 4, "instances of fewer mask pixels are dropped"),
        cli.Option("seed", 42, "of the noise"),
        cli.Option("merge", 0.5, "a slot is part of one that is this likely for its pixels, relative to it; 0: never"),
        cli.Option("fresh", True, "all but one of a later frame's steps without history"),
        cli.Option("average_classes", True, "classes by all steps' answers"),
        cli.Option("max_gap", 5, "frames for which a track may be lost and still go on where it was"),
        cli.Option("json", None, "file for the figures", kind=Path),
    ],
    "videos": [
        cli.Option("videos", 16, "number of videos"),
        cli.Option("frames", 24, "frames of each"),
        cli.Option("split", "test", "which videos", ("val", "test")),
        cli.Option("device", "cpu", "where to compute", ("cpu", "cuda")),
    ],
}

Video = list[tuple[np.ndarray, np.ndarray, np.ndarray]]


def main() -> None:
    parser = cli.Parser(__doc__)
    cli.add_options(parser, OPTIONS)
    args = parser.parse_args()
    settings = [parse(text, args) for text in args.settings]
    videos = render(args.videos, args.frames, args.split)
    print(f"{'setting':>24}  {'STQ':>6} {'AQ':>6} {'SQ':>6} {'VPQ':>6} {'PQ th':>6} {'mIoU':>6}  s a frame and video")
    rows = []
    for config in settings:
        predictor = VideoPredictor.from_checkpoint(args.checkpoint, config=config, device=args.device)
        begin = time.perf_counter()
        evaluation = evaluate(predictor, videos)
        seconds = (time.perf_counter() - begin) / (args.videos * args.frames)
        name = f"{config.sampler} {config.first_steps}+{config.steps} td {config.time_difference:g}"
        rows.append(show(name, evaluation, seconds))
    if args.references:
        rows += [show(f"truth: {name}", reference(videos, name), None) for name in ("previous", "hold")]
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


def parse(text: str, args) -> StreamConfig:
    parts = text.split(",")
    try:
        first, later, difference = int(parts[0]), int(parts[1]), float(parts[2])
    except (ValueError, IndexError):
        raise cli.UsageError(f"a setting is first_steps,steps,time_difference[,sampler], not {text!r}") from None
    sampler = parts[3] if len(parts) > 3 else "ddim"
    others = {k: getattr(args, k) for k in ("min_area", "seed", "merge", "max_gap", "fresh", "average_classes")}
    return StreamConfig(first, later, sampler, difference, **others)


def render(videos: int, frames: int, split: str) -> list[Video]:
    """The videos as (image, semantic, instance) a frame, ids of persons and cars alone."""
    return [
        [(image, semantic, tracked_only(semantic, ids)) for image, semantic, ids in render_video(seed, split, frames)]
        for seed in tqdm(range(videos), desc="render", leave=False)
    ]


def evaluate(predictor: VideoPredictor, videos: list[Video]) -> Evaluation:
    evaluation = Evaluation(tracked=TRACKED, class_names=CLASS_NAMES)
    states = [StreamState(number) for number in range(len(videos))]
    for t in tqdm(range(len(videos[0])), leave=False):
        answers, states = predictor.step([video[t][0] for video in videos], states)
        for number, (video, answer) in enumerate(zip(videos, answers, strict=True)):
            evaluation.update(video[t][1:], (answer.semantic, answer.track), number)
    return evaluation


def reference(videos: list[Video], name: str) -> Evaluation:
    """The truth of the frame before (`previous`; the first frame predicts itself) or of the first frame (`hold`)."""
    evaluation = Evaluation(tracked=TRACKED, class_names=CLASS_NAMES)
    for number, video in enumerate(videos):
        for t, frame in enumerate(video):
            evaluation.update(frame[1:], video[max(t - 1, 0) if name == "previous" else 0][1:], number)
    return evaluation


def show(name: str, evaluation: Evaluation, seconds: float | None) -> dict:
    r = evaluation.result()
    row = {k: r["stq"][k] for k in ("STQ", "AQ", "SQ")}
    row |= {"VPQ": r["vpq"]["VPQ"]["all"], "PQ things": r["pq"]["Things"]["PQ"], "mIoU": r["miou"]["mIoU"]}
    timing = "" if seconds is None else f"{seconds:.3f}"
    print(f"{name:>24}  " + " ".join(f"{v:6.3f}" for v in row.values()) + f"  {timing}", flush=True)
    return {"setting": name, **row, "seconds_a_frame": seconds}


if __name__ == "__main__":
    cli.run(main)
