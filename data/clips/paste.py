"""Copy-paste: put things of one frame into another (Ghiasi et al., arXiv 2012.07177).

In crowded streets things hide one another, and 2,000 frames are few. Pasted things keep their vertical position, where
their size is right. Nearer things hide them.
"""

import numpy as np

from data.clips.transforms import IS_THING, View, class_by_class, instance_keys, view_image
from data.io.pixels import nearest

MOST = 5  # things a frame
LEAST = 0.0005  # of the frame's pixels; smaller things are not pasted


def paste(
    frame: tuple[np.ndarray, np.ndarray, np.ndarray],
    other: tuple[np.ndarray, np.ndarray, np.ndarray],
    generator: np.random.Generator,
    is_thing: np.ndarray = IS_THING,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A frame with 1 to MOST things of another, each a new instance; the given arrays are not changed.

    frame, other: image uint8 (H, W, 3), semantic uint8 (H, W), instance int32 (H, W); sizes may differ.
    """
    image, semantic, instance = (a.copy() for a in frame)
    size = semantic.shape
    source = view_image(other[0], size, View())
    key = instance_keys(*(nearest(labels, size) for labels in other[1:]), is_thing)
    names, areas = np.unique(key[key > 0], return_counts=True)
    names = class_by_class(names[areas >= LEAST * key.size], generator)
    unused = int(instance.max(initial=0)) + 1
    feet = _feet(instance_keys(semantic, instance, is_thing))
    for number in names[: 1 + int(generator.integers(MOST))]:
        rows, columns = np.nonzero(key == number)
        pixels, label = source[rows, columns], number % 256
        if generator.random() < 0.5:
            columns = columns.min() + columns.max() - columns
        columns = columns + int(generator.integers(-columns.min() - np.ptp(columns) // 2, size[1] - columns.min()))
        nearer = feet[np.clip(rows, 0, size[0] - 1), np.clip(columns, 0, size[1] - 1)] > rows.max()
        visible = (columns >= 0) & (columns < size[1]) & ~nearer
        rows, columns, pixels = rows[visible], columns[visible], pixels[visible]
        if rows.size == 0:
            continue
        image[rows, columns], semantic[rows, columns], instance[rows, columns] = pixels, label, unused
        feet[rows, columns] = rows.max()
        unused += 1
    return image, semantic, instance


def _feet(key: np.ndarray) -> np.ndarray:
    """For each pixel of an instance (`instance_keys`), the lowest row of it, else -1: int (H, W)."""
    rows, columns = np.nonzero(key)
    names, index = np.unique(key[rows, columns], return_inverse=True)
    lowest = np.zeros(names.size, np.intp)
    np.maximum.at(lowest, index, rows)
    feet = np.full(key.shape, -1)
    feet[rows, columns] = lowest[index]
    return feet
