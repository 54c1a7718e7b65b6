"""Inference: the network and the sampling loop in memory, then from files to files through inference.py."""

import contextlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import inference
from benchmarks.speed_timing import (
    Row,
    Setup,
    build,
    config_of,
    gflops,
    in_turn,
    parameters,
    peak_mb,
    predictor_of,
    row,
    share_of_rate,
)
from data.labels import write_image
from data.streets import render_video
from model import ModelConfig, StreamConfig, VideoPredictor
from model import checkpoint as checkpoints
from model.diffusion import SAMPLERS, denoiser_of
from model.schedule import sampling_times

ROOT = Path(__file__).resolve().parents[1]
STEPS = (1, 2, 4, 8, 20)  # of each frame after the first, from files to files

# ---------------------------------------------------------------------------------------------------------------------
# In memory
# ---------------------------------------------------------------------------------------------------------------------


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
        "x": torch.randn(batch, config.bits, h, w, generator=g).to(device),
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

        def step():
            return model.predict(i["x"], i["t"], condition)

        parts = {
            "encoder": lambda: model.encode(i["image"]),
            "conditions, once a frame": lambda: model.condition(features, i["history"]),
            "denoiser, a step": step,
        }
        measured = in_turn(parts, setup)
        work = {name: gflops(call) for name, call in parts.items()}
        output = step()
        loop = {
            "loop": lambda: SAMPLERS["ddim"](denoiser_of(model, condition), i["x"], times, lambda: i["x"]),
            "steps": lambda: [step() for _ in times],
            "estimate": lambda: model.estimate(output),
        }
        looped = in_turn(loop, setup)
    rows = [Row(f"{preset}: parameters", parameters(model), "M", note=sizes(c))]
    for name, values in measured.items():
        share = share_of_rate(work[name], statistics.median(values), setup, rates)
        note = f"{work[name]:.1f} GFLOP, {share:.0f} % of the matrix rate"
        rows.append(row(f"{preset}: {name}", values, note=note))
    extra = [100 * (a / b - 1) for a, b in zip(looped["loop"], looped["steps"], strict=True)]
    overhead = 100 * (statistics.median(looped["loop"]) / statistics.median(looped["steps"]) - 1)
    rows.append(
        Row(f"{preset}: sampling loop beyond its steps", overhead, "%", min(extra), max(extra), f"{steps} steps, DDIM")
    )
    rows.append(row(f"{preset}: of it the estimate of x0, a step", looped["estimate"]))
    return rows + _frame(setup, predictor, preset)


def sizes(c: ModelConfig) -> str:
    (height, width), (h, w) = c.image_size, c.mask_size
    return f"image {height}x{width}, mask {h}x{w}"


def _frame(setup: Setup, predictor: VideoPredictor, preset: str) -> list[Row]:
    """A frame after the first, from an array to an array."""
    frames = np.random.default_rng(0).integers(0, 256, (2, *predictor.model.config.image_size, 3), np.uint8)
    _, states = predictor.step([frames[0]], [predictor.state])
    values = in_turn({"frame": lambda: predictor.step([frames[1]], states)}, setup)["frame"]
    note = f"{predictor.config.steps} steps, array to array with segments and tracks"
    return [row(f"{preset}: a frame after the first", values, note=note)]


# ---------------------------------------------------------------------------------------------------------------------
# Files in, files out
# ---------------------------------------------------------------------------------------------------------------------


def make_frames(folder: Path, count: int, size: Sequence[int], distinct: int = 8) -> Path:
    """A folder of `count` PNGs: a few rendered frames to and fro, by links."""
    folder.mkdir(parents=True, exist_ok=True)
    rendered = sorted(folder.parent.glob(f"frame-{size[0]}x{size[1]}-*.png"))
    if not rendered:
        for n, (image, _, _) in enumerate(render_video(0, "test", distinct, tuple(size))):
            rendered.append(folder.parent / f"frame-{size[0]}x{size[1]}-{n:02d}.png")
            write_image(rendered[-1], image)
    order = [*range(len(rendered)), *range(len(rendered) - 2, 0, -1)]
    for n in range(count):
        target = folder / f"0000_{n:06d}_leftImg8bit.png"
        if not target.exists():
            os.link(rendered[order[n % len(order)]], target)
    return folder


def checkpoint_of(setup: Setup, preset: str) -> tuple[Path, bool]:
    """A weights file of a preset at the size that is measured, and whether it is trained."""
    model, trained = build(config_of(preset, setup.image_size), setup.weights)
    path = setup.folder / f"{preset}.pt"
    config = model.config.to_dict()
    checkpoints.save(path, {"format": checkpoints.FORMAT, "config": config, "weights": model.state_dict()})
    return path, trained


