"""Segments and tracks: from a mask of classes and slots to instances that keep their ids, frame after frame.

A segment is the track whose last mask, moved by its motion, it overlaps most. By default that alone decides. An answer
that saw the history (`--history_steps`) says more: there the model copies an instance's slot from its last mask, so the
slot says which track a segment is. Track ids stay unique over a sequence of any length. NumPy on masks of the model's
size; nothing here is learned.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from model.network.config import ModelConfig
from model.stream.state import StreamState, Track

VOTE_DECAY = 0.8  # each frame, a track's past votes for its class are multiplied by this; then the new one is added
LEAST = 0.05  # IoU from which on a segment may be a track
LATER = 0.01  # of IoU, subtracted for each frame out of sight
STEADY = 0.5  # weight of a track's motion before, against that of the last frame


# ---------------------------------------------------------------------------------------------------------------------
# One frame
# ---------------------------------------------------------------------------------------------------------------------


def advance(
    answer: np.ndarray,
    history_slots: np.ndarray | None,
    state: StreamState,
    model: ModelConfig,
    min_area: int,
    max_gap: int = 0,
) -> tuple[np.ndarray, np.ndarray, StreamState]:
    """From the raw answer (3, h, w) of `answer.candidates` to segments, tracks and the next state.

    history_slots: slots (h, w) of an answer that saw the history, so that each track is in its slot: the answer's own,
    or those of another answer to the same frame; None where there is none. A segment is all pixels of a tracked class
    that share a slot. It gets one class, by the majority of its pixels and of its track's past, and is dropped below
    `min_area` pixels. It takes the slot of its track; a new track keeps its own slot, or takes the one that has been
    free for longest. A lost track can be found again for `max_gap` frames. Returns semantic codes and slots (h, w)
    without the dropped segments, and the next state. The given state is not changed.
    """
    semantic, other, raw = answer.copy()
    tracked_codes = np.array(model.tracked) + 1
    tracked = np.isin(semantic, tracked_codes)
    raw = np.where(tracked, raw, 0)

    # Segments, the largest first, with the pixels of each class in them
    counts = np.stack([np.bincount(raw[semantic == code], minlength=model.slots) for code in tracked_codes], axis=1)
    counts[0] = 0
    areas = counts.sum(axis=1)
    segments = [int(s) for s in np.argsort(-areas, kind="stable") if areas[s] >= max(min_area, 1)]
    codes = {s: int(tracked_codes[counts[s].argmax()]) for s in segments}
    kept = np.where(np.isin(raw, segments), raw, 0)

    # Tracks
    found = _associate(kept, codes, history_slots, state, model.history_length, max_gap)
    place = placed(segments, {s: state.tracks[n].slot for s, n in found.items()}, state, model.slots)
    now, next_track = [], state.next_track
    segments.sort()
    for s in segments:
        before = state.tracks[found[s]] if s in found else None
        past = np.array(before.votes if before else [0.0] * len(tracked_codes))
        votes = VOTE_DECAY * past + counts[s] / areas[s]
        code = int(tracked_codes[votes.argmax()])
        now.append(updated_track(before, next_track, place[s], code, state.frame, kept == s, votes))
        next_track += before is None

    # The mask: one class a segment, what was dropped becomes the likeliest other class
    table = np.zeros(model.slots, raw.dtype)
    class_of = np.zeros(model.slots, semantic.dtype)
    for s, track in zip(segments, now, strict=True):
        table[s], class_of[s] = track.slot, track.code
    semantic = np.where(tracked, np.where(kept > 0, class_of[kept], other), semantic)
    slot = table[kept]

    # Tracks that are not in this frame and may come back: lost not too long ago, their slot not taken
    ids, taken, gap = {t.id for t in now}, {t.slot for t in now}, max(max_gap, model.history_length - 1)
    gone = [t.id not in ids and t.slot not in taken and state.frame - t.frame <= gap for t in state.tracks]
    lost = np.flatnonzero(gone)
    masks = [*(kept == s for s in segments), *(state.masks[n] for n in lost)]
    after = dataclasses.replace(
        state, frame=state.frame + 1, tracks=now + [state.tracks[n] for n in lost],
        masks=np.stack(masks) if masks else None, next_track=next_track,
    )  # fmt: skip
    return semantic, slot, with_mask(after, state, semantic, slot, np.ones(slot.shape, bool), model.history_length)


# ---------------------------------------------------------------------------------------------------------------------
# Which segment is which track
# ---------------------------------------------------------------------------------------------------------------------


def _associate(
    slot: np.ndarray,
    codes: dict[int, int],
    history_slots: np.ndarray | None,
    state: StreamState,
    history_length: int,
    max_gap: int,
) -> dict[int, int]:
    """Which segment is which track: slot -> row in state.tracks, one to one, the best match first.

    slot: (h, w), 0 outside the segments; codes: the class of each. A match is scored by the better of two IoUs: of the
    segment with the track's last mask, moved by its motion, if both have the same class; and with the pixels that
    `history_slots` gives the track's slot. Where there is `history_slots` and max_gap is 0, slots alone decide.
    """
    areas = np.bincount(slot.ravel())
    scores: dict[tuple[int, int], float] = {}
    for n, track in enumerate(state.tracks):
        away = state.frame - track.frame - 1
        if away > max_gap or (history_slots is not None and not max_gap):
            continue
        where = _moved(state.masks[n], track, state.frame)
        for s, iou in _ious(slot[where], areas, len(where[0])):
            if codes[s] == track.code:
                scores[s, n] = iou - LATER * away
    for k, n in state.held(history_length).items() if history_slots is not None else ():
        where = history_slots == k
        for s, iou in _ious(slot[where], areas, int(where.sum())):
            scores[s, n] = max(iou, scores.get((s, n), 0.0))
    found: dict[int, int] = {}
    for _, s, n in sorted(((score, s, n) for (s, n), score in scores.items() if score > LEAST), reverse=True):
        if s not in found and n not in found.values():
            found[s] = n
    return found


def _ious(slots: np.ndarray, areas: np.ndarray, size: int) -> Iterator[tuple[int, float]]:
    """The IoU of a region of `size` pixels, in which these slots are, with each slot's segment."""
    counts = np.bincount(slots.ravel())
    for s in np.flatnonzero(counts[1:]) + 1:
        yield int(s), float(counts[s] / (areas[s] + size - counts[s]))


