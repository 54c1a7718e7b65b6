"""Random numbers: each sample draws its own, from its number alone, so that neither the batch it is in, nor the
process, nor a restart changes them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from model.network.pix2seq_d import Pix2SeqD


class Draws(NamedTuple):
    """What one training step draws for its B samples."""

    t: Tensor  # (B,) uniform in [0, 1)
    noise: Tensor  # (B, bits, h, w) standard normal
    key: Tensor | None = None  # int64 (B,), of the encoder's dropout


def seeded(device: torch.device | str, *key: int) -> torch.Generator:
    """A generator on the device, seeded by a key of integers (mixed as in splitmix64)."""
    mask, state = 0xFFFFFFFFFFFFFFFF, 0x9E3779B97F4A7C15
    for number in key:
        state = ((state ^ (number & mask)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return torch.Generator(device).manual_seed(state >> 1)


def draw(seed: int, numbers: Sequence[int], model: Pix2SeqD, mask_size: Sequence[int], device) -> Draws:
    """The draws of the samples with these numbers: sample n draws the same whatever batch it is in."""
    rows, noises = [], []
    for number in numbers:
        g = seeded(device, seed, int(number))
        rows.append(torch.rand(2, generator=g, device=device))
        noises.append(torch.randn(model.config.bits, *mask_size, generator=g, device=device))
    t, key = torch.stack(rows).unbind(dim=1)
    return Draws(t, torch.stack(noises), (key * 2**24).long())
