"""Inference in memory: encoder, conditions, a denoising step, and what the sampling loop adds to its steps."""

import contextlib
import statistics

import numpy as np
import torch

from benchmarks.speed_timing import (
    Row,
    Setup,
    config_of,
    gflops,
    in_turn,
    parameters,
    predictor_of,
    row,
    share_of_rate,
)
from model import ModelConfig, StreamConfig, VideoPredictor
from model.diffusion.schedule import sampling_times


def autocast(predictor: VideoPredictor):
    """The precision that a predictor computes in."""
    if predictor.dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(predictor.device.type, predictor.dtype)


def inputs(config: ModelConfig, device, batch: int = 1, channels_last: bool = True) -> dict[str, torch.Tensor]:
    """What one frame's sampling takes: image, history, noise, time; the same each time."""
    g = torch.Generator().manual_seed(0)
    h, w = config.mask_size
    image = torch.rand(batch, 3, *config.image_size, generator=g)
    if channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    history = torch.randint(0, 2, (batch, config.bits * len(config.history_offsets), h, w), generator=g)
    return {
        "image": image.to(device),
        "history": ((history * 2 - 1) * config.scale).float().to(device),
        "x": torch.randn(batch, config.bits, h, w, generator=g).to(device, memory_format=torch.channels_last),
        "t": torch.full((batch,), 0.5, device=device),
    }


@torch.inference_mode()
def network(setup: Setup, preset: str, rates: dict[str, float]) -> list[Row]:
    """Encoder, conditions, one step, and what the sampling loop adds to its steps."""
    predictor = predictor_of(setup, config_of(preset, setup.image_size))
    model, c = predictor.model, predictor.model.config
    i = inputs(c, predictor.device)
    steps = 2 if setup.quick else StreamConfig().steps
    times = sampling_times(steps)
    with autocast(predictor):
        features = model.encode(i["image"])
        condition = model.condition(features, i["history"])

        # What the loop is compared with takes its times embedded, as the loop's steps do, and keeps no output, as the
        # loop keeps none: memory that is new each time is slower
        modulation = model.modulation(torch.tensor([now for now, _ in times], device=predictor.device))

        def all_steps(estimates: bool) -> None:
            for k in range(len(times)):
                output = model.predict(i["x"], modulation.at(k), condition)
                if estimates and k < len(times) - 1:
                    model.estimate(output)

        parts = {
            "encoder": lambda: model.encode(i["image"]),
            "conditions, once a frame": lambda: model.condition(features, i["history"]),
            "denoiser, a step": lambda: model.predict(i["x"], i["t"], condition),
        }
        measured = in_turn(parts, setup)
        work = {name: gflops(call) for name, call in parts.items()}
        average = predictor.config.average_classes
        loop = {
            "loop": lambda: predictor.sampling(model, "ddim", condition, i["x"], times, None, average),
            "steps": lambda: all_steps(estimates=False),
            "steps and estimates": lambda: all_steps(estimates=True),
        }
        looped = in_turn(loop, setup, longer=4)  # small differences
    rows = [Row(f"{preset}: parameters", parameters(model), "M", note=sizes(c))]
    for name, values in measured.items():
        share = share_of_rate(work[name], statistics.median(values), setup, rates)
        note = f"{work[name]:.1f} GFLOP, {share:.0f} % of the matrix rate"
        rows.append(row(f"{preset}: {name}", values, note=note))

    def beyond(name: str, part: str, note: str) -> Row:
        shares = [100 * (loop / alone - 1) for loop, alone in zip(looped["loop"], looped[part], strict=True)]
        return Row(f"{preset}: {name}", statistics.median(shares), "%", min(shares), max(shares), note, len(shares))

    note = f"{steps} steps, DDIM, mean of the classes; target below 5"
    rows.append(beyond("sampling loop beyond the denoiser", "steps and estimates", note))
    note = "the denoiser without its last softmax, by which the estimates of x0 are made"
    rows.append(beyond("sampling loop beyond the network", "steps", note))
    return rows + _frame(setup, predictor, preset)


def sizes(c: ModelConfig) -> str:
    (height, width), (h, w) = c.image_size, c.mask_size
    return f"image {height}x{width}, mask {h}x{w}"


def _frame(setup: Setup, predictor: VideoPredictor, preset: str) -> list[Row]:
    """A frame after the first, from an array to an array."""
    frames = np.random.default_rng(0).integers(0, 256, (2, *predictor.model.config.image_size, 3), np.uint8)
    _, states = predictor.step([frames[0]], [predictor.state])
    values = in_turn({"frame": lambda: predictor.step([frames[1]], states)}, setup)["frame"]
    note = f"{predictor.config.steps} steps, all but one without history; array to array with segments and tracks"
    return [row(f"{preset}: a frame after the first", values, note=note)]
