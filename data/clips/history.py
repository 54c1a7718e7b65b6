"""Which past masks a clip has. In training some are dropped, so that the model works without them as well."""

import numpy as np

from data.labels import VOID


def drop_masks(
    semantic: np.ndarray, instance: np.ndarray, dropout: float, absent: float, generator: np.random.Generator
) -> None:
    """Drop history masks in place: classes (T, h, w) become void, ids (T, h, w) become 0.

    dropout: the probability of each mask; absent: of all together.
    """
    dropped = generator.random(len(semantic)) < dropout
    if generator.random() < absent:
        dropped[:] = True
    semantic[dropped], instance[dropped] = VOID, 0
