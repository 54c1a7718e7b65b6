"""What a data set is to the rest of the repository: an ordered list of frames, each with its image and labels.

Also the one rule for history: frames are ordered by number, and history never crosses from one sequence to another or
over a jump in the numbers that is larger than the sequence's usual step.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Protocol

import numpy as np

from data.labels import DataError, read_image


@dataclass(frozen=True)
class FrameRef:
    """One frame of a sequence; `image` and `label` are its files, None where a frame is made and not read."""

    sequence: str
    number: int
    image: Path | None = None
    label: Path | None = None


class FrameSource(Protocol):
    """A data set. `frames` are ordered by sequence and number; labels are as `data.labels` describes them."""

    name: str
    tracked: tuple[int, ...]  # trainIds of the classes whose instances have ids
    frames: list[FrameRef]
    is_video: bool  # False: single images, no frame has a history

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Frame i as image uint8 (H, W, 3), semantic uint8 (H, W), instance int32 (H, W). Raises DataError."""

    def read_labels(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Frame i as semantic uint8 (H, W), instance int32 (H, W). Raises DataError."""


class FileSource:
    """The part of a FrameSource that is the same for all data sets of files; a subclass reads one label file."""

    frames: list[FrameRef]

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


def natural_key(text: str) -> list:
    """Sort key that orders digits by their value: frame_9 before frame_10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]


def ordered(frames: Iterable[FrameRef]) -> list[FrameRef]:
    """Frames by sequence and number, both by value. Raises DataError where a number occurs twice in a sequence."""
    result = sorted(frames, key=lambda f: (natural_key(f.sequence), f.sequence, f.number))
    for a, b in pairwise(result):
        if (a.sequence, a.number) == (b.sequence, b.number):
            raise DataError(f"frame {a.number} of sequence {a.sequence} is there twice: {a.image} and {b.image}")
    return result


def usual_step(numbers: Sequence[int]) -> int:
    """The most frequent distance of neighbouring frame numbers (ascending), the smaller one of equals; 1 for one."""
    steps = Counter(b - a for a, b in pairwise(numbers))
    return min(steps, key=lambda step: (-steps[step], step)) if steps else 1


def whole_runs(frames: Sequence[FrameRef]) -> list[list[int]]:
    """The positions of the frames of each sequence, cut where its numbers jump. frames: as a FrameSource has them."""
    runs: list[list[int]] = []
    for _, group in groupby(range(len(frames)), key=lambda i: frames[i].sequence):
        positions = list(group)
        numbers = [frames[i].number for i in positions]
        step = usual_step(numbers)
        for k, position in enumerate(positions):
            if k == 0 or numbers[k] - numbers[k - 1] > step:
                runs.append([])
            runs[-1].append(position)
    return runs


def count_gaps(frames: Sequence[FrameRef]) -> int:
    """How often history breaks off within a sequence, at a jump in the numbers. frames: as a FrameSource has them."""
    return len(whole_runs(frames)) - len({f.sequence for f in frames})


def history_index(frames: Sequence[FrameRef], offsets: Sequence[int]) -> np.ndarray:
    """For each frame the positions of its history in `frames`: int64 (N, T), -1 where there is none.

    frames: ordered, as a FrameSource has them; offsets: negative, in units of the sequence's usual step. A frame of
    the history must exist at exactly that number, and no larger jump may lie between.
    """
    history = np.full((len(frames), len(offsets)), -1, np.int64)
    for _, group in groupby(range(len(frames)), key=lambda i: frames[i].sequence):
        positions = list(group)
        numbers = [frames[i].number for i in positions]
        step = usual_step(numbers)
        run_start = positions[0]  # the first frame since the last jump
        at = dict(zip(numbers, positions, strict=True))
        for k, (position, number) in enumerate(zip(positions, numbers, strict=True)):
            if k and number - numbers[k - 1] > step:
                run_start = position
            for t, offset in enumerate(offsets):
                past = at.get(number + offset * step, -1)
                history[position, t] = past if past >= run_start else -1
    return history
