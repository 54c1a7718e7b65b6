"""Reading the network's last output: classes, slots, which slots it hardly tells apart, and the answer at full size."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from model.network.config import NUM_CLASSES, ModelConfig

FIXED = 2.0**20  # probabilities as integers, whose sum is the same in any order
ROWS = 32  # of a mask, whose probabilities a GPU holds at a time


def to_host(maps: Sequence[Tensor]) -> np.ndarray:
    """Maps of codes and slots, (B, h, w) each, as one array (B, maps, h, w) in the host's memory."""
    return torch.stack(tuple(maps), dim=1).to(torch.uint8).cpu().numpy()


def candidates(config: ModelConfig, output: Tensor, everywhere: bool | None = None) -> list[Tensor]:
    """[semantic; where it is a tracked class: the likeliest that is none, and the likeliest slot but 0], each
    (B, h, w). Elsewhere the second is the first and the third is 0.

    `max` and not `argmax`, which is 3 times slower on a CPU. A CPU looks at the pixels of tracked classes alone; a GPU
    everywhere, as it would have to be waited for to say which they are.
    """
    codes, slots = output.permute(0, 2, 3, 1).split(config.code_sizes, dim=-1)  # (B, h, w, codes)
    codes = codes[..., 1:]  # void is never an answer
    semantic = codes.max(dim=-1).indices + 1
    untracked = torch.ones(NUM_CLASSES + 1, dtype=torch.bool, device=output.device)
    for t in config.tracked:  # a fill each: an index would be a copy to the device
        untracked[t + 1] = False
    tracked = ~untracked[semantic]
    if output.device.type != "cpu" if everywhere is None else everywhere:
        others = codes.masked_fill(~untracked[1:], -torch.inf).max(dim=-1).indices + 1
        likeliest = slots[..., 1:].max(dim=-1).indices + 1
        return [semantic, torch.where(tracked, others, semantic), torch.where(tracked, likeliest, 0)]
    other, slot = semantic.clone(), torch.zeros_like(semantic)
    other[tracked] = codes[tracked].masked_fill(~untracked[1:], -torch.inf).max(dim=-1).indices + 1
    slot[tracked] = slots[tracked][:, 1:].max(dim=-1).indices + 1
    return [semantic, other, slot]


def slot_masses(config: ModelConfig, output: Tensor, slot: Tensor, everywhere: bool | None = None) -> np.ndarray:
    """The probabilities of all slots but 0, summed over the pixels of each likeliest slot: (B, slots, slots).

    slot: the likeliest, (B, h, w).
    """
    logits = output.permute(0, 2, 3, 1)[..., config.code_sizes[0] :]  # (B, h, w, slots)
    masses = torch.zeros(len(slot), config.slots, config.slots, dtype=torch.int64, device=output.device)
    for mass, likeliest, values in zip(masses, slot, logits, strict=True):
        if output.device.type != "cpu" if everywhere is None else everywhere:
            # All pixels, some rows at a time; those without a slot fill row 0
            for here, part in zip(likeliest.split(ROWS), values.split(ROWS), strict=True):
                share = part.flatten(0, 1)[:, 1:].float().softmax(dim=-1)
                mass[:, 1:].index_add_(0, here.flatten(), (share * FIXED).round().long())
            mass[0] = 0
            continue
        here = likeliest > 0
        share = values[here][:, 1:].float().softmax(dim=-1)
        mass[:, 1:].index_add_(0, likeliest[here], (share * FIXED).round().long())
    return masses.cpu().numpy() / FIXED


def full_size(
    config: ModelConfig,
    output: Tensor,
    raw_slot: np.ndarray,
    semantic: np.ndarray,
    slot: np.ndarray,
    size: Sequence[int],
) -> tuple[np.ndarray, np.ndarray]:
    """The answer at the frame's size, decided there: scores are interpolated, not labels, so that outlines are smooth.

    output: of one video (codes, h, w); raw_slot: the likeliest slot of each pixel; semantic, slot: the final answer at
    mask size, codes and slots (h, w). Returns them as (H, W).
    """
    pairs = semantic.astype(np.int32) << 16 | slot
    values, labels = np.unique(pairs, return_inverse=True)
    labels = torch.from_numpy(labels.reshape(pairs.shape)).to(output.device)
    scores = _label_scores(config, output, raw_slot, slot, values)
    decided = values[decide(labels, scores, size).cpu().numpy()]
    return (decided >> 16).astype(semantic.dtype), (decided & 0xFFFF).astype(slot.dtype)


def _label_scores(
    config: ModelConfig, output: Tensor, raw_slot: np.ndarray, slot: np.ndarray, values: np.ndarray
) -> Tensor:
    """How likely each label is: (h, w, labels); values: code << 16 | slot of each. The score of a class; of a segment
    that of the likeliest tracked class, times its slots' probability relative to the likeliest segment's."""
    classes, slots = output.permute(1, 2, 0).float().split(config.code_sizes, dim=-1)
    classes = classes[..., 1:].softmax(dim=-1)
    scores = classes[..., (values >> 16) - 1].contiguous()
    segments = np.flatnonzero(values & 0xFFFF)
    if segments.size:
        # Which final slot each raw one has become
        table, final = np.zeros(config.slots, np.int64), values[segments] & 0xFFFF
        table[raw_slot[slot > 0]] = slot[slot > 0]
        member = torch.from_numpy((table[1:, None] == final).astype(np.float32)).to(output.device)  # (slots - 1, n)
        shares = slots[..., 1:].softmax(dim=-1) @ member
        tracked = classes[..., list(config.tracked)].amax(dim=-1, keepdim=True)
        scores[..., segments] = tracked * shares / shares.amax(dim=-1, keepdim=True).clamp_min(1e-9)
    return scores


def decide(labels: Tensor, scores: Tensor, size: Sequence[int]) -> Tensor:
    """The label of each pixel at a larger or smaller size: int64 (H, W).

    labels: (h, w), the label of each pixel; scores: (h, w, labels). Where the four pixels around a new one agree theirs
    is its label; elsewhere it is the one of theirs whose score, interpolated bilinearly, is the highest.
    """
    (h, w), device = labels.shape, labels.device
    places = []
    for n, m in zip(size, (h, w), strict=True):
        position = ((torch.arange(n, device=device) + 0.5) * (m / n) - 0.5).clamp(0, m - 1)
        low = position.long()
        places.append((low, (low + 1).clamp(max=m - 1), position - low))
    (top, bottom, down), (left, right, across) = places
    corners = [labels[y][:, x] for y in (top, bottom) for x in (left, right)]
    decided = corners[0].clone()
    rows, columns = torch.stack([c != corners[0] for c in corners[1:]]).any(dim=0).nonzero(as_tuple=True)

    down, across = down[rows], across[columns]
    flat = [y[rows] * w + x[columns] for y in (top, bottom) for x in (left, right)]
    weights = [(1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across]
    best, scores = torch.full_like(down, -1.0), scores.view(h * w, -1)
    for candidate in (labels.flatten()[position] for position in flat):
        score = sum(weight * scores[position, candidate] for weight, position in zip(weights, flat, strict=True))
        decided[rows, columns] = torch.where(score > best, candidate, decided[rows, columns])
        best = torch.maximum(best, score)
    return decided
