"""Image files: frames and masks, and the panoptic PNG of KITTI-STEP."""

import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from data.io.files import whole
from data.io.pixels import to_rgb
from data.labels import MAX_ID, NUM_CLASSES, VOID, DataError

# Cityscapes frames have 2 million pixels. A header that claims more than this is a decompression bomb.
MAX_PIXELS = 64_000_000


def open_image(path: str | Path) -> Image.Image:
    """Open and fully decode an image file. Raises DataError, which names the file, if anything is wrong."""
    try:
        image = Image.open(path)
        if image.width * image.height > MAX_PIXELS:
            raise DataError(f"{path} claims {image.width}x{image.height} pixels; more than {MAX_PIXELS:,} are refused")
        image.info["stored"] = str(image.tile)  # bit depth in the file: Pillow keeps 8 bits a colour
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


def read_panoptic(
    path: str | Path, classes: int = NUM_CLASSES, index: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A KITTI-STEP panoptic PNG as semantic uint8 (H, W), instance int32 (H, W). Raises DataError.

    classes: their number; index: `LabelSpace.index`, if the file's values are ids of a classes.json.
    """
    image = open_image(path)
    if image.mode != "RGB" or image.format == "JPEG":
        what = "it is a JPEG, which alters labels" if image.format == "JPEG" else f"its mode is {image.mode}, not RGB"
        raise DataError(f"{path} is no panoptic PNG: {what}")
    rgb = np.asarray(image)
    semantic, instance = np.ascontiguousarray(rgb[..., 0]), rgb[..., 1].astype(np.int32) * 256 + rgb[..., 2]
    if index is not None:
        return index[semantic], instance
    unknown = np.setdiff1d(np.unique(semantic), [*range(classes), VOID])
    if unknown.size:
        hint = "; was it saved as JPEG, or resized smoothly?" if unknown.size > 3 else ""
        raise DataError(f"{path} holds class {unknown[0]}; classes are 0..{classes - 1} and {VOID} = void{hint}")
    return semantic, instance


def write_panoptic(path: str | Path, semantic: np.ndarray, instance: np.ndarray) -> None:
    """Write a KITTI-STEP panoptic PNG, complete or not at all: R = class, G = id // 256, B = id % 256.

    semantic: (H, W) trainIds or 255; instance: (H, W) ids. Raises DataError where an id does not fit into 16 bits.
    """
    if instance.size and (int(instance.max()) > MAX_ID or int(instance.min()) < 0):
        raise DataError(f"instance ids must be 0..{MAX_ID} to be stored, not {instance.min()}..{instance.max()}")
    rgb = np.empty((*semantic.shape, 3), np.uint8)
    rgb[..., 0], rgb[..., 1], rgb[..., 2] = semantic, instance >> 8, instance & 255
    # Runs of one value alone: half the size in the same time
    write_image(path, rgb, compress_type=zlib.Z_RLE)


def write_image(path: str | Path, array: np.ndarray, **options: int) -> None:
    """Write a PNG, complete or not at all. options: of Pillow's writer."""
    with whole(Path(path)) as temporary:
        Image.fromarray(array).save(temporary, format="PNG", compress_level=1, **options)
