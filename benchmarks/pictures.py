"""Draw the README's moving picture from what the demo wrote.

    bash setup.sh demo && python benchmarks/pictures.py              docs/demo.gif
    python benchmarks/pictures.py --moving 2 --frames 12             the third of the demo's streets, its first frames

The same weights give the same picture.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cli

with cli.imports():
    from PIL import Image

    from data.draw import render
    from data.draw.shown import PLACES, Shown, last_inference, load_frames

OPTIONS = {
    "pictures": [
        cli.Option("predictions", PLACES[-1][0], "the demo's output"),
        cli.Option("docs", Path("docs"), "folder for demo.gif"),
        cli.Option("moving", 1, "which of the streets moves, from 0"),
        cli.Option("frames", 24, "of the moving picture, at most"),
    ],
}
SCALE, COLORS, TEXT = 2, 64, 13  # scale of the frames, colours in the palette, text size in pixels


def main() -> None:
    parser = cli.Parser(__doc__)
    cli.add_options(parser, OPTIONS)
    args = parser.parse_args()
    inference = last_inference(args.predictions)
    if inference is None:
        raise cli.UsageError(f"{args.predictions} holds no predictions: run `bash setup.sh demo` first")
    frames = load_frames(inference, limit=10_000)
    names = list(dict.fromkeys(frame.sequence for frame in frames))
    if not 0 <= args.moving < len(names) or args.frames < 1:
        raise cli.UsageError(f"--moving must be 0 to {len(names) - 1}, --frames 1 or more")
    args.docs.mkdir(parents=True, exist_ok=True)
    street = frames.where(lambda frame: frame.sequence == names[args.moving])
    write_moving(args.docs / "demo.gif", [moving(frame) for frame in street[: args.frames]])
    print(f"{args.docs / 'demo.gif'}: {(args.docs / 'demo.gif').stat().st_size / 1e6:.2f} MB")


def moving(frame: Shown) -> np.ndarray:
    """A frame, and below it the same frame under its masks."""
    size = [SCALE * n for n in frame.semantic.shape]
    image = np.asarray(Image.fromarray(frame.image).resize(size[::-1], Image.Resampling.LANCZOS))
    maps = enlarged(frame.semantic), enlarged(frame.track)
    masks = render.draw_labels(render.overlay(image, *maps, labels=False), *maps, TEXT)
    return render.strip([[image], [masks]])


def write_moving(path: Path, pictures: Sequence[np.ndarray], fps: float = 10.0) -> None:
    """A GIF with one palette for all frames and no dither, so that still parts take no bytes."""
    palette = Image.fromarray(np.concatenate(pictures[:: max(1, len(pictures) // 6)])).quantize(COLORS)
    first, *rest = (Image.fromarray(p).quantize(palette=palette, dither=Image.Dither.NONE) for p in pictures)
    first.save(path, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0, optimize=True)


def enlarged(labels: np.ndarray) -> np.ndarray:
    return labels.repeat(SCALE, 0).repeat(SCALE, 1)


if __name__ == "__main__":
    cli.run(main)
