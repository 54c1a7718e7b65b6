"""Dropout that is drawn from each sample's own key."""

import torch
from torch import Tensor


def dropped(x: Tensor, rate: float, key: Tensor | None, place: int = 0, whole: bool = False) -> Tensor:
    """Dropout that follows a sample, whatever the batch and the process it is in: x (B, ...), key int64 (B,), None for
    none; place: of the layer, so that each draws its own.

    whole: all of a sample's values or none. The random numbers are a hash of key and place (lowbias32 of Chris
    Wellons, twice), so that no generator has a state, and recomputed activations are the same.
    """
    if key is None or rate == 0:
        return x
    count = 1 if whole else x[0].numel()
    value = (torch.arange(count, device=x.device) + _hashed(key + place)[:, None]) & 0xFFFFFFFF  # (B, count)
    keep = _hashed(value) >= rate * 2**32
    return x * keep.view(-1, *([1] * (x.ndim - 1) if whole else x.shape[1:])) / (1 - rate)


def _hashed(value: Tensor) -> Tensor:
    """A hash of 32 bits, of the lower 32 bits of an int64 tensor."""
    value = value & 0xFFFFFFFF
    value = ((value ^ (value >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    value = ((value ^ (value >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return value ^ (value >> 16)
