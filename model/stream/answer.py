"""Read the network's last output: classes, slots, slots that it cannot tell apart, and the answer at full size."""

from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from model.network.config import ModelConfig

FIXED = 2.0**20  # probabilities as integers, whose sum is the same in any order
ROWS = 32  # of a mask, whose probabilities a GPU holds at a time


def to_host(maps: Sequence[Tensor]) -> np.ndarray:
    """Maps of codes and slots, (B, h, w) each, as one array (B, maps, h, w) in the host's memory."""
    return torch.stack(tuple(maps), dim=1).to(torch.uint8).cpu().numpy()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device. For a GPU it goes through pinned memory, so that the host does not wait."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def candidates(config: ModelConfig, output: Tensor, everywhere: bool | None = None) -> list[Tensor]:
    """Three maps (B, h, w): the likeliest class; where that is tracked, the likeliest class that is not, and the
    likeliest slot but 0. Elsewhere the second map equals the first and the third is 0.

    `max` is used because `argmax` is 3 times slower on a CPU. A CPU looks only at the pixels of tracked classes. A GPU
    looks at all pixels, because selecting some would make the host wait.
    """
    codes, slots = output.permute(0, 2, 3, 1).split(config.code_sizes, dim=-1)  # (B, h, w, codes)
    codes = codes[..., 1:]  # void is never an answer
    semantic = codes.max(dim=-1).indices + 1
    untracked = torch.ones(config.classes + 1, dtype=torch.bool, device=output.device)
    for t in config.tracked:  # a fill each: an index would be a copy to the device
        untracked[t + 1] = False
    tracked = ~untracked[semantic]
    everywhere = output.device.type != "cpu" if everywhere is None else everywhere
    if everywhere:
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
    everywhere = output.device.type != "cpu" if everywhere is None else everywhere
    for mass, likeliest, values in zip(masses, slot, logits, strict=True):
        if everywhere:
            # All pixels, a few rows at a time; pixels without a slot go to row 0
            for here, part in zip(likeliest.split(ROWS), values.split(ROWS), strict=True):
                share = part.flatten(0, 1)[:, 1:].float().softmax(dim=-1)
                mass[:, 1:].index_add_(0, here.flatten(), (share * FIXED).round().long())
            mass[0] = 0
            continue
        here = likeliest > 0
        share = values[here][:, 1:].float().softmax(dim=-1)
        mass[:, 1:].index_add_(0, likeliest[here], (share * FIXED).round().long())
    return masses.cpu().numpy() / FIXED


def merged(mass: np.ndarray, share: float, held: Collection[int] = (), min_area: int = 1) -> np.ndarray:
    """For each slot, the slot it is merged into: (slots,).

    mass: (slots, slots), row i: the probability of each slot, summed over the pixels whose likeliest slot is i. An
    instance between two places can have either's slot. Few denoising steps leave that undecided, so that it holds
    pixels of both. A slot is merged into a larger one that is at least `share` as likely as itself on its pixels; the
    surest pair comes first. held: slots of tracks. They are not merged themselves; others are merged into them whatever
    their size, if they have `min_area` pixels of their own.
    """
    mass, table = mass.astype(np.float64), np.arange(len(mass))
    has_track = np.isin(table, list(held))
    while True:
        own, area = mass.diagonal(), mass.sum(axis=1)
        allowed = (area[:, None] <= area) | (has_track & (area >= max(min_area, 1) - 0.5))
        allowed &= ((area > 0) & ~has_track)[:, None]
        likeness = np.where(allowed, mass / np.maximum(own, 1e-9)[:, None], 0)
        np.fill_diagonal(likeness, 0)
        part, whole = divmod(int(likeness.argmax()), len(mass))
        if likeness[part, whole] < max(share, 1e-9):
            return table
        table[table == part] = whole
        mass[:, whole] += mass[:, part]
        mass[whole] += mass[part]
        mass[part], mass[:, part] = 0, 0


def split(
    semantic: np.ndarray, slot: np.ndarray, share: float, min_area: int, slots: int, taken: Collection[int] = ()
) -> np.ndarray:
    """Give each class of a slot a slot of its own: the new slots (h, w).

    An instance has one class. A slot that has two, as of a bicycle and its rider, holds two instances. The class with
    most pixels keeps the slot; another one moves to a free slot if it has at least `min_area` pixels and this share of
    the slot's. semantic: codes (h, w); slot: (h, w), 0 where there is none; slots: how many there are; taken: slots
    that are not free, beside those in use.
    """
    counts = np.bincount(slot.ravel().astype(np.intp) << 8 | semantic.ravel(), minlength=slots << 8).reshape(slots, -1)
    counts[0] = 0
    areas, largest = counts.sum(axis=1), counts.argmax(axis=1)
    free = [s for s in range(1, slots) if not areas[s] and s not in taken]
    parts = [(s, code) for s, code in np.argwhere(counts >= max(min_area, 1)) if code != largest[s]]
    parts = [part for part in parts if counts[part] >= share * areas[part[0]]]
    slot = slot.copy()
    for own, (s, code) in zip(free, sorted(parts, key=lambda part: -counts[part]), strict=False):
        slot[(slot == s) & (semantic == code)] = own
    return slot