def pixels(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows and columns where a mask is true: `np.nonzero`, of which NumPy is several times faster at one axis."""
    return np.unravel_index(np.flatnonzero(mask), mask.shape)


def _moved(mask: np.ndarray, track: Track, frame: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows and columns of a track's last mask, bool (h, w), moved to a frame by its motion; those still in view."""
    y, x = pixels(mask)
    y, x = (n + round(d * (frame - track.frame)) for n, d in ((y, track.dy), (x, track.dx)))
    inside = (y >= 0) & (y < mask.shape[0]) & (x >= 0) & (x < mask.shape[1])
    return y[inside], x[inside]


def placed(segments: list[int], taken: dict[int, int], state: StreamState, slots: int) -> dict[int, int]:
    """The slot of each segment: its track's (`taken`), else its own number where that is free, else the free one that
    no track has had for longest; slots of lost tracks last."""
    place, used = dict(taken), set(taken.values())
    last = {t.slot: t.frame for t in state.tracks}
    by_age = sorted(set(range(1, slots)) - used, key=lambda s: (s in last, last.get(s, -1), s))
    for segment in (s for s in segments if s not in taken):
        own = segment if segment in by_age and segment not in last else by_age[0]
        place[segment] = own
        by_age.remove(own)
    return place


def updated_track(
    before: Track | None, new_id: int, slot: int, code: int, frame: int, mask: np.ndarray, votes: np.ndarray
) -> Track:
    """A track as it is in this frame; its motion is smoothed."""
    y, x = (float(n.mean()) for n in pixels(mask))
    dy = dx = 0.0
    if before is not None:
        frames = max(frame - before.frame, 1)
        dy = STEADY * before.dy + (1 - STEADY) * (y - before.y) / frames
        dx = STEADY * before.dx + (1 - STEADY) * (x - before.x) / frames
    return Track(before.id if before else new_id, slot, code, frame, y, x, dy, dx, tuple(votes.tolist()))


def with_mask(after: StreamState, before: StreamState, semantic, slot, known, length: int) -> StreamState:
    """The next history: the masks move up by one, the newest is last."""
    if length:
        for name, new in (("semantic", semantic), ("slot", slot), ("known", known)):
            old = getattr(before, name)
            old = np.zeros((length, *new.shape), new.dtype) if old is None else old
            setattr(after, name, np.concatenate([old[1:], new[None].astype(old.dtype)]))
    return after
