"""What the next frame of a video depends on: the past masks and the tracks in them."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.io.pixels import nearest


class Track(NamedTuple):
    """A track as it was last seen; in mask pixels and frames."""

    id: int
    slot: int
    code: int  # its class, index + 1
    frame: int
    y: float  # centre
    x: float
    dy: float  # motion a frame
    dx: float
    votes: tuple[float, ...]  # evidence for each tracked class


class Moment(NamedTuple):
    """A frame of a video: all that the network has to know of a state where it does not look at the history."""

    video: int  # with the number of the frame it seeds the noise
    frame: int
    first: bool  # there is nothing before it, as after a cut


@dataclass
class StreamState:
    """Everything that a video's next frame depends on, apart from the model. Arrays have the mask's size (h, w)."""

    video: int  # number of the video: seeds its noise
    frame: int = 0  # frames done so far
    semantic: np.ndarray | None = None  # uint8 (L, h, w) codes of the last L masks, newest last; None at the start
    slot: np.ndarray | None = None  # integers (L, h, w)
    known: np.ndarray | None = None  # bool (L, h, w) False where there was no frame, or void
    tracks: list[Track] = field(default_factory=list)  # of the last frame, and those that may come back
    masks: np.ndarray | None = None  # bool (n, h, w), where they were
    next_track: int = 1

    def forget(self) -> "StreamState":
        """The state after a gap in the video: no history, every instance a new track; ids stay unique."""
        return StreamState(self.video, self.frame, next_track=self.next_track)

    @property
    def moment(self) -> Moment:
        return Moment(self.video, self.frame, self.semantic is None)

    def held(self, history_length: int) -> dict[int, int]:
        """The slots that the history, or the last frame, shows, and the row of the track in each."""
        newest = self.frame - max(history_length, 1)
        return {track.slot: n for n, track in enumerate(self.tracks) if track.frame >= newest}

    def at_size(self, size: tuple[int, int]) -> "StreamState":
        """The state with its masks at another size, as for a frame of another size within a video."""
        if self.semantic is None or self.semantic.shape[1:] == tuple(size):
            return self
        maps = {name: getattr(self, name) for name in ("semantic", "slot", "known", "masks")}
        maps = {k: None if m is None else np.stack([nearest(frame, size) for frame in m]) for k, m in maps.items()}
        down, across = (n / m for n, m in zip(size, self.semantic.shape[1:], strict=True))
        tracks = [t._replace(y=t.y * down, x=t.x * across, dy=t.dy * down, dx=t.dx * across) for t in self.tracks]
        return dataclasses.replace(self, **maps, tracks=tracks)

    def to_dict(self) -> dict[str, Any]:
        """Plain values and tensors, for a file that loads with `weights_only=True`."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["tracks"] = [tuple(track) for track in self.tracks]
        return {k: torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "StreamState":
        values = {k: v.numpy() if isinstance(v, Tensor) else v for k, v in values.items()}
        return cls(**values | {"tracks": [Track(*track) for track in values["tracks"]]})
