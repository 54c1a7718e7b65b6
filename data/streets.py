"""Streets, the built-in world: a driving video from a seed, at any size, with exact labels.

A camera drives along a street of houses, trees, fences and signs, among cars, trucks, buses, cyclists and walkers that
enter, leave, overtake, cross and hide one another; weather, light and texture differ from video to video.

    python -m data.streets --describe                                               how hard it is, in figures
    python -m data.streets --output_folder data/Streets --split val --videos 3      frames as KITTI-STEP has them
    python -m data.streets --output_folder data/Streets --layout cityscapes         frames as Cityscapes has them

A video is a function of (split, seed): videos of one split are never those of another, whatever their seeds.
"""

import hashlib
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

import cli
from data import streets_render
from data.frames import FrameRef
from data.labels import (
    CAR,
    CLASS_NAMES,
    MAX_ID,
    PERSON,
    THINGS,
    TRAIN_TO_LABEL,
    VOID,
    DataError,
    write_image,
    write_panoptic,
)
from data.streets_traffic import World

VERSION = 6  # of the rendered videos: part of the cache's key, to be raised with every change that shows
SPLITS = {"train": 0, "val": 1, "test": 2}
TRACKED = (PERSON, CAR)
MIN_TRACKED_AREA = 1 / 1920  # of the image: 16 pixels of 96x320; what is smaller is crowd, in that frame
_IS_TRACKED = np.isin(np.arange(256), TRACKED)
ROOT = Path("data/Streets")

DEFAULTS = {
    "what to write": [
        cli.Option("output_folder", ROOT, "folder that the frames are written to"),
        cli.Option("layout", "kitti_step", "folder layout and label files", choices=("kitti_step", "cityscapes")),
        cli.Option("split", "val", "videos of one split never occur in another", choices=tuple(SPLITS)),
        cli.Option("videos", 3, "number of videos; their seeds are 0, 1, 2 ..."),
        cli.Option("frames", 24, "frames of a video, 0.1 s apart"),
        cli.Option("image_size", (96, 320), "height and width in pixels", nargs=2, metavar=("H", "W")),
        cli.Option("workers", os.cpu_count() or 1, "processes that render"),
    ],
    "or": [cli.Option("describe", False, "print how many tracks there are, how large and how often hidden, and stop")],
}


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
    """Videos 0..videos-1 of a split as a frame source (see data.frames.FrameSource).

    Each video is rendered once, into three .npy files under `root` / <key of version, size and length> / <split>, by
    `workers` processes; files that are missing or have a wrong size are rendered anew, at the latest when they are
    read. Several processes may build the same cache at once. Raises DataError for wrong values.
    """

    name = "streets"
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
        missing = [seed for seed in range(videos) if not all(_complete(*file) for file in self._files(seed))]
        jobs = [(self.folder, self.config, seed, split) for seed in missing]
        for _ in _in_processes(_cache_video, jobs, workers, f"Streets {split}, rendered once into {self.folder}"):
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
    """Render one video into its cache files, each written beside its place and renamed when it is whole."""
    folder, config, seed, split = job
    folder.mkdir(parents=True, exist_ok=True)
    video = [(f.image, f.semantic, f.instance.astype(np.uint16)) for f in render(config, seed, split)]
    for (path, _, kind), arrays in zip(_cache_files(folder, config, seed), zip(*video, strict=True), strict=True):
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{path.name}.", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                np.save(file, np.stack(arrays).astype(kind))
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _in_processes(function, jobs: list, workers: int | None, title: str) -> Iterator:
    """function(job) for each job, in order, with a progress bar; in this process where there is little to do."""
    if not jobs:
        return
    workers = min(workers if workers is not None else os.cpu_count() or 1, len(jobs))
    bar = {"total": len(jobs), "desc": title, "unit": "video", "leave": False, "disable": len(jobs) < 3 or None}
    if workers <= 1 or len(jobs) < 3:
        yield from tqdm(map(function, jobs), **bar)
        return
    # Not forked: a parent with threads (torch, CUDA) must not be.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from tqdm(pool.map(function, jobs), **bar)


# ---------------------------------------------------------------------------------------------------------------------
# Files, as the real data sets have them
# ---------------------------------------------------------------------------------------------------------------------


def write_kitti_step(
    folder: str | Path, split: str = "val", videos: int = 3, frames: int = 24, image_size=(96, 320), workers: int = 1
) -> Path:
    """Write videos as KITTI-STEP has them and return the folder of the split.

    <folder>/kitti_out/video_sequence/<split>/<sequence>_<frame>_leftImg8bit.png and _panoptic.png; only persons and
    cars have ids, other things are crowd. Raises DataError for wrong values.
    """
    target = Path(folder) / "kitti_out" / "video_sequence" / split
    _write(_write_kitti_video, target, split, videos, frames, image_size, workers)
    return target


def _write_kitti_video(job) -> None:
    target, config, seed, split = job
    for n, frame in enumerate(render(config, seed, split)):
        stem = f"{seed:06d}_{n:06d}"
        write_image(target / f"{stem}_leftImg8bit.png", frame.image)
        write_panoptic(target / f"{stem}_panoptic.png", frame.semantic, tracked_only(frame.semantic, frame.instance))


def write_cityscapes(
    folder: str | Path, split: str = "val", videos: int = 3, frames: int = 24, image_size=(96, 320), workers: int = 1
) -> Path:
    """Write videos as single frames in the layout of Cityscapes, with the city "streets", and return the folder.

    leftImg8bit, gtFinePanopticParts (int32 TIFF of sid or sid * 1000 + iid) and gtFine (_instanceIds, uint16, and
    _labelIds, uint8); ids are labelIds and every thing has an instance, numbered from 0 for each class in each frame.
    Raises DataError for wrong values.
    """
    _write(_write_cityscapes_video, Path(folder), split, videos, frames, image_size, workers)
    return Path(folder)


