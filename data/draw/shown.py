"""Read an inference from its folder: its frames with predictions and truth, and the lives of its tracks.

Only for viewing (visualize.ipynb, the viewer); inference itself writes through data/videos/output.py.
"""

import contextlib
import dataclasses
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from data.io.images import read_image, read_panoptic
from data.io.label_files import LabelFile, find_labels, label_file, matched, read_labels
from data.labels import DEFAULT_SPACE, VOID, DataError, LabelSpace, label_space_of
from data.sets.frames import natural_key
from data.videos.find import find_sequences
from data.videos.folder import TRACKS
from data.videos.output import describe_segments
from data.videos.sequences import Sequence as Video
from data.videos.video import is_stream

DEMO = Path("results/demo")
# Default folders of predictions and of their frames, of inference.py and of the demo.
PLACES = (
    (Path("data/output"), Path("data/input")),
    (DEMO / "output", DEMO / "world/kitti_out/video_sequence/test"),
)
RUN = ".inference/run.json"  # in an output folder: the input folder and the checkpoint of the last inference
KEPT = 256 << 20  # bytes of frames kept in memory; other frames are read again each time
_NAMED = re.compile(r"(?P<sequence>.+)_(?P<number>\d+)")


@dataclass(frozen=True)
class Inference:
    """The paths of an inference: its predictions, its frames, and its checkpoint if known."""

    output: Path
    inputs: Path | str  # an address where it was a stream
    checkpoint: Path | None = None


@dataclass(frozen=True)
class Shown:
    """One frame: image uint8 (H, W, 3); semantic uint8 and track int32 (H, W); `truth` the same two, or None."""

    sequence: str
    number: int
    image: np.ndarray
    semantic: np.ndarray
    track: np.ndarray
    truth: tuple[np.ndarray, np.ndarray] | None
    space: LabelSpace = DEFAULT_SPACE


@dataclass(frozen=True)
class Frames(Sequence[Shown]):
    """Frames that are read on demand, so that memory does not grow with the video.

    read: number of a frame -> the frame; numbers: those of these frames. A slice of Frames is Frames.
    """

    read: Callable[[int], Shown]
    numbers: Sequence[int]
    kept: dict[int, Shown] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return dataclasses.replace(self, numbers=self.numbers[i])
        number = self.numbers[i]
        if number in self.kept:
            return self.kept[number]
        frame = self.read(number)
        maps = (frame.image, frame.semantic, frame.track, *(frame.truth or ()))
        if (len(self.kept) + 1) * sum(m.nbytes for m in maps) <= KEPT:
            self.kept[number] = frame
        return frame

    def where(self, wanted: Callable[[Shown], bool]) -> "Frames":
        """The frames for which `wanted` is true."""
        return dataclasses.replace(self, numbers=[n for n, f in zip(self.numbers, self, strict=True) if wanted(f)])


def last_inference(output: str | Path | None = None, inputs: str | Path | None = None) -> Inference | None:
    """The inference in `output`; by default in data/output, else the demo's; None if neither has predictions.

    Raises DataError for an `output` without predictions.
    """
    places = PLACES if output is None else ((Path(output), dict(PLACES).get(Path(output), PLACES[0][1])),)
    for folder, usual in places:
        if next(folder.rglob("*_panoptic.png"), None) is None:
            continue
        try:
            run = json.loads((folder / RUN).read_text())
        except (OSError, ValueError):
            run = {}
        found = inputs or run.get("input_folder") or usual
        found = found if is_stream(found) else Path(found)
        return Inference(folder, found, Path(run["checkpoint"]) if run.get("checkpoint") else None)
    if output is not None:
        raise DataError(f"{output} holds no predictions (*_panoptic.png): name the output folder of inference.py")
    return None


def load_frames(inference: Inference, limit: int = 72, truth: str | Path | None = None) -> Frames:
    """The first `limit` predictions in order, each with its frame and, if there is one, its truth: those listed in
    tracks.jsonl, or all in the folder if that is missing.

    truth: folder of ground truth; by default the folder of the frames, where KITTI-STEP and the built-in world keep
    it. Missing frames are shown in grey. Reading a frame raises DataError if its prediction is damaged.
    """
    known = listed(inference.output)
    names = list(known)[:limit]
    paths = [inference.output / name for name in names]
    images, truths = _images(inference, names), {}
    with contextlib.suppress(DataError):
        folder = Path(truth or inference.inputs)
        split = folder.name if folder.name in ("train", "test") else "val"
        truths = truths_of(folder, split, inference, names)
    pictures = {image.resolve() for image in images.values() if isinstance(image, Path)}
    truths = {name: file for name, file in truths.items() if file.path.resolve() not in pictures}  # as 000000.png
    space = label_space_of(inference.output) or DEFAULT_SPACE

    def read(number: int) -> Shown:
        name = names[number]
        semantic, track = read_panoptic(paths[number], len(space.classes))
        image = images.get(name)
        if image is not None:
            image = read_image(image) if isinstance(image, Path) else np.asarray(Image.open(io.BytesIO(image)))
        if image is None or image.shape[:2] != semantic.shape:
            image = np.full((*semantic.shape, 3), 128, np.uint8)
        labels = truths.get(name)
        labels = None if labels is None else read_labels(labels)
        labels = labels if labels is not None and labels[0].shape == semantic.shape else None
        return Shown(*known[name], image, semantic, track, labels, space)

    if missing := [n for n in names if n not in images]:
        print(f"{len(missing)} of {len(names)} frames are not in {inference.inputs} and are shown in grey")
    return Frames(read, range(len(names)))


