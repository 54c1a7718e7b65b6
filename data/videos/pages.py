"""Image files that hold several frames: GIF, WebP, TIFF and others."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from data.io.images import MAX_PIXELS
from data.io.pixels import to_rgb
from data.labels import DataError

MAY_MOVE = (".gif", ".webp", ".png", ".apng", ".tif", ".tiff", ".avif")  # may hold several frames


def rate_and_pages(path: Path) -> tuple[float | None, int]:
    """Frames a second, None if unknown, and number of frames."""
    with Image.open(path) as image:
        durations = []
        with contextlib.suppress(Exception):  # what is damaged is said when it is read
            for page in range(min(image.n_frames, 16)):  # they may differ
                image.seek(page)
                image.load()  # a WebP knows it then
                durations.append(image.info.get("duration") or 0)
        return (1000 * len(durations) / sum(durations) if sum(durations) else None), image.n_frames


def read_pages(path: Path) -> Iterator[np.ndarray]:
    """The frames of an animated image or of a stack of images."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{path} claims {image.width}x{image.height} pixels; that is refused")
            for page in range(image.n_frames):
                image.seek(page)
                yield to_rgb(image)
    except DataError:
        raise
    except Exception as error:  # Pillow raises many types for damaged files
        raise DataError(f"{path} cannot be read as an image ({error})") from None
