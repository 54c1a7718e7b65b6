"""Find label maps on disk in any layout, name them, and read them as (semantic, instance).

Layouts, from best to worst; if a frame has several, the best is used:
  parts         <name>_gtFinePanopticParts.tif                        Cityscapes PanopticParts
  instances     <name>_gtFine_instanceIds.png                         Cityscapes gtFine
  coco          *panoptic*<split>.json and its PNGs                   COCO, cityscapesscripts, and submissions
  kitti_step    <sequence>_<frame>_panoptic.png                       KITTI-STEP, and this repository's predictions
  kitti_frames  <sequence>/<frame>.png                                KITTI-STEP as published, and submissions
  mots          <sequence>/<frame>.png of 16 bits                     MOTS
"""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from data.io.images import read_panoptic
from data.io.listing import LeftOut, walk
from data.labels import CLASSES_FILE, DEFAULT_SPACE, NUM_CLASSES, STUFF, VOID, DataError, LabelSpace, label_space_of
from data.sets.cityscapes import read_target
from data.sets.coco_panoptic import Segment, read_json, read_segments, video_of
from data.sets.frames import frame_name
from data.sets.mots import read_mots

SPLITS = ("train", "val", "test")
LEVELS = 3  # above a folder of labels, searched for its classes.json
SUFFIXES = {"_gtfinepanopticparts.tif": "parts", "_gtfine_instanceids.png": "instances", "_panoptic.png": "kitti_step"}
CITYSCAPES = ("parts", "instances", "coco")  # single images
GREY = ("parts", "instances", "mots")
KINDS = (*CITYSCAPES, "coco_video", "kitti_step", "kitti_frames", "mots")


@dataclass(frozen=True)
class LabelFile:
    """One frame's labels. name: from the file's name; segments: for kinds with a JSON (`coco_video` has tracks)."""

    name: str
    path: Path
    kind: str
    segments: tuple[Segment, ...] = ()
    space: LabelSpace | None = None  # of a classes.json; None: the default one

    @property
    def key(self) -> str:
        """The same for a frame in all layouts: the name without leading zeros in its numbers."""
        return "_".join(str(int(part)) if part.isdecimal() else part for part in self.name.split("_"))

    @property
    def video(self) -> tuple[str, int] | None:
        """(sequence, frame number) if the name is `<sequence>_<number>` or only a number, else None."""
        return video_of(self.name)


def split_of(folder: Path, labels: dict[str, LabelFile], default: str) -> str:
    """The split of a folder of labels: its name (`.../val`) if no sub-folder is named by a split, else `default`."""
    own = os.path.basename(os.path.abspath(folder))
    return own if own in SPLITS and not any(_splits(f.path, folder) for f in labels.values()) else default


def find_labels(
    folder: Path,
    split: str,
    left_out: LeftOut | None = None,
    space: LabelSpace | None = None,
    levels: int = LEVELS,
) -> dict[str, LabelFile]:
    """All label maps in and beneath a folder, by `LabelFile.key`. In folders named by splits, only those of the split.

    What cannot be read is added to `left_out`. space: the classes; None: those of a classes.json in the folder or up
    to `levels` above it, else the default ones.

    Raises DataError if there are none, none of the split, both Cityscapes' and KITTI-STEP's, or two for one frame.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder")
    files = list(walk(folder, left_out))
    above = (label_space_of(place) for place in (folder.resolve(), *folder.resolve().parents[:levels]))
    space = space or next((found for found in above if found), None)
    found = [*_coco(files, folder, split, space), *_named(files, folder)] or list(_numbered(files, folder))
    if space and any(file.kind == "mots" for file in found):
        raise DataError(f"{folder} holds MOTS labels, which have classes of their own: take {CLASSES_FILE} away")
    found = [replace(file, space=space) for file in found]
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
    if file.kind.startswith("coco"):
        return read_segments(file.path, file.segments, file.space or DEFAULT_SPACE)
    if file.kind in GREY:
        return read_mots(file.path) if file.kind == "mots" else read_target(file.path, file.space)
    if file.space is not None:
        return read_panoptic(file.path, index=file.space.index)
    semantic, instance = read_panoptic(file.path)
    if _is_swapped(semantic, instance):
        raise DataError(f"{file.path} has ids where classes belong: were red and blue swapped, as OpenCV does?")
    return semantic, instance


def _is_swapped(semantic: np.ndarray, instance: np.ndarray) -> bool:
    """Whether ids lie on stuff in most pixels, but only on things after red and blue are swapped."""
    if 2 * np.count_nonzero((instance > 0) & np.isin(semantic, STUFF)) <= semantic.size:
        return False
    classes, low = instance & 255, semantic
    return bool(np.isin(classes, [*range(NUM_CLASSES), VOID]).all()) and not low[np.isin(classes, STUFF)].any()


def read_header(file: LabelFile) -> tuple[int, int]:
    """(height, width) from the file's header alone. Raises DataError, also for a mode that the layout does not have."""
    try:
        with Image.open(file.path) as image:
            size, mode = image.size, image.mode
    except Exception as error:  # Pillow raises many types for damaged files
        raise DataError(f"{file.path} cannot be read as an image ({error})") from None
    if file.kind not in GREY and mode != "RGB":
        raise DataError(f"{file.path} is no panoptic PNG: its mode is {mode}, not RGB")
    return size[1], size[0]


