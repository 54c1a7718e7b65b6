"""Measure the presets on a GPU in eight minutes. benchmarks/gpu.sh runs this and explains how.

    python -m benchmarks.gpu [DATA] [--out results/gpu]      all parts, the most useful first
    python -m benchmarks.gpu --only speed                    one of them

Each part is a separate process with a time limit, so a part that fails or takes too long does not affect the others;
what it had measured is kept, and what it printed is in NAME.log. The figures go to gpu.json, and as a table to gpu.md.
Without a GPU everything runs at a tiny size, as a trial.
"""

import argparse
import contextlib
import dataclasses
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

import train
from model import PRESETS, ModelConfig, Pix2SeqD, StreamConfig, VideoPredictor
from model import checkpoint as checkpoints
from model.network.precision import make_fast
from model.stream.loading import build
from training.config import TrainingConfig
from training.fit import fit
from training.machine import one_batch
from training.options import Settings, preset_settings

ROOT = Path(__file__).resolve().parents[1]
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
FRAME, STEPS = ((375, 1242), (1, 4, 8)) if GPU else ((64, 128), (1,))
TINY_SIZE = {"image_size": (64, 128), "encoder_dim": 64, "encoder_depth": 1, "encoder_heads": 4, "map_channels": 32,
             "dim": 32, "denoiser_depth": 1, "transformer_dim": 64, "transformer_heads": 4}  # fmt: skip
Figures = Iterator[tuple[str, Any]]  # name and value
BATCH = {"tiny": 32, "small": 8, "base": 2}  # samples at once in training


def settings_of(preset: str) -> Settings:
    """Those of train.py, with a frozen ResNet, as from pre-trained weights; without a GPU at a tiny size."""
    settings = preset_settings(preset, train.RECIPE)
    config = dataclasses.replace(settings.model, backbone_norm="frozen_batch")
    if not GPU:
        backbone = "cspnet" if preset == "tiny" else "resnet10"
        mask_size = config.mask_for(TINY_SIZE["image_size"])
        config = dataclasses.replace(config, **TINY_SIZE, mask_size=mask_size, backbone=backbone)
    return settings._replace(model=config)


def config_of(preset: str) -> ModelConfig:
    return settings_of(preset).model


def seconds(call: Callable[[], Any], least: float = 1.0 if GPU else 0.05) -> float:
    """Mean seconds of a call, over calls of at least `least` seconds in all, after two warm-up calls."""
    for _ in range(2):
        call()
    count, begin = 0, None
    wait = torch.cuda.synchronize if GPU else (lambda: None)
    wait()
    begin = time.perf_counter()
    while count == 0 or time.perf_counter() - begin < least:
        call()
        count += 1
        if count % 4 == 0:
            wait()
    wait()
    return (time.perf_counter() - begin) / count


# ---------------------------------------------------------------------------------------------------------------------
# The parts: each gives its figures one by one, so that those it has got to are kept if it runs out of time
# ---------------------------------------------------------------------------------------------------------------------


def tests(_: Path | None) -> Figures:
    """Run the tests that use a device on this one."""
    files = ["tests/test_presets.py", "tests/test_cuda_path.py"]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *files]
    command += [] if GPU else ["-k", "answers or patches"]
    environment = os.environ | {"TEST_DEVICE": DEVICE.type}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    yield "status", done.returncode
    yield "last line", (done.stdout.strip().splitlines() or ["none"])[-1]


def speed(_: Path | None) -> Figures:
    """Each preset: its parts, frames a second at 1, 4 and 8 steps, training, and the share of the matrix rate."""
    rate = matrix_rate()
    yield "matrix rate, TFLOP/s", rate / 1e12
    for preset in PRESETS:
        for way in ("plain", "graphs") if GPU else ("plain",):
            yield from frames_a_second(preset, way)
        yield from parts_of_a_frame(preset)
        yield from training_speed(preset, "plain", rate)


def compiled(_: Path | None) -> Figures:
    """The same with torch.compile, and the wait before the first answer. Without a GPU nothing is compiled but
    traced."""
    rate = matrix_rate()
    for preset in ("small", "tiny", "base"):
        yield from frames_a_second(preset, "compiled")
        yield from training_speed(preset, "compiled", rate)


