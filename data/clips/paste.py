"""Copy-paste: put things of one frame into another (Ghiasi et al., arXiv 2012.07177).

In crowded streets things hide one another, and 2,000 frames are few. Pasted things keep their vertical position, where
their size is right. Nearer things hide them.
"""

import numpy as np
from PIL import Image

from data.clips.transforms import IS_THING

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
    images = [other[0], other[1], other[2]]
    if other[1].shape != size:
        images[0] = np.asarray(Image.fromarray(other[0]).resize(size[::-1], Image.Resampling.BILINEAR))
        y, x = (np.arange(n) * m // n for n, m in zip(size, other[1].shape, strict=True))
        images[1:] = (labels[np.ix_(y, x)] for labels in other[1:])
    source, classes, ids = images
    key = np.where(is_thing[classes], ids, 0)
    names, areas = np.unique(key[key > 0], return_counts=True)
    names = names[areas >= LEAST * key.size]
    generator.shuffle(names)
    unused = int(instance.max(initial=0)) + 1
    feet = _feet(is_thing[semantic], instance)
    for number in names[: 1 + int(generator.integers(MOST))]:
        rows, columns = np.nonzero(key == number)
        pixels, label = source[rows, columns], classes[rows[0], columns[0]]
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


def _feet(is_thing: np.ndarray, instance: np.ndarray) -> np.ndarray:
    """For each pixel of a thing, the lowest row of its instance, else -1: int (H, W)."""
    key = np.where(is_thing, instance, 0)
    rows = np.broadcast_to(np.arange(key.shape[0])[:, None], key.shape)
    lowest = np.full(int(key.max(initial=0)) + 1, -1)
    np.maximum.at(lowest, key[key > 0], rows[key > 0])
    return lowest[key]
