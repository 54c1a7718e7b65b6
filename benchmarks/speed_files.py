"""Inference from files to files, through inference.py: frames a second, and memory over a long video."""

import contextlib
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import inference
from benchmarks.speed_timing import Row, Setup, build, config_of, peak_mb, row
from data.labels import write_image
from data.streets.source import render_video
from model import checkpoint as checkpoints

ROOT = Path(__file__).resolve().parents[1]
STEPS = (1, 2, 4, 8, 20)  # of each frame after the first
PIECES = 4  # of a video, each timed by itself
LONG = (48, 160)  # image size of the long video: its memory's growth is in its number of frames
AHEAD = 12  # frames that may wait to be written


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
    words += [f"--{name}" for name in ("compile", "cuda_graphs") if getattr(setup, name)]
    return [*map(str, words), *flags]


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


def written_at(setup: Setup, checkpoint: Path, size: Sequence[int], count: int, *flags: str) -> list[float]:
    """When each frame's file was written, in seconds, by one run of inference.py over `count` frames."""
    output = setup.folder / "output"
    shutil.rmtree(output, ignore_errors=True)
    frames = make_frames(setup.folder / f"{size[0]}x{size[1]}-{count}", count, size)
    call_inference(arguments(setup, checkpoint, frames, output, *flags))
    return sorted(path.stat().st_mtime_ns / 1e9 for path in output.glob("*_panoptic.png"))


def frames_per_second(setup: Setup, checkpoint: Path, size: Sequence[int], name: str, *flags: str) -> Row:
    """From files to files after the second frame, by the times at which the frames' files appear: reading, computing
    and writing as they overlap, without the start and the first frame."""
    flags = ("--first_steps", "1", *flags)
    few = written_at(setup, checkpoint, size, 4, *flags)
    guess = max((few[-1] - few[0]) / (len(few) - 1), 1e-3)
    each = 1 if setup.quick else min(max(2, round(2 * setup.seconds / guess / PIECES)), 50)  # frames of a piece
    times = written_at(setup, checkpoint, size, 2 + PIECES * each, *flags)[1:]
    rates = [each / max(b - a, 1e-6) for a, b in pairwise(times[::each])]
    return row(name, rates, "frames/s", f"in pieces of {each} frames")


def files(setup: Setup, preset: str) -> list[Row]:
    """Frames a second for several numbers of steps, and with an overlay; peak memory of a short video."""
    checkpoint, trained = checkpoint_of(setup, preset)
    size = config_of(preset, setup.image_size).image_size
    rows = []
    for steps in STEPS[:2] if setup.quick else STEPS:
        name = f"{preset}: files to files, {steps} step{'s' * (steps > 1)}"
        rows.append(frames_per_second(setup, checkpoint, size, name, "--overlay", "none", "--steps", str(steps)))
    if not setup.quick:
        name = f"{preset}: files to files, 2 steps, with the GIF overlay"
        rows.append(frames_per_second(setup, checkpoint, size, name, "--overlay", "gif", "--steps", "2"))
        peak, _ = command_memory(setup, checkpoint, size, 4)
        rows.append(Row(f"{preset}: inference.py: peak memory", peak, "MB", note="resident, 4 frames, GIF overlay"))
    if preset == "tiny":
        rows[1] = rows[1]._replace(note=rows[1].note + "; target 10")
    if not trained:
        rows[0] = rows[0]._replace(note=rows[0].note + "; untrained: empty masks, which are quick to write")
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------------------


def memory(setup: Setup, preset: str) -> list[Row]:
    """Resident memory of the command itself over a video of small frames, GIF overlay and all."""
    checkpoint, _ = checkpoint_of(setup, preset)
    count = 12 if setup.quick else setup.long_video
    begin = time.perf_counter()
    peak, resident = command_memory(setup, checkpoint, LONG, count)
    seconds = time.perf_counter() - begin
    size = f"{LONG[0]}x{LONG[1]}, 1 step, GIF overlay; {seconds:.0f} s with the start"
    rows = [Row(f"{preset}: inference.py, {count:,} frames: peak memory", peak, "MB", note=size)]
    for share in (0.1, 0.5, 1.0):
        value = statistics.median(resident[: max(1, round(share * len(resident)))][-max(1, len(resident) // 20) :])
        rows.append(Row(f"{preset}: resident after {share:.0%} of its time", value, "MB"))
    grown = 1e3 * (rows[3].value - rows[1].value) / (0.9 * count)
    rows.append(Row(f"{preset}: growth from the first tenth on", grown, "KB a frame"))
    return rows


def command_memory(setup: Setup, checkpoint: Path, size: Sequence[int], count: int) -> tuple[float, list[float]]:
    """inference.py as a process of its own, one step a frame: its peak memory, and its resident memory from the first
    written frame on, in MB."""
    frames = make_frames(setup.folder / f"{size[0]}x{size[1]}-{count}", count, size)
    output = setup.folder / "long"
    shutil.rmtree(output, ignore_errors=True)
    words = arguments(setup, checkpoint, frames, output, "--overlay", "gif", "--first_steps", "1", "--steps", "1")
    words += ["--image_size", *map(str, size)]
    first = output / f"0000_{min(AHEAD, count - 1):06d}_panoptic.png"
    peak, resident = command_peak([sys.executable, str(ROOT / "inference.py"), *words], setup.threads, first)
    shutil.rmtree(output)
    return peak, resident


def command_peak(words: list[str], threads: int = 0, begin: Path | None = None) -> tuple[float, list[float]]:
    """Peak resident memory of a command, in MB, and its resident memory now and then once the file `begin` is there.

    Raises RuntimeError with its last words where it fails.
    """
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=errors, text=True)
        peak, resident = 0.0, []
        while process.poll() is None:  # not ru_maxrss alone: a child inherits that of its parent
            with contextlib.suppress(OSError, IndexError):
                status = Path(f"/proc/{process.pid}/status").read_text()
                peak = _megabytes(status, "VmHWM")
                if begin is not None and begin.exists():
                    resident.append(_megabytes(status, "VmRSS"))
            time.sleep(0.02)
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"inference.py ended with status {process.returncode}: {errors.read().strip()[-300:]}")
    peak = peak or peak_mb(children=True)
    return peak, resident or [peak]


def _megabytes(status: str, name: str) -> float:
    return float(status.split(f"{name}:")[1].split()[0]) / 1e3
