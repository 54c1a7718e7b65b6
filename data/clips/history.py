"""Damage the history of a clip, as a stream's own history is damaged.

In training the history comes from the truth. At inference it is the model's own, with errors. So in training past masks
are dropped, shifted and coarsened, and instances are removed from them.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from data.clips.motion import fill
from data.clips.transforms import IS_THING
from data.labels import VOID, DataError

SLOT_ORDERS = ("random", "position", "shuffle", "segments")  # of slots.py


@dataclass(frozen=True)
class HistoryConfig:
    """How training damages the history. Raises DataError for values outside their range."""

    history_dropout: Annotated[float, "probability that a history mask is dropped"] = 0.2
    history_absent: Annotated[float, "probability that a clip has no history at all, as a first frame"] = 0.0
    history_corruption: Annotated[float, "probability that a history mask is corrupted"] = 0.0
    corruption_shift: Annotated[int, "largest shift of a corrupted mask, in mask pixels"] = 2
    corruption_coarse: Annotated[int, "largest block, in mask pixels, that a corrupted mask is blurred to"] = 1
    corruption_drop: Annotated[float, "share of instances missing in a corrupted mask"] = 0.2
    corruption_split: Annotated[float, "share of instances of which a part has another id there"] = 0.0
    corruption_merge: Annotated[float, "share of instances that have the id of another there"] = 0.0
    corruption_class: Annotated[float, "share of instances that are of another class of things there"] = 0.0
    slot_order: Annotated[str, "new instances' slots; the last two as published", SLOT_ORDERS] = "random"

    def __post_init__(self):
        for name in ("history_dropout", "history_absent", "history_corruption",
                     "corruption_drop", "corruption_split", "corruption_merge", "corruption_class"):  # fmt: skip
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"{name} is a share, 0..1, not {getattr(self, name)}")
        if self.corruption_shift < 0 or self.corruption_coarse < 1:
            raise DataError("corruption_shift must be 0 or more, and corruption_coarse 1 or more")


def corrupt(
    semantic: np.ndarray,
    instance: np.ndarray,
    config: HistoryConfig,
    generator: np.random.Generator,
    is_thing: np.ndarray = IS_THING,
) -> None:
    """Damage history masks in place: trainIds (T, h, w), void where nothing is known, and ids (T, h, w), no padding."""
    absent = generator.random() < config.history_absent
    for t in range(len(semantic)):
        dropped, corrupted, *where = generator.random(5)
        rng = np.random.default_rng(generator.integers(2**63))  # so that the masks do not affect one another
        if absent or dropped < config.history_dropout:
            semantic[t], instance[t] = VOID, 0
        elif corrupted < config.history_corruption:
            _mistake(semantic[t], instance[t], config, rng, is_thing)
            index = np.ix_(*_shifted(semantic.shape[1:], config, where))
            semantic[t], instance[t] = semantic[t][index], instance[t][index]


def _mistake(
    semantic: np.ndarray, instance: np.ndarray, config: HistoryConfig, rng: np.random.Generator, is_thing: np.ndarray
) -> None:
    """Split, merge, rename and miss instances of one mask (h, w), in place."""
    named = is_thing[semantic] & (instance > 0)
    key = np.where(named, instance.astype(np.int64) * 256 + semantic, 0)
    keys = np.unique(key[key > 0])
    shares = [config.corruption_drop, config.corruption_split, config.corruption_merge, config.corruption_class]
    missing, split, merged, renamed = rng.random((4, keys.size)) < np.array(shares)[:, None]
    unused = int(instance.max(initial=0)) + 1
    for k in keys[split]:  # the part on one side of a line through it
        y, x = np.nonzero(key == k)
        angle, share = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.5)
        along = np.cos(angle) * x + np.sin(angle) * y
        part = along > np.quantile(along, 1 - share)
        instance[y[part], x[part]] = unused
        unused += 1
    for k in keys[merged]:
        other = rng.choice(keys)
        instance[key == k], semantic[key == k] = other // 256, other % 256
    for k in keys[renamed]:
        semantic[key == k] = rng.choice(np.flatnonzero(is_thing))
    fill(semantic, instance, np.isin(key, keys[missing]))  # a model gives missed pixels the class beside them


def _shifted(size: tuple[int, int], config: HistoryConfig, draws: list[float]) -> list[np.ndarray]:
    """The source rows and columns of a mask of `size` that is shifted and made of blocks; its border repeats."""
    block = 1 + int(draws[2] * config.corruption_coarse)
    shifts = [int(draw * (2 * config.corruption_shift + 1)) - config.corruption_shift for draw in draws[:2]]
    return [
        np.clip(np.arange(n) // block * block + block // 2 + shift, 0, n - 1)
        for n, shift in zip(size, shifts, strict=True)
    ]