def cityscapes_ids(semantic: np.ndarray, instance: np.ndarray) -> np.ndarray:
    """labelId, or labelId * 1000 + number of the instance among its class in this frame; int32 (H, W)."""
    label = TRAIN_TO_LABEL[semantic].astype(np.int32)
    result = label.copy()
    for cls in THINGS:
        for iid, track in enumerate(np.unique(instance[(semantic == cls) & (instance > 0)])):
            mine = (semantic == cls) & (instance == track)
            result[mine] = label[mine] * 1000 + iid
    return result


def _write_cityscapes_video(job) -> None:
    folder, config, seed, split = job
    for n, frame in enumerate(render(config, seed, split)):
        stem = f"streets_{seed:06d}_{n:06d}"
        ids = cityscapes_ids(frame.semantic, frame.instance)
        parts = folder / "gtFinePanopticParts" / split / "streets" / f"{stem}_gtFinePanopticParts.tif"
        fine = folder / "gtFine" / split / "streets"
        write_image(folder / "leftImg8bit" / split / "streets" / f"{stem}_leftImg8bit.png", frame.image)
        write_image(fine / f"{stem}_gtFine_instanceIds.png", ids.astype(np.uint16))
        write_image(fine / f"{stem}_gtFine_labelIds.png", TRAIN_TO_LABEL[frame.semantic])
        parts.parent.mkdir(parents=True, exist_ok=True)
        temporary = parts.with_name(f".{parts.name}.{os.getpid()}.part")
        Image.fromarray(ids).save(temporary, format="TIFF", compression="tiff_adobe_deflate")
        os.replace(temporary, parts)


def _write(function, target: Path, split: str, videos: int, frames: int, image_size, workers: int) -> None:
    if split not in SPLITS:
        raise DataError(f"there is no split {split!r}; the splits are {', '.join(SPLITS)}")
    config = StreetsConfig(tuple(image_size), frames)
    jobs = [(target, config, seed, split) for seed in range(videos)]
    for _ in _in_processes(function, jobs, workers, f"Streets {split} into {target}"):
        pass


# ---------------------------------------------------------------------------------------------------------------------
# How hard it is
# ---------------------------------------------------------------------------------------------------------------------


def describe(config: StreetsConfig, seeds: Iterable[int], split: str = "val", hidden_below: float = 0.7) -> dict:
    """Figures of some videos' persons and cars (other classes only in "classes").

    A track is partly hidden where, in some frame, less than `hidden_below` of what it would cover in the frame (at
    least 16 pixels) is visible. Sizes are visible pixels of a person or a car in a frame.
    """
    tracks, hidden, lives, sizes, in_view = [], [], [], [], []
    classes: dict[int, int] = defaultdict(int)
    for seed in seeds:
        seen: dict[int, list[float]] = {}
        for frame in render(config, seed, split, full=True):
            for cls in np.unique(frame.semantic):
                classes[int(cls)] += 1
            ids, areas = np.unique(tracked_only(frame.semantic, frame.instance), return_counts=True)
            areas = dict(zip(ids.tolist(), areas.tolist(), strict=True))
            areas.pop(0, None)
            in_view.append(len(areas))
            for track, area in areas.items():
                full = frame.full.get(track, 0)
                seen.setdefault(track, []).append(area / full if full >= 16 else 1.0)
                sizes.append(area)
            for track in seen.keys() - areas.keys():  # wholly hidden, for now
                if frame.full.get(track, 0) >= 16:
                    seen[track].append(0.0)
        tracks.append(len(seen))
        hidden += [min(shares) < hidden_below for shares in seen.values()]
        lives += [len(shares) for shares in seen.values()]

    def spread(values) -> dict[str, float]:
        points = np.percentile(values, [0, 25, 50, 75, 100]).round(1).tolist() if len(values) else [0.0] * 5
        return dict(zip(("min", "quartile", "median", "upper quartile", "max"), points, strict=True))

    return {
        "videos": len(tracks),
        "tracks of a video": spread(tracks),
        "share of tracks partly hidden": float(np.mean(hidden)) if hidden else 0.0,
        "frames of a track": spread(lives),
        "persons and cars in view": spread(in_view),
        "share of frames with 2 to 12": float(np.mean([2 <= n <= 12 for n in in_view])),
        "pixels of a person or car": spread(sizes),
        "share smaller than 16 pixels": float(np.mean(np.array(sizes) < 16)) if sizes else 0.0,
        "classes": {("void" if c == VOID else CLASS_NAMES[c]): n / len(in_view) for c, n in sorted(classes.items())},
    }


def main() -> None:
    parser = cli.Parser(__doc__)
    cli.add_options(parser, DEFAULTS)
    args = parser.parse_args()
    size = tuple(args.image_size)
    if args.describe:
        config = StreetsConfig(size, args.frames)
        for name, value in describe(config, range(args.videos), args.split).items():
            if isinstance(value, dict):
                value = ", ".join(f"{k} {v:.2f}" if name == "classes" else f"{k} {v:g}" for k, v in value.items())
            print(f"{name}: {value:.2f}" if isinstance(value, float) else f"{name}: {value}")
        return
    write = {"kitti_step": write_kitti_step, "cityscapes": write_cityscapes}[args.layout]
    where = write(args.output_folder, args.split, args.videos, args.frames, size, args.workers)
    print(f"{args.videos} videos of {args.frames} frames are in {where}")


if __name__ == "__main__":
    cli.run(main)