# ---------------------------------------------------------------------------------------------------------------------
# Finding
# ---------------------------------------------------------------------------------------------------------------------


def _splits(path: Path, folder: Path) -> set[str]:
    """The splits in the names of the folders between `folder` and the file, also in `panoptic_val2017`."""
    words = (word for part in path.relative_to(folder).parts[:-1] for word in (part, *re.split(r"[_\d]+", part)))
    return {word for word in words if word in SPLITS}


def _named(files: list[Path], folder: Path) -> Iterator[LabelFile]:
    """Files of the layouts with a suffix. `<number>_panoptic.png` in a sub-folder is a frame of that video."""
    folders_of_json = {path.with_suffix("") for path in files if path.suffix == ".json"}
    for path in files:
        for suffix, kind in SUFFIXES.items():
            if path.name.lower().endswith(suffix):
                of_json = kind == "kitti_step" and (
                    path.parent in folders_of_json or path.name.endswith("_gtFine_panoptic.png")
                )
                if not of_json:
                    yield LabelFile(frame_name(path.name[: -len(suffix)], path, folder), path, kind)


def _numbered(files: list[Path], folder: Path) -> Iterator[LabelFile]:
    """`<sequence>/<frame>.png`; the images may lie in separate folders beside them."""
    files = [path for path in files if path.suffix.lower() == ".png" and path.stem.isdecimal()]
    labels = [path for path in files if {"panoptic_maps", "instances"} & set(path.parts)]
    for path in labels or files:
        kind = "kitti_frames"  # of a damaged file too, which `read_labels` names
        with contextlib.suppress(OSError), Image.open(path) as image:
            kind = "mots" if image.mode.startswith("I") else kind
        name = frame_name(path.stem, path, folder)
        yield LabelFile(f"{folder.resolve().name}_{name}" if name.isdecimal() else name, path, kind)


def _coco(files: list[Path], folder: Path, split: str, space: LabelSpace | None) -> Iterator[LabelFile]:
    """The frames of all panoptic JSONs of the split."""
    for path in files:
        if (
            path.suffix == ".json"
            and "panoptic" in path.name
            and split in (_splits(path.with_suffix("") / "_", folder) or {split})
        ):
            for frame in read_json(path, space) or ():
                yield LabelFile(frame.name, frame.png, "coco_video" if frame.has_tracks else "coco", frame.segments)


def label_file(path: Path, folder: Path) -> LabelFile:
    """A `*_panoptic.png` beneath a folder."""
    return LabelFile(frame_name(path.name[: -len("_panoptic.png")], path, folder), path, "kitti_step")


def matched(
    predictions: dict[str, LabelFile], truths: dict[str, LabelFile], folder: Path, source: str = ""
) -> dict[str, LabelFile]:
    """Predictions by the keys of their truth, if their names are only numbers, as in the folder of one sequence.

    Their sequence is then the name of `folder`, or of `source` (the folder of the frames), or the only sequence.
    """
    if not predictions or not truths or any(not key.isdecimal() for key in predictions):
        return predictions
    named = {file.video[0]: file.name.rpartition("_")[0] for file in truths.values() if file.video}
    names = [name for name in (folder.resolve().name, Path(source).name) if name in named]
    if not names and len(named) > 1:
        return predictions
    sequence = names[0] if names else next(iter(named), "")
    renamed = (replace(file, name=f"{sequence}_{file.name}") for file in predictions.values())
    return {file.key: file for file in renamed}


def _best(files: list[LabelFile]) -> dict[str, LabelFile]:
    """One file for each frame, of the best kind. Raises DataError for two of the same kind."""
    best: dict[str, LabelFile] = {}
    for file in files:
        known = best.setdefault(file.key, file)
        if known is file or (known.kind == file.kind and known.kind.startswith("coco")):
            continue
        if known.kind == file.kind:
            raise DataError(f"{known.path} and {file.path} are both for {file.name}: name the folder of one")
        best[file.key] = min(known, file, key=lambda f: KINDS.index(f.kind))
    return best
