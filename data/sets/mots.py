"""MOTS: videos in which only persons and cars are labelled, with tracks.

Layouts, each with <sequence>/<frame>.png of 16 bits, class * 1000 + id, class 1 = car, 2 = person, 10 = ignore:
  KITTI MOTS      <root>/instances/<sequence>/<frame>.png and <root>/training/image_02/<sequence>/<frame>.png
  MOTSChallenge   <root>/instances/<sequence>/<frame>.png and <root>/train/<sequence>/img1/<frame>.jpg
or both beneath a folder named by a split. All that is neither a person nor a car is void, which means "unknown" and not
"no person". Ignore regions are void, too.
Voigtlaender et al., "MOTS: Multi-Object Tracking and Segmentation", arXiv 1902.03604.
"""

import re
from pathlib import Path

import numpy as np

from data.io.images import open_image
from data.io.listing import walk
from data.labels import CAR, CLASSES_FILE, PERSON, VOID, DataError
from data.sets.frames import FileSource, FrameRef, frame_name, ordered

DEFAULT_ROOT = Path(__file__).resolve().parents[1] / "MOTS"
CLASSES = {1: CAR, 2: PERSON}
IGNORE = 10
VALIDATION = {2, 6, 7, 8, 10, 13, 14, 16, 18}  # sequences of KITTI's split val, if no folder is named by a split


class Mots(FileSource):
    """One split of MOTS as a FrameSource. root: None for data/MOTS. Raises DataError."""

    name = "mots"
    tracked = (PERSON, CAR)
    is_video = True

    def __init__(self, root: str | Path | None = None, split: str = "train"):
        self.root, self.split = DEFAULT_ROOT if root is None else Path(root), split
        if not self.root.is_dir():
            raise DataError(f"the folder {self.root} is missing: MOTS is <root>/instances and its images")
        if (self.root / CLASSES_FILE).exists():
            raise DataError(f"{self.root} holds MOTS labels, which have classes of their own: take {CLASSES_FILE} away")
        images, labels = {}, {}
        for path in walk(self.root):
            parts = path.relative_to(self.root).parts[:-1]
            is_frame = path.suffix.lower() in (".png", ".jpg", ".jpeg") and path.stem.isdecimal()
            if not is_frame or {"test", "testing"} & set(parts):
                continue
            labelled = "instances" in parts
            if match := re.fullmatch(r"(.+)_(\d+)", frame_name(path.stem, path, self.root)):
                key = match[1], int(match[2])
                if self._in_split(parts, match[1]):
                    (labels if labelled else images).setdefault(key, []).append(path)
        if not labels:
            raise DataError(f"{self.root} holds no instances/<sequence>/<frame>.png of the split {split!r}")
        for sequence, number in sorted(labels.keys() - images.keys())[:1]:
            raise DataError(f"the label file {labels[sequence, number][0]} is there without its image")
        self.frames = ordered(FrameRef(*key, _one(images[key]), _one(paths)) for key, paths in labels.items())

    def _in_split(self, folders: tuple[str, ...], sequence: str) -> bool:
        named = {"train", "val", "test"} & set(folders)
        if "val" in named or (self.root / "val").is_dir() or (self.root / "instances" / "val").is_dir():
            return self.split in named
        is_val = sequence.isdecimal() and int(sequence) in VALIDATION
        return is_val == (self.split == "val")

    def read_target(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        return read_mots(path)


def _one(paths: list[Path]) -> Path:
    """The file of a frame: of KITTI's left camera, whose pictures are labelled, or the only one. Raises DataError."""
    first, *others = [path for path in paths if "image_02" in path.parts] or paths
    if others:
        raise DataError(f"{first} and {others[0]} are both of one frame: take one away")
    return first


def read_mots(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """A MOTS instance PNG as semantic uint8 (H, W), void outside persons and cars, and instance int32 (H, W).

    Raises DataError.
    """
    image = open_image(path)
    if image.mode not in ("I", "I;16", "I;16B"):
        raise DataError(f"{path} is no MOTS instance PNG: its mode is {image.mode}, not 16 bits of grey")
    value = np.asarray(image).astype(np.int32)
    label = value // 1000
    unknown = np.setdiff1d(np.unique(label), [0, IGNORE, *CLASSES])
    if unknown.size:
        raise DataError(f"{path} holds class {unknown[0]}; MOTS has 1 = car, 2 = person and {IGNORE} = ignore")
    semantic = np.full(value.shape, VOID, np.uint8)
    for theirs, ours in CLASSES.items():
        semantic[label == theirs] = ours
    # Each class has its own ids from 0; here 0 is no id
    return semantic, np.where(semantic == VOID, 0, value % 1000 + 1).astype(np.int32)