def arguments(setup: Setup, checkpoint: Path, frames: Path, output: Path, *flags: str) -> list[str]:
    """The command line of inference.py."""
    words = ["--input_folder", frames, "--output_folder", output, "--checkpoint", checkpoint, "--restart", "--quiet"]
    words += ["--device", setup.device, "--mixed_precision", setup.mixed_precision]
    return [*map(str, words), *(["--compile"] if setup.compile else []), *flags]


def call_inference(words: list[str]) -> float:
    """Seconds of inference.py's main function, in this process."""
    before, sys.argv = sys.argv, ["inference.py", *words]
    begin = time.perf_counter()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            status = inference.main()
    finally:
        sys.argv = before
    if status:
        raise RuntimeError(f"inference.py ended with status {status}")
    return time.perf_counter() - begin


def frames_per_second(setup: Setup, checkpoint: Path, size: Sequence[int], name: str, *flags: str) -> Row:
    """From files to files, after the first frame: the time that a longer video takes beyond a short one, so that
    starting, the first frame and closing the files are not in it."""
    short, extra = 2, 2 if setup.quick else 4
    output = setup.folder / "output"
    videos = {n: make_frames(setup.folder / f"{size[0]}x{size[1]}-{n}", n, size) for n in (short, short + extra)}
    base = call_inference(arguments(setup, checkpoint, videos[short], output, *flags))
    longer = call_inference(arguments(setup, checkpoint, videos[short + extra], output, *flags))
    guess = max((longer - base) / extra, 1e-3)
    extra = max(extra, min(200, round(3 * setup.seconds / guess)))
    path = make_frames(setup.folder / f"{size[0]}x{size[1]}-{short + extra}", short + extra, size)
    rates = []
    for _ in range(1 if setup.quick else 3):
        base = call_inference(arguments(setup, checkpoint, videos[short], output, *flags))
        rates.append(extra / max(call_inference(arguments(setup, checkpoint, path, output, *flags)) - base, 1e-6))
    return row(name, rates, "frames/s", f"{extra} frames")


def files(setup: Setup, preset: str) -> list[Row]:
    """Frames a second for several numbers of steps; what an overlay costs; memory, and its growth with the video."""
    checkpoint, trained = checkpoint_of(setup, preset)
    size = config_of(preset, setup.image_size).image_size
    rows = []
    for steps in STEPS[:2] if setup.quick else STEPS:
        name = f"{preset}: files to files, {steps} step{'s' * (steps > 1)}"
        rows.append(frames_per_second(setup, checkpoint, size, name, "--overlay", "none", "--steps", str(steps)))
    if not setup.quick:
        name = f"{preset}: files to files, 2 steps, with the GIF overlay"
        rows.append(frames_per_second(setup, checkpoint, size, name, "--overlay", "gif", "--steps", "2"))
    if not trained:
        rows[0] = rows[0]._replace(note=rows[0].note + "; untrained: empty masks, which are quick to write")
    return rows + memory(setup, preset, checkpoint, size)


def memory(setup: Setup, preset: str, checkpoint: Path, size: Sequence[int]) -> list[Row]:
    """Peak memory of the command itself, for a short and a long video."""
    rows = []
    for count in (4,) if setup.quick else (50, setup.long_video):
        frames = make_frames(setup.folder / f"{size[0]}x{size[1]}-{count}", count, size)
        words = arguments(setup, checkpoint, frames, setup.folder / "output", "--overlay", "gif")
        words += ["--first_steps", "1", "--steps", "1"]
        begin = time.perf_counter()
        peak = command_peak([sys.executable, str(ROOT / "inference.py"), *words], setup.threads)
        note = f"resident, 1 step, GIF overlay; {time.perf_counter() - begin:.0f} s with the start"
        rows.append(Row(f"{preset}: inference.py, {count:,} frames: peak memory", peak, "MB", note=note))
    return rows


def command_peak(words: list[str], threads: int = 0) -> float:
    """Peak resident memory of a command, in MB. Raises RuntimeError with its last words where it fails."""
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=errors, text=True)
        peak = 0.0
        while process.poll() is None:  # not ru_maxrss alone: a child inherits that of its parent
            with contextlib.suppress(OSError, IndexError):
                peak = float(Path(f"/proc/{process.pid}/status").read_text().split("VmHWM:")[1].split()[0]) / 1e3
            time.sleep(0.02)
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"inference.py ended with status {process.returncode}: {errors.read().strip()[-300:]}")
    return peak or peak_mb(children=True)
