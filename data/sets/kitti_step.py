"""KITTI-STEP: driving videos in which every pixel has a class, and every person and car a track.

Layouts, of the archive on the Hugging Face hub and of the authors:
  <root>/kitti_out/video_sequence/{train,val,test}/<sequence>_<frame>_leftImg8bit.png (or .jpg)
                                                   <sequence>_<frame>_panoptic.png    R = class, G * 256 + B = track
  <root>/images/{train,val,test}/<sequence>/<frame>.png and <root>/panoptic_maps/{train,val}/<sequence>/<frame>.png
A split may have sub-folders, for example one for each sequence. A classes.json in the root gives other classes.
Weber et al., "STEP: Segmenting and Tracking Every Pixel", arXiv 2102.11859.
"""

import re
from pathlib import Path

import numpy as np

from data.io.images import read_panoptic
from data.io.listing import walk
from data.labels import CAR, PERSON, DataError
from data.sets.download import from_hub, unpack
from data.sets.frames import FileSource, FrameRef, frame_name, ordered

DEFAULT_ROOT = Path(__file__).resolve().parents[1] / "KittiSTEP"
REPOSITORY = "LXT/VideoK-Net"
REVISION = "3d14d271377c0af53ddbff26b32dd4a937e69cfa"
ARCHIVE = "kitti_step.zip"
ARCHIVE_SIZE = 15_603_758_691  # bytes
ARCHIVE_SHA256 = "8a63817b76bf1b66ca8ccb0f13fdcdbf3921dcf7b4c0df586ca06965965ace70"
UNPACKED_SIZE = 16_400_000_000  # bytes, at most: PNGs hardly compress
TOP_FOLDER = "kitti_out"  # in the archive

_PARTS = re.compile(r"(?P<sequence>.+)_(?P<number>\d+)")
HOW_TO_GET_IT = (
    f"KITTI-STEP is the file {ARCHIVE} of the model repository {REPOSITORY} on the Hugging Face hub; without "
    f"--data_root it is downloaded ({ARCHIVE_SIZE / 1e9:.1f} GB, and {UNPACKED_SIZE / 1e9:.1f} GB to unpack it)"
)


class KittiStep(FileSource):
    """One split of KITTI-STEP as a FrameSource.

    root: None for the default folder, which is downloaded if it is missing; else a folder that holds
    kitti_out/video_sequence/<split>, video_sequence/<split>, <split> or images/<split>. Splits are train and val; test
    has no labels and is for inference. Raises DataError.
    """

    name = "kitti_step"
    tracked = (PERSON, CAR)
    is_video = True

    def __init__(self, root: str | Path | None = None, split: str = "train"):
        is_default = root is None
        self.root = DEFAULT_ROOT if is_default else Path(root)
        self.split = split
        ensure_kitti_step(self.root, is_default)
        self.take_label_space(self.root, tracks=True)
        images, labels = _split_folders(self.root, split)
        self.frames = pair_frames(images, labels, labels_needed=split != "test")
        if not self.frames:
            raise DataError(
                f"{images} holds no frames named <sequence>_<frame>_leftImg8bit.png or <sequence>/<frame>.png"
            )

    def read_target(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        return read_panoptic(path, index=self.own_space.index if self.own_space else None)


def ensure_kitti_step(root: Path, is_default: bool) -> None:
    """Download and unpack KITTI-STEP if its default folder is missing. Raises DataError if another one is missing."""
    has_frames = any((root / sub).is_dir() for sub in (TOP_FOLDER, "video_sequence", "images", "train", "val", "test"))
    if has_frames:
        return
    if not is_default:
        state = "holds no kitti_out/video_sequence/<split> and no images/<split>" if root.is_dir() else "is missing"
        raise DataError(f"the folder {root} {state}. {HOW_TO_GET_IT}")
    print(f"KITTI-STEP is not in {root}: getting it (once)", flush=True)
    archive = from_hub(REPOSITORY, ARCHIVE, REVISION, root, ARCHIVE_SHA256, ARCHIVE_SIZE + UNPACKED_SIZE)
    unpack(archive, root / TOP_FOLDER)
    print(f"unpacked to {root / TOP_FOLDER}; {archive} is needed no longer", flush=True)


def pair_frames(image_folder: Path, label_folder: Path, labels_needed: bool = True) -> list[FrameRef]:
    """Images with their labels, by name, ordered. Raises DataError for one without the other; ignores other files."""
    apart = image_folder != label_folder
    images, labels = {}, {}
    for path in walk(image_folder):
        stem, suffix = path.stem, path.suffix.lower()
        is_image = suffix in (".png", ".jpg", ".jpeg") and not stem.endswith("_panoptic")
        if is_image and (stem.endswith("_leftImg8bit") or apart):
            images[frame_name(stem.removesuffix("_leftImg8bit"), path, image_folder)] = path
    for path in walk(label_folder):
        if path.suffix.lower() == ".png" and (path.stem.endswith("_panoptic") or apart):
            labels[frame_name(path.stem.removesuffix("_panoptic"), path, label_folder)] = path
    for key in sorted(labels.keys() - images.keys())[:1]:
        name = key if apart else f"{key}_leftImg8bit"
        raise DataError(f"the label file {labels[key]} is there without its image {name}.png (or .jpg)")
    if labels_needed:
        for key in sorted(images.keys() - labels.keys())[:1]:
            where = f" in {label_folder}" if apart else f" {key}_panoptic.png"
            raise DataError(f"the image {images[key]} is there without its label file{where}")
    frames = []
    for key, path in images.items():
        if match := _PARTS.fullmatch(key):
            frames.append(FrameRef(match["sequence"], int(match["number"]), path, labels.get(key)))
    return ordered(frames)


def _split_folders(root: Path, split: str) -> tuple[Path, Path]:
    """The image folder and the label folder of a split; they may be the same."""
    if (root / "images" / split).is_dir():
        return root / "images" / split, root / "panoptic_maps" / split
    for sub in (f"{TOP_FOLDER}/video_sequence", "video_sequence", "."):
        if (root / sub / split).is_dir():
            return root / sub / split, root / sub / split
    there = [s for s in ("train", "val", "test") if any(next(root.glob(p + s), None) for p in ("", "*/", "*/*/"))]
    there = f"; there are {', '.join(there)}" if there else ""
    raise DataError(f"the folder {root} has no split {split!r} (kitti_out/video_sequence/{split}){there}")
