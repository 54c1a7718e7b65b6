"""Detect cuts, where a new shot begins, from the pictures."""

from collections import deque

import numpy as np
from PIL import Image

SIZE = (32, 18)  # width and height of the thumbnails
FLOOR, RATIO, USUAL = 0.45, 3.0, 0.22
# Differences of thumbnails with mean 0 and deviation 1, so that a change of light does not count. Measured on real
# frames of one shot: driving at 10 Hz up to 0.34, a shaking hand-held camera at 10 Hz up to 0.88 where 0.3 is usual;
# different streets of one city, with the same camera: 0.48 to 1.34.


class Cuts:
    """Call it with each frame of a video, uint8 (H, W, 3), in order. It returns whether a cut lies before the frame.

    There is a cut where a frame differs from the last one by more than FLOOR and by more than RATIO times the usual
    difference of the last few frames (for the first three: USUAL). `state` is its whole memory, in plain values, for a
    video that is resumed.
    """

    def __init__(self, state: dict | None = None):
        state = state or {"last": None, "differences": []}
        self.last = None if state["last"] is None else np.asarray(state["last"], np.float32)
        self.differences = deque(state["differences"], 8)

    @property
    def state(self) -> dict:
        return {"last": None if self.last is None else self.last.tolist(), "differences": list(self.differences)}

    def __call__(self, frame: np.ndarray) -> bool:
        before, self.last = self.last, _thumbnail(frame)
        if before is None:
            return False
        difference = float(np.abs(self.last - before).mean())
        usual = float(np.median(self.differences)) if len(self.differences) > 2 else USUAL
        self.differences.append(difference)
        return difference > max(FLOOR, RATIO * usual)


def _thumbnail(frame: np.ndarray) -> np.ndarray:
    step_y, step_x = (max(1, n // (8 * m)) for n, m in zip(frame.shape, SIZE[::-1], strict=False))
    picture = Image.fromarray(np.ascontiguousarray(frame[::step_y, ::step_x])).convert("L")
    small = np.asarray(picture.resize(SIZE, Image.Resampling.BOX), np.float32)
    return (small - small.mean()) / (small.std() + 4)
