"""Frames kept at training size, because inflating a PNG costs more than everything else of a training sample."""

import hashlib
import inspect
import math
import os
import struct
import tempfile
from dataclasses import is_dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.clips.transforms import View, content_size, view_image, view_labels
from data.labels import MAX_ID, DataError
from data.sets.frames import FrameSource

HEADER = struct.Struct("<ii")
VERSION = 1  # of the file format below: part of the key, so that another version makes a cache of its own


class Cached:
    """A FrameSource whose frames are stored at `margin` times the size that fits `image_size`, never enlarged.

    Each frame is one file in `folder/<name>-<split>-<key>`, made when it is first read or up front by `fill`, through
    a temporary file and a rename, so that any number of workers and processes can share it. The key covers root,
    split, sizes, and every file's name, size and time of change; a data set without files is keyed by its
    settings and its code.

    The margin leaves pixels for the scale jitter to enlarge. Labels are resized by nearest neighbour, so a small
    instance can lose its last pixel: for training, not for evaluation.
    """

    def __init__(self, source: FrameSource, image_size: tuple[int, int], folder: str | Path, margin: float = 1.25):
        self.source, self.image_size, self.margin = source, tuple(image_size), margin
        self.name, self.tracked, self.is_video = source.name, source.tracked, source.is_video
        self.frames = source.frames
        key = source_key(source, VERSION, self.image_size, margin)
        self.folder = Path(folder) / f"{source.name}-{getattr(source, 'split', 'all')}-{key}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        height, width, data = self._stored(i, first_plane=0)
        image = data[: 3 * height * width].reshape(height, width, 3)
        return (image, *_labels(height, width, data))

    def read_labels(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        return _labels(*self._stored(i, first_plane=3))

    def fill(self, quiet: bool = False) -> None:
        """Make what is missing. Raises DataError for the first frame that cannot be read."""
        missing = [i for i in range(len(self.frames)) if not self._path(i).exists()]
        for i in tqdm(missing, desc=f"cache {self.name}", unit="frame", disable=quiet or not missing):
            self._make(i)

    def _path(self, i: int) -> Path:
        return self.folder / f"{i:06d}.frame"

    def _stored(self, i: int, first_plane: int) -> tuple[int, int, np.ndarray]:
        """Height, width and the planes of frame i from `first_plane` on, uint8 (planes * height * width,).

        A file is height and width as int32, then 6 planes: three with the interleaved RGB, semantic, high and low byte
        of the instance id; its length says whether it is whole.
        """
        for attempt in range(2):
            try:
                with open(self._path(i), "rb") as file:
                    height, width = HEADER.unpack(file.read(HEADER.size))
                    if os.fstat(file.fileno()).st_size == HEADER.size + 6 * height * width > HEADER.size:
                        file.seek(first_plane * height * width, os.SEEK_CUR)
                        data = bytearray(file.read())  # an array on it can be written to, as one from a source can
                        return height, width, np.frombuffer(data, np.uint8)
            except (FileNotFoundError, struct.error):
                pass  # not made yet, or damaged
            if attempt == 0:
                self._make(i)
        raise DataError(f"{self._path(i)} cannot be read back after writing it")

    def _make(self, i: int) -> None:
        image, semantic, instance = self.source.read(i)
        if instance.max(initial=0) > MAX_ID:
            raise DataError(f"frame {self.frames[i]} holds the id {instance.max()}, ids are 0..{MAX_ID}")
        target = tuple(math.ceil(s * self.margin) for s in self.image_size)
        size = content_size(semantic.shape, target)
        if size[0] >= semantic.shape[0]:
            size = semantic.shape
        semantic, instance = (view_labels(labels, size, View()) for labels in (semantic, instance))
        image = view_image(image, size, View())
        stored = np.concatenate([image.reshape(3 * size[0], size[1]), semantic, instance >> 8, instance & 255])
        handle, temporary = tempfile.mkstemp(dir=self.folder, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(HEADER.pack(*size) + stored.astype(np.uint8).tobytes())
            os.replace(temporary, self._path(i))
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _labels(height: int, width: int, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    semantic, high, low = data[-3 * height * width :].reshape(3, height, width)
    return semantic, (high.astype(np.int32) << 8) | low


def source_key(source: FrameSource, *settings) -> str:
    """A hash of what a data set holds, and of settings."""
    digest = hashlib.sha256(repr((*settings, str(getattr(source, "root", "")))).encode())
    for frame in source.frames:
        entry = [frame.sequence, frame.number]
        for path in (frame.image, frame.label):
            if path is not None:
                status = path.stat()
                entry += [str(path), status.st_size, status.st_mtime_ns]
        digest.update(repr(entry).encode())
    if any(frame.image is None for frame in source.frames):
        plain = {k: v for k, v in vars(source).items() if isinstance(v, int | float | str | tuple) or is_dataclass(v)}
        digest.update(repr(sorted(plain.items())).encode())
        code = Path(inspect.getfile(type(source)))
        for path in sorted(code.parent.glob("*.py")):  # the module and its parts
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
