"""Streets, the built-in world: a driving video from a seed, at any size, with exact labels.

A camera drives along a street of houses, trees, fences and signs, among cars, trucks, buses, cyclists and walkers that
enter, leave, overtake, cross and hide one another; weather, light and texture differ from video to video.

A video is a function of (split, seed): videos of one split are never those of another, whatever their seeds.
"""

import hashlib
import math
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from data.io.cores import usable_cores
from data.io.files import whole
from data.labels import (
    CAR,
    DEFAULT_SPACE,
    MAX_ID,
    PERSON,
    DataError,
)
from data.sets.frames import FrameRef
from data.streets import render as streets_render
from data.streets.traffic import World

VERSION = 6  # of the rendered videos: part of the cache's key, to be raised with every change that shows
ROOT = Path("data/Streets")
SPLITS = {"train": 0, "val": 1, "test": 2}
TRACKED = (PERSON, CAR)
MIN_TRACKED_AREA = 1 / 1920  # of the image: 16 pixels of 96x320; what is smaller is crowd, in that frame
_IS_TRACKED = np.isin(np.arange(256), TRACKED)


@dataclass(frozen=True)
class StreetsConfig:
    """image_size in pixels (height, width); `frames` of a video, 0.1 s apart; `max_things` persons and cars at most
    that are near enough to be drawn. Raises DataError for sizes and numbers that cannot be rendered."""

    image_size: tuple[int, int] = (96, 320)
    frames: int = 24
    max_things: int = 12

    def __post_init__(self):
        object.__setattr__(self, "image_size", tuple(int(n) for n in self.image_size))
        if len(self.image_size) != 2 or not all(16 <= n <= 4096 for n in self.image_size):
            raise DataError(f"the image size is height and width, each 16 to 4096 pixels, not {self.image_size}")
        if self.frames < 1 or self.max_things < 1:
            raise DataError(f"frames and max_things are at least 1, not {self.frames} and {self.max_things}")


def render(
    config: StreetsConfig, seed: int, split: str = "train", full: bool = False
) -> Iterator[streets_render.Frame]:
    """The frames of one video; with `full`, each with its tracks' unhidden areas. Raises DataError for a wrong split.

    Scene, camera and sensor draw from streams of their own, so that the scene is the same at any image size.
    """
    if split not in SPLITS:
        raise DataError(f"there is no split {split!r}; the splits are {', '.join(SPLITS)}")
    if seed < 0:
        raise DataError(f"a seed is at least 0, not {seed}")
    scene, *others = np.random.SeedSequence([SPLITS[split], seed]).spawn(3)
    world = World(np.random.default_rng(scene), config.max_things)
    for frame in islice(streets_render.frames(world, others, config.image_size, full), config.frames):
        if world.tracks > MAX_ID:
            raise DataError(f"a video of so many frames needs more than {MAX_ID} track ids; render a shorter one")
        yield frame


