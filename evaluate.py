"""Compare predicted panoptic video with the ground truth: STQ, VPQ, PQ and mIoU.

  python evaluate.py --predictions data/output --ground_truth data/KittiSTEP --json val.json
  python evaluate.py --predictions data/output --ground_truth data/Cityscapes     single images
  python evaluate.py --ground_truth data/KittiSTEP --reference previous        copy the last frame
  python evaluate.py --ground_truth data/KittiSTEP --reference mask            a mask's best
  python evaluate.py --predictions data/output --no-evaluate --export kitti_step results/submission

Both folders are searched, with all folders beneath them. Frames are paired by name:
  KITTI-STEP   <sequence>_<frame>_panoptic.png (R = class, G * 256 + B = id), or
               <sequence>/<frame>.png
  Cityscapes   <name>_gtFinePanopticParts.tif, <name>_gtFine_instanceIds.png
  COCO         *panoptic*<split>.json + PNGs, with or without track ids
  MOTS         <sequence>/<frame>.png of 16 bits
Every frame of the ground truth needs one prediction of its size, and no other may be there. Nothing
is resized or left out: whatever is wrong is listed, and then there are no figures.
"""

import argparse
import contextlib
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import cli
from cli import Option

with cli.imports():
    import numpy as np
    import torch
    from tqdm import tqdm

    from data.io.cores import usable_cores
    from data.io.export import export_cityscapes, export_kitti_step, write_json
    from data.io.label_files import (
        CITYSCAPES,
        SPLITS,
        LabelFile,
        find_labels,
        matched,
        read_header,
        read_labels,
        split_of,
    )
    from data.io.listing import LeftOut, in_words
    from data.io.pixels import nearest
    from data.labels import DEFAULT_SPACE, DataError, LabelSpace, read_label_space
    from metrics import Evaluation
    from metrics.remarks import in_table, on_edges, shape_of, why_not
    from model import ModelConfig
    from model import checkpoint as checkpoints
    from model.stream.answer import decide
    from model.stream.loading import config_of

EXPORTS = ("cityscapes", "kitti_step")
OPTIONS = {
    "files": (
        Option("predictions", Path("data/output"), "folder of predictions", kind=Path),
        Option(
            "ground_truth", Path("data/KittiSTEP"), "folder of ground truth, the split's own or one above", kind=Path
        ),
        Option("split", "val", "which split, where the folder of ground truth holds several", choices=SPLITS),
        Option("classes", None, "classes.json of a truth without one", kind=Path, rare=True),
        Option("json", None, "file for the figures, fractions of one; none: they are only printed", kind=Path),
    ),
    "measures": (
        Option(
            "things",
            ("auto",),
            "classes with instances and tracks; auto: those with tracks, of single images all things",
            metavar="CLASS",
        ),
        Option(
            "reference",
            "none",
            "as prediction, the truth: of the frame before, of the first frame, or through the mask of a checkpoint",
            choices=("none", "previous", "hold", "mask"),
        ),
        Option("checkpoint", Path("results/pretrained/model-tiny.pt"), "model of --reference mask", rare=True),
    ),
    "export for the benchmarks' servers": (
        Option(
            "export",
            None,
            f"write the predictions to DIR as FORMAT: {' or '.join(EXPORTS)}",
            nargs=2,
            metavar=("FORMAT", "DIR"),
        ),
        Option("evaluate", True, "compare with ground truth; without, only export (the test splits have none)"),
    ),
    "run": (Option("workers", 0, "processes, each of which takes whole sequences; 0: one for each core"),),
}
IMAGES_AT_ONCE = 16  # single images in a worker's portion
SHAPE_EVERY = 8  # frames, of which one is searched for damaged labels


@dataclass(frozen=True)
class Frame:
    """A frame of the ground truth with its prediction. sequence: None for an image that is no part of a video."""

    sequence: str | None
    number: int
    truth: LabelFile
    prediction: LabelFile | None


def main() -> None:
    args = parse_args()
    left_out: LeftOut = {}
    own = read_label_space(args.classes) if args.classes else None
    truths = find_labels(args.ground_truth, args.split, left_out, own) if args.evaluate else {}
    split = split_of(args.ground_truth, truths, args.split) if args.evaluate else args.split
    predictions = find_labels(args.predictions, split, left_out, levels=0) if args.reference == "none" else {}
    predictions = matched(predictions, truths, args.predictions)
    if args.export and any(file.space is not None for file in predictions.values()):
        raise cli.UsageError("--export: the benchmarks' servers know the built-in classes alone")
    if args.evaluate:
        frames, problems = pair(truths, predictions, args.reference)
        space = space_of(truths, predictions)
        things = things_of(args.things, space, any(truth.kind in CITYSCAPES for truth in truths.values()))
        # Classes are known only once a file is read, so that the last check is the evaluation itself.
        evaluation, of_labels, shapes = evaluate(
            frames,
            things,
            space,
            mask_of(args.checkpoint) if args.reference == "mask" else args.reference,
            args.workers,
        )
        stop_if(problems + of_labels, args)
        result = evaluation.result()
        lengths = Counter(frame.sequence for frame in frames if frame.sequence is not None)
        has_tracks = not any(frame.prediction and frame.prediction.kind == "coco" for frame in frames)
        remarks = why_not(result, lengths, has_tracks) + on_edges(shapes, space.names)
        print(in_table(result, evaluation.frames))
        print("".join(f"\n{remark}" for remark in remarks), end="\n" * bool(remarks))
        if args.json:
            write_json(args.json, result)
    if args.export:
        form, folder = args.export
        files = tqdm([predictions[key] for key in sorted(predictions)], desc="export", unit="frame", disable=None)
        if form == "cityscapes":
            export_cityscapes(files, Path(folder), split)
        else:
            export_kitti_step(files, Path(folder))
    if left_out:
        print(f"\nleft out: {in_words(left_out)}")


