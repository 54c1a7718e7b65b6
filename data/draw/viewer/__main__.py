"""Make the viewer's page of an inference: one HTML file a video, that opens from disk in any browser, offline.

    python -m data.draw.viewer data/output                                    the predictions of inference.py
    python -m data.draw.viewer data/output --ground_truth data/KittiSTEP      with errors, STQ, AQ and SQ
    python -m data.draw.viewer FIRST SECOND                                   two runs on the same frames, side by side

Pages are written to the output folder: <video>_view.html, of two runs <video>_compare_view.html. Frames are searched
where the inference found them; --input_folder names another place.
"""

import sys
from pathlib import Path

import cli

with cli.imports():
    from data.draw.viewer.folders import write_pages

OPTIONS = {
    "files": [
        cli.Option("ground_truth", None, "folder of ground truth; none: no errors are shown", kind=Path),
        cli.Option("split", "val", "which split, where that folder holds several", ("train", "val", "test")),
        cli.Option("input_folder", None, "frames or video; none: where the inference found them", kind=Path),
        cli.Option("names", None, "what the two runs are called; none: as their folders", nargs=2),
    ],
    "page": [
        cli.Option("width", 640, "of pictures and masks in pixels at most"),
        cli.Option("quality", 75, "of the pictures, 1 to 100"),
        cli.Option("fps", None, "frames a second; none: the video's own, 10 of images", kind=float),
        cli.Option(
            "tracked", None, "classes with tracks, for STQ; none: as the label space says", nargs="+", metavar="CLASS"
        ),
    ],
}


def main() -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("output_folder", nargs="?", type=Path, default=Path("data/output"), help="of an inference")
    parser.add_argument("other_folder", nargs="?", type=Path, help="of a second one on the same frames")
    cli.add_options(parser, OPTIONS)
    args = parser.parse_args()
    if args.width < 16 or not 1 <= args.quality <= 100 or not 0.01 <= (10 if args.fps is None else args.fps) <= 1000:
        raise cli.UsageError("--width must be 16 or more, --quality 1 to 100, --fps 0.01 to 1000")
    with cli.writable(args.output_folder):
        pages = write_pages(**vars(args))
    for page in pages:
        print(f"{page} ({page.stat().st_size / 1e6:.1f} MB)")
    print("Open it in a browser.")


if __name__ == "__main__":
    sys.argv[0] = "viewer"  # what messages begin with; Python says __main__.py
    cli.run(main)
