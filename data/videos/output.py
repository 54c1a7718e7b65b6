"""What inference writes of one video: panoptic PNGs, one line a frame in tracks.jsonl, overlays, and states to resume
from. Each prediction is complete or absent."""

import contextlib
import json
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from data.io.files import naming
from data.io.images import read_panoptic, write_panoptic
from data.labels import DEFAULT_SPACE, DataError, LabelSpace
from data.videos.overlays import Overlays
from data.videos.resume import States
from data.videos.sequences import InputFrame, Sequence

STATE_EVERY = 20  # frames between two saved states, the most that a kill costs


class SequenceOutput:
    """The files of one video. `open`, then `write` and `checkpoint` for each frame, then `finish`; `close` always."""

    def __init__(
        self,
        sequence: Sequence,
        folder: Path,
        run: str,
        overlays: tuple[str, ...] = (),
        fps: float = 10.0,
        restart: bool = False,
        masks_given: int = 0,
        colorblind: bool = False,
        space: LabelSpace = DEFAULT_SPACE,
    ):
        """run: `folder.fingerprint`; masks_given: number of first frames whose masks are already in the folder."""
        self.sequence, self.folder, self.restart = sequence, folder, restart
        self.drawing, self.classes = (overlays, fps, colorblind, space), len(space.classes)
        self.states = States(sequence, folder, run, masks_given)
        self.writer = ThreadPoolExecutor(1)
        self.pending: list[Future] = []
        self.tracks = self.overlays = None

    def open(self) -> dict[str, Any] | None:
        """Start writing. Returns {"done", "state", "failures"} of a half-done video that can be resumed."""
        stored, kept = self.states.open(self.restart)
        self.states.tracks.parent.mkdir(parents=True, exist_ok=True)
        self.lines = len(kept)
        self.states.tracks.write_text("".join(f"{line}\n" for line in kept))
        self.tracks = self.states.tracks.open("a")
        self.overlays = Overlays(self.folder, self.sequence.name, *self.drawing)
        return stored

    def read_given(self, frame: InputFrame, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A mask that is already in the output folder. Raises DataError if there is none of the frame's size."""
        semantic, track = read_panoptic(self.folder / frame.output, self.classes)
        if semantic.shape != image.shape[:2]:
            raise DataError(f"{self.folder / frame.output} has another size than its frame")
        return semantic, track

    def write(self, frame: InputFrame, image: np.ndarray, semantic, track, is_given: bool = False) -> None:
        """Write one prediction, in a separate thread; a mask that is given is not written again."""
        while len(self.pending) > 8:
            self.pending.pop(0).result()
        self.pending.append(self.writer.submit(self._write, frame, semantic, track, is_given))
        self.overlays.write(frame, image, semantic, track)

    def _write(self, frame: InputFrame, semantic, track, is_given: bool) -> None:
        with naming(self.folder / frame.output):
            if not is_given:
                write_panoptic(self.folder / frame.output, semantic, track)
            entry = {"sequence": self.sequence.name, "frame": frame.number, "file": frame.output.as_posix()}
            self.tracks.write(json.dumps(entry | {"segments": describe_segments(semantic, track)}) + "\n")
            self.lines += 1

    def redraw(self, frame: InputFrame, image: np.ndarray | DataError) -> None:
        """Draw a frame of an earlier call; only for the overlays."""
        if not isinstance(image, DataError):
            self.overlays.write(frame, image, *read_panoptic(self.folder / frame.output, self.classes))

    def checkpoint(self, done: int, state: dict[str, Any], failures: list[str], always: bool = False) -> None:
        """Save the state of the video, after all earlier writes are done. state: plain values and tensors."""
        if not always and done % STATE_EVERY:
            return
        self.wait()
        with naming(self.states.tracks):
            self.tracks.flush()
        self.states.save(done, self.lines, state, failures)

    def wait(self) -> None:
        while self.pending:
            self.pending.pop(0).result()

    def finish(self, done: int, state: dict[str, Any], failures: list[str]) -> list[str]:
        """Finish a complete video: its overlays get their final names. Returns remarks for the user."""
        self.checkpoint(done, state, failures, always=True)
        self.tracks.close()
        remarks, self.overlays = self.overlays.finish(), None
        self.writer.shutdown()
        return remarks

    def close(self) -> None:
        """Discard open files after an error; a finished video is not changed."""
        self.writer.shutdown(cancel_futures=True)
        if self.tracks is not None:
            with contextlib.suppress(OSError):
                self.tracks.close()
        if self.overlays is not None:
            self.overlays.discard()
            self.overlays = None


def describe_segments(semantic: np.ndarray, track: np.ndarray) -> list[dict[str, Any]]:
    """id, class, area in pixels, and box [left, top, right, bottom) of each segment; id 0 is a class without tracks."""
    height, width = semantic.shape
    key = track.astype(np.int64) * 256 + semantic
    # Work on runs of equal pixels in a row: there are about a hundred times fewer, and their ends give area and box.
    change = np.ones(key.shape, bool)
    change[:, 1:] = key[:, 1:] != key[:, :-1]
    start = np.flatnonzero(change)
    length = np.diff(start, append=key.size)
    keys, run = np.unique(key.ravel()[start], return_inverse=True)
    areas = np.bincount(run, length).astype(int)
    y, x = np.divmod(start, width)
    top, left = np.full(keys.size, height), np.full(keys.size, width)
    bottom, right = np.zeros(keys.size, int), np.zeros(keys.size, int)
    np.minimum.at(top, run, y)
    np.maximum.at(bottom, run, y + 1)
    np.minimum.at(left, run, x)
    np.maximum.at(right, run, x + length)
    return [
        {"id": int(k >> 8), "class": int(k & 255), "area": int(a), "box": [int(v) for v in box]}
        for k, a, *box in zip(keys, areas, left, top, right, bottom, strict=True)
    ]
