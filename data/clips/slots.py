"""Assign a slot to each instance of a clip: at random, or by its place and size."""

import numpy as np

from data.clips.transforms import IS_THING
from data.labels import VOID


def assign_slots(
    semantic: np.ndarray,
    instance: np.ndarray,
    slots: int,
    generator: np.random.Generator,
    order: str = "random",
    is_thing: np.ndarray = IS_THING,
) -> tuple[np.ndarray, np.ndarray]:
    """Give each instance of a clip, that is each (class, id) of a thing, a slot of its own in 1..slots-1.

    semantic: trainIds or 255, instance: ids, both (T + 1, h, w). Slots are drawn without replacement. With the order
    "position" only instances in the history draw a slot. The others take free slots of their size, in order from left
    to right and as near to their own place as possible (`slot_places`), so that chance does not decide between two
    close instances. Two orders are those of the released code of Pix2Seq-D: "shuffle" draws from 1 to the largest id of
    the clip (data/video.py); "segments", for images, also gives a slot to each class of stuff and to crowd, and draws
    from 1 to their number (data/cityscapes.py).
    If there are more instances than slots, of which there are 256 at most, the larger ones get them. Returns the slots,
    uint8, 0 for stuff; and bool, True where a thing has no slot (crowd, or none left); both (T + 1, h, w).
    """
    counted = semantic != VOID if order == "segments" else is_thing[semantic]  # what should have a slot
    thing = np.flatnonzero(counted if order == "segments" else counted & (instance > 0))  # a crowd gets none
    ids = instance.ravel()[thing].astype(np.int64)
    key = (semantic.ravel()[thing].astype(np.int64) << 32) + ids
    keys, index, area = np.unique(key, return_inverse=True, return_counts=True)
    taken = np.argsort(-area, kind="stable")[: slots - 1]
    table = np.zeros(keys.size, np.uint8)
    most = {"segments": keys.size, "shuffle": max(keys.size, int(ids.max(initial=0)))}.get(order, slots)
    table[np.sort(taken)] = 1 + generator.choice(min(most, slots - 1), taken.size, replace=False)
    if order == "position":
        _place(table, taken, index, thing, semantic.shape, slots)
    slot = np.zeros(semantic.shape, np.uint8)
    slot.flat[thing] = table[index]
    return slot, counted & (slot == 0)


def slot_places(slots: int) -> np.ndarray:
    """The place of each slot 1..slots-1: (slots - 1, 2), x in 0..1 and size: 0 narrow, 1 medium, 2 wide.

    Instances are told apart by place and size, as in SOLO (arXiv 1912.04488, section 3.1). The slots of each
    size go from left to right, about as far apart as its instances are wide: of 63 slots 40, 14 and 9.
    """
    count = slots - 1
    wide, medium = count // 7, count * 2 // 9
    sizes = (count - medium - wide, medium, wide)
    return np.concatenate([np.stack([(np.arange(n) + 0.5) / max(n, 1), np.full(n, s)], 1) for s, n in enumerate(sizes)])


SIZES = (1 / 24, 1 / 8)  # of the mask's width: the least of medium and of wide


def _place(table: np.ndarray, taken: np.ndarray, index: np.ndarray, thing: np.ndarray, shape, slots: int) -> None:
    """Give free slots to the instances that only the last mask shows: slots of their size, in order from left to right.

    If a size has too few free slots, its smallest instances take the slots that other sizes leave over.

    table: slot of each instance; taken: instances with slots, the largest first; index, thing: instance and flat
    position of each pixel.
    """
    frame, _, x = np.unravel_index(thing, shape)
    held = np.bincount(index[frame < shape[0] - 1], minlength=table.size) > 0
    new = taken[~held[taken]]
    free = np.ones(slots - 1, bool)
    free[table[taken[held[taken]]].astype(np.intp) - 1] = False
    pixels = np.bincount(index, minlength=table.size)
    centre = np.bincount(index, (x + 0.5) / shape[2], minlength=table.size) / np.maximum(pixels, 1)
    left, right = np.full(table.size, shape[2]), np.full(table.size, -1)
    np.minimum.at(left, index, x)
    np.maximum.at(right, index, x)
    size = np.digitize((right + 1 - left) / shape[2], SIZES)
    places = slot_places(slots)
    left_over = []
    for s in np.unique(size[new]):
        mine = new[size[new] == s]
        there = np.flatnonzero(free & (places[:, 1] == s))
        mine, more = mine[: there.size], mine[there.size :]
        left_over += more.tolist()
        mine = mine[np.argsort(centre[mine], kind="stable")]
        best = there[in_order(centre[mine], places[there, 0])]
        table[mine], free[best] = best + 1, False
    for n, place in zip(left_over, np.flatnonzero(free), strict=False):
        table[n] = place + 1


def in_order(x: np.ndarray, places: np.ndarray) -> np.ndarray:
    """A different place for each of n points, in order, with the least sum of squared distances: int (n,).

    x (n,) and places (m,), n <= m, both ascending.
    """
    n, m = len(x), len(places)
    cost = np.full((n + 1, m + 1), np.inf)  # least, for the first i points in the first j places
    cost[0] = 0
    for i in range(1, n + 1):
        for j in range(i, m + 1):
            cost[i, j] = min(cost[i, j - 1], cost[i - 1, j - 1] + (x[i - 1] - places[j - 1]) ** 2)
    chosen, j = np.zeros(n, np.intp), m
    for i in range(n, 0, -1):
        while cost[i, j] == cost[i, j - 1]:
            j -= 1
        j -= 1
        chosen[i - 1] = j
    return chosen
