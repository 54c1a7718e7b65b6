"""Streets, the built-in world: a driving video from a seed, at any size, with exact labels.

    python -m data.streets --describe                                               how hard it is, in figures
    python -m data.streets --output_folder data/Streets --split val --videos 3      frames as KITTI-STEP has them
    python -m data.streets --output_folder data/Streets --layout cityscapes         frames as Cityscapes has them

A video is a function of (split, seed): videos of one split are never those of another, whatever their seeds.
"""

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import cli

with cli.imports():
    import numpy as np

    from data.labels import CLASS_NAMES, VOID
    from data.streets.source import SPLITS, StreetsConfig, render, tracked_only
    from data.streets.write import write_cityscapes, write_kitti_step

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
