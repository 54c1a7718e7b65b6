"""Label maps on disk, in whichever layout they come: found, named, and read as (semantic, instance).

Layouts, the better one first where a frame is there in several:
  parts         <name>_gtFinePanopticParts.tif                        Cityscapes PanopticParts
  instances     <name>_gtFine_instanceIds.png                         Cityscapes gtFine
  coco          cityscapes_panoptic_<split>.json and its PNGs         cityscapesscripts, and submissions
  kitti_step    <sequence>_<frame>_panoptic.png                       KITTI-STEP, and this repository's predictions
  kitti_frames  <sequence>/<frame>.png                                KITTI-STEP as published, and submissions
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data.labels import LABEL_TO_TRAIN, NUM_CLASSES, THINGS, VOID, DataError, open_image, read_panoptic
from data.sets.cityscapes import read_target

SPLITS = ("train", "val", "test")
SUFFIXES = {"_gtFinePanopticParts.tif": "parts", "_gtFine_instanceIds.png": "instances", "_panoptic.png": "kitti_step"}
CITYSCAPES = ("parts", "instances", "coco")
KINDS = (*CITYSCAPES, "kitti_step", "kitti_frames")


@dataclass(frozen=True)
class LabelFile:
    """One frame's labels. name: as in the file's name; segments (coco only): (id, trainId, is crowd) of each."""

    name: str
    path: Path
    kind: str
    segments: tuple[tuple[int, int, bool], ...] = ()

    @property
    def key(self) -> str:
        """What files of one frame have in common in all layouts: the name without leading zeros in its numbers."""
        return "_".join(str(int(part)) if part.isdecimal() else part for part in self.name.split("_"))

    @property
    def video(self) -> tuple[str, int] | None:
        """(sequence, frame number) where the name is `<sequence>_<number>` or a number alone, else None."""
        match = re.fullmatch(r"(?:(.+)_)?(\d+)", self.name)
        return (match[1] or "0", int(match[2])) if match else None


def split_of(folder: Path, labels: dict[str, LabelFile], default: str) -> str:
    """The split of labels found in a folder: its own name (`.../val`) where no folder beneath is named by a split."""
    own = os.path.basename(os.path.abspath(folder))
    return own if own in SPLITS and not any(_splits(f.path, folder) for f in labels.values()) else default


def find_labels(folder: Path, split: str) -> dict[str, LabelFile]:
    """All label maps in and beneath a folder, by `LabelFile.key`; of those in folders named by splits, the split's.

    Raises DataError where there are none, none of the split, both Cityscapes' and KITTI-STEP's, or two for one frame.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder")
    files = list(_walk(folder))
    found = [*_coco(files, folder, split), *_named(files, folder)] or list(_numbered(files))
    if not found:
        raise DataError(
            f"{folder} holds no label maps: neither *_panoptic.png, *_gtFinePanopticParts.tif, "
            "*_gtFine_instanceIds.png nor a panoptic JSON"
        )
    other = {name for file in found for name in _splits(file.path, folder)}
    chosen = [f for f in found if split in (_splits(f.path, folder) or {split})]
    if not chosen:
        raise DataError(f"{folder} holds the splits {', '.join(sorted(other))}, not {split}: choose with --split")
    if len({file.kind in CITYSCAPES for file in chosen}) > 1:
        raise DataError(f"{folder} holds both Cityscapes and KITTI-STEP label maps: name the folder of one")
    return _best(chosen)


def read_labels(file: LabelFile) -> tuple[np.ndarray, np.ndarray]:
    """semantic uint8 (H, W), trainIds or 255; instance int32 (H, W), 0 = none or crowd. Raises DataError."""
    if file.kind in ("parts", "instances"):
        return read_target(file.path)
    if file.kind == "coco":
        return _read_coco(file)
    return read_panoptic(file.path)


def read_header(file: LabelFile) -> tuple[int, int]:
    """(height, width) from the file's header alone. Raises DataError, also where its mode is not the layout's."""
    try:
        with Image.open(file.path) as image:
            size, mode = image.size, image.mode
    except Exception as error:  # Pillow raises many types for damaged files
        raise DataError(f"{file.path} cannot be read as an image ({error})") from None
    if file.kind not in ("parts", "instances") and mode != "RGB":
        raise DataError(f"{file.path} is no panoptic PNG: its mode is {mode}, not RGB")
    return size[1], size[0]


# ---------------------------------------------------------------------------------------------------------------------
# Finding
# ---------------------------------------------------------------------------------------------------------------------


def _walk(folder: Path) -> Iterator[Path]:
    """All files beneath a folder, in order, through links (data sets are often linked in), but through none twice."""
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


