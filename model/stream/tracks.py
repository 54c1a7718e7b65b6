"""Segments and tracks: from a mask of classes and slots to instances that keep their ids, frame after frame.

An instance keeps its slot because the model copies it from the history; here slots become track ids that stay unique
over a sequence of any length. A segment in a new slot that stands where a track was lost a moment ago is that track
again (model/stream/association.py). NumPy on masks of the model's size; nothing here is learned.
"""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.network.config import ModelConfig
from model.stream.association import Seen, best_pairs, remembered, same_tracks
from model.stream.resize import nearest

VOID = 255
VOTE_DECAY = 0.8  # weight of a track's past classes against the current frame's, each frame


@dataclass
class StreamState:
    """All that one video's next frame depends on, beside the model. Arrays of the mask's size (h, w), K slots."""

    video: int  # number of the video: seeds its noise
    frame: int = 0  # frames done so far
    semantic: np.ndarray | None = None  # uint8 (L, h, w) codes of the last L masks, newest last; None at the start
    slot: np.ndarray | None = None  # uint8 (L, h, w)
    known: np.ndarray | None = None  # bool (L, h, w) False where there was no frame, or void
    track: dict[int, int] = field(default_factory=dict)  # slot -> track id
    seen: dict[int, int] = field(default_factory=dict)  # slot -> number of the last frame that had it
    votes: dict[int, list[float]] = field(default_factory=dict)  # slot -> evidence for each class
    next_track: int = 1
    last_seen: list[Seen] = field(default_factory=list)  # the last frame's tracks, and those that may be found again
    last_masks: np.ndarray | None = None  # bool (n, h, w), where they were

    def forget(self) -> "StreamState":
        """The state after a gap in the video: no history, every instance a new track; ids stay unique."""
        return StreamState(self.video, self.frame, next_track=self.next_track)

    def at_size(self, size: tuple[int, int]) -> "StreamState":
        """The state with its masks at another size, as for a frame of another size within a video."""
        if self.semantic is None or self.semantic.shape[1:] == tuple(size):
            return self
        maps = {name: getattr(self, name) for name in ("semantic", "slot", "known", "last_masks")}
        maps = {k: None if m is None else np.stack([nearest(frame, size) for frame in m]) for k, m in maps.items()}
        ratio = [n / m for n, m in zip(size, self.semantic.shape[1:], strict=True)]
        seen = [
            s._replace(y=s.y * ratio[0], x=s.x * ratio[1], dy=s.dy * ratio[0], dx=s.dx * ratio[1])
            for s in self.last_seen
        ]
        return dataclasses.replace(self, **maps, last_seen=seen)

    def held(self, history_length: int) -> set[int]:
        """The slots whose track goes on where the next frame has them: those that its history shows, or the last."""
        return {s for s in self.track if self.frame - self.seen[s] <= max(history_length, 1)}

    def to_dict(self) -> dict[str, Any]:
        """Plain values and tensors, for a file that loads with `weights_only=True`."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["last_seen"] = [tuple(seen) for seen in self.last_seen]
        return {k: torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "StreamState":
        values = {k: v.numpy() if isinstance(v, Tensor) else v for k, v in values.items()}
        return cls(**values | {"last_seen": [Seen(*seen) for seen in values["last_seen"]]})


def merged(mass: np.ndarray, share: float, held: Collection[int] = (), min_area: int = 1) -> np.ndarray:
    """Which slot each slot is taken for, (slots,): itself, or another that the model hardly tells from it.

    mass: (slots, slots), the probabilities of each slot summed over the pixels for which a slot is the likeliest. An
    instance between two places may be either's, and few denoising steps leave it undecided: then pixels of both are
    mixed in it. A slot is part of a larger one where that is at least `share` as likely as itself on its pixels; the
    surest first. held: slots of tracks, which are no part of another, and which others may be part of whatever their
    size, where they have `min_area` pixels of their own.
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