def matrix_rate() -> float:
    """Operations a second of a large product in bfloat16."""
    size = 8192 if GPU else 256
    a = torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16)
    return 2 * size**3 / seconds(lambda: a @ a)


def frames_a_second(preset: str, way: str) -> Figures:
    """way: plain, graphs or compiled."""
    make_fast(DEVICE)
    frame = np.random.default_rng(0).integers(0, 256, (*FRAME, 3)).astype(np.uint8)
    model = Pix2SeqD(config_of(preset))
    torch.nn.init.zeros_(model.denoiser.conv_out.weight)  # else the answer is noise, which is slowest to read
    predictor = VideoPredictor(model, device=DEVICE)
    if GPU:
        predictor.only_infer(cuda_graphs=way == "graphs", compile=way == "compiled")
    elif way == "compiled":
        model.encoder.compile(backend="eager")
        model.denoiser.compile(backend="eager")
    for steps in STEPS:
        predictor.config = StreamConfig(first_steps=steps, steps=steps, history_steps=steps, merge=0.0)
        begin = time.perf_counter()
        predictor(frame)
        predictor(frame)
        if way == "compiled" and steps == 1:
            yield f"{preset}: compiled, wait, s", time.perf_counter() - begin
        yield f"{preset}: {way}, {steps} steps, frames/s", 1 / seconds(lambda p=predictor: p(frame))


def parts_of_a_frame(preset: str) -> Figures:
    config = config_of(preset)
    model = Pix2SeqD(config).eval().to(DEVICE, memory_format=torch.channels_last)
    image = torch.rand(1, 3, *config.image_size, device=DEVICE).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), torch.autocast(DEVICE.type, torch.bfloat16):
        condition = model.denoiser.condition(model.encode(image), None)
        given = torch.randn(1, config.bits, *config.mask_size, device=DEVICE), torch.ones(1, device=DEVICE)
        yield f"{preset}: encoder, ms", 1000 * seconds(lambda: model.encode(image))
        yield f"{preset}: step, ms", 1000 * seconds(lambda: model.denoiser(*given, condition))


