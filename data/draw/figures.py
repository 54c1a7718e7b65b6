"""Draw what visualize.ipynb shows: films, errors, and plots of an inference's figures, tracks and training.

Only this file needs matplotlib (one of the `dev` packages).
"""

import base64
import dataclasses
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from data.draw import render
from data.draw.shown import Shown
from data.io.pixels import nearest
from data.labels import CAR, CLASS_NAMES, PERSON, VOID
from data.videos.video import VideoWriter

PAGE = 1080  # width of a page in pixels
RIGHT, WRONG_CLASS, WRONG_TRACK, UNKNOWN = (232, 232, 232), (221, 120, 0), (0, 84, 168), (150, 150, 150)
ERRORS = {"right": RIGHT, "wrong class": WRONG_CLASS, "right class, wrong track": WRONG_TRACK, "no truth": UNKNOWN}


# ---------------------------------------------------------------------------------------------------------------------
# Films
# ---------------------------------------------------------------------------------------------------------------------


FILMS = {  # name -> function of a frame and colorblind that draws the picture
    "video": lambda f, colorblind: f.image,
    "panoptic": lambda f, colorblind: render.draw_panoptic(f.semantic, f.track, colorblind, True, f.space),
    "semantic": lambda f, colorblind: render.draw_semantic(f.semantic, colorblind, f.space),
    "instance": lambda f, colorblind: render.draw_instances(f.track, colorblind),
    "video_overlay": lambda f, colorblind: render.overlay(
        f.image, f.semantic, f.track, colorblind=colorblind, space=f.space
    ),
}


def film(frames: Sequence[Shown], name: str, colorblind: bool = False) -> Iterator[np.ndarray]:
    """The pictures of one of `FILMS`, one after the other, all of the first frame's size."""
    height, width = frames[0].semantic.shape
    for frame in frames:
        yield render.fit(FILMS[name](frame, colorblind), height, width, smooth=name == "video")


def at_width(frame: Shown, width: int) -> Shown:
    """A frame scaled down to at most `width`, so that text is drawn in the size in which it is shown."""
    height, full = frame.semantic.shape
    if full <= width:
        return frame
    size = max(1, round(height * width / full)), width
    image = np.asarray(Image.fromarray(frame.image).resize(size[::-1], Image.Resampling.LANCZOS))
    semantic, track, *truth = (nearest(m, size) for m in (frame.semantic, frame.track, *(frame.truth or ())))
    truth = tuple(truth) or None
    return dataclasses.replace(frame, image=image, semantic=semantic, track=track, truth=truth)


def write_gif(path: str | Path, pictures: Iterable[np.ndarray], fps: float = 10.0) -> Path:
    """A GIF of pictures uint8 (H, W, 3) of one size, one frame for each."""
    with VideoWriter(path, fps) as video:
        for picture in pictures:
            video.write(picture)
    return Path(path)


def gif_html(
    frames: Sequence[Shown], name: str, colorblind: bool = False, width: int = 320, most: int = 6, fps: float = 10.0
) -> str:
    """One of `FILMS` as a small moving preview: HTML with an embedded GIF of at most `most` frames in 128 colours."""
    every = -(-len(frames) // most)
    small = [Image.fromarray(p) for p in film([at_width(f, width) for f in frames[::every]], name, colorblind)]
    palette = Image.fromarray(np.concatenate([np.asarray(p) for p in small])).quantize(128)
    small = [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in small]
    buffer = io.BytesIO()
    small[0].save(
        buffer, "GIF", save_all=True, append_images=small[1:], duration=round(1000 * every / fps), loop=0, disposal=1
    )
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<figure style="display:inline-block;margin:4px"><img alt="{name}" width="{width}" '
        f'src="data:image/gif;base64,{data}"><figcaption>{name}</figcaption></figure>'
    )


