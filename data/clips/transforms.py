"""Transforms of a clip: drawn once for all its frames, then applied to the image and to every label map alike.

All random choices come from a NumPy generator that the caller seeds, not from global state. Images are resized
bilinearly with antialiasing, labels by nearest neighbour at pixel centres.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from data.clips.settings import Augmentation
from data.io.pixels import area_scale
from data.labels import DEFAULT_SPACE

IS_THING = DEFAULT_SPACE.is_thing


def content_size(frame_size: tuple[int, int], target_size: tuple[int, int], zoom: float = 1.0) -> tuple[int, int]:
    """The (height, width) that a frame takes in a crop of the target's size, at its top left; the rest is padding.

    The frame is scaled to the target's area times zoom^2. If it is larger than the target, the crop cuts it.
    """
    scale = area_scale(frame_size, target_size) * zoom
    height, width = (min(t, max(1, round(f * scale))) for f, t in zip(frame_size, target_size, strict=True))
    return height, width


@dataclass(frozen=True)
class View:
    """The visible part of the frame, in fractions of its size, and its scale. One for a whole clip."""

    zoom: float = 1.0
    top: float = 0.0
    left: float = 0.0
    height: float = 1.0
    width: float = 1.0
    flip: bool = False


def draw_view(
    augment: Augmentation,
    frame_size: tuple[int, int],
    image_size: tuple[int, int],
    generator: np.random.Generator,
    focus: tuple[float, float] | None = None,
) -> View:
    """A crop of the image size from a frame that is scaled by area and by a jitter (uniform in its logarithm), and a
    flip. focus: a point (y, x) that the crop must show, in fractions of the frame."""
    low, high = (math.log(s) for s in augment.scale_range)
    zoom = math.exp(low + (high - low) * generator.random())
    at = tuple(generator.random(2)) if augment.crop else (0.5, 0.5)  # (0, 0) is the upper left corner
    scale = area_scale(frame_size, image_size) * zoom
    parts = [min(1.0, t / (f * scale)) for f, t in zip(frame_size, image_size, strict=True)]
    starts = [a * (1 - part) for a, part in zip(at, parts, strict=True)]
    if focus is not None:
        starts = [min(max(f - a * part, 0.0), 1 - part) for f, a, part in zip(focus, at, parts, strict=True)]
    return View(zoom, *starts, *parts, flip=bool(generator.random() < augment.flip))


def instance_keys(semantic: np.ndarray, instance: np.ndarray, is_thing: np.ndarray = IS_THING) -> np.ndarray:
    """A number of its own for each instance, which is a (class, id) of a thing: id * 256 + class, int64 (H, W); 0 where
    there is none. Classes count their ids apart, so a person and a car may both be 1."""
    return np.where(is_thing[semantic] & (instance > 0), instance.astype(np.int64) * 256 + semantic, 0)


def draw_focus(
    semantic: np.ndarray, instance: np.ndarray, generator: np.random.Generator, is_thing: np.ndarray = IS_THING
) -> tuple[float, float] | None:
    """The centre, in fractions of the frame, of one random instance of a random class; None if there is none."""
    key = instance_keys(semantic, instance, is_thing)
    keys = np.unique(key[key > 0])
    if keys.size == 0:
        return None
    thing = np.nonzero(key == class_by_class(keys, generator)[0])
    return tuple((n.mean() + 0.5) / size for n, size in zip(thing, key.shape, strict=True))


def class_by_class(keys: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Instances (`instance_keys`) in random order, one of each class before a second of any: a street has dozens of
    cars and people for a bus, and each class counts alike."""
    keys = generator.permutation(keys)
    classes = keys % 256
    turn = [np.count_nonzero(classes[:n] == label) for n, label in enumerate(classes)]
    return keys[np.lexsort((generator.random(keys.size), turn))]


def sample_grid(frame_size: tuple[int, int], size: tuple[int, int], view: View) -> tuple[np.ndarray, np.ndarray]:
    """The positions in the frame of the pixel centres of a (height, width) view: y (height,), x (width,) in pixels.

    Frame pixel i spans i..i+1, so floor gives the nearest pixel.
    """
    (fh, fw), (height, width) = frame_size, size
    y = (np.arange(height) + 0.5) * (view.height * fh / height) + view.top * fh
    x = (np.arange(width) + 0.5) * (view.width * fw / width) + view.left * fw
    return y, x[::-1] if view.flip else x


def pixel_at(position: np.ndarray, count: int) -> np.ndarray:
    # With the small constant, a centre on the edge between two pixels does not depend on rounding errors.
    return np.clip((position + 1e-6).astype(np.intp), 0, count - 1)


def view_labels(labels: np.ndarray, size: tuple[int, int], view: View) -> np.ndarray:
    """The view of a label map (H, W): (height, width), nearest neighbour."""
    y, x = sample_grid(labels.shape, size, view)
    return labels.take(pixel_at(y, labels.shape[0]), axis=0).take(pixel_at(x, labels.shape[1]), axis=1)


def view_image(image: np.ndarray, size: tuple[int, int], view: View, color: np.ndarray | None = None) -> np.ndarray:
    """The view of an image uint8 (H, W, 3): (height, width, 3), bilinear with antialiasing, then the colour change."""
    fh, fw = image.shape[:2]
    box = (view.left * fw, view.top * fh, (view.left + view.width) * fw, (view.top + view.height) * fh)
    box = (*box[:2], min(box[2], fw), min(box[3], fh))
    picture = Image.fromarray(image)
    if (fh, fw) != tuple(size) or box != (0, 0, fw, fh):
        picture = picture.resize(size[::-1], Image.Resampling.BILINEAR, box=box)
    if color is not None:
        mean = np.array(picture.resize((1, 1), Image.Resampling.BOX), np.float64).ravel()
        matrix, contrast = color[:3], color[3, 0]  # contrast * (matrix rgb) + (1 - contrast) * (mean luma of that)
        offset = np.full((3, 1), (1 - contrast) * (LUMA @ matrix @ mean))
        picture = picture.convert("RGB", tuple(np.hstack([contrast * matrix, offset]).ravel().tolist()))
    pixels = np.asarray(picture)
    return pixels[:, ::-1] if view.flip else pixels


LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_RGB = np.linalg.inv(_YIQ)


def draw_color(augment: Augmentation, generator: np.random.Generator) -> np.ndarray | None:
    """Brightness, saturation and hue as one 3x3 matrix, with the contrast factor as a fourth row; None for no change.

    All four are linear in RGB (hue is a rotation of the chroma plane of YIQ), so one pass over the image is enough.
    """
    u = generator.uniform(-1, 1, 4)
    if not (augment.brightness or augment.contrast or augment.saturation or augment.hue):
        return None
    brightness, contrast, saturation = 1 + u[:3] * (augment.brightness, augment.contrast, augment.saturation)
    angle = 2 * math.pi * augment.hue * u[3]
    cos, sin = math.cos(angle), math.sin(angle)
    hue = _RGB @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _YIQ
    matrix = hue @ (saturation * np.eye(3) + (1 - saturation) * LUMA) * brightness
    return np.vstack([matrix, np.full((1, 3), contrast)])
