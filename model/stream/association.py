"""Which track a segment is where its slot does not say so: by where the track was, and where the model sees it now.

A slot says it while the model copies it from the history. It does not where a track was lost for some frames, and in a
fresh answer, which was made without history so that none of the history's errors is in it. NumPy on masks of the
model's size; nothing here is learned.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

LEAST = 0.05  # IoU from which on a segment may be a track
LATER = 0.01  # of it, that each frame out of sight costs
STEADY = 0.5  # weight of a track's motion before, against that of the last frame


class Seen(NamedTuple):
    """A track where it was seen last; in mask pixels and frames."""

    track: int
    slot: int
    code: int  # its class, trainId + 1
    frame: int
    y: float  # centre
    x: float
    dy: float  # motion a frame
    dx: float


def remembered(
    before: list[Seen],
    masks: np.ndarray | None,
    slot: np.ndarray,
    codes: dict[int, tuple[int, int]],
    frame: int,
    gap: int,
) -> tuple[list[Seen], np.ndarray | None]:
    """The tracks of a frame, and those before it that have been gone for at most `gap` frames: where each was last.

    before, masks: of the frame before, bool (n, h, w); slot: (h, w); codes: the track and class of each slot in it.
    Returns the tracks and their masks bool (n, h, w), None without any.
    """
    known = {seen.track: seen for seen in before}
    here, where = [], []
    for s, (track, code) in codes.items():
        mask = slot == s
        y, x = (float(n.mean()) for n in np.nonzero(mask))
        dy = dx = 0.0
        if (last := known.get(track)) is not None:
            frames = max(frame - last.frame, 1)
            dy = STEADY * last.dy + (1 - STEADY) * (y - last.y) / frames
            dx = STEADY * last.dx + (1 - STEADY) * (x - last.x) / frames
        here.append(Seen(track, s, code, frame, y, x, dy, dx))
        where.append(mask)
    present = {seen.track for seen in here}
    slots = set(codes)
    for seen, mask in zip(before, masks if before else (), strict=True):
        if seen.track not in present and seen.slot not in slots and frame - seen.frame <= gap:
            here.append(seen)
            where.append(mask)
    return here, np.stack(where) if where else None


def moved(mask: np.ndarray, seen: Seen, frame: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows and columns of a track's last mask bool (h, w) that stay in view, moved on to a frame by its motion."""
    y, x = np.nonzero(mask)
    y, x = (n + round(d * (frame - seen.frame)) for n, d in ((y, seen.dy), (x, seen.dx)))
    inside = (y >= 0) & (y < mask.shape[0]) & (x >= 0) & (x < mask.shape[1])
    return y[inside], x[inside]


def best_pairs(scores: list[tuple[float, int, int]]) -> dict[int, int]:
    """Of (score, segment, track) those that are the best for both, the highest first: segment -> track."""
    found: dict[int, int] = {}
    for _, segment, track in sorted(scores, reverse=True):
        if segment not in found and track not in found.values():
            found[segment] = track
    return found


def same_tracks(
    slot: np.ndarray,
    codes: dict[int, int],
    told: np.ndarray | None,
    held: set[int],
    last_seen: list[Seen],
    last_masks: np.ndarray | None,
    frame: int,
    gap: int,
) -> dict[int, Seen]:
    """Which segments of a fresh answer are which tracks: slot -> track, each once, the best first.

    slot: (h, w), 0 outside the segments; codes: the class of each segment; told: slots (h, w) of an answer to the same
    frame that had the history, and so tracks in their slots, if there is one; held: slots that its history showed. A
    segment can be a track of its class, last seen at most `gap` frames before the last one. How well they fit is their
    IoU: of the segment with the track's last mask moved on, or with what `told` calls it; the better of both.
    """
    areas = np.bincount(slot.ravel())
    rows = {seen.slot: n for n, seen in enumerate(last_seen) if frame - seen.frame <= gap + 1}
    scores = {}
    for n in rows.values():
        where = moved(last_masks[n], last_seen[n], frame)
        for s, iou in _ious(slot[where], areas, len(where[0])):
            if codes.get(s) == last_seen[n].code:
                scores[s, n] = iou - LATER * (frame - last_seen[n].frame - 1)
    for k in held & rows.keys() if told is not None else ():
        where, n = told == k, rows[k]
        for s, iou in _ious(slot[where], areas, int(where.sum())):
            if codes.get(s) == last_seen[n].code:
                scores[s, n] = max(iou, scores.get((s, n), 0.0))
    found = best_pairs([(score, s, n) for (s, n), score in scores.items() if score > LEAST])
    return {s: last_seen[n] for s, n in found.items()}


def _ious(slots: np.ndarray, areas: np.ndarray, size: int) -> Iterator[tuple[int, float]]:
    """The IoU of a region of `size` pixels, in which these slots are, with each slot's segment."""
    counts = np.bincount(slots.ravel())
    for s in np.flatnonzero(counts[1:]) + 1:
        yield int(s), float(counts[s] / (areas[s] + size - counts[s]))