def advance(
    answer: np.ndarray,
    state: StreamState,
    model: ModelConfig,
    min_area: int,
    max_gap: int = 0,
) -> tuple[np.ndarray, np.ndarray, StreamState]:
    """From the raw answer (3, h, w) of `answers.candidates` to segments, tracks and the next state.

    A segment is the pixels of a tracked class that share a slot; it gets one class, by the majority of its pixels and
    of its track's past, and is dropped below `min_area` pixels. A slot that was empty for longer than the history
    starts a new track, or goes on with one that was lost there for at most `max_gap` frames. Returns semantic codes
    and slots (h, w) without segments that were dropped, and the state.
    """
    semantic, other, _ = answer.copy()
    tracked_codes = np.array(model.tracked) + 1
    slot, tracked = _tracked_slots(answer, model)

    # Segments: classes by vote, small ones dropped
    counts = np.zeros((model.slots, len(tracked_codes)), np.int64)
    for k, code in enumerate(tracked_codes):
        counts[:, k] = np.bincount(slot[tracked & (semantic == code)], minlength=model.slots)
    areas = counts.sum(axis=1)
    areas[0] = 0
    after = dataclasses.replace(
        state, frame=state.frame + 1, track=dict(state.track), seen=dict(state.seen), votes=dict(state.votes)
    )
    segments = np.flatnonzero(areas >= max(min_area, 1)).tolist()
    held = state.held(model.history_length)
    fresh = [s for s in segments if s not in held]
    majority = {s: int(tracked_codes[counts[s].argmax()]) for s in segments}
    going = {state.track[s] for s in segments if s not in fresh}
    found = _found_again({s: majority[s] for s in fresh}, slot, state, going, max_gap)
    class_of_slot = np.zeros(model.slots, semantic.dtype)
    for s in segments:
        if s in found:
            for before in [k for k, t in after.track.items() if t == found[s]]:
                del after.track[before]
            after.track[s] = found[s]
        elif s in fresh:
            after.track[s] = after.next_track
            after.next_track += 1
        if s in fresh:
            after.votes.pop(s, None)
        after.seen[s] = state.frame
        past = np.array(after.votes.get(s, [0.0] * len(tracked_codes)))
        votes = VOTE_DECAY * past + counts[s] / areas[s]
        after.votes[s] = votes.tolist()
        class_of_slot[s] = tracked_codes[votes.argmax()]
    small = tracked & (class_of_slot[slot] == 0)
    semantic = np.where(tracked, class_of_slot[slot], semantic)
    semantic[small], slot[small] = other[small], 0

    _remember(state, after, semantic, slot, np.ones(slot.shape, bool), model.history_length)
    codes = {s: (after.track[s], int(class_of_slot[s])) for s in segments}
    after.last_seen, after.last_masks = remembered(state.last_seen, state.last_masks, slot, codes, state.frame, max_gap)
    return semantic, slot, after


def _found_again(
    fresh: dict[int, int], slot: np.ndarray, state: StreamState, going: set[int], max_gap: int
) -> dict[int, int]:
    """Which new segments are lost tracks: slot -> track.

    fresh: new slots with their codes; going: tracks that this frame has in their own slots. A track is found by a
    segment of its class that shares at least half of the smaller of its own area and that of the track's last mask;
    the largest overlap first.
    """
    if not max_gap or not fresh or not state.last_seen:
        return {}
    overlaps = []
    for seen, mask in zip(state.last_seen, state.last_masks, strict=True):
        if seen.track in going or state.frame - seen.frame > max_gap + 1:
            continue
        for s in (s for s, fresh_code in fresh.items() if fresh_code == seen.code):
            here = slot == s
            shared = int((here & mask).sum())
            if shared and shared >= min(here.sum(), mask.sum()) / 2:
                overlaps.append((shared, s, seen.track))
    return best_pairs(overlaps)


