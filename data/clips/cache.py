"""A cache of frames at training size, because decoding a PNG costs more than the rest of a training sample."""

import contextlib
import math
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from data.clips.transforms import View, view_image
from data.io.files import whole
from data.io.pixels import area_scale, nearest
from data.labels import MAX_ID, DataError
from data.sets.frames import FrameSource, source_key

VERSION = 3  # of the stored files; part of the key, so each version has its own cache


class Cached:
    """A FrameSource whose frames are stored at the size by area of `image_size` times `margin`, never enlarged.

    Each frame is one file in `folder/<name>-<split>-<key>`. It is written, whole, when it is first read: any number of
    workers and processes can share it, and a resumed run finds it. The key covers root, split, sizes, and every file's
    name, size and modification time. If a frame cannot be stored, as on a full disk, it is decoded each time.

    The margin is the largest scale of the jitter, so that enlarged frames stay sharp. Labels are resized by
    nearest neighbour, so a small instance can lose its last pixel: for training, not for evaluation.
    """

    def __init__(self, source: FrameSource, image_size: tuple[int, int], folder: str | Path, margin: float = 1.0):
        self.source, self.image_size, self.margin = source, tuple(image_size), margin
        self.name, self.space, self.tracked = source.name, source.space, source.tracked
        self.frames, self.is_video = source.frames, source.is_video
        key = source_key(source, VERSION, self.image_size, margin, source.space)
        self.folder = Path(folder) / f"{source.name}-{getattr(source, 'split', 'all')}-{key}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def missing_bytes(self) -> int:
        """About how many bytes the missing frames will take, if all are as large as the first that can be read."""
        missing = sum(not self._path(i).exists() for i in range(len(self.frames)))
        for i in range(len(self.frames) if missing else 0):
            with contextlib.suppress(DataError):
                return missing * 6 * math.prod(self._size(self.source.read_labels(i)[0].shape))
        return 0

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        image, semantic, instance = self._stored(i, "image", "semantic", "instance")
        return image, semantic, instance.astype(np.int32)

    def read_labels(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        semantic, instance = self._stored(i, "semantic", "instance")
        return semantic, instance.astype(np.int32)

    def _path(self, i: int) -> Path:
        return self.folder / f"{i:06d}.safetensors"

    def _stored(self, i: int, *names: str) -> list[np.ndarray]:
        try:
            with safe_open(self._path(i), framework="numpy") as file:
                return [file.get_tensor(name) for name in names]
        except (OSError, SafetensorError):  # not made yet, or damaged
            made = self._make(i)
            return [made[name] for name in names]

    def _size(self, frame_size: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) of a stored frame: the whole frame, at its aspect, because a crop may lie anywhere."""
        scale = min(1.0, area_scale(frame_size, self.image_size) * self.margin)
        height, width = (math.ceil(n * scale) for n in frame_size)
        return height, width

    def _make(self, i: int) -> dict[str, np.ndarray]:
        """Store a frame: image uint8 (h, w, 3), semantic uint8 and instance uint16, if its ids fit, (h, w)."""
        image, semantic, instance = self.source.read(i)
        size = self._size(semantic.shape)
        instance = instance.astype(np.uint16 if instance.max(initial=0) <= MAX_ID else np.int32)
        semantic, instance = (nearest(labels, size) for labels in (semantic, instance))
        made = {"image": view_image(image, size, View()), "semantic": semantic, "instance": instance}
        made = {name: np.array(plane, order="C") for name, plane in made.items()}  # of any other, scrambled files
        with contextlib.suppress(OSError, SafetensorError), whole(self._path(i), shared=True) as temporary:
            save_file(made, temporary)
        return made