def parse_args() -> argparse.Namespace:
    """The command line. Raises cli.UsageError for values that cannot be used, before any work is done."""
    parser = cli.Parser(__doc__)
    cli.add_options(parser, OPTIONS)
    args = parser.parse_args()
    if args.workers < 0:
        raise cli.UsageError(f"--workers must be 0 or more, not {args.workers}")
    if args.reference == "none" and not args.predictions.is_dir():
        raise cli.UsageError(
            f"--predictions {args.predictions} is no folder: run inference.py, or name its output folder"
        )
    if args.evaluate and not args.ground_truth.is_dir():
        raise cli.UsageError(f"--ground_truth {args.ground_truth} is no folder: name the folder of the data set")
    if not args.evaluate and not args.export:
        raise cli.UsageError("--no-evaluate leaves nothing to do without --export FORMAT DIR")
    if args.reference != "none" and (args.export or not args.evaluate):
        raise cli.UsageError("--reference evaluates the ground truth: it goes with neither --export nor --no-evaluate")
    if args.json:
        check_output(args.json.parent, "--json")
        if args.json.is_dir():
            raise cli.UsageError(f"--json {args.json} is a folder: name a file")
    if args.export:
        form, folder = args.export
        if form not in EXPORTS:
            raise cli.UsageError(f"--export {form} is not known: use {' or '.join(EXPORTS)}, then a folder")
        if Path(folder).resolve().is_relative_to(args.predictions.resolve()):
            raise cli.UsageError(f"--export {form} {folder} lies in the folder of predictions: choose another one")
        check_output(Path(folder), "--export")
    return args


def check_output(folder: Path, flag: str) -> None:
    """Make the folder that will be written to, so that a lack of permission is not found out at the end."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cli.UsageError(f"{flag}: {folder} cannot be made ({error.strerror})") from None
    if not os.access(folder, os.W_OK):
        raise cli.UsageError(f"{flag}: {folder} cannot be written to")


def space_of(truths: dict[str, LabelFile], predictions: dict[str, LabelFile]) -> LabelSpace:
    """The classes of both. Raises cli.UsageError where they differ."""
    first = [next(iter(files.values())).space for files in (truths, predictions) if files]
    truth, *others = (space or DEFAULT_SPACE for space in first)
    for other in others:
        if other.names != truth.names:
            raise cli.UsageError(
                f"the predictions have the classes {', '.join(other.names[:4])}, ..., the ground truth "
                f"{', '.join(truth.names[:4])}, ...: name the truth's classes.json with --classes"
            )
    return truth


def mask_of(checkpoint: Path) -> ModelConfig:
    """The configuration of a checkpoint's model. Raises CheckpointError."""
    return config_of(checkpoints.load(checkpoint), checkpoint)


def things_of(names: list[str] | tuple[str, ...], space: LabelSpace, images: bool) -> tuple[int, ...]:
    """--things -> classes. Raises cli.UsageError for a name that is no class."""
    if list(names) == ["auto"]:
        return space.things if images else space.tracked
    if unknown := [name for name in names if name not in space.names]:
        raise cli.UsageError(f"--things {unknown[0]}: classes are {', '.join(space.names)}")
    return tuple(space.names.index(name) for name in names)


# ---------------------------------------------------------------------------------------------------------------------
# Pairs, and what is wrong with them
# ---------------------------------------------------------------------------------------------------------------------


def pair(
    truths: dict[str, LabelFile], predictions: dict[str, LabelFile], reference: str
) -> tuple[list[Frame], list[str]]:
    """The pairs in order, and a line for each frame that is missing, extra, of another size or unreadable, which is in
    no pair. Only names and the files' headers are looked at.
    """
    frames, pairs, problems = [], [], []
    for key, truth in truths.items():
        video = None if truth.kind in CITYSCAPES else truth.video
        sequence, number = video or (None, 0)
        if reference in ("previous", "hold") and sequence is None:
            raise cli.UsageError(f"--reference {reference} needs videos, and {truth.path} is a single image")
        frames.append(Frame(sequence, number, truth, predictions.get(key)))
    frames.sort(key=lambda f: (f.sequence or "", f.number, f.truth.name))

    if reference != "none":
        return frames, []

    for frame in frames:
        if frame.prediction is None:
            problems.append(f"missing: {frame.truth.name} has no prediction")
            continue
        try:
            (h, w), (ph, pw) = read_header(frame.truth), read_header(frame.prediction)
        except DataError as error:
            problems.append(f"unreadable: {error}")
            continue
        if (h, w) == (ph, pw):
            pairs.append(frame)
        else:
            problems.append(f"other size: {frame.prediction.path} is {pw}x{ph}, its ground truth {w}x{h}")
    extra = (file for key, file in sorted(predictions.items()) if key not in truths)
    return pairs, problems + [f"extra: {file.path} has no ground truth" for file in extra]


