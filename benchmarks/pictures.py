"""Draw the README's pictures from what the demo wrote: the moving one that it opens with, and what goes wrong.

    bash setup.sh demo && python benchmarks/pictures.py              docs/demo.gif and docs/failures.png
    python benchmarks/pictures.py --moving 2 --frames 12             the third of the demo's streets, its first frames

The same weights give the same pictures; after a change of the weights this is all there is to do.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cli

with cli.imports():
    from PIL import Image

    from data.draw import figures, render
    from data.draw.shown import PLACES, Frames, Shown, last_inference, load_frames
    from data.labels import CLASS_NAMES

OPTIONS = {
    "pictures": [
        cli.Option("predictions", PLACES[-1][0], "the demo's output"),
        cli.Option("docs", Path("docs"), "folder for demo.gif and failures.png"),
        cli.Option("moving", 1, "which of the streets moves, from 0"),
        cli.Option("frames", 24, "of the moving picture, at most"),
    ],
}
SCALE, COLORS, TEXT = 2, 64, (13, 18)  # times the frames' size; of the GIF's palette; pixels, of GIF and still


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
    if any(frame.truth is None for frame in frames):
        raise cli.UsageError(f"{inference.inputs} lacks truth, which failures.png shows: give the demo's output")
    args.docs.mkdir(parents=True, exist_ok=True)
    street = frames.where(lambda frame: frame.sequence == names[args.moving])
    write_moving(args.docs / "demo.gif", [moving(frame) for frame in street[: args.frames]])
    Image.fromarray(failures(frames)).quantize(COLORS).save(args.docs / "failures.png", optimize=True)
    for name in ("demo.gif", "failures.png"):
        print(f"{args.docs / name}: {(args.docs / name).stat().st_size / 1e6:.2f} MB")


def moving(frame: Shown) -> np.ndarray:
    """A frame above the same under its masks."""
    size = [SCALE * n for n in frame.semantic.shape]
    image = np.asarray(Image.fromarray(frame.image).resize(size[::-1], Image.Resampling.LANCZOS))
    maps = enlarged(frame.semantic), enlarged(frame.track)
    masks = render.draw_labels(render.overlay(image, *maps, labels=False), *maps, TEXT[0])
    return render.strip([[image], [masks]])


def write_moving(path: Path, pictures: Sequence[np.ndarray], fps: float = 10.0) -> None:
    """A GIF with one palette for all frames and no dither, so that what stands still costs nothing."""
    palette = Image.fromarray(np.concatenate(pictures[:: max(1, len(pictures) // 6)])).quantize(COLORS)
    first, *rest = (Image.fromarray(p).quantize(palette=palette, dither=Image.Dither.NONE) for p in pictures)
    first.save(path, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0, optimize=True)


def failures(frames: Frames) -> np.ndarray:
    """truth | prediction of the frame of each video that has most wrong pixels, with the colours of the classes."""
    partners = figures.match_tracks(frames)
    worst: dict[str, tuple[float, Shown]] = {}
    for frame in frames:
        errors = figures.error_map(frame, partners)
        share = float(np.isin(errors, (1, 2)).mean())
        if share > worst.get(frame.sequence, (-1.0,))[0]:
            worst[frame.sequence] = share, frame
    chosen = [frame for _, frame in worst.values()]
    rows = []
    for frame in chosen:
        pairs = [[enlarged(m) for m in maps] for maps in (frame.truth, (frame.semantic, frame.track))]
        rows.append([render.draw_labels(render.draw_panoptic(*maps), *maps, TEXT[1]) for maps in pairs])
    table = render.strip(rows, titles=("truth", "prediction"))
    seen = np.unique(np.concatenate([m.ravel() for f in chosen for m in (f.semantic, f.truth[0])]))
    entries = [(CLASS_NAMES[c], render.class_colors()[c]) for c in seen if c < len(CLASS_NAMES)]
    return np.concatenate([table, render.swatches(entries, table.shape[1], size=16)])


def enlarged(labels: np.ndarray) -> np.ndarray:
    return labels.repeat(SCALE, 0).repeat(SCALE, 1)


if __name__ == "__main__":
    cli.run(main)
