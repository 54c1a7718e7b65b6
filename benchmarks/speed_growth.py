"""How cost grows: time and memory of a frame over mask size, steps, videos side by side, and history.

One thing is changed at a time from the preset's own setting. Each point is measured in a process of its own, so that
its memory is its own.
"""

import dataclasses

import torch

from benchmarks.speed_inference import sizes
from benchmarks.speed_timing import Row, Setup, apart, config_of, in_turn, predictor_of, row
from model import ModelConfig

# The first of each is the preset's own setting, and the same point. A larger preset than `tiny` has fewer points: each
# of its frames takes seconds where there is no GPU.
SCALES = (1, 0.5, 1.5, 2)  # of image and mask, in each direction
STEPS = (8, 1, 2, 4, 20)
VIDEOS = (1, 2, 4)
HISTORIES = (2, 0, 1, 4)  # masks
FEWER = {"SCALES": (1, 0.5, 1.5), "STEPS": (8, 1, 20), "VIDEOS": (1, 2), "HISTORIES": (2, 0, 4)}


def growth(setup: Setup, preset: str) -> list[Row]:
    config = config_of(preset, setup.image_size)
    rows = []
    for name, changed, steps, videos in points_of(config, preset == "tiny" or setup.cuda, setup.quick):
        try:
            times, peak, start = apart(setup, frame_times, setup, changed, steps, videos)
        except RuntimeError as error:
            rows.append(Row(f"{preset}: {name}", None, note=f"not measured: {error}"))
            continue
        note = f"peak memory {peak:,.0f} MB" + ("" if setup.cuda else f", {start:,.0f} MB of it before the model")
        each = [t / videos for t in times]
        rows.append(row(f"{preset}: {name}", each, "ms a frame", note))
    return rows


def points_of(config: ModelConfig, all_of_them: bool, quick: bool) -> list[tuple[str, ModelConfig, int, int]]:
    """(name, configuration, steps, videos side by side) of each point."""
    grid = {"SCALES": SCALES, "STEPS": STEPS, "VIDEOS": VIDEOS, "HISTORIES": HISTORIES}
    grid = grid if all_of_them else FEWER
    own = f"{sizes(config)}, {STEPS[0]} steps, 1 video, {len(config.history_offsets)} history masks"
    points = [(own, config, STEPS[0], 1)]
    for scale in grid["SCALES"][1:]:
        scaled = at_scale(config, scale)
        points.append((sizes(scaled), scaled, STEPS[0], 1))
    points += [(f"{steps} step{'s' * (steps > 1)}", config, steps, 1) for steps in grid["STEPS"][1:]]
    points += [(f"{videos} videos side by side", config, STEPS[0], videos) for videos in grid["VIDEOS"][1:]]
    for masks in grid["HISTORIES"][1:]:
        changed = dataclasses.replace(config, history_offsets=tuple(range(-masks, 0)))
        points.append((f"{masks} history mask{'s' * (masks != 1)}", changed, STEPS[0], 1))
    return [points[1], points[-1]] if quick else points


def at_scale(config: ModelConfig, scale: float) -> ModelConfig:
    """The configuration with image and mask larger or smaller in both directions, by the same whole patches."""
    ratio = [i / m for i, m in zip(config.image_size, config.mask_size, strict=True)]
    mask = tuple(max(8, round(m * scale / config.patch) * config.patch) for m in config.mask_size)
    image = tuple(round(m * r) for m, r in zip(mask, ratio, strict=True))
    return dataclasses.replace(config, image_size=image, mask_size=mask)


def frame_times(setup: Setup, config: ModelConfig, steps: int, videos: int) -> list[float]:
    """Milliseconds of a frame after the first of several videos at once, from image to segments and tracks."""
    predictor = predictor_of(setup, config, first_steps=steps, steps=steps)
    images = torch.zeros(videos, 3, *predictor.image_size, dtype=torch.uint8)
    states = [dataclasses.replace(predictor.state, video=v) for v in range(videos)]
    _, states = predictor.predict(images, states)
    return in_turn({"frame": lambda: predictor.predict(images, states)}, setup)["frame"]