def as_jpeg(picture: np.ndarray, width: int = PAGE, quality: int = 75) -> bytes:
    """A photograph as JPEG for the page, at most `width` wide."""
    image = Image.fromarray(picture)
    if image.width > width:
        image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def as_png(picture: np.ndarray) -> bytes:
    """A drawing with few colours as PNG for the page."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


# ---------------------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------------------


def match_tracks(frames: Sequence[Shown]) -> dict[tuple[str, int, int], int]:
    """(sequence, class, id) of each true track -> the predicted id that shares most pixels with it over the video.

    One to one, the largest overlaps first. Unmatched true tracks are not in the result.
    """
    overlap: dict[tuple[str, int, int, int], int] = {}
    for frame in frames:
        if frame.truth is None:
            continue
        semantic, track = frame.truth
        both = (track > 0) & (frame.track > 0)
        pairs = np.stack([semantic[both].astype(np.int64), track[both], frame.track[both]])
        for (c, g, p), area in zip(*_counts(pairs), strict=True):
            key = (frame.sequence, c, g, p)
            overlap[key] = overlap.get(key, 0) + area
    partners: dict[tuple[str, int, int], int] = {}
    taken: set[tuple[str, int]] = set()
    for sequence, c, g, p in sorted(overlap, key=lambda k: (-overlap[k], k)):
        if (sequence, c, g) not in partners and (sequence, p) not in taken:
            partners[sequence, c, g] = p
            taken.add((sequence, p))
    return partners


def _counts(columns: np.ndarray) -> tuple[list[tuple[int, ...]], list[int]]:
    values, counts = np.unique(columns, axis=1, return_counts=True)
    return [tuple(v) for v in values.T.tolist()], counts.tolist()


def error_map(frame: Shown, partners: Mapping[tuple[str, int, int], int]) -> np.ndarray:
    """The errors in a frame with truth: uint8 (H, W), positions in `ERRORS`. For crowd only the class counts."""
    semantic, track = frame.truth
    errors = np.where(frame.semantic == semantic, 0, 1).astype(np.uint8)
    for (c, g), _ in zip(*_counts(np.stack([semantic[track > 0].astype(np.int64), track[track > 0]])), strict=True):
        inside = (track == g) & (semantic == c) & (errors == 0)
        errors[inside & (frame.track != partners.get((frame.sequence, c, g), -1))] = 2
    errors[semantic == VOID] = 3
    return errors


def draw_errors(errors: np.ndarray) -> np.ndarray:
    """An error map in colours that people with any colour vision can distinguish."""
    return np.array(list(ERRORS.values()), np.uint8)[errors]


def comparison(frames: Sequence[Shown], rows: int = 3, colorblind: bool = False) -> np.ndarray:
    """input | truth | prediction | errors of a few frames, evenly spaced; without truth: input | prediction."""
    chosen = [frames[i] for i in np.linspace(0, len(frames) - 1, min(rows, len(frames))).round().astype(int)]
    partners = match_tracks(frames)
    with_truth = all(f.truth is not None for f in chosen)
    chosen = [at_width(f, PAGE // (4 if with_truth else 2) - 3) for f in chosen]
    height, width = chosen[0].semantic.shape
    table = []
    for f in chosen:
        row = [f.image, render.draw_panoptic(f.semantic, f.track, colorblind, True, f.space)]
        if with_truth:
            row.insert(1, render.draw_panoptic(*f.truth, colorblind, True, f.space))
            row.append(draw_errors(error_map(f, partners)))
        table.append([render.fit(p, height, width) for p in row])
    titles = ("input", "truth", "prediction", "errors") if with_truth else ("input", "prediction")
    return render.strip(table, titles=titles)


def error_strip(frames: Sequence[Shown], columns: int = 8, width: int = 150) -> np.ndarray:
    """Small error maps of all frames with truth, in reading order, with a legend."""
    partners = match_tracks(frames)
    maps = (draw_errors(error_map(f, partners)) for f in frames if f.truth is not None)
    height = round(width * frames[0].semantic.shape[0] / frames[0].semantic.shape[1])
    small = [render.fit(errors, height, width) for errors in maps]
    table = render.strip([small[i : i + columns] for i in range(0, len(small), columns)], gap=3)
    return np.concatenate([render.swatches(list(ERRORS.items()), table.shape[1]), table])


# ---------------------------------------------------------------------------------------------------------------------
# The diffusion
# ---------------------------------------------------------------------------------------------------------------------


def denoising_strip(steps: Sequence[Any], columns: int = 5, colorblind: bool = False) -> np.ndarray:
    """The input of a sampler (three of the noisy bits as red, green and blue) above the estimate that it gives.

    steps: from `model.stream.denoising.denoising_steps`. Shows the first, the last and some between, mostly early ones.
    """
    share = np.linspace(0, 1, min(columns, len(steps))) ** 1.5
    chosen = sorted(set((share * (len(steps) - 1)).round().astype(int).tolist()))
    width = PAGE // columns - 4
    size = max(1, round(width * steps[0].semantic.shape[0] / steps[0].semantic.shape[1])), width
    noisy, estimates = [], []
    for step in (steps[i] for i in chosen):
        bits = step.noisy_bits[-3:].transpose(1, 2, 0)  # of the instance slot
        colors = (255 * (0.5 + bits / (4 * max(bits.std(), 1e-6))).clip(0, 1)).astype(np.uint8)
        noisy.append(nearest(colors, size))
        tracked = np.isin(step.semantic, (PERSON, CAR))
        maps = (step.semantic, np.where(tracked, step.slot, 0))
        estimates.append(render.draw_panoptic(*(nearest(m, size) for m in maps), colorblind))
    titles = [
        f"step {i + 1} of {len(steps)}, t = {steps[i].time:.2f}" + ", no history" * steps[i].fresh for i in chosen
    ]
    return render.strip([noisy, estimates], titles=titles)


# ---------------------------------------------------------------------------------------------------------------------
# Plots: on white, so that they are readable on dark pages
# ---------------------------------------------------------------------------------------------------------------------


def plot_errors(frames: Sequence[Shown]) -> plt.Figure:
    """Share of wrong pixels in each frame, among the pixels with truth."""
    partners = match_tracks(frames)
    names = list(ERRORS)
    figure, axes = _axes(8, 2.4)
    shares, sequences = [], []
    for frame in frames:
        if frame.truth is not None:
            counts = np.bincount(error_map(frame, partners).ravel(), minlength=4)
            shares.append(counts[1:3] / max(counts[:3].sum(), 1))
            sequences.append(frame.sequence)
    for k, share in enumerate(np.array(shares).T, start=1):
        axes.plot(100 * share, color=_color(ERRORS[names[k]]), label=names[k])
    for i in range(1, len(sequences)):
        if sequences[i] != sequences[i - 1]:
            axes.axvline(i - 0.5, color="0.7", linewidth=0.8)
    axes.set(xlabel="frame", ylabel="% of pixels", ylim=(0, None), xlim=(0, max(len(shares) - 1, 1)))
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure


def plot_quality(result: dict[str, Any], colorblind: bool = False) -> plt.Figure:
    """STQ and its parts, in total and by sequence, and the IoU of each class, from `metrics.Evaluation.result()`."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 3.2), facecolor="white", dpi=85, layout="constrained", width_ratios=(1, 1.6)
    )
    stq = result["stq"]
    groups = {"all": stq} | (stq["per_sequence"] if len(stq["per_sequence"]) > 1 else {})
    for k, (part, color) in enumerate((("STQ", "#333333"), ("AQ", _color(WRONG_TRACK)), ("SQ", _color(WRONG_CLASS)))):
        values = [groups[g][part] for g in groups]
        bars = left.bar(
            np.arange(len(groups)) + (k - 1) * 0.27, [v or 0 for v in values], 0.25, color=color, label=part
        )
        left.bar_label(bars, ["–" if v is None else f"{100 * v:.0f}" for v in values], fontsize=8)
    left.set_xticks(range(len(groups)), [_short(g) for g in groups])
    left.set(ylim=(0, 1.15), title="STQ = √(AQ · SQ), in percent", yticks=[])
    left.legend(frameon=False, ncols=3, loc="upper right", fontsize=8)

    classes = {name: iou for name, iou in stq["per_class"].items() if iou is not None}
    colors = [_color(render.class_colors(colorblind)[CLASS_NAMES.index(name)]) for name in classes]
    bars = right.bar(list(classes), list(classes.values()), color=colors, edgecolor="0.3", linewidth=0.5)
    right.bar_label(bars, [f"{100 * v:.0f}" for v in classes.values()], fontsize=8)
    right.set(ylim=(0, 1.15), title="IoU of the classes, in percent", yticks=[])
    right.tick_params(axis="x", rotation=60)
    for axes in (left, right):
        axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def plot_tracks(
    lives: Mapping[int, tuple[int, list[int]]], title: str, colorblind: bool = False, longest: int = 30
) -> plt.Figure:
    """The frames in which each track lives, in its colour; at most the `longest` longest tracks."""
    chosen = sorted(sorted(lives, key=lambda t: -len(lives[t][1]))[:longest])
    figure, axes = _axes(8, 0.9 + 0.2 * max(len(chosen), 1))
    for row, track in enumerate(chosen):
        frames = np.array(lives[track][1])
        runs = np.split(frames, np.flatnonzero(np.diff(frames) > 1) + 1)
        color = _color(render.track_colors(track + 1, colorblind)[track])
        axes.broken_barh([(r[0] - 0.5, len(r)) for r in runs], (row - 0.38, 0.76), color=color, ec="0.3", lw=0.4)
    axes.set_yticks(range(len(chosen)), [render.label_of(lives[t][0], t) for t in chosen], fontsize=8)
    axes.set(xlabel="frame", title=_short(title), ylim=(max(len(chosen), 1) - 0.4, -0.6))
    if len(chosen) < len(lives):
        axes.set_title(f"{_short(title)}: the {len(chosen)} longest of {len(lives)} tracks")
    axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def plot_losses(log: str | Path) -> plt.Figure:
    """The losses of a training run, smoothed, and its validation figures, if any."""
    entries = []
    for line in Path(log).read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:  # an incomplete line of a run in progress
            continue
    figure, axes = _axes(8, 2.8)
    for name, color in (("semantic", _color(WRONG_CLASS)), ("instance", _color(WRONG_TRACK)), ("loss", "#333333")):
        points = [(e["step"], e[name]) for e in entries if e.get(name) is not None]
        if points:
            x, y = np.array(points).T
            window = max(1, len(y) // 100)
            y = np.convolve(y, np.ones(window) / window, mode="valid")
            axes.plot(x[window - 1 :], y, color=color, label=name, linewidth=1.2)
    axes.set(xlabel="step", ylabel="cross-entropy", yscale="log")
    axes.legend(frameon=False, loc="upper right")
    validated = [(e["step"], e["STQ"]) for e in entries if e.get("STQ") is not None]
    if validated:
        other = axes.twinx()
        other.plot(*np.array(validated).T, "o--", color="#007a5a", markersize=3, label="STQ, held out")
        other.set(ylabel="STQ", ylim=(0, 1))
        other.legend(frameon=False, loc="lower left")
    return figure


def _axes(width: float, height: float) -> tuple[plt.Figure, plt.Axes]:
    figure, axes = plt.subplots(figsize=(width, height), facecolor="white", dpi=85, layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _color(rgb: Sequence[int]) -> tuple[float, ...]:
    return tuple(float(v) / 255 for v in rgb)


def _short(name: str, most: int = 24) -> str:
    return name if len(name) <= most else f"…{name[1 - most :]}"
