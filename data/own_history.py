"""Masks that a model predicted of its training videos, to be the history of training clips.

At inference the history is the model's own, with the errors that it makes and that it has already copied from its
history. No damage that is made up is like them, so a model is trained on what an earlier one predicted (as DAgger,
arXiv 1011.0686, and scheduled sampling, arXiv 1506.03099): the image and the target stay the truth's.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.frames import FrameRef
from data.labels import read_panoptic, write_panoptic

SHARED = 0.5  # of the smaller of two masks: what they must share to be the same instance


class OwnHistory:
    """The predictions of a data set's frames, a panoptic PNG each in `folder`; not all frames need to have one."""

    def __init__(self, folder: str | Path, frames: Sequence[FrameRef]):
        self.folder, self.frames = Path(folder), frames

    def path(self, i: int) -> Path:
        frame = self.frames[i]
        return self.folder / f"{frame.sequence}_{frame.number:06d}_panoptic.png"

    def __contains__(self, i: int) -> bool:
        return self.path(i).exists()

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Frame i as semantic uint8 (H, W), track ids int32 (H, W). Raises DataError."""
        return read_panoptic(self.path(i))

    def write(self, i: int, semantic: np.ndarray, track: np.ndarray) -> None:
        write_panoptic(self.path(i), semantic, track)


def named_by_truth(
    semantic: np.ndarray, track: np.ndarray, true_semantic: np.ndarray, true_instance: np.ndarray, unused: int
) -> np.ndarray:
    """Predicted tracks under the ids of the true instances that they are, int32 (T, h, w).

    semantic, track: the predicted history; true_semantic, true_instance: the truth of the same frames; all (T, h, w),
    oldest first; unused: an id from which on none is taken. A track is the instance of its class with which it shares
    most in the newest frame that shows both, and at least half of the smaller of the two there; each instance has one
    track at most. Tracks that are none, such as the other half of a split one, get ids of their own.
    """
    name: dict[int, int] = {}
    for t in reversed(range(len(track))):
        both = (track[t] > 0) & (true_instance[t] > 0) & (semantic[t] == true_semantic[t])
        pairs, shared = np.unique(np.stack([track[t][both], true_instance[t][both]]), axis=1, return_counts=True)
        area, true_area = np.bincount(track[t].ravel()), np.bincount(true_instance[t].ravel())
        for k in np.argsort(-shared, kind="stable"):
            mine, true = pairs[:, k].tolist()
            enough = shared[k] >= SHARED * min(area[mine], true_area[true])
            if enough and mine not in name and true not in name.values():
                name[mine] = true
    others = [i for i in np.unique(track).tolist() if i and i not in name]
    name |= {i: unused + n for n, i in enumerate(others)}
    table = np.zeros(int(track.max(initial=0)) + 1, np.int32)
    table[list(name)] = list(name.values())
    return table[track]
