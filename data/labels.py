"""The label space: the 19 Cityscapes classes, things and stuff, void, the palette, and the PNG codec of KITTI-STEP.

A frame's labels are two arrays of the frame's size: `semantic` uint8 (H, W), the trainId 0..18 or 255 = void; and
`instance` int32 (H, W), the track or instance id, 0 = none. A thing pixel with id 0 is crowd. This is the encoding of
STEP (Weber et al., "STEP: Segmenting and Tracking Every Pixel", arXiv 2102.11859, section 3).
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data.io.pixels import to_rgb

VOID = 255
MAX_ID = 65_535  # ids are stored as G * 256 + B
# Cityscapes frames have 2 million pixels; a header that claims more than this many is no frame but a bomb.
MAX_PIXELS = 64_000_000


class DataError(ValueError):
    """A file or folder that cannot be used; the message is one line that says which one, why, and what to do."""


@dataclass(frozen=True)
class SemanticClass:
    name: str
    train_id: int
    label_ids: tuple[int, ...]  # Cityscapes labelIds that map to this class
    color: tuple[int, int, int]
    is_thing: bool


CLASSES = (
    SemanticClass("road", 0, (7,), (128, 64, 128), False),
    SemanticClass("sidewalk", 1, (8,), (244, 35, 232), False),
    SemanticClass("building", 2, (11,), (70, 70, 70), False),
    SemanticClass("wall", 3, (12,), (102, 102, 156), False),
    SemanticClass("fence", 4, (13,), (190, 153, 153), False),
    SemanticClass("pole", 5, (17,), (153, 153, 153), False),
    SemanticClass("traffic light", 6, (19,), (250, 170, 30), False),
    SemanticClass("traffic sign", 7, (20,), (220, 220, 0), False),
    SemanticClass("vegetation", 8, (21,), (107, 142, 35), False),
    SemanticClass("terrain", 9, (22,), (152, 251, 152), False),
    SemanticClass("sky", 10, (23,), (70, 130, 180), False),
    SemanticClass("person", 11, (24,), (220, 20, 60), True),
    SemanticClass("rider", 12, (25,), (255, 0, 0), True),
    SemanticClass("car", 13, (26,), (0, 0, 142), True),
    SemanticClass("truck", 14, (27,), (0, 0, 70), True),
    SemanticClass("bus", 15, (28,), (0, 60, 100), True),
    SemanticClass("train", 16, (31,), (0, 80, 100), True),
    SemanticClass("motorcycle", 17, (32,), (0, 0, 230), True),
    SemanticClass("bicycle", 18, (33,), (119, 11, 32), True),
)
NUM_CLASSES = len(CLASSES)
CLASS_NAMES = tuple(c.name for c in CLASSES)
THINGS = tuple(c.train_id for c in CLASSES if c.is_thing)
STUFF = tuple(c.train_id for c in CLASSES if not c.is_thing)
PERSON, CAR = 11, 13

# Cityscapes labelId -> trainId, uint8 (256,); every labelId that no class claims is void.
LABEL_TO_TRAIN = np.full(256, VOID, np.uint8)
# trainId -> Cityscapes labelId, uint8 (256,); void -> 0 ("unlabeled").
TRAIN_TO_LABEL = np.zeros(256, np.uint8)
# trainId -> RGB, uint8 (256, 3); void is black.
PALETTE = np.zeros((256, 3), np.uint8)
for _c in CLASSES:
    LABEL_TO_TRAIN[list(_c.label_ids)] = _c.train_id
    TRAIN_TO_LABEL[_c.train_id] = _c.label_ids[0]
    PALETTE[_c.train_id] = _c.color


def encode_panoptic(semantic: np.ndarray, instance: np.ndarray) -> np.ndarray:
    """Labels to the RGB of a KITTI-STEP panoptic PNG: R = class, G = id // 256, B = id % 256.

    semantic: (H, W) trainIds or 255; instance: (H, W) ids 0..65535. Returns uint8 (H, W, 3).
    Raises DataError where an id does not fit into 16 bits.
    """
    if instance.size and (int(instance.max()) > MAX_ID or int(instance.min()) < 0):
        raise DataError(f"instance ids must be 0..{MAX_ID} to be stored, not {instance.min()}..{instance.max()}")
    return np.stack([semantic, instance // 256, instance % 256], axis=-1).astype(np.uint8)


def decode_panoptic(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inverse of `encode_panoptic`: uint8 (H, W, 3) -> semantic uint8 (H, W), instance int32 (H, W)."""
    instance = rgb[..., 1].astype(np.int32) * 256 + rgb[..., 2]
    return np.ascontiguousarray(rgb[..., 0]), instance


def open_image(path: str | Path) -> Image.Image:
    """Open and fully decode an image file. Raises DataError, naming the file, for whatever is wrong with it."""
    try:
        image = Image.open(path)
        if image.width * image.height > MAX_PIXELS:
            raise DataError(f"{path} claims {image.width}x{image.height} pixels; more than {MAX_PIXELS:,} are refused")
        image.info["stored"] = str(image.tile)  # how deep its pixels are in the file: Pillow keeps 8 bits a colour
        image.load()
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except DataError:
        raise
    except Exception as error:  # Pillow raises many types for damaged files (OSError, SyntaxError, struct.error, ...)
        raise DataError(f"{path} cannot be read as an image ({error})") from None
    return image


def read_image(path: str | Path) -> np.ndarray:
    """An image file as uint8 (H, W, 3) RGB, as `to_rgb` makes it. Raises DataError."""
    try:
        return to_rgb(open_image(path))
    except ValueError as error:
        raise error if isinstance(error, DataError) else DataError(f"{path} cannot be used: {error}") from None


def read_panoptic(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """A KITTI-STEP panoptic PNG as semantic uint8 (H, W), instance int32 (H, W). Raises DataError."""
    image = open_image(path)
    if image.mode != "RGB" or image.format == "JPEG":
        what = "it is a JPEG, which alters labels" if image.format == "JPEG" else f"its mode is {image.mode}, not RGB"
        raise DataError(f"{path} is no panoptic PNG: {what}")
    semantic, instance = decode_panoptic(np.asarray(image))
    unknown = np.setdiff1d(np.unique(semantic), [*range(NUM_CLASSES), VOID])
    if unknown.size:
        hint = "; was it saved as JPEG, or resized smoothly?" if unknown.size > 3 else ""
        raise DataError(f"{path} holds class {unknown[0]}; classes are 0..{NUM_CLASSES - 1} and {VOID} = void{hint}")
    return semantic, instance


def write_panoptic(path: str | Path, semantic: np.ndarray, instance: np.ndarray) -> None:
    """Write a KITTI-STEP panoptic PNG, complete or not at all."""
    write_image(path, encode_panoptic(semantic, instance))


def write_image(path: str | Path, array: np.ndarray) -> None:
    """Write an image through a temporary file and a rename, so that a reader never sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")  # one name, so that whoever is killed leaves one at most
    try:
        Image.fromarray(array).save(temporary, format="PNG", compress_level=1)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
