"""The order of training: which clip of which data set is the n-th sample, as a function of (seed, n) alone.

Nothing here has a state. So a resumed run sees the same samples, with any number of workers and processes.
"""

import functools
import sys
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from data.clips.clips import Clips
from data.labels import DataError

MAX_ATTEMPTS = 16  # for one sample with unreadable files
_ORDER, _PERMUTATION = 2**32 - 1, 2**32 - 2  # no sample has these numbers: keeps the random streams apart


class TrainingStream(Dataset):
    """`samples` training samples of several data sets; item n depends only on (seed, n).

    An epoch is as long as all data sets together. Each data set has a share of it in proportion to its weight (None: to
    its length). Each data set goes through its own permutations, so after any number of epochs the counts of its frames
    differ by at most one. The order in an epoch is shuffled over all data sets.

    With skip_bad_files a sample whose files cannot be read is replaced by another draw from the same data set; its
    `skipped`, int64 (), counts these draws. Otherwise the DataError is raised.
    """

    def __init__(
        self,
        clips: Sequence[Clips],
        weights: Sequence[float] | None = None,
        seed: int = 0,
        samples: int = 2**40,
        skip_bad_files: bool = False,
    ):
        lengths = np.array([len(c) for c in clips])
        weight = np.array(lengths if weights is None else weights, np.float64)
        if (lengths[weight > 0] == 0).any():
            raise DataError("a data set without frames cannot be trained on")
        self.clips, self.seed, self.samples, self.skip_bad_files = list(clips), seed, samples, skip_bad_files
        self.lengths = lengths.tolist()
        self.quotas = _quotas(weight, int(lengths[weight > 0].sum()))
        self.epoch_length = sum(self.quotas)
        self._named: set[str] = set()

    def __len__(self) -> int:
        return self.samples

    def locate(self, n: int) -> tuple[int, int]:
        """Sample n as (number of the data set, frame in it)."""
        epoch, position = divmod(n, self.epoch_length)
        place = int(_permutation(self.epoch_length, self.seed, _ORDER, epoch)[position])
        d = int(np.searchsorted(np.cumsum(self.quotas), place, side="right"))
        turn, k = divmod(epoch * self.quotas[d] + place - sum(self.quotas[:d]), self.lengths[d])
        return d, int(_permutation(self.lengths[d], self.seed, _PERMUTATION, d, turn)[k])

    def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
        if not 0 <= n < self.samples:
            raise IndexError(n)
        d, i = self.locate(n)
        generator = np.random.default_rng([self.seed, n])
        for attempt in range(MAX_ATTEMPTS):
            try:
                return self.clips[d].sample(i, generator) | {"skipped": torch.tensor(attempt)}
            except DataError as error:
                if not self.skip_bad_files:
                    raise
                if (reason := str(error)) not in self._named:
                    self._named.add(reason)
                    print(f"skipped: {reason}", file=sys.stderr, flush=True)
            generator = np.random.default_rng([self.seed, n, attempt + 1])
            i = int(generator.integers(self.lengths[d]))
        raise DataError(f"{MAX_ATTEMPTS} samples in a row cannot be read, at last: {reason}")


@functools.lru_cache(64)  # a loader goes through epochs in order
def _permutation(length: int, *key: int) -> np.ndarray:
    return np.random.default_rng(key).permutation(length)


def _quotas(weight: np.ndarray, total: int) -> list[int]:
    """Split `total` in proportion to the weights: largest remainders, at least one for a weight above 0."""
    exact = total * weight / weight.sum()
    quota = np.floor(exact).astype(int)
    for d in np.argsort(-(exact - quota), kind="stable")[: total - int(quota.sum())]:
        quota[d] += 1
    return np.maximum(quota, weight > 0).tolist()
