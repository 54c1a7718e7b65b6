"""Use masks that a model predicted of its training videos as the history of training clips.

At inference the history is the model's own, with its errors and those it has copied from its history. Synthetic damage
does not look like them. So a model can be trained on what an earlier one predicted (as DAgger, arXiv 1011.0686, and
scheduled sampling, arXiv 1506.03099); the image and the target stay the true ones.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.labels import VOID, read_panoptic, write_panoptic
from data.sets.frames import FrameRef

SHARED = 0.5  # of the smaller mask: least overlap of two masks of the same instance


class OwnHistory:
    """Predictions for a data set's frames, one panoptic PNG each in `folder`; frames may lack one."""

    def __init__(self, folder: str | Path, frames: Sequence[FrameRef]):
        self.folder, self.frames = Path(folder), frames

    def path(self, i: int) -> Path:
        frame = self.frames[i]
        return self.folder / f"{frame.sequence}_{frame.number:06d}_panoptic.png"

    def done(self, i: int) -> Path:
        """The file that marks the video that starts with frame i as completely predicted."""
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
    """Predicted tracks with the ids of the matching true instances, int32 (T, h, w).

    semantic, track: the predicted history; true_semantic, true_instance: the truth of the same frames; all (T, h, w),
    oldest first; unused: the first free id. A track is matched to the instance of its class with which it shares most
    pixels in the newest frame that shows both, if that is at least half of the smaller one. Each instance has at most
    one track. Unmatched tracks, such as the second half of a split one, get new ids. A track that changes its class in
    the history becomes two instances, because ids belong to a class.
    """
    name: dict[int, int] = {}
    taken: set[int] = set()
    true = true_semantic.astype(np.int64) << 32 | true_instance  # ids may be unique only within a class
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