def render_video(
    seed: int, split: str = "train", frames: int = 24, image_size: tuple[int, int] = (96, 320)
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """One video, frame after frame: image uint8 (H, W, 3), semantic uint8 (H, W), instance int32 (H, W).

    Every thing (persons, cars, riders, trucks ...) has a track id > 0, its own through the whole video; stuff has 0.
    Raises DataError for a split, seed or size that cannot be.
    """
    for frame in render(StreetsConfig(tuple(image_size), frames), seed, split):
        yield frame.image, frame.semantic, frame.instance


def tracked_only(semantic: np.ndarray, instance: np.ndarray) -> np.ndarray:
    """Ids as KITTI-STEP has them: of persons and cars alone; all other things are crowd (0), and so are persons and
    cars of which too little is seen, as annotators of real videos leave them out. Both (H, W); int32 (H, W)."""
    ids = np.where(_IS_TRACKED[semantic], instance, 0).astype(np.int32)
    area = np.bincount(ids.ravel())
    area[0] = 0
    return np.where(area[ids] >= MIN_TRACKED_AREA * ids.size, ids, 0).astype(np.int32)


# ---------------------------------------------------------------------------------------------------------------------
# The data set
# ---------------------------------------------------------------------------------------------------------------------


class Streets:
    """Videos 0..videos-1 of a split as a frame source (see data.sets.frames.FrameSource).

    Each video is rendered once, into three .npy files under `root` / <key of version, size and length> / <split>, by
    `workers` processes; files that are missing or have a wrong size are rendered anew, at the latest when they are
    read. Of several processes one renders. Raises DataError for wrong values, and where the disk has no room.
    """

    name = "streets"
    space = DEFAULT_SPACE
    tracked = TRACKED
    is_video = True

    def __init__(
        self,
        root: str | Path | None = None,
        split: str = "train",
        videos: int = 300,
        frames: int = 24,
        image_size: tuple[int, int] = (96, 320),
        workers: int | None = None,
    ):
        if split not in SPLITS:
            raise DataError(f"there is no split {split!r}; the splits are {', '.join(SPLITS)}")
        if videos < 1:
            raise DataError(f"a data set needs at least one video, not {videos}")
        self.split, self.videos = split, videos
        self.config = StreetsConfig(tuple(image_size), frames)
        key = hashlib.sha256(repr((VERSION, sorted(asdict(self.config).items()))).encode()).hexdigest()[:12]
        self.folder = Path(root or ROOT) / key / split
        self.frames = [FrameRef(f"{split}{seed:06d}", n) for seed in range(videos) for n in range(frames)]
        if self._missing():
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder.with_name(f".{split}.lock"))  # of several processes one renders
            try:
                held = lock.acquire(timeout=2)
            except Timeout:
                if not int(os.environ.get("RANK", 0)):
                    print(f"Streets: waiting for another process, which renders {self.folder}", flush=True)
                held = lock.acquire()
            with held:
                self._render(self._missing(), workers)

    def _missing(self) -> list[int]:
        return [seed for seed in range(self.videos) if not all(_complete(*file) for file in self._files(seed))]

    def _render(self, missing: list[int], workers: int | None) -> None:
        needed = len(missing) * self.config.frames * math.prod(self.config.image_size) * 6  # bytes a pixel
        if needed > (free := shutil.disk_usage(self.folder).free):
            raise DataError(f"Streets takes {needed / 1e9:.1f} GB, and {self.folder} has {free / 1e9:.1f} GB free")
        jobs = [(self.folder, self.config, seed, self.split) for seed in missing]
        title = f"Streets {self.split}, rendered once into {self.folder} ({needed / 1e9:.1f} GB)"
        for _ in _in_processes(_cache_video, jobs, workers, title):
            pass

    def _files(self, seed: int) -> list[tuple[Path, tuple[int, ...], type]]:
        return _cache_files(self.folder, self.config, seed)

    def _field(self, seed: int, field: int, n: int) -> np.ndarray:
        """Frame n of field 0 image, 1 semantic, 2 instance of a video. One read of just its bytes: a clip needs seven
        of these, and mapping a file costs ten times as much."""
        path, shape, kind = self._files(seed)[field]
        count = int(np.prod(shape[1:]))
        if not _complete(path, shape, kind):  # cut off or deleted while we ran
            _cache_video((self.folder, self.config, seed, self.split))
        header = path.stat().st_size - shape[0] * count * np.dtype(kind).itemsize
        return np.fromfile(path, kind, count, offset=header + n * count * np.dtype(kind).itemsize).reshape(shape[1:])

    def __len__(self) -> int:
        return len(self.frames)

    def read_labels(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Frame i as semantic uint8 (H, W), instance int32 (H, W)."""
        seed, n = divmod(range(len(self.frames))[i], self.config.frames)
        semantic = self._field(seed, 1, n)
        return semantic, tracked_only(semantic, self._field(seed, 2, n))

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Frame i as image uint8 (H, W, 3), semantic uint8 (H, W), instance int32 (H, W)."""
        seed, n = divmod(range(len(self.frames))[i], self.config.frames)
        return self._field(seed, 0, n), *self.read_labels(i)


def _cache_files(folder: Path, config: StreetsConfig, seed: int) -> list[tuple[Path, tuple[int, ...], type]]:
    shape = (config.frames, *config.image_size)
    fields = (("image", (*shape, 3), np.uint8), ("semantic", shape, np.uint8), ("instance", shape, np.uint16))
    return [(folder / f"{seed:06d}_{name}.npy", full, kind) for name, full, kind in fields]


def _complete(path: Path, shape: tuple[int, ...], kind: type) -> bool:
    """Whether a cache file has the size that it must have: a .npy header (a multiple of 64 bytes) and the array."""
    try:
        size = path.stat().st_size
    except OSError:
        return False
    header = size - int(np.prod(shape)) * np.dtype(kind).itemsize
    return header in (64, 128, 192)


def _cache_video(job: tuple[Path, StreetsConfig, int, str]) -> None:
    """Render one video into its cache files."""
    folder, config, seed, split = job
    video = [(f.image, f.semantic, f.instance.astype(np.uint16)) for f in render(config, seed, split)]
    for (path, _, kind), arrays in zip(_cache_files(folder, config, seed), zip(*video, strict=True), strict=True):
        with whole(path, shared=True) as temporary, temporary.open("wb") as file:
            np.save(file, np.stack(arrays).astype(kind))


def _in_processes(function, jobs: list, workers: int | None, title: str) -> Iterator:
    """function(job) for each job, in order, with a progress bar; in this process where there is little to do."""
    if not jobs:
        return
    workers = min(workers if workers is not None else usable_cores(), len(jobs))
    bar = {"total": len(jobs), "desc": title, "unit": "video", "leave": False, "disable": len(jobs) < 3 or None}
    if workers <= 1 or len(jobs) < 3:
        yield from tqdm(map(function, jobs), **bar)
        return
    # Not forked: a parent with threads (torch, CUDA) must not be.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from tqdm(pool.map(function, jobs), **bar)