def listed(output: Path) -> dict[Path, tuple[str, int]]:
    """The predictions of the last inference, relative to the folder -> (sequence, frame)."""
    entries = []
    if (output / TRACKS).exists():
        entries = [json.loads(line) for line in (output / TRACKS).read_text().splitlines()]
    found = {Path(e["file"]): (e["sequence"], e["frame"]) for e in entries if (output / e.get("file", "")).is_file()}
    if found:
        return found
    names = sorted((p.relative_to(output) for p in output.rglob("*_panoptic.png")), key=lambda p: natural_key(str(p)))
    return {name: _sequence_of(name) for name in names}


def videos_of(inference: Inference) -> list[Video]:
    """The videos that an inference was given; none where they are gone, and of a stream, which has gone on."""
    try:
        return [] if is_stream(inference.inputs) else find_sequences(inference.inputs)
    except DataError as error:
        if Path(inference.inputs).exists():
            print(error)
        return []


def _images(inference: Inference, names: list[Path]) -> dict[Path, Path | bytes]:
    """Names of predictions -> image files; for a video JPEGs in memory, because it is read only once."""
    images: dict[Path, Path | bytes] = {}
    for video in videos_of(inference):
        if video.frames is not None:
            images |= {frame.output: frame.image for frame in video.frames}
        elif wanted := sum(str(name).startswith(f"{video.stem}_") for name in names):
            try:
                for frame, image in islice(video.read(), wanted):
                    if isinstance(image, np.ndarray):
                        images[frame.output] = _jpeg(image)
            except DataError as error:  # a film that inference could not read either
                print(error)
    return images


def _jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def truths_of(folder: Path, split: str, inference: Inference, names: list[Path]) -> dict[Path, LabelFile]:
    """Names of predictions -> their truth, paired as in evaluate.py. Raises DataError where the folder has none."""
    truths = find_labels(folder, split, {})
    files = [label_file(inference.output / name, inference.output) for name in names]
    by_key = matched({file.key: file for file in files}, truths, inference.output, str(inference.inputs))
    keys = {file.path: key for key, file in by_key.items()}
    return {
        name: truths[keys[file.path]] for name, file in zip(names, files, strict=True) if keys.get(file.path) in truths
    }


def _sequence_of(name: Path) -> tuple[str, int]:
    stem = name.name.removesuffix("_panoptic.png")
    match = _NAMED.fullmatch(stem)
    folder = "" if name.parent == Path() else f"{name.parent.as_posix()}/"
    return (folder + match["sequence"], int(match["number"])) if match else (folder.rstrip("/") or "video", 0)


def track_lives(inference: Inference, smallest: int = 1) -> dict[str, dict[int, tuple[int, list[int]]]]:
    """{sequence: {id: (class, frames in which it has `smallest` pixels or more)}} from tracks.jsonl.

    If that is missing, as after an interrupted inference, from the masks.
    """
    lives: dict[str, dict[int, tuple[int, list[int]]]] = {}
    path = inference.output / TRACKS
    if path.exists():
        entries = (json.loads(line) for line in path.read_text().splitlines())
    else:
        entries = (
            {"sequence": s, "frame": n, "segments": describe_segments(*read_panoptic(inference.output / name, VOID))}
            for name, (s, n) in listed(inference.output).items()
        )
    for entry in entries:
        tracks = lives.setdefault(entry["sequence"], {})
        for segment in entry["segments"]:
            if segment["id"] and segment["area"] >= smallest:
                tracks.setdefault(segment["id"], (segment["class"], []))[1].append(entry["frame"])
    return lives


def newest_log(folder: str | Path = "results") -> Path | None:
    """The most recently written log.jsonl beneath a folder."""
    logs = Path(folder).glob("**/log.jsonl")
    return max(logs, key=lambda p: p.stat().st_mtime, default=None)