def _splits(path: Path, folder: Path) -> set[str]:
    """Split names among the folders between `folder` and the file, `cityscapes_panoptic_val` among them."""
    return {word for part in path.relative_to(folder).parts[:-1] for word in [part, *part.split("_")] if word in SPLITS}


def _named(files: list[Path], folder: Path) -> Iterator[LabelFile]:
    """Files of the layouts that have a suffix. `<number>_panoptic.png` in a sub-folder is a frame of that video."""
    folders_of_json = {path.with_suffix("") for path in files if path.suffix == ".json"}
    for path in files:
        for suffix, kind in SUFFIXES.items():
            if path.name.endswith(suffix):
                of_json = kind == "kitti_step" and (
                    path.parent in folders_of_json or path.name.endswith("_gtFine_panoptic.png")
                )
                name = path.name.removesuffix(suffix)
                if name.isdecimal() and path.parent != folder:
                    name = f"{path.parent.name}_{name}"
                if not of_json:
                    yield LabelFile(name, path, kind)


def _numbered(files: list[Path]) -> Iterator[LabelFile]:
    for path in files:
        if path.suffix == ".png" and path.stem.isdecimal():
            yield LabelFile(f"{path.parent.name}_{path.stem}", path, "kitti_frames")


def _coco(files: list[Path], folder: Path, split: str) -> Iterator[LabelFile]:
    """The frames of all panoptic JSONs of the split, with categories or without (the submission needs none)."""
    for path in files:
        if path.suffix != ".json" or "panoptic" not in path.name:
            continue
        if split not in (_splits(path.with_suffix("") / "_", folder) or {split}):
            continue
        try:
            content = json.loads(path.read_text())
            if not isinstance(content, dict) or "annotations" not in content:
                continue  # some other file
            images = path.with_suffix("") if path.with_suffix("").is_dir() else path.parent
            by_train_id = any(c["name"] == "road" and c["id"] == 0 for c in content.get("categories", []))
            for frame in content["annotations"]:
                segments = tuple(
                    (int(s["id"]), _train_id(int(s["category_id"]), by_train_id), bool(s.get("iscrowd", 0)))
                    for s in frame["segments_info"]
                )
                yield LabelFile(str(frame["image_id"]), images / frame["file_name"], "coco", segments)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise DataError(f"{path} cannot be read as a panoptic JSON ({type(error).__name__}: {error})") from None


def _train_id(category: int, by_train_id: bool) -> int:
    """A JSON's category -> trainId; what is no class at all stays as a number that `_read_coco` refuses."""
    if by_train_id:
        return category
    return int(LABEL_TO_TRAIN[category]) if 0 <= category < 34 else -1


def _best(files: list[LabelFile]) -> dict[str, LabelFile]:
    """One file for each frame, of the best kind. Raises DataError where two of one kind are left."""
    best: dict[str, LabelFile] = {}
    for file in files:
        known = best.setdefault(file.key, file)
        if known is file or (known.kind == file.kind == "coco"):
            continue
        if known.kind == file.kind:
            raise DataError(f"{known.path} and {file.path} are both for {file.name}: name the folder of one")
        best[file.key] = min(known, file, key=lambda f: KINDS.index(f.kind))
    return best


def _read_coco(file: LabelFile) -> tuple[np.ndarray, np.ndarray]:
    """RGB with id = R + 256 G + 65536 B, 0 = void; instances are numbered as in the JSON. Raises DataError."""
    image = open_image(file.path)
    if image.mode != "RGB":
        raise DataError(f"{file.path} is no panoptic PNG: its mode is {image.mode}, not RGB")
    ids, index = np.unique(np.asarray(image).astype(np.int32) @ (1, 256, 65536), return_inverse=True)
    semantic, instance = np.full(ids.size, VOID, np.uint8), np.zeros(ids.size, np.int32)
    segments = {number: (train_id, crowd, place) for place, (number, train_id, crowd) in enumerate(file.segments, 1)}
    for row, number in enumerate(ids.tolist()):
        if number == 0 and number not in segments:
            continue
        if number not in segments:
            raise DataError(f"{file.path} holds segment {number}, which its JSON does not list")
        train_id, crowd, place = segments[number]
        if not (0 <= train_id < NUM_CLASSES or train_id == VOID):
            raise DataError(f"{file.path} holds segment {number} of an unknown class")
        semantic[row] = train_id
        if train_id in THINGS and not crowd:
            instance[row] = place
    shape = (image.height, image.width)
    return semantic[index].reshape(shape), instance[index].reshape(shape)
