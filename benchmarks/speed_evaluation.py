"""Speed and memory of the evaluation: all metrics of a frame pair of 375x1242, in one process, PNG decoding apart.

  python benchmarks/speed_evaluation.py
  python benchmarks/speed_evaluation.py --frames 10000 --data_root data/KittiSTEP

The pairs are ground truth against that of the frame before. Where the real frames are not there, drawn ones stand in:
a street of 12 classes with 40 objects that move.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cli
from cli import Option

with cli.imports():
    import numpy as np

    from data.io.label_files import find_labels, read_labels
    from metrics import Evaluation, co_occurrence

HEIGHT, WIDTH = 375, 1242  # pixels, of most KITTI frames
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "KittiSTEP"
OPTIONS = {
    "benchmark": (
        Option("data_root", SHARED, "KITTI-STEP; drawn frames where this is no folder", kind=Path),
        Option("frames", 10_000, "frame pairs for the memory's growth; the speed is measured on the first 500"),
    )
}
WARM_UP = 20
TIMED = 500


def measure(frames: int = 10_000, data_root: Path = SHARED) -> dict[str, float | str]:
    """Time and memory of `Evaluation.update`; benchmarks/speed.py calls this.

    Returns {"input": what was evaluated, "ms_per_frame": all metrics, "ms_table": the pass over the pixels in it (both
    medians), "ms_decode": reading one label PNG, "ms_noise": all metrics of a pair of noise, the worst case,
    "rss_start_mb" and "rss_end_mb": peak resident memory after the timed frames and after all of them}.
    """
    name, maps, ms_decode = real_frames(data_root) if data_root.is_dir() else drawn_frames()
    evaluation = Evaluation()
    total, table = [], []
    for i in range(WARM_UP + TIMED):
        pair = maps[i % len(maps)], maps[i % len(maps) - 1]
        start = time.perf_counter()
        co_occurrence(*pair)
        between = time.perf_counter()
        evaluation.update(*pair, "0000")
        total.append(time.perf_counter() - between)
        table.append(between - start)
    start_mb = peak_mb()
    for i in range(WARM_UP + TIMED, frames):
        evaluation.update(maps[i % len(maps)], maps[i % len(maps) - 1], "0000")
    evaluation.result()
    end_mb = peak_mb()
    return {
        "input": name,
        "ms_per_frame": 1e3 * float(np.median(total[WARM_UP:])),
        "ms_table": 1e3 * float(np.median(table[WARM_UP:])),
        "ms_decode": ms_decode,
        "ms_noise": noise(),
        "rss_start_mb": start_mb,
        "rss_end_mb": end_mb,
    }


def real_frames(root: Path) -> tuple[str, list, float]:
    """Up to 60 frames of val, repeated to the full size where they are smaller, and the time to read one in ms."""
    files = [file for _, file in sorted(find_labels(root, "val").items(), key=lambda item: item[1].name)][:60]
    start = time.perf_counter()
    read = [read_labels(file) for file in files]
    ms_decode = 1e3 * (time.perf_counter() - start) / len(read)
    return f"{len(read)} frames of {root}", [tuple(full_size(a) for a in labels) for labels in read], ms_decode


def full_size(array: np.ndarray) -> np.ndarray:
    times = max(-(-HEIGHT // array.shape[0]), -(-WIDTH // array.shape[1]))
    return np.ascontiguousarray(array.repeat(times, 0).repeat(times, 1)[:HEIGHT, :WIDTH])


def drawn_frames(count: int = 30, objects: int = 40) -> tuple[str, list, float]:
    """Wavy layers of stuff, and ellipses of persons and cars that move a few pixels a frame; no time to decode."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    layers = y + 8 * np.sin(x / 9) + 4 * np.sin(x / 2.3)
    centre = rng.uniform((120, 0), (330, WIDTH), (objects, 2))
    radius, speed = rng.uniform(6, 45, (objects, 2)), rng.uniform(-6, 6, objects)
    frames = []
    for t in range(count):
        semantic = np.clip(10 - layers // (HEIGHT / 11), 0, 10).astype(np.uint8)
        instance = np.zeros((HEIGHT, WIDTH), np.int32)
        for k in range(objects):
            cy, cx = centre[k, 0], (centre[k, 1] + t * speed[k]) % WIDTH
            inside = ((y - cy) / radius[k, 0]) ** 2 + ((x - cx) / radius[k, 1]) ** 2 < 1
            semantic[inside], instance[inside] = (11, 13)[k % 2], k + 1
        frames.append((semantic, instance))
    return f"{count} drawn frames", frames, float("nan")


def noise(block: int = 4) -> float:
    """ms for a pair of blocks of random class and id: the output of an untrained network at a quarter of the size."""
    rng = np.random.default_rng(0)
    shape = (-(-HEIGHT // block), -(-WIDTH // block))
    pair = [
        tuple(full_size(rng.integers(0, n, shape).astype(kind)) for n, kind in ((19, np.uint8), (32, np.int32)))
        for _ in range(2)
    ]
    evaluation, times = Evaluation(), []
    for _ in range(9):
        start = time.perf_counter()
        evaluation.update(*pair, "0000")
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


def peak_mb() -> float:
    """Largest resident memory of this process so far, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # a new process inherits its parent's ru_maxrss, but not its high water mark
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1e3
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)  # bytes there, kilobytes elsewhere


def main() -> None:
    parser = cli.Parser(__doc__)
    cli.add_options(parser, OPTIONS)
    args: argparse.Namespace = parser.parse_args()
    for name, value in measure(args.frames, args.data_root).items():
        print(f"{name:<14}{value if isinstance(value, str) else f'{value:10.2f}'}")


if __name__ == "__main__":
    cli.run(main)
