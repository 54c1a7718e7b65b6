"""Cityscapes: single street images in which every pixel has a class and every thing an instance id.

Layout:
  <root>/leftImg8bit/<split>/<city>/<city>_<seq>_<frame>_leftImg8bit.png (or .jpg)
  <root>/gtFinePanopticParts/<split>/<city>/<city>_<seq>_<frame>_gtFinePanopticParts.tif   preferred
  <root>/gtFine/<split>/<city>/<city>_<seq>_<frame>_gtFine_instanceIds.png                 else
or the zip archives of these folders, as from csDownload, which are unpacked.
Cordts et al., arXiv 1604.01685; panoptic parts: de Geus et al., arXiv 2106.06351.
"""

import re
from pathlib import Path

import numpy as np

from data.io.images import open_image
from data.io.listing import walk
from data.labels import DEFAULT_SPACE, THINGS, DataError, LabelSpace
from data.sets.download import unpack
from data.sets.frames import FileSource, FrameRef, ordered

DEFAULT_ROOT = Path(__file__).resolve().parents[1] / "Cityscapes"
IMAGES, PARTS, FINE = "leftImg8bit", "gtFinePanopticParts", "gtFine"
SUFFIX = {PARTS: "_gtFinePanopticParts.tif", FINE: "_gtFine_instanceIds.png"}  # of label files
ARCHIVES = {
    IMAGES: "leftImg8bit_trainvaltest.zip",
    PARTS: "gtFinePanopticParts_trainval.zip",
    FINE: "gtFine_trainvaltest.zip",
}
NAME = re.compile(r"(?P<key>.+)_leftImg8bit\.(png|jpe?g)", re.IGNORECASE)
FRAME = re.compile(r"(?P<sequence>.+)_(?P<number>\d+)")
MAX_LABEL_ID, MAX_OWN_ID = 33, 999  # of Cityscapes, and of a classes.json
HOW_TO_GET_IT = (
    "`bash setup.sh cityscapes` downloads it (an account at the Cityscapes site is needed), or put "
    f"{ARCHIVES[IMAGES]} and {ARCHIVES[PARTS]} there"
)


class Cityscapes(FileSource):
    """One split of Cityscapes as a FrameSource. root: None for data/Cityscapes. The split test has no labels.

    Raises DataError.
    """

    name = "cityscapes"
    tracked = THINGS
    is_video = False

    def __init__(self, root: str | Path | None = None, split: str = "train"):
        self.root = DEFAULT_ROOT if root is None else Path(root)
        self.split = split
        if not self.root.is_dir():
            raise DataError(f"the folder {self.root} is missing. Cityscapes: {HOW_TO_GET_IT}")
        self.take_label_space(self.root, tracks=False)
        folders = [self.root / name / split for name in (IMAGES, PARTS, FINE) if _unpacked(self.root, name)]
        if not (self.root / IMAGES).is_dir():
            raise DataError(f"the folder {self.root} holds no {IMAGES}. Cityscapes: {HOW_TO_GET_IT}")
        if not folders[0].is_dir():
            raise DataError(f"the folder {self.root} has no split {split!r}: {folders[0]} is missing")
        self.frames = _pair(folders[0], folders[1:], labels_needed=split != "test")
        if not self.frames:
            raise DataError(f"{folders[0]} holds no images named <city>/<city>_<seq>_<frame>_leftImg8bit.png")

    def read_target(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        return read_target(path, self.own_space)


def read_target(path: str | Path, own: LabelSpace | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A Cityscapes label file as semantic uint8 (H, W) and instance int32 (H, W): `iid + 1`, 0 in stuff and crowd.

    The name gives the encoding: `_gtFinePanopticParts.tif` or `_gtFine_instanceIds.png`. Raises DataError.
    """
    name = Path(path).name.lower()
    if not name.endswith((SUFFIX[PARTS].lower(), SUFFIX[FINE].lower())):
        raise DataError(f"{path} is no Cityscapes label file (*{SUFFIX[PARTS]} or *{SUFFIX[FINE]})")
    image = open_image(path)
    if image.mode not in ("I", "I;16", "I;16B", "L"):
        raise DataError(f"{path} is no Cityscapes label file: its mode is {image.mode}, not integers")
    uid = np.asarray(image).astype(np.int32)
    if name.endswith(SUFFIX[PARTS].lower()):
        uid = np.where(uid >= 100_000, uid // 100, uid)  # 6-7 digits: the last two are the part
    has_id = uid >= 1000
    label = np.where(has_id, uid // 1000, uid)
    space, most = (DEFAULT_SPACE, MAX_LABEL_ID) if own is None else (own, MAX_OWN_ID)
    if label.size and not 0 <= int(label.min()) <= int(label.max()) <= most:
        wrong = label.min() if label.min() < 0 else label.max()
        raise DataError(f"{path} holds labelId {wrong}; labelIds are 0..{most}")
    semantic = space.index[label]
    # iid counts from 0: 24000 is a person, 24 a group of persons. So ids are shifted by one, and 0 is crowd.
    instance = np.where(has_id & space.is_thing[semantic], uid % 1000 + 1, 0).astype(np.int32)
    return semantic, instance


def _unpacked(root: Path, name: str) -> bool:
    """Whether a folder exists; if only its archive exists, unpack that first."""
    folder, archive = root / name, root / ARCHIVES[name]
    if not folder.is_dir() and archive.is_file():
        unpack(archive, folder)
    return folder.is_dir()


def _pair(image_folder: Path, label_folders: list[Path], labels_needed: bool) -> list[FrameRef]:
    """Images with their labels, ordered. Raises DataError for one without the other."""
    named = ((NAME.fullmatch(path.name), path) for path in walk(image_folder))
    images = {match["key"]: path for match, path in named if match}
    labels: dict[str, Path] = {}
    for folder in label_folders:
        suffix = SUFFIX[folder.parent.name].lower()
        for path in walk(folder):
            if path.name.lower().endswith(suffix):
                labels.setdefault(path.name[: -len(suffix)], path)
    if labels_needed:
        for key in sorted(labels.keys() - images.keys())[:1]:
            raise DataError(f"the label file {labels[key]} is there without its image {key}_leftImg8bit.png (or .jpg)")
        for key in sorted(images.keys() - labels.keys())[:1]:
            where = " or ".join(str(f) for f in label_folders) or f"{image_folder.parents[1] / PARTS} (missing)"
            raise DataError(f"the image {images[key]} is there without a label file in {where}")
    frames = []
    for key, path in images.items():
        match = FRAME.fullmatch(key)
        sequence, number = (match["sequence"], int(match["number"])) if match else (key, 0)
        frames.append(FrameRef(sequence, number, path, labels.get(key) if labels_needed else None))
    return ordered(frames)
