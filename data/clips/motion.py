"""A history for a still image: its own mask, moved as a camera and the things in a street move.

It replaces the past masks of an image (ours): a model that copies ids from a moved mask learns to track.
"""

import math
from dataclasses import dataclass

import numpy as np

from data.clips.transforms import IS_THING, View, instance_keys, pixel_at, sample_grid
from data.io.pixels import nearest
from data.labels import VOID

# At most, from one frame to the next
SHIFT = 0.01  # of the frame's size
ZOOM = 0.01
ROTATION = 0.3  # degrees
OBJECT_SHIFT = 0.1  # of an object's size, which is the square root of its pixels
OBJECT_GROWTH = 0.05


@dataclass(frozen=True)
class Motion:
    """How the frame and its objects move from one frame to the next; drawn once, and the same through the clip."""

    shift: tuple[float, float]  # down, right, in fractions of the frame
    zoom: float
    rotation: float  # radians
    seed: int  # of the objects' own motions, so that an object keeps its velocity through the clip


def draw_motion(generator: np.random.Generator) -> Motion:
    down, right, zoom, turn = generator.uniform(-1, 1, 4)
    shift = float(down * SHIFT), float(right * SHIFT)
    return Motion(shift, float(1 + zoom * ZOOM), math.radians(turn * ROTATION), int(generator.integers(2**32)))


def view_moved(
    semantic: np.ndarray,
    instance: np.ndarray,
    size: tuple[int, int],
    view: View,
    motion: Motion,
    frames: float,
    is_thing: np.ndarray = IS_THING,
) -> tuple[np.ndarray, np.ndarray]:
    """The view of labels (H, W) after `frames` frames of motion: two maps (height, width), void where nothing moved
    in."""
    fh, fw = semantic.shape
    y, x = sample_grid((fh, fw), size, view)
    # From the view to the frame: the inverse of the motion, about the frame's centre.
    angle, scale = -motion.rotation * frames, motion.zoom**-frames
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    dy = y[:, None] - fh / 2 - motion.shift[0] * frames * fh
    dx = x[None, :] - fw / 2 - motion.shift[1] * frames * fw
    rows, columns = np.floor(cos * dy - sin * dx + fh / 2), np.floor(sin * dy + cos * dx + fw / 2)
    inside = (rows >= 0) & (rows < fh) & (columns >= 0) & (columns < fw)
    flat = (pixel_at(rows, fh) * fw + pixel_at(columns, fw)).ravel()
    moved_semantic = np.where(inside, semantic.ravel().take(flat).reshape(size), np.uint8(VOID))
    moved_instance = np.where(inside, instance.ravel().take(flat).reshape(size), 0)
    _move_objects(moved_semantic, moved_instance, motion, frames, is_thing)
    return moved_semantic, moved_instance


def _fill(semantic: np.ndarray, instance: np.ndarray, hole: np.ndarray) -> None:
    """Fill a hole (h, w) with the class and id beside it in the row, in place; void if the row has none."""
    if not hole.any():
        return
    column = np.arange(semantic.shape[1])
    left = np.maximum.accumulate(np.where(hole, -1, column), axis=1)
    right = np.minimum.accumulate(np.where(hole, column.size, column)[:, ::-1], axis=1)[:, ::-1]
    origin = np.where(left >= 0, left, right)
    outside = origin >= column.size  # the whole row is a hole
    origin = np.minimum(origin, column.size - 1)
    semantic[:] = np.where(outside, np.uint8(VOID), np.take_along_axis(semantic, origin, axis=1))
    instance[:] = np.where(outside, 0, np.take_along_axis(instance, origin, axis=1))


def _move_objects(
    semantic: np.ndarray, instance: np.ndarray, motion: Motion, frames: float, is_thing: np.ndarray
) -> None:
    """Shift and scale each object by its own velocity, in place. The uncovered pixels take the class beside them."""
    key = instance_keys(semantic, instance, is_thing)
    objects, hole = [], np.zeros(key.shape, bool)
    for k in np.unique(key[key > 0]):
        rows, columns = np.nonzero(key == k)
        *speed, growth = np.random.default_rng([motion.seed, int(k)]).uniform(-1, 1, 3)
        # An object moves along the street more than up and down.
        size = math.sqrt(rows.size)
        down, right = (v * share * OBJECT_SHIFT * frames * size for v, share in zip(speed, (0.3, 1.0), strict=True))
        scale = (1 + growth * OBJECT_GROWTH) ** frames
        if max(abs(down), abs(right), abs(scale - 1) * size) >= 0.5:
            objects.append((k, rows, columns, (down, right), scale))
            hole[rows, columns] = True
    _fill(semantic, instance, hole)
    # A lower object is nearer, so it is painted later.
    for k, rows, columns, shift, scale in sorted(objects, key=lambda o: o[1].max()):
        y, x = _moved_pixels(rows, columns, shift, scale, semantic.shape)
        semantic[y, x], instance[y, x] = k % 256, k // 256


def _moved_pixels(
    rows: np.ndarray, columns: np.ndarray, shift: tuple[float, float], scale: float, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The pixels of an object scaled about the middle of its lower edge, then shifted; only those within the map."""
    top, left = rows.min(), columns.min()
    mask = np.zeros((rows.max() - top + 1, columns.max() - left + 1), bool)
    mask[rows - top, columns - left] = True
    foot, middle = rows.max() + 1 + shift[0], left + mask.shape[1] / 2 + shift[1]
    height, width = (max(1, round(n * scale)) for n in mask.shape)
    y, x = np.nonzero(nearest(mask, (height, width)))
    y, x = y + round(foot - height), x + round(middle - width / 2)
    inside = (y >= 0) & (y < size[0]) & (x >= 0) & (x < size[1])
    return y[inside], x[inside]
