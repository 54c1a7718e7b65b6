"""The one pass over the pixels: a pair of label maps -> the table of segments that occur together.

Every metric here works from this table, which has some hundred rows where the frame has half a million pixels. A label
map is the pair `semantic` (H, W), classes 0..num_classes-1 or 255 = void, and `instance` (H, W), ids 0..2**24-1, 0 =
none. A segment is written as one number, its code: class << 24 | id.

Masks have long rows of equal pixels. So the pixels at which one of the four maps changes are found first, which
compares neighbours and sorts nothing, and only those few thousand run starts are sorted, weighted by the runs' lengths.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

VOID = 255
ID_BITS = 24
ID_MASK = (1 << ID_BITS) - 1
CODE_BITS = 32
CODE_MASK = (1 << CODE_BITS) - 1
# With more runs than this share of the pixels (noise) it is quicker to sort all pixels unweighted.
DENSE = 0.3

LabelMap = tuple[np.ndarray, np.ndarray]


class Table(NamedTuple):
    """Segments that share pixels, one row for each pair of them; rows are unique and sorted by (truth, prediction).

    truth, prediction: int64 (N,) codes, class << 24 | id, void being 255 << 24; area: int64 (N,), pixels shared (> 0).
    """

    truth: np.ndarray
    prediction: np.ndarray
    area: np.ndarray


def co_occurrence(truth: LabelMap, prediction: LabelMap, num_classes: int = 19) -> Table:
    """The table of one frame.

    truth, prediction: (semantic, instance), integer arrays, all four of one shape (H, W). The ids of void are dropped.
    Raises ValueError where shapes differ, arrays are not integer, or a class or an id is out of range.
    """
    maps = [np.asarray(a) for a in (*truth, *prediction)]
    if any(a.shape != maps[0].shape for a in maps):
        raise ValueError(f"label maps must have one shape, not {', '.join(str(a.shape) for a in maps)}")
    if any(a.dtype.kind not in "iu" for a in maps):
        raise ValueError(f"label maps must be integer, not {', '.join(str(a.dtype) for a in maps)}")
    if maps[0].size == 0:
        return Table(*(np.zeros(0, np.int64) for _ in range(3)))
    maps = [a.ravel() for a in maps]

    change = np.ones(maps[0].size, bool)  # (H * W,), a run of equal pixels starts here
    np.not_equal(maps[0][1:], maps[0][:-1], out=change[1:])
    for flat in maps[1:]:
        change[1:] |= flat[1:] != flat[:-1]
    starts = np.flatnonzero(change)

    if starts.size > DENSE * change.size:
        keys, area = np.unique(_keys(maps, num_classes), return_counts=True)
    else:
        lengths = np.diff(starts, append=change.size)
        keys, area = _sum_equal(_keys([a[starts] for a in maps], num_classes), lengths)
    return _from_keys(keys, area)


def fold(table: Table, things: Iterable[int]) -> Table:
    """The same table with the ids of all classes but `things` dropped: their pixels in a frame are one segment."""
    mask = np.full(256, VOID << ID_BITS, np.int64)
    mask[list(things)] = CODE_MASK
    truth = table.truth & mask[table.truth >> ID_BITS]
    prediction = table.prediction & mask[table.prediction >> ID_BITS]
    if np.array_equal(truth, table.truth) and np.array_equal(prediction, table.prediction):
        return table
    return combine([Table(truth, prediction, table.area)])


def combine(tables: Iterable[Table]) -> Table:
    """The table of several frames taken as one: areas of equal pairs added up."""
    truth, prediction, area = (np.concatenate(column) for column in zip(*tables, strict=True))
    return _from_keys(*_sum_equal(_join(truth, prediction), area))


def confusion(table: Table, num_classes: int) -> np.ndarray:
    """int64 (num_classes + 1, num_classes + 1): pixels by class of truth (rows) and prediction; void is last."""
    size = num_classes + 1
    truth = np.minimum(table.truth >> ID_BITS, num_classes)
    prediction = np.minimum(table.prediction >> ID_BITS, num_classes)
    return sum_by(truth * size + prediction, table.area, size * size).reshape(size, size)


def sum_by(index: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    """int64 (size,): the sum of the integer `values` (below 2**53) at each index."""
    return np.bincount(index, weights=values, minlength=size).astype(np.int64)


def class_mask(classes: Iterable[int]) -> np.ndarray:
    """bool (256,): True at each of the classes."""
    mask = np.zeros(256, bool)
    mask[list(classes)] = True
    return mask


def _keys(maps: list[np.ndarray], num_classes: int) -> np.ndarray:
    """The four flat maps -> uint64 keys, code of the truth << 32 | code of the prediction. Raises ValueError."""
    codes = []
    for name, semantic, instance in (("truth", *maps[:2]), ("prediction", *maps[2:])):
        unknown = (semantic != VOID) & ((semantic < 0) | (semantic >= num_classes))
        if unknown.any():
            raise ValueError(
                f"the {name} holds class {semantic[unknown][0]}; classes are 0..{num_classes - 1} and {VOID} = void"
            )
        low, high = int(instance.min()), int(instance.max())
        if low < 0 or high > ID_MASK:
            raise ValueError(f"the {name} holds ids {low}..{high}; ids are 0..{ID_MASK}")
        codes.append(np.where(semantic == VOID, VOID << ID_BITS, semantic.astype(np.int64) << ID_BITS | instance))
    return _join(*codes)


def _join(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    return truth.astype(np.uint64) << np.uint64(CODE_BITS) | prediction.astype(np.uint64)


def _from_keys(keys: np.ndarray, area: np.ndarray) -> Table:
    truth = (keys >> np.uint64(CODE_BITS)).astype(np.int64)
    return Table(truth, (keys & np.uint64(CODE_MASK)).astype(np.int64), area.astype(np.int64))


def _sum_equal(keys: np.ndarray, area: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unique keys in order, and the sum of the areas of each."""
    if keys.size == 0:
        return keys, area
    order = np.argsort(keys)
    keys, area = keys[order], area[order]
    first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    return keys[first], np.add.reduceat(area, first)
