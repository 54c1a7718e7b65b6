"""What inference reads: a folder of images, a folder of such folders, or a video file, as sequences of frames.

Images named `<sequence>_<frame>_leftImg8bit.png` are grouped by sequence; other images of a folder are one sequence.
Frames are ordered by number, not by string, and a jump in the numbers larger than the sequence's usual step is a gap
that no history crosses.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from data.io.video import VIDEO_SUFFIXES, read_video
from data.labels import DataError, read_image
from data.sets.frames import natural_key, usual_step

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
_NAMED = re.compile(r"(?P<sequence>.+)_(?P<number>\d+)_leftImg8bit")
_OURS = re.compile(r".*_(panoptic|overlay|gtFine\w*|labelIds|instanceIds)")  # what may lie beside the images


@dataclass(frozen=True)
class InputFrame:
    number: int
    output: Path  # of its prediction, relative to the output folder
    image: Path | None  # None for a frame of a video file
    after_gap: bool = False  # no history crosses to this frame


@dataclass(frozen=True)
class Sequence:
    """One video: its name, unique among the inputs, and its frames in order (unknown for a video file)."""

    name: str
    frames: list[InputFrame] | None
    video: Path | None = None

    def read(self, skip: int = 0) -> Iterator[tuple[InputFrame, np.ndarray | DataError]]:
        """Each frame but the first `skip`, with its image uint8 (H, W, 3) or the DataError that says why it has none.

        Raises DataError for a video file of which nothing can be read; one that breaks off ends with the DataError.
        """
        if self.video is None:
            for frame in self.frames[skip:]:
                try:
                    yield frame, read_image(frame.image)
                except DataError as error:
                    yield frame, error
            return
        number, images = 0, read_video(self.video)
        while True:
            frame = InputFrame(number, Path(f"{self.video.stem}_{number:06d}_panoptic.png"), None)
            try:
                image = next(images, None)
            except DataError as error:
                if number == 0:
                    raise
                if number >= skip:
                    yield frame, DataError(f"{error}, after frame {number - 1}")
                return
            if image is None:
                return
            if number >= skip:
                yield frame, image
            number += 1


def find_sequences(path: str | Path) -> list[Sequence]:
    """All sequences of an input. Raises DataError where there is nothing to read or two frames share one output."""
    path = Path(path)
    if path.is_file():
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            kinds = " ".join(VIDEO_SUFFIXES)
            raise DataError(f"{path} is neither a folder of images nor a video ({kinds})")
        return [Sequence(path.stem, None, path)]
    if not path.is_dir():
        raise DataError(
            f"the input folder {path} is missing: put frames there, or name a folder or a video by --input_folder"
        )

    sequences: list[Sequence] = []
    for folder in sorted({p.parent for p in _files(path)}, key=lambda p: natural_key(str(p))):
        for name, images in _grouped(folder).items():
            inside = folder.relative_to(path)
            frames = _numbered(images, inside)
            label = str(inside / name) if name else str(inside) if inside != Path() else path.resolve().name
            while any(s.name == label for s in sequences):  # as of a folder `a` beside images `a_<n>_leftImg8bit.png`
                label += "+"
            sequences.append(Sequence(label, frames))
        for video in sorted(p for p in _files(folder, deep=False) if p.suffix.lower() in VIDEO_SUFFIXES):
            raise DataError(f"{video} is a video inside a folder: give it by itself, --input_folder {video}")
    if not sequences:
        raise DataError(
            f"{path} holds no images ({' '.join(IMAGE_SUFFIXES)}) and no folders of images: put frames there, or name "
            "a folder or a video by --input_folder"
        )
    outputs: dict[Path, Path] = {}
    for frame in (f for s in sequences for f in s.frames):
        if frame.output in outputs:
            raise DataError(f"{frame.image} and {outputs[frame.output]} would share the prediction {frame.output}")
        outputs[frame.output] = frame.image
    return sequences


def _files(folder: Path, deep: bool = True) -> list[Path]:
    suffixes = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    found = folder.rglob("*") if deep else folder.iterdir()
    return [
        p
        for p in found
        if p.suffix.lower() in suffixes and p.is_file() and not p.name.startswith(".") and not _OURS.fullmatch(p.stem)
    ]


def _grouped(folder: Path) -> dict[str, list[Path]]:
    """The images of one folder by sequence; those with other names under ''."""
    groups: dict[str, list[Path]] = {}
    for path in _files(folder, deep=False):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            match = _NAMED.fullmatch(path.stem)
            groups.setdefault(match["sequence"] if match else "", []).append(path)
    return dict(sorted(groups.items(), key=lambda item: natural_key(item[0])))


def _numbered(images: list[Path], inside: Path) -> list[InputFrame]:
    """The frames of one sequence in order, with their gaps."""
    ordered = sorted(images, key=lambda p: (natural_key(p.stem), p.name))
    numbers = [_number(p) for p in ordered]
    if None in numbers or len(set(numbers)) < len(numbers):  # names that do not number the frames
        numbers = list(range(len(ordered)))
    ranked = sorted(zip(numbers, ordered, strict=True))
    step = usual_step([n for n, _ in ranked])
    gaps = {b for (a, _), (b, _) in pairwise(ranked) if b - a > step}
    return [
        InputFrame(n, inside / f"{p.stem.removesuffix('_leftImg8bit')}_panoptic.png", p, n in gaps) for n, p in ranked
    ]


def _number(path: Path) -> int | None:
    """The last number in a name: 12 of `frame_12.png`."""
    digits = re.findall(r"\d+", path.stem.removesuffix("_leftImg8bit").replace("leftImg8bit", ""))
    return int(digits[-1]) if digits else None
