"""The history of a video: its past masks as the model sees them, and masks that are given, not predicted."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from data.io.pixels import nearest
from data.labels import VOID
from model.network.config import ModelConfig
from model.stream.answer import to_device
from model.stream.state import StreamState
from model.stream.tracks import placed, updated_track, with_mask


def past_masks(states: Sequence[StreamState], config: ModelConfig, mask_size: tuple[int, int], device) -> list[Tensor]:
    """The past masks that the model sees: semantic, slot, and where each is known, (B, T, h, w).

    As in training, the slot is unknown in things without a track: other classes, or a crowd.
    """
    offsets = config.history_offsets
    shape = (len(states), len(offsets), *mask_size)
    maps = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8), np.zeros(shape, bool)
    for b, state in enumerate(states):
        if state.semantic is not None:
            rows = [config.history_length + offset for offset in offsets]
            for target, source in zip(maps, (state.semantic, state.slot, state.known), strict=True):
                target[b] = source[rows]
    semantic, slot, known = (to_device(torch.from_numpy(m), device) for m in maps)
    things = to_device(torch.tensor([c + 1 for c in config.things], dtype=torch.uint8), device)
    nameless = torch.isin(semantic, things) & (slot == 0)
    return [semantic, slot, known, known & ~nameless]


def adopt(state: StreamState, semantic: np.ndarray, track: np.ndarray, model: ModelConfig, size=None) -> StreamState:
    """Take a frame's mask as given, in place of predicting it: class indices or 255, track ids, both (H, W).

    size: (h, w) of the mask, None for the model's choice. A track that the state knows keeps its slot. A new one gets
    the slot of its own number where that is free, else the one that has been free for longest. Where there are more
    tracks than slots the smallest have none. Returns the next state.
    """
    size = size or model.sizes_for(semantic.shape)[1]
    state = state.at_size(size)
    labels, ids = nearest(semantic, size), nearest(track, size).astype(np.int64)
    codes = np.where(labels == VOID, 0, labels + 1).astype(np.uint8)
    tracked_codes = np.array(model.tracked) + 1

    present, areas = np.unique(ids[ids > 0], return_counts=True)
    named = present[np.argsort(-areas, kind="stable")][: model.slots - 1].tolist()
    rows = {t.id: n for n, t in enumerate(state.tracks)}
    place = placed(named, {i: state.tracks[rows[i]].slot for i in named if i in rows}, state, model.slots)
    now, slot = [], np.zeros(size, np.int32)
    for i in named:
        mask = ids == i
        counts = np.array([np.count_nonzero(codes[mask] == code) for code in tracked_codes])
        code = int(np.bincount(codes[mask]).argmax())
        before = state.tracks[rows[i]] if i in rows else None
        now.append(updated_track(before, i, place[i], code, state.frame, mask, counts / mask.sum()))
        slot[mask] = place[i]
    after = dataclasses.replace(
        state, frame=state.frame + 1, tracks=now, masks=np.stack([ids == i for i in named]) if named else None,
        next_track=max(state.next_track, int(track.max(initial=0)) + 1),
    )  # fmt: skip
    return with_mask(after, state, codes, slot, labels != VOID, model.history_length)
