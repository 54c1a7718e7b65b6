"""A cache of frames at training size, because decoding a PNG costs more than the rest of a training sample."""

import hashlib
import inspect
import math
import os
import shutil
import struct
import tempfile
from dataclasses import is_dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.clips.transforms import View, view_image, view_labels
from data.io.pixels import area_scale
from data.labels import MAX_ID, DataError
from data.sets.frames import FrameSource

HEADER = struct.Struct("<ii")
VERSION = 2  # of the file format below; part of the key, so each version has its own cache


FILL = 0.9  # of the free disk, at most


class Cached:
    """A FrameSource whose frames are stored at the size by area of `image_size` times `margin`, never enlarged.

    Each frame is one file in `folder/<name>-<split>-<key>`. It is written when it is first read, or up front by `fill`,
    through a temporary file and a rename: any number of workers and processes can share it, and a resumed run finds it.
    The key covers root, split, sizes, and every file's name, size and modification time; a data set without files is
    keyed by its settings and its code. If a frame cannot be stored, as on a full disk, it is decoded each time.

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
        """About how many bytes the missing frames will take, if all are as large as the first. Raises DataError if that
        cannot be read."""
        missing = sum(not self._path(i).exists() for i in range(len(self.frames)))
        height, width = self._size(self.source.read_labels(0)[0].shape)
        return missing * (HEADER.size + 6 * height * width)

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        height, width, data = self._stored(i, first_plane=0)
        image = data[: 3 * height * width].reshape(height, width, 3)
        return (image, *_labels(height, width, data))

    def read_labels(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        return _labels(*self._stored(i, first_plane=3))

    def fill(self, quiet: bool = False) -> None:
        """Store the missing frames. Raises DataError for the first frame that cannot be read."""
        missing = [i for i in range(len(self.frames)) if not self._path(i).exists()]
        for i in tqdm(missing, desc=f"cache {self.name}", unit="frame", disable=quiet or not missing):
            self._make(i)

    def _path(self, i: int) -> Path:
        return self.folder / f"{i:06d}.frame"

    def _stored(self, i: int, first_plane: int) -> tuple[int, int, np.ndarray]:
        """Height, width and the planes of frame i from `first_plane` on, uint8 (planes * height * width,).

        A file is height and width as int32, then 6 planes: three with the interleaved RGB, semantic, high and low byte
        of the instance id. A file of another length is damaged.
        """
        try:
            with open(self._path(i), "rb") as file:
                height, width = HEADER.unpack(file.read(HEADER.size))
                if os.fstat(file.fileno()).st_size == HEADER.size + 6 * height * width > HEADER.size:
                    file.seek(first_plane * height * width, os.SEEK_CUR)
                    data = bytearray(file.read())  # mutable, so that its array is writable, as from a source
                    return height, width, np.frombuffer(data, np.uint8)
        except (FileNotFoundError, struct.error):
            pass  # not made yet, or damaged
        height, width, planes = self._make(i)
        return height, width, planes.ravel()[first_plane * height * width :]

    def _size(self, frame_size: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) of a stored frame: the whole frame, at its aspect, because a crop may lie anywhere."""
        scale = min(1.0, area_scale(frame_size, self.image_size) * self.margin)
        height, width = (math.ceil(n * scale) for n in frame_size)
        return height, width

    def _make(self, i: int) -> tuple[int, int, np.ndarray]:
        """Store a frame. Returns its height, width and planes."""
        image, semantic, instance = self.source.read(i)
        if instance.max(initial=0) > MAX_ID:
            raise DataError(f"frame {self.frames[i]} holds the id {instance.max()}, ids are 0..{MAX_ID}")
        size = self._size(semantic.shape)
        semantic, instance = (view_labels(labels, size, View()) for labels in (semantic, instance))
        image = view_image(image, size, View())
        stored = np.concatenate([image.reshape(3 * size[0], size[1]), semantic, instance >> 8, instance & 255])
        stored = stored.astype(np.uint8)
        temporary = None
        try:
            handle, temporary = tempfile.mkstemp(dir=self.folder, suffix=".part")
            with os.fdopen(handle, "wb") as file:
                file.write(HEADER.pack(*size) + stored.tobytes())
            os.replace(temporary, self._path(i))
        except BaseException as error:
            if temporary:
                Path(temporary).unlink(missing_ok=True)
            if not isinstance(error, OSError):
                raise
        return *size, stored


def cached(source: FrameSource, image_size: tuple[int, int], folder: Path, margin: float, say=print) -> FrameSource:
    """Put a cache in front of a data set and announce its size. Returns the data set itself if it is not read from
    files, if the disk has no room, or if the folder cannot be written."""
    if any(frame.image is None for frame in source.frames):
        return source
    instead = "so frames are decoded each time (slower); --cache PATH takes another folder, --cache none is silent"
    try:
        through = Cached(source, image_size, folder, margin)
        wanted, free = through.missing_bytes(), shutil.disk_usage(folder).free
    except OSError as error:
        say(f"cache: {folder} cannot be written ({error.strerror}), {instead}")
        return source
    if wanted > FILL * free:
        say(f"cache: {source.name} needs {wanted / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB free, {instead}")
        return source
    if wanted:
        say(f"cache: frames of {source.name} are decoded once, into {wanted / 1e9:.1f} GB in {through.folder}")
    return through


def _labels(height: int, width: int, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    semantic, high, low = data[-3 * height * width :].reshape(3, height, width)
    return semantic, (high.astype(np.int32) << 8) | low


def source_key(source: FrameSource, *settings) -> str:
    """A hash of a data set (its files; without files its code) and of settings."""
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