def follow(
    answer: np.ndarray,
    told: np.ndarray | None,
    state: StreamState,
    model: ModelConfig,
    min_area: int,
    max_gap: int,
) -> tuple[np.ndarray, StreamState]:
    """A fresh answer with its segments in the slots of the tracks that they are, and the state that has them there.

    answer: (3, h, w) of `answers.candidates`, without history, so that its slots say nothing of tracks; told: slots
    (h, w) of the answer with history, None where there is none. A segment that is no track yet keeps its slot, or takes
    the one that no track has had for longest. The answer and the state are for `advance`; the given ones stay.
    """
    semantic, other, instance = answer
    slot, tracked = _tracked_slots(answer, model)
    counts = np.bincount(slot.ravel(), minlength=model.slots)
    counts[0] = 0
    segments = np.flatnonzero(counts >= max(min_area, 1))
    codes = {
        int(s): int(np.bincount(semantic[slot == s]).argmax())
        for s in segments[np.argsort(-counts[segments], kind="stable")]
    }
    slot = np.where(np.isin(slot, segments), slot, 0)
    held = state.held(model.history_length)
    found = same_tracks(slot, codes, told, held, state.last_seen, state.last_masks, state.frame, max_gap)

    state = dataclasses.replace(state, track=dict(state.track), seen=dict(state.seen))
    place = {s: seen.slot for s, seen in found.items()}
    for seen in found.values():  # goes on although it may have been out of sight for longer than the history
        state.track[seen.slot], state.seen[seen.slot] = seen.track, state.frame - 1
    lost = {seen.slot for seen in state.last_seen} - set(place.values())
    by_age = sorted(range(1, model.slots), key=lambda s: (s in lost, state.seen.get(s, -1)))
    free = [s for s in by_age if s not in set(place.values())]
    for s in (s for s in codes if s not in place):
        place[s] = s if s in free and s not in lost else free[0]
        free.remove(place[s])
        state.track.pop(place[s], None)  # a new one, whatever was there
        state.seen.pop(place[s], None)
    table = np.zeros(model.slots, instance.dtype)
    table[list(place)] = list(place.values())
    return np.stack([semantic, other, np.where(tracked, table[slot], instance)]), state


def _tracked_slots(answer: np.ndarray, model: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """The slot of each pixel of a tracked class, 0 elsewhere; and where that is; both (h, w)."""
    tracked = np.isin(answer[0], np.array(model.tracked) + 1)
    return np.where(tracked, answer[2], 0).astype(answer.dtype), tracked


def adopt(
    state: StreamState,
    semantic: np.ndarray,
    track: np.ndarray,
    model: ModelConfig,
    mask_size: tuple[int, int] | None = None,
) -> StreamState:
    """Take a frame's mask as given, in place of predicting it: semantic trainIds or 255, track ids, both (H, W).

    A track that the state knows keeps its slot; a new one gets the slot that has been free for longest. Where there
    are more tracks than slots the smallest have none. Returns the next state.
    """
    size = mask_size or model.sizes_for(semantic.shape)[1]
    state = state.at_size(size)
    labels, ids = nearest(semantic, size), nearest(track, size).astype(np.int64)
    codes, slots = np.where(labels == VOID, 0, labels + 1).astype(np.uint8), np.zeros(size, np.int32)
    known = labels != VOID

    after = dataclasses.replace(
        state, frame=state.frame + 1, track=dict(state.track), seen=dict(state.seen), votes=dict(state.votes)
    )
    slot_of = {t: s for s, t in after.track.items()}
    present, areas = np.unique(ids[ids > 0], return_counts=True)
    by_age = sorted(range(1, model.slots), key=lambda s: after.seen.get(s, -1))
    taken = set(present.tolist())
    free = [s for s in by_age if after.track.get(s) not in taken]
    for t in present[np.argsort(-areas)].tolist():
        s = slot_of.get(t) or (free.pop(0) if free else 0)
        if not s:
            continue
        if after.track.get(s) != t:
            after.votes.pop(s, None)
        after.track[s], after.seen[s] = t, state.frame
        slots[ids == t] = s
    after.next_track = max(state.next_track, int(track.max(initial=0)) + 1)
    given = {s: np.bincount(codes[slots == s]) for s in np.unique(slots[slots > 0]).tolist()}
    tracks = {s: (after.track[s], int(counts.argmax())) for s, counts in given.items()}
    after.last_seen, after.last_masks = remembered(state.last_seen, state.last_masks, slots, tracks, state.frame, 0)
    _remember(state, after, codes, slots, known, model.history_length)
    return after


def _remember(state: StreamState, after: StreamState, semantic, slot, known, length: int) -> None:
    """The next history: the masks move up by one, the newest is last."""
    if not length:
        return
    for name, new in (("semantic", semantic), ("slot", slot), ("known", known)):
        old = getattr(state, name)
        old = np.zeros((length, *new.shape), new.dtype) if old is None else old
        setattr(after, name, np.concatenate([old[1:], new[None].astype(old.dtype)]))