def full_size(
    config: ModelConfig,
    output: Tensor,
    raw_slot: np.ndarray,
    semantic: np.ndarray,
    slot: np.ndarray,
    size: Sequence[int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The answer at the frame's size. Scores are interpolated there, not labels, so that outlines are smooth.

    output: of one video (codes, h, w); raw_slot: the likeliest slot of each pixel; semantic, slot: the final answer at
    mask size, codes and slots uint8 (h, w). Returns a label of each pixel (H, W), and the code and slot of each label.
    """
    pairs = semantic.astype(np.int32) << 8 | slot
    values = np.flatnonzero(np.bincount(pairs.ravel()))
    index = np.zeros(values[-1] + 1, np.int16)
    index[values] = np.arange(len(values))
    codes, finals = values >> 8, values & 0xFF
    segments = np.flatnonzero(finals)
    # Which final slots each raw one has become: several where its classes were split
    became = np.zeros((config.slots, config.slots), np.float32)
    became[raw_slot[slot > 0], slot[slot > 0]] = 1
    member = became[1:, finals[segments]]
    is_part = member[member.sum(axis=1) > 1].any(axis=0)
    arrays = index[pairs], codes - 1, segments, member, is_part
    labels, classes_of, columns, member, is_part = (to_device(torch.from_numpy(a), output.device) for a in arrays)

    def score(pixels: Tensor) -> Tensor:
        """How likely each label is for mask pixels (n,): (n, labels). For a class it is its probability. For a segment
        it is that of the likeliest tracked class (of a part of a slot: of its own), times its slots' probability
        relative to the likeliest segment's."""
        rows = output.permute(1, 2, 0).flatten(0, 1).index_select(0, pixels).float()
        classes = rows[:, 1 : config.code_sizes[0]].softmax(dim=-1)
        scores = classes.index_select(1, classes_of)
        if segments.size:
            shares = rows[:, config.code_sizes[0] + 1 :].softmax(dim=-1) @ member
            tracked = torch.stack([classes[:, t] for t in config.tracked], dim=-1).amax(dim=-1, keepdim=True)
            certain = torch.where(is_part, scores.index_select(1, columns), tracked)
            scores.index_copy_(1, columns, certain * shares / shares.amax(dim=-1, keepdim=True).clamp_min(1e-9))
        return scores

    return decide(labels, score, size).cpu().numpy().astype(np.intp), codes.astype(np.uint8), finals


def decide(labels: Tensor, score: Callable[[Tensor], Tensor], size: Sequence[int]) -> Tensor:
    """The label of each pixel at a larger or smaller size: (H, W), of the labels' type.

    labels: integers (h, w); score(pixels) -> (n, labels), for mask pixels (n,) counted row by row. Where the four mask
    pixels around a new one agree, it takes their label. Elsewhere it takes the one of their labels whose bilinearly
    interpolated score is highest.
    """
    (h, w), device = labels.shape, labels.device
    places = []
    for n, m in zip(size, (h, w), strict=True):
        position = ((torch.arange(n, device=device) + 0.5) * (m / n) - 0.5).clamp(0, m - 1)
        low = position.long()
        places.append((low, (low + 1).clamp(max=m - 1), position - low))
    (top, bottom, down), (left, right, across) = places

    # From which mask pixels on the four differ
    next_row, next_column = (torch.arange(1, n + 1, device=device).clamp(max=n - 1) for n in (h, w))
    below = labels[next_row]
    differ = (labels != below) | (labels != labels[:, next_column]) | (labels != below[:, next_column])
    decided, differ = (each.index_select(1, left).index_select(0, top) for each in (labels, differ))
    rows, columns = differ.nonzero(as_tuple=True)

    # The scores of the mask pixels that are needed
    corners = torch.stack([y.take(rows) * w + x.take(columns) for y in (top, bottom) for x in (left, right)])  # (4, n)
    needed = torch.zeros(h * w, dtype=torch.bool, device=device)
    needed[corners] = True
    scores = score(needed.nonzero(as_tuple=True)[0])
    scores, count = scores.flatten(), scores.shape[1]
    place = (needed.cumsum(0) - 1).take(corners) * count

    down, across = down.take(rows), across.take(columns)
    weights = [(1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across]
    best, label = torch.full_like(down, -1.0), decided[rows, columns]
    for candidate in labels.take(corners):
        total = sum(weight * scores.take(at + candidate) for weight, at in zip(weights, place, strict=True))
        label = torch.where(total > best, candidate, label)
        best = torch.maximum(best, total)
    decided[rows, columns] = label
    return decided
