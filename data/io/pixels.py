"""How a frame becomes the pixels that a model sees, and how labels are resized.

Pure functions; imports nothing of this repository.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps


def area_scale(frame_size: Sequence[int], image_size: Sequence[int]) -> float:
    """The factor that scales a frame to the area of the model's image size: the one rule for sizes.

    A frame keeps its aspect, so that a portrait film, a panorama and a Cityscapes frame have the same sharpness.
    frame_size, image_size: (height, width) in pixels.
    """
    return math.sqrt(math.prod(image_size) / math.prod(frame_size))


def to_rgb(image: Image.Image | np.ndarray) -> np.ndarray:
    """A frame as uint8 (H, W, 3) RGB, from files and from Python.

    An array must have this form already. A PIL image is turned upright by its EXIF tag and loses its alpha. Floats up
    to 1 are shares of white; other grey values are whole numbers of 8, 10, 12, 14 or 16 bits, the fewest that fit the
    brightest pixel. Raises ValueError for anything else.
    """
    if isinstance(image, Image.Image):
        deep = ";16" in image.info.get("stored", str(getattr(image, "tile", "")))
        image = ImageOps.exif_transpose(image)
        if image.mode[0] in "IF":
            return np.repeat(_in_bytes(np.asarray(image))[..., None], 3, axis=2)
        array = np.array(image.convert("RGB"))
        if deep and 0 < array.max() < 16:  # Pillow keeps the upper 8 of 16 bits
            raise ValueError("its colours have 12 bits or fewer in 16, which would be seen black; save it with 8")
        return array
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise ValueError(f"a frame is a uint8 array (H, W, 3) or a PIL image, not {array.dtype} {array.shape}")
    return array


def _in_bytes(grey: np.ndarray) -> np.ndarray:
    low, high = float(grey.min()), float(grey.max())
    if not 0 <= low <= high < 2**16:  # also false for a NaN
        raise ValueError(f"its pixels are {low:g} to {high:g}, not 0 to 1 or whole numbers of up to 16 bits")
    if grey.dtype.kind == "f" and high <= 1:
        return np.rint(grey * 255).astype(np.uint8)
    bits = next(bits for bits in (8, 10, 12, 14, 16) if high < 2**bits)
    return (grey.astype(np.int32) >> (bits - 8)).astype(np.uint8)


def nearest(labels: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """A label map (h, w) or (h, w, 3) -> (H, W) or (H, W, 3), each pixel that of the nearest centre."""
    y, x = (
        np.minimum(((np.arange(n) + 0.5) * (m / n) + 1e-6).astype(np.intp), m - 1)
        for n, m in zip(size, labels.shape[:2], strict=True)
    )
    return labels.take(y, axis=0).take(x, axis=1)
