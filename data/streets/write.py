"""Streets as files, in the layout of KITTI-STEP or of Cityscapes."""

from pathlib import Path

import numpy as np
from PIL import Image

from data.io.files import whole
from data.io.images import write_image, write_panoptic
from data.labels import THINGS, TRAIN_TO_LABEL, DataError
from data.streets.source import SPLITS, StreetsConfig, _in_processes, render, tracked_only


def write_kitti_step(
    folder: str | Path, split: str = "val", videos: int = 3, frames: int = 24, image_size=(96, 320), workers: int = 1
) -> Path:
    """Write videos as KITTI-STEP has them and return the folder of the split.

    <folder>/kitti_out/video_sequence/<split>/<sequence>_<frame>_leftImg8bit.png and _panoptic.png; only persons and
    cars have ids, other things are crowd. Raises DataError for wrong values.
    """
    target = Path(folder) / "kitti_out" / "video_sequence" / split
    _write(_write_kitti_video, target, split, videos, frames, image_size, workers)
    return target


def _write_kitti_video(job) -> None:
    target, config, seed, split = job
    for n, frame in enumerate(render(config, seed, split)):
        stem = f"{seed:06d}_{n:06d}"
        write_image(target / f"{stem}_leftImg8bit.png", frame.image)
        write_panoptic(target / f"{stem}_panoptic.png", frame.semantic, tracked_only(frame.semantic, frame.instance))


def write_cityscapes(
    folder: str | Path, split: str = "val", videos: int = 3, frames: int = 24, image_size=(96, 320), workers: int = 1
) -> Path:
    """Write videos as single frames in the layout of Cityscapes, with the city "streets", and return the folder.

    leftImg8bit, gtFinePanopticParts (int32 TIFF of sid or sid * 1000 + iid) and gtFine (_instanceIds, uint16, and
    _labelIds, uint8); ids are labelIds and every thing has an instance, numbered from 0 for each class in each frame.
    Raises DataError for wrong values.
    """
    _write(_write_cityscapes_video, Path(folder), split, videos, frames, image_size, workers)
    return Path(folder)


def cityscapes_ids(semantic: np.ndarray, instance: np.ndarray) -> np.ndarray:
    """labelId, or labelId * 1000 + number of the instance among its class in this frame; int32 (H, W)."""
    label = TRAIN_TO_LABEL[semantic].astype(np.int32)
    result = label.copy()
    for cls in THINGS:
        for iid, track in enumerate(np.unique(instance[(semantic == cls) & (instance > 0)])):
            mine = (semantic == cls) & (instance == track)
            result[mine] = label[mine] * 1000 + iid
    return result


def _write_cityscapes_video(job) -> None:
    folder, config, seed, split = job
    for n, frame in enumerate(render(config, seed, split)):
        stem = f"streets_{seed:06d}_{n:06d}"
        ids = cityscapes_ids(frame.semantic, frame.instance)
        parts = folder / "gtFinePanopticParts" / split / "streets" / f"{stem}_gtFinePanopticParts.tif"
        fine = folder / "gtFine" / split / "streets"
        write_image(folder / "leftImg8bit" / split / "streets" / f"{stem}_leftImg8bit.png", frame.image)
        write_image(fine / f"{stem}_gtFine_instanceIds.png", ids.astype(np.uint16))
        write_image(fine / f"{stem}_gtFine_labelIds.png", TRAIN_TO_LABEL[frame.semantic])
        with whole(parts) as temporary:
            Image.fromarray(ids).save(temporary, format="TIFF", compression="tiff_adobe_deflate")


def _write(function, target: Path, split: str, videos: int, frames: int, image_size, workers: int) -> None:
    if split not in SPLITS:
        raise DataError(f"there is no split {split!r}; the splits are {', '.join(SPLITS)}")
    config = StreetsConfig(tuple(image_size), frames)
    jobs = [(target, config, seed, split) for seed in range(videos)]
    for _ in _in_processes(function, jobs, workers, f"Streets {split} into {target}"):
        pass
