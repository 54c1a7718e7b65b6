"""Reading the network's last output: classes, slots, and which slots it hardly tells apart. On the device; one copy of
small integers goes to the host."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from model.pix2seq_d import NUM_CLASSES, ModelConfig, Pix2SeqD

FIXED = 2.0**20  # probabilities as integers, whose sum is the same in any order


def to_host(config: ModelConfig, maps: Sequence[Tensor]) -> np.ndarray:
    """Maps of codes and slots, (B, h, w) each, as one array (B, maps, h, w) in the host's memory."""
    return torch.stack(tuple(maps), dim=1).to(torch.uint8 if config.slots <= 256 else torch.int32).cpu().numpy()


def candidates(model: Pix2SeqD, output: Tensor) -> list[Tensor]:
    """[semantic; where it is a tracked class: the likeliest that is none, and the likeliest slot but 0], each
    (B, h, w). Elsewhere the second is the first and the third is 0.

    `max` and not `argmax`, which is 3 times slower on a CPU.
    """
    c = model.config
    if c.loss != "softmax" or len(c.code_bits) != 2:
        semantic, slot = model.answer(output)
        return [semantic, semantic, slot]
    codes, slots = output.permute(0, 2, 3, 1).split(c.code_sizes, dim=-1)  # (B, h, w, codes)
    codes = codes[..., 1:]  # void is never an answer
    semantic = codes.max(dim=-1).indices + 1
    untracked = torch.ones(NUM_CLASSES + 1, dtype=torch.bool, device=output.device)
    untracked[[t + 1 for t in c.tracked]] = False
    tracked = ~untracked[semantic]
    other, slot = semantic.clone(), torch.zeros_like(semantic)
    other[tracked] = codes[tracked].masked_fill(~untracked[1:], -torch.inf).max(dim=-1).indices + 1
    slot[tracked] = slots[tracked][:, 1:].max(dim=-1).indices + 1
    return [semantic, other, slot]


def slot_masses(
    model: Pix2SeqD, output: Tensor, slot: Tensor, contents: Sequence[tuple[int, int]]
) -> np.ndarray | None:
    """The probabilities of all slots but 0, summed over the pixels of each likeliest slot (B, h, w) within the
    content: (B, slots, slots). None where the model gives no probabilities of slots."""
    c = model.config
    if c.loss != "softmax" or len(c.code_bits) != 2:
        return None
    logits = output.permute(0, 2, 3, 1)[..., c.code_sizes[0] :]  # (B, h, w, slots)
    masses = torch.zeros(len(slot), c.slots, c.slots, dtype=torch.int64, device=output.device)
    for mass, likeliest, values, (height, width) in zip(masses, slot, logits, contents, strict=True):
        likeliest, values = likeliest[:height, :width], values[:height, :width]
        here = likeliest > 0
        share = values[here][:, 1:].float().softmax(dim=-1)
        mass[:, 1:].index_add_(0, likeliest[here], (share * FIXED).round().long())
    return masses.cpu().numpy() / FIXED
