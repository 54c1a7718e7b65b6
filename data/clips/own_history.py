"""Masks that a model predicted of its training videos, to be the history of training clips.

At inference the history is the model's own, with the errors that it makes and that it has already copied from its
history. No damage that is made up is like them, so a model is trained on what an earlier one predicted (as DAgger,
arXiv 1011.0686, and scheduled sampling, arXiv 1506.03099): the image and the target stay the truth's.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.labels import VOID, read_panoptic, write_panoptic
from data.sets.frames import FrameRef

SHARED = 0.5  # of the smaller of two masks: what they must share to be the same instance


class OwnHistory:
    """The predictions of a data set's frames, a panoptic PNG each in `folder`; not all frames need to have one."""

    def __init__(self, folder: str | Path, frames: Sequence[FrameRef]):
        self.folder, self.frames = Path(folder), frames

    def path(self, i: int) -> Path:
        frame = self.frames[i]
        return self.folder / f"{frame.sequence}_{frame.number:06d}_panoptic.png"

    def done(self, i: int) -> Path:
        """The file that says of the video that starts with frame i that it has all predictions that it will have."""
        return self.path(i).with_suffix(".done")

    def __contains__(self, i: int) -> bool:
        return self.path(i).exists()

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Frame i as semantic uint8 (H, W), track ids int32 (H, W). Raises DataError."""
        return read_panoptic(self.path(i), VOID)

    def write(self, i: int, semantic: np.ndarray, track: np.ndarray) -> None:
        write_panoptic(self.path(i), semantic, track)


def named_by_truth(
    semantic: np.ndarray, track: np.ndarray, true_semantic: np.ndarray, true_instance: np.ndarray, unused: int
) -> np.ndarray:
    """Predicted tracks under the ids of the true instances that they are, int32 (T, h, w).

    semantic, track: the predicted history; true_semantic, true_instance: the truth of the same frames; all (T, h, w),
    oldest first; unused: an id from which on none is taken. A track is the instance of its class with which it shares
    most in the newest frame that shows both, and at least half of the smaller of the two there; each instance has one
    track at most. Tracks that are none, such as the other half of a split one, get ids of their own. A track whose
    class changes within the history is two instances there, as ids are of a class.
    """
    name: dict[int, int] = {}
    taken: set[int] = set()
    true = true_semantic.astype(np.int64) << 32 | true_instance  # ids may be of a class alone
    for t in reversed(range(len(track))):
        both = (track[t] > 0) & (true_instance[t] > 0) & (semantic[t] == true_semantic[t])
        pairs, shared = np.unique(np.stack([track[t][both], true[t][both]]), axis=1, return_counts=True)
        for k in np.argsort(-shared, kind="stable"):
            mine, other = pairs[:, k].tolist()
            enough = shared[k] >= SHARED * min((track[t] == mine).sum(), (true[t] == other).sum())
            if enough and mine not in name and other not in taken:
                name[mine] = other & 0xFFFFFFFF
                taken.add(other)
    others = [i for i in np.unique(track).tolist() if i and i not in name]
    name |= {i: unused + n for n, i in enumerate(others)}
    table = np.zeros(int(track.max(initial=0)) + 1, np.int32)
    table[list(name)] = list(name.values())
    return table[track]