def stop_if(problems: list[str], args: argparse.Namespace) -> None:
    """List the problems on standard output and raise cli.UsageError with their sum, or return where there are none."""
    if not problems:
        return
    print(*problems, sep="\n")
    kinds = [problem.split(":", 1)[0] for problem in problems]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    folder = args.ground_truth if args.reference != "none" else args.predictions
    raise cli.UsageError(
        f"{folder} cannot be evaluated: {counts} (listed above; first: {problems[0]}); mend these, or name other "
        "folders or another --split"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation, sequence by sequence
# ---------------------------------------------------------------------------------------------------------------------


def evaluate(
    frames: list[Frame], things: tuple[int, ...], space: LabelSpace, reference: str | ModelConfig, workers: int
) -> tuple[Evaluation, list[str], np.ndarray]:
    """All frames' figures, the same bits for any number of workers; what was wrong in the files, a line each; and
    `shape_of` some frames."""
    portions = [(portion, things, space, reference) for portion in portions_of(frames)]
    portions.sort(key=lambda p: -len(p[0]))  # the longest first, so that no worker is left with it at the end
    workers = max(1, min(workers or usable_cores(), len(portions)))
    total = new_evaluation(things, space)
    problems: list[str] = []
    shapes = np.zeros((2, 2, 256), np.int64)
    quiet = (signal.SIGINT, signal.SIG_IGN)  # of an interruption the parent process tells, once
    with (
        multiprocessing.Pool(workers, signal.signal, quiet) if workers > 1 else contextlib.nullcontext() as pool,
        tqdm(total=len(frames), desc="evaluate", unit="frame", disable=None) as bar,
    ):
        for evaluation, of_portion, of_labels in (pool.imap_unordered if pool else map)(_work, portions):
            bar.update(evaluation.frames + len(of_portion))
            total.merge(evaluation)
            problems += of_portion
            shapes += of_labels
    return total, sorted(problems), shapes


def new_evaluation(things: tuple[int, ...], space: LabelSpace) -> Evaluation:
    return Evaluation(things, things, len(space.classes), space.names)


def portions_of(frames: list[Frame]) -> Iterator[list[Frame]]:
    """Whole sequences, and single images by the handful."""
    for sequence, group in groupby(frames, key=lambda f: f.sequence):
        portion = list(group)
        size = IMAGES_AT_ONCE if sequence is None else len(portion)
        yield from (portion[i : i + size] for i in range(0, len(portion), size))


def evaluate_portion(
    frames: list[Frame],
    things: tuple[int, ...],
    space: LabelSpace,
    reference: str | ModelConfig,
) -> tuple[Evaluation, list[str], np.ndarray]:
    """The figures of one portion, and the files that cannot be used: all of them, none ends the run."""
    evaluation = new_evaluation(things, space)
    problems = []
    held = None
    shapes = np.zeros((2, 2, 256), np.int64)
    for place, frame in enumerate(frames):
        try:
            truth = read_labels(frame.truth)
            if reference == "none":
                prediction = read_labels(frame.prediction)
            elif not isinstance(reference, str):
                prediction = through_mask(*truth, reference.sizes_for(truth[0].shape)[1])
            else:
                prediction = truth if held is None else held
                held = truth if reference == "previous" else prediction
            if prediction[0].shape != truth[0].shape:
                raise DataError(f"{frame.truth.path} has another size than the frame that predicts it")
            evaluation.update(truth, prediction, frame.sequence)
            if place % SHAPE_EVERY == 0:
                shapes += np.stack([shape_of(truth[0]), shape_of(prediction[0])])
        except DataError as error:
            problems.append(f"unfit labels: {error}")
    return evaluation, problems, shapes


def through_mask(semantic: np.ndarray, track: np.ndarray, mask_size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The truth as a perfect model would predict it: resized to the mask's size and back.

    semantic, track: class indices and ids (H, W), returned in their types and size. What is lost is what the mask is
    too coarse to show.
    """
    keys = semantic.astype(np.int64) << 32 | track
    values, labels = np.unique(nearest(keys, mask_size), return_inverse=True)
    labels = torch.from_numpy(labels.reshape(mask_size))
    certain = torch.eye(len(values))
    decided = values[decide(labels, lambda pixels: certain[labels.flatten()[pixels]], semantic.shape).numpy()]
    return (decided >> 32).astype(semantic.dtype), (decided & 0xFFFFFFFF).astype(track.dtype)


def _work(portion: tuple) -> tuple:
    return evaluate_portion(*portion)


if __name__ == "__main__":
    cli.run(main)
