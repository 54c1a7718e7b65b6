"""Export predictions in the formats of the benchmark servers."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from data.io.files import whole
from data.io.images import write_image, write_panoptic
from data.io.label_files import LabelFile, read_labels
from data.labels import DEFAULT_SPACE, MAX_ID, THINGS, TRAIN_TO_LABEL, DataError

ID_STEP = MAX_ID + 1  # segment id of a thing: labelId * ID_STEP + instance id; of stuff: labelId


def export_kitti_step(files: Iterable[LabelFile], folder: Path) -> None:
    """`<sequence>/<frame>.png`, a sequence of four digits: R = class, G = id // 256, B = id % 256. Raises DataError for
    other names."""
    for file in files:
        if file.video is None:
            raise DataError(f"{file.path} is not named <sequence>_<frame>_panoptic.png, as KITTI-STEP frames are")
        sequence, frame = file.video[0], file.name.rsplit("_", 1)[-1]
        sequence = f"{int(sequence):04d}" if sequence.isdecimal() else sequence
        write_panoptic(folder / sequence / f"{frame}.png", *read_labels(file))


def export_cityscapes(files: Iterable[LabelFile], folder: Path, split: str) -> None:
    """`cityscapes_panoptic_<split>.json` and its folder of PNGs, for the evaluation of cityscapesscripts.

    A PNG is RGB with the segment's id = R + 256 G + 65536 B, 0 = void; the JSON lists the segments with their labelId.
    Raises DataError for an instance id above 65535.
    """
    name = f"cityscapes_panoptic_{split}"
    images, annotations = [], []
    for file in files:
        semantic, instance = read_labels(file)
        if int(instance.max(initial=0)) > MAX_ID:
            raise DataError(f"{file.path} holds id {instance.max()}; ids up to {MAX_ID} can be exported")
        label = TRAIN_TO_LABEL[semantic].astype(np.int32)
        ids = np.where(np.isin(semantic, THINGS), label * ID_STEP + instance, label)  # void: label 0 -> id 0
        write_image(
            folder / name / f"{file.name}_panoptic.png",
            np.stack([ids >> s & 255 for s in (0, 8, 16)], -1).astype(np.uint8),
        )
        height, width = ids.shape
        images.append({"id": file.name, "file_name": f"{file.name}_leftImg8bit.png", "height": height, "width": width})
        annotations.append(
            {"image_id": file.name, "file_name": f"{file.name}_panoptic.png", "segments_info": _segments(ids)}
        )
    categories = [
        {"id": c.ids[0], "name": c.name, "color": list(c.color), "isthing": int(c.is_thing)}
        for c in DEFAULT_SPACE.classes
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(folder / f"{name}.json", content)


def write_json(path: Path, content: object) -> None:
    """Write JSON, complete or not at all."""
    with whole(path, shared=True) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def _segments(ids: np.ndarray) -> list[dict]:
    """The JSON entries of the segments in a map of ids (H, W); a box is x, y, width, height."""
    values, index, areas = np.unique(ids, return_inverse=True, return_counts=True)
    index = index.reshape(ids.shape)
    segments = []
    for place, (value, area) in enumerate(zip(values.tolist(), areas.tolist(), strict=True)):
        if value == 0:
            continue
        mask = index == place
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
        category = value // ID_STEP or value
        segments.append(
            {"id": value, "category_id": category, "area": area, "bbox": [int(v) for v in box], "iscrowd": 0}
        )
    return segments