def training_speed(preset: str, way: str, rate: float) -> Figures:
    """As `fit` trains: loader, loss, optimizer and averaged weights."""
    settings, batch, accelerator = settings_of(preset), BATCH[preset] if GPU else 2, accelerator_of()
    model = Pix2SeqD(settings.model).to(DEVICE, memory_format=torch.channels_last)
    with FlopCounterMode(display=False) as counter:
        one_batch(model, settings.loss, settings.training, accelerator, batch)
    if GPU:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    run = dataclasses.replace(
        settings.training, steps=40 if GPU else 4, batch_size=batch, validate_every=0, accumulate=1,
        num_workers="auto" if GPU else 0, compile=way == "compiled" and GPU,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        fit(model, settings.loss, run, Noise(settings.model), folder, accelerator, quiet=True)
        log = [json.loads(line) for line in Path(folder, "log.jsonl").read_text().splitlines()]
    samples = float(np.median([entry["samples_per_s"] for entry in log[len(log) // 2 :]]))
    yield f"{preset}: {way}, training, samples/s", samples
    yield f"{preset}: {way}, training, share of the matrix rate", counter.get_total_flops() / batch * samples / rate
    if GPU:
        yield f"{preset}: {way}, training, peak GiB at {batch}", torch.cuda.max_memory_allocated() / 2**30


def accelerator_of() -> Accelerator:
    return Accelerator(cpu=not GPU, mixed_precision="bf16" if GPU else "no")


def precision(_: Path | None) -> Figures:
    """The share of pixels with the same class in bfloat16 and float32, with the shipped weights if they exist."""
    make_fast(DEVICE)
    weights = ROOT / "results/pretrained/model-tiny.pt"
    torch.manual_seed(0)
    model = build(checkpoints.load(weights), weights) if weights.exists() else Pix2SeqD(config_of("tiny"))
    frame = np.random.default_rng(0).integers(0, 256, (192, 384, 3)).astype(np.uint8)
    answers = []
    for kind in ("bf16", "no"):
        predictor = VideoPredictor(model, StreamConfig(first_steps=4, steps=2), DEVICE, kind)
        answers.append([predictor(np.roll(frame, 4 * n, axis=1)) for n in range(4)])
    same = [(a.semantic == b.semantic).mean() for a, b in zip(*answers, strict=True)]
    which = "shipped" if weights.exists() else "untrained"
    yield f"pixels of the same class in bf16 and fp32, {which} weights", float(np.mean(same))


class Noise(torch.utils.data.Dataset):
    """Clips of random pixels; the same number gives the same clip."""

    def __init__(self, config: ModelConfig):
        self.config = config

    def __len__(self) -> int:
        return 2**30

    def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
        c, g = self.config, torch.Generator().manual_seed(n)
        maps = torch.randint(0, 20, (len(c.history_offsets) + 1, *c.mask_size), generator=g, dtype=torch.uint8)
        known = torch.ones_like(maps, dtype=torch.bool)
        image = torch.randint(0, 256, (3, *c.image_size), generator=g, dtype=torch.uint8)
        return {
            "image": image, "semantic": maps, "instance": maps, "semantic_known": known, "instance_known": known
        }  # fmt: skip


def resume(_: Path | None) -> Figures:
    """Whether a resumed run ends with the same weights, to the bit, and its time; also with deterministic kernels."""
    config, loss = config_of("tiny"), settings_of("tiny").loss
    for deterministic in (False, True):
        make_fast(DEVICE, deterministic)
        took, weights = 0.0, []
        for halves in ((4, 8), (8,)):
            with tempfile.TemporaryDirectory() as folder:
                for steps in halves:
                    torch.manual_seed(0)
                    found = checkpoints.newest(folder)
                    settings = TrainingConfig(
                        steps=steps, batch_size=8 if GPU else 2, warmup=1, optimizer="muon", num_workers=0,
                        validate_every=0, accumulate=1, final_lr=1.0,
                    )  # fmt: skip
                    begin = time.perf_counter()
                    given = Noise(config), folder, accelerator_of(), found and found[1]
                    fit(Pix2SeqD(config), loss, settings, *given, quiet=True)
                    took += time.perf_counter() - begin
                weights.append(checkpoints.load(Path(folder) / "model-latest.pt")["training"]["weights"])
        equal = all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
        name = "deterministic" if deterministic else "fastest kernels"
        yield f"resume, {name}: the same to the bit", equal
        yield f"resume, {name}: seconds", took
    torch.use_deterministic_algorithms(False)


def learning(data: Path | None) -> Figures:
    """200 steps of `small` with pretrain.py: the loss at the start and at the end, and samples a second."""
    with tempfile.TemporaryDirectory() as folder:
        source = ["--dataset", "streets", "--streets_videos", "40" if GPU else "1"]
        if data is not None:
            source = ["--dataset", "cityscapes", "--data_root", str(unpacked(data, Path(folder)))]
        steps, limit = 200 if GPU else 2, PARTS["learning"][1]
        flags = ["--preset", "small", *source, "--backbone_weights", "none", "--steps", str(steps), "--warmup", "20"]
        flags += ["--validate_videos", "0", "--quiet"]
        flags += ["--cache", f"{folder}/cache", "--results_folder", f"{folder}/run"]
        if not GPU:
            for name, value in TINY_SIZE.items():
                flags += [f"--{name}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
            flags += ["--batch_size", "2", "--num_workers", "0", "--backbone", "resnet10", "--device", "cpu"]
        with contextlib.suppress(subprocess.TimeoutExpired):  # then of the steps that were made
            subprocess.run([sys.executable, "pretrain.py", *flags], cwd=ROOT, check=True, timeout=0.85 * limit)
        log = [json.loads(line) for line in Path(folder, "run/log.jsonl").read_text().splitlines()]
    part = max(len(log) // 10, 1)
    ends = {"first": log[:part], "last": log[-part:]}
    for name, entries in ends.items():
        yield f"small: loss, {name} {part} steps", float(np.mean([entry["loss"] for entry in entries]))
    yield "small: steps", len(log)
    yield "small: training, samples/s with loader", float(np.median([entry["samples_per_s"] for entry in log]))


def unpacked(data: Path, folder: Path) -> Path:
    """A folder in Cityscapes' layout: `data` itself, or the content of a .zip or .tar."""
    if data.is_dir():
        return data
    shutil.unpack_archive(data, folder / "data")
    found = sorted((folder / "data").rglob("leftImg8bit"))
    return found[0].parent if found else folder / "data"


# The most useful first: name -> (part, limit in seconds on a GPU)
PARTS = {
    "speed": (speed, 160),
    "tests": (tests, 90),
    "learning": (learning, 110),
    "resume": (resume, 50),
    "precision": (precision, 30),
    "compiled": (compiled, 70),
}
if not GPU:  # a core may be shared: allow each part almost all the time
    PARTS = {name: (part, 400) for name, (part, _) in PARTS.items()}


def run(data: Path | None, out: Path, parts: dict[str, tuple] = PARTS, total: float = 440) -> dict[str, Any]:
    """Run all parts, each in its own process. Failed parts are reported; parts without enough time are left out."""
    out.mkdir(parents=True, exist_ok=True)
    device = torch.cuda.get_device_name() if GPU else "CPU, at a tiny size"
    results: dict[str, Any] = {"device": device, "torch": torch.__version__, "parts": {}, "left out": []}
    begin = time.monotonic()
    for name, (_, limit) in parts.items():
        left = total - (time.monotonic() - begin)
        if left < min(10, limit):
            results["left out"].append(name)
            continue
        target, log = out / f"{name}.json", out / f"{name}.log"
        target.unlink(missing_ok=True)
        command = [sys.executable, "-m", "benchmarks.gpu", *([str(data)] if data else []), "--only", name]
        print(f"{name} ...", flush=True)
        since, failed = time.monotonic(), None
        with log.open("w") as output:
            part = subprocess.Popen(
                [*command, "--out", str(out)], cwd=ROOT, start_new_session=True, stdout=output, stderr=output
            )
        try:
            if status := part.wait(min(limit, left)):
                said = log.read_text(errors="replace").strip().splitlines()
                failed = said[-1] if said else f"status {status}"
        except subprocess.TimeoutExpired:
            failed = f"more than {min(limit, left):.0f} s"
        finally:  # after Ctrl-C, too
            with contextlib.suppress(ProcessLookupError):
                os.killpg(part.pid, signal.SIGKILL)  # with its child processes
            part.wait()
        figures = json.loads(target.read_text()) if target.exists() else {}
        if failed:
            figures["failed"] = failed
            print(f"  {failed}", flush=True)
        results["parts"][name] = figures | {"seconds": round(time.monotonic() - since, 1)}
        (out / "gpu.json").write_text(json.dumps(results, indent=2))
        (out / "gpu.md").write_text(table(results))
    print(table(results))
    return results


def table(results: dict[str, Any]) -> str:
    lines = [f"{results['device']}, PyTorch {results['torch']}", "", "| part | figure | value |", "|---|---|---|"]
    for part, figures in results["parts"].items():
        for name, value in figures.items():
            lines.append(f"| {part} | {name} | {f'{value:.4g}' if isinstance(value, float) else value} |")
    if results["left out"]:
        lines += ["", f"Left out, as the time was up: {', '.join(results['left out'])}"]
    return "\n".join(lines) + "\n"


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="What a GPU makes of the presets.")
    parser.add_argument("data", nargs="?", type=Path, help="training frames in Cityscapes' layout, packed or a folder")
    parser.add_argument("--out", type=Path, default=Path("results/gpu"), help="folder of gpu.json and gpu.md")
    parser.add_argument("--only", choices=tuple(PARTS), help="one part, in this process")
    args = parser.parse_args(words)
    if args.data and not args.data.exists():
        parser.error(f"{args.data} does not exist")
    data = args.data.resolve() if args.data else None
    out = args.out.resolve()
    if args.only:
        out.mkdir(parents=True, exist_ok=True)
        figures, part, target = {}, out / f"{args.only}.part", out / f"{args.only}.json"
        for name, value in PARTS[args.only][0](data):
            figures[name] = value
            part.write_text(json.dumps(figures))
            part.replace(target)
    else:
        run(data, out)


if __name__ == "__main__":
    main()
