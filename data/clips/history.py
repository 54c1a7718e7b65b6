"""Which past masks a clip has. In training some are dropped, so that the model works without them as well."""

import numpy as np

from data.clips.settings import HistoryConfig
from data.labels import VOID


def drop_masks(
    semantic: np.ndarray, instance: np.ndarray, config: HistoryConfig, generator: np.random.Generator
) -> None:
    """Drop history masks in place: classes (T, h, w) become void, ids (T, h, w) become 0."""
    dropped = generator.random(len(semantic)) < config.history_dropout
    if generator.random() < config.history_absent:
        dropped[:] = True
    semantic[dropped], instance[dropped] = VOID, 0
