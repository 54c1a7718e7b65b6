"""How cost grows: time and memory of a frame over mask size, steps, videos side by side, and history.

One thing is changed at a time from the preset's own setting. Each point is measured in a process of its own, so that
its memory is its own.
"""

import dataclasses
import statistics

import torch

from benchmarks.speed_inference import sizes
from benchmarks.speed_timing import Row, Setup, apart, config_of, in_turn, predictor_of
from model import ModelConfig

SCALES = (0.5, 1, 1.5, 2)  # of image and mask, in each direction
STEPS = (1, 2, 4, 8, 20)
VIDEOS = (1, 2, 4, 8)
HISTORIES = (0, 1, 2, 4, 8)  # masks


def growth(setup: Setup, preset: str) -> list[Row]:
    config = config_of(preset, setup.image_size)
    points: list[tuple[str, ModelConfig, int, int]] = []
    for scale in SCALES:
        scaled = at_scale(config, scale)
        points.append((sizes(scaled), scaled, 8, 1))
    points += [(f"{steps} step{'s' * (steps > 1)}", config, steps, 1) for steps in STEPS]
    points += [(f"{videos} video{'s' * (videos > 1)} side by side", config, 8, videos) for videos in VIDEOS]
    for masks in HISTORIES:
        history = tuple(range(-masks, 0))
        points.append((f"{masks} history masks", dataclasses.replace(config, history_offsets=history), 8, 1))
    if setup.quick:
        points = [points[0], points[-1]]
    rows = []
    for name, changed, steps, videos in points:
        try:
            times, peak, start = apart(setup, frame_times, setup, changed, steps, videos)
        except RuntimeError as error:
            rows.append(Row(f"{preset}: {name}", None, note=f"not measured: {error}"))
            continue
        note = f"peak memory {peak:,.0f} MB" + ("" if setup.cuda else f", {start:,.0f} MB of it before the model")
        each = [t / videos for t in times]
        rows.append(Row(f"{preset}: {name}", statistics.median(each), "ms a frame", min(each), max(each), note))
    return rows


def at_scale(config: ModelConfig, scale: float) -> ModelConfig:
    """The configuration with image and mask larger or smaller in both directions, by the same whole patches."""
    ratio = [i / m for i, m in zip(config.image_size, config.mask_size, strict=True)]
    mask = tuple(max(8, round(m * scale / config.patch) * config.patch) for m in config.mask_size)
    image = tuple(round(m * r) for m, r in zip(mask, ratio, strict=True))
    return dataclasses.replace(config, image_size=image, mask_size=mask)


def frame_times(setup: Setup, config: ModelConfig, steps: int, videos: int) -> list[float]:
    """Milliseconds of a frame after the first of several videos at once, from image to segments and tracks."""
    predictor = predictor_of(setup, config, first_steps=1, steps=steps)
    images = torch.zeros(videos, 3, *predictor.image_size, dtype=torch.uint8)
    contents = [predictor.mask_size] * videos
    states = [dataclasses.replace(predictor.state, video=v) for v in range(videos)]
    _, states = predictor.predict(images, contents, states)
    return in_turn({"frame": lambda: predictor.predict(images, contents, states)}, setup)["frame"]
