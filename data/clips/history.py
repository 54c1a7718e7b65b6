"""Which past masks a clip has. In training some are dropped, so that the model works without them as well."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from data.labels import VOID, DataError

SLOT_ORDERS = ("random", "position", "shuffle", "segments")  # of slots.py


@dataclass(frozen=True)
class HistoryConfig:
    """The history in training. Raises DataError for values outside their range."""

    history_dropout: Annotated[float, "probability that a history mask is dropped"] = 0.2
    history_absent: Annotated[float, "probability that a clip has no history at all, as a first frame"] = 0.0
    slot_order: Annotated[str, "new instances' slots; the last two as published", SLOT_ORDERS] = "random"

    def __post_init__(self):
        for name in ("history_dropout", "history_absent"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"{name} is a share, 0..1, not {getattr(self, name)}")


def drop_masks(
    semantic: np.ndarray, instance: np.ndarray, config: HistoryConfig, generator: np.random.Generator
) -> None:
    """Drop history masks in place: classes (T, h, w) become void, ids (T, h, w) become 0."""
    dropped = generator.random(len(semantic)) < config.history_dropout
    if generator.random() < config.history_absent:
        dropped[:] = True
    semantic[dropped], instance[dropped] = VOID, 0
