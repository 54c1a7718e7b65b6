"""Streets, the built-in world: a driving video from a seed, at any size, with exact labels.

    python -m data.streets --output_folder data/Streets --split val --videos 3      frames as KITTI-STEP has them
    python -m data.streets --output_folder data/Streets --layout cityscapes         frames as Cityscapes has them

A video is a function of (split, seed): videos of one split are never those of another, whatever their seeds.
"""

from pathlib import Path

import cli

with cli.imports():
    from data.io.cores import usable_cores
    from data.streets.source import SPLITS
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
        cli.Option("workers", usable_cores(), "processes that render"),
    ],
}


def main() -> None:
    parser = cli.Parser(__doc__)
    cli.add_options(parser, DEFAULTS)
    args = parser.parse_args()
    size = tuple(args.image_size)
    write = {"kitti_step": write_kitti_step, "cityscapes": write_cityscapes}[args.layout]
    where = write(args.output_folder, args.split, args.videos, args.frames, size, args.workers)
    print(f"{args.videos} videos of {args.frames} frames are in {where}")


if __name__ == "__main__":
    cli.run(main)
