"""The interface of a data set: an ordered list of frames, each with its image and labels.

Also the one rule for history: frames are ordered by number, and history never crosses to another sequence or over a
gap. A gap is a jump in the numbers of more than twice the sequence's usual step.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby, pairwise
from pathlib import Path
from typing import Protocol

import numpy as np

from data.io.images import read_image
from data.labels import DEFAULT_SPACE, DataError, LabelSpace, label_space_of


@dataclass(frozen=True)
class FrameRef:
    """One frame of a sequence; `image` and `label` are its files, None for a generated frame."""

    sequence: str
    number: int
    image: Path | None = None
    label: Path | None = None


class FrameSource(Protocol):
    """A data set. `frames` are ordered by sequence and number; labels are as in `data.labels`."""

    name: str
    space: LabelSpace
    tracked: tuple[int, ...]  # the classes whose instances have ids
    frames: list[FrameRef]
    is_video: bool  # False: single images, no frame has a history

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Frame i as image uint8 (H, W, 3), semantic uint8 (H, W), instance int32 (H, W). Raises DataError."""

    def read_labels(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Frame i as semantic uint8 (H, W), instance int32 (H, W). Raises DataError."""


class FileSource:
    """The common part of all data sets of files; a subclass reads one label file."""

    frames: list[FrameRef]
    label_indexes: Sequence[Path] = ()  # files beside those of the frames that labels are read from
    space = DEFAULT_SPACE
    own_space: LabelSpace | None = None  # the same, if the root has a classes.json

    def take_label_space(self, root: Path, tracks: bool) -> None:
        """Use the classes of a classes.json in the root. tracks: whether only classes with tracks have ids."""
        if (space := label_space_of(root)) is not None:
            self.space = self.own_space = space
            self.tracked = space.tracked if tracks else space.things

    def read_target(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        raise NotImplementedError

    def read_labels(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        frame = self.frames[i]
        if frame.label is None:
            raise DataError(f"{frame.image} has no labels: this split is for inference only")
        return self.read_target(frame.label)

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        frame = self.frames[i]
        semantic, instance = self.read_labels(i)
        image = read_image(frame.image)
        if image.shape[:2] != semantic.shape:
            (h, w), (lh, lw) = image.shape[:2], semantic.shape
            raise DataError(f"{frame.image} is {w}x{h}, but its label {frame.label} is {lw}x{lh}")
        return image, semantic, instance


# Folder names that say what is in them but do not name a video.
_GENERAL = {
    "img1", "images", "image", "image_02", "image_2", "imgs", "frames", "rgb", "data", "masks", "labels", "gt",
    "instances", "panoptic", "panoptic_maps", "train", "val", "test", "training", "validation", "testing", "output",
}  # fmt: skip


def frame_name(name: str, path: Path, folder: Path) -> str:
    """`<sequence>_<number>` of a file: its name. If that is only a number, the nearest folder beneath `folder` that can
    name a sequence is put before it."""
    if name.isdecimal():
        parts = (part for part in reversed(path.relative_to(folder).parts[:-1]) if part.lower() not in _GENERAL)
        name = f"{part}_{name}" if (part := next(parts, "")) else name
    return name


def natural_key(text: str) -> list:
    """Sort key that orders digits by their value: frame_9 before frame_10; also time stamps with a fraction."""
    parts = re.split(r"(\d{9,}\.\d+|(?:(?<=[_ ])-)?\d+)", text)
    return [(0, Decimal(part), "") if part[-1].isdecimal() else (1, 0, part) for part in parts if part]


def ordered(frames: Iterable[FrameRef]) -> list[FrameRef]:
    """Frames by sequence and number, both by value. Raises DataError if a number occurs twice in a sequence."""
    result = sorted(frames, key=lambda f: (natural_key(f.sequence), f.sequence, f.number))
    for a, b in pairwise(result):
        if (a.sequence, a.number) == (b.sequence, b.number):
            raise DataError(f"frame {a.number} of sequence {a.sequence} is there twice: {a.image} and {b.image}")
    return result


def usual_step(numbers: Sequence[int]) -> int:
    """The lower median of the steps between frame numbers (ascending); 1 for a single frame."""
    steps = sorted(b - a for a, b in pairwise(numbers))
    return steps[(len(steps) - 1) // 2] if steps else 1


def gaps(numbers: Sequence[int]) -> list[bool]:
    """Whether a gap lies before each frame: a step of more than twice the usual one. A single dropped frame or an
    uneven time stamp is no gap. numbers: ascending."""
    usual = usual_step(numbers)
    return [k > 0 and numbers[k] - numbers[k - 1] > 2 * usual for k in range(len(numbers))]


def whole_runs(frames: Sequence[FrameRef]) -> list[list[int]]:
    """The positions of the frames of each sequence, split at gaps. frames: as in a FrameSource."""
    runs: list[list[int]] = []
    for _, group in groupby(range(len(frames)), key=lambda i: frames[i].sequence):
        positions = list(group)
        for k, (position, gap) in enumerate(zip(positions, gaps([frames[i].number for i in positions]), strict=True)):
            if k == 0 or gap:
                runs.append([])
            runs[-1].append(position)
    return runs


def count_gaps(frames: Sequence[FrameRef]) -> int:
    """How often a gap ends the history within a sequence. frames: as in a FrameSource."""
    return len(whole_runs(frames)) - len({f.sequence for f in frames})


def history_index(frames: Sequence[FrameRef], offsets: Sequence[int]) -> np.ndarray:
    """For each frame, the positions of its history in `frames`: int64 (N, T), -1 where there is none.

    frames: ordered, as in a FrameSource; offsets: negative, in frames. History crosses no gap, as in inference.
    """
    history = np.full((len(frames), len(offsets)), -1, np.int64)
    for run in whole_runs(frames):
        for k, position in enumerate(run):
            history[position] = [run[k + offset] if k + offset >= 0 else -1 for offset in offsets]
    return history


def source_key(source: FrameSource, *settings) -> str:
    """A hash of a data set's files and of settings."""
    digest = hashlib.sha256(repr((*settings, str(getattr(source, "root", "")))).encode())
    for path in getattr(source, "label_indexes", ()):
        digest.update(repr((path.stat().st_size, path.stat().st_mtime_ns)).encode())
    for frame in source.frames:
        entry = [frame.sequence, frame.number]
        for path in (frame.image, frame.label):
            if path is not None:
                status = path.stat()
                entry += [str(path), status.st_size, status.st_mtime_ns]
        digest.update(repr(entry).encode())
    return digest.hexdigest()[:16]
