"""Measure the presets on a GPU in eight minutes. benchmarks/gpu.sh runs this and explains how.

    python -m benchmarks.gpu [DATA] [--out results/gpu]      all parts, the most useful first
    python -m benchmarks.gpu --only speed                    one of them

Each part is a separate process with a time limit, so a part that fails or takes too long does not affect the others.
The figures go to gpu.json, and as a table to gpu.md. Without a GPU everything runs at a tiny size, as a trial.
"""

import argparse
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

from model import PRESETS, ModelConfig, Pix2SeqD, StreamConfig, VideoPredictor
from model import checkpoint as checkpoints
from model.diffusion.loss import LossConfig
from model.network.precision import make_fast
from model.stream.loading import build
from training.config import TrainingConfig
from training.fit import fit
from training.machine import one_batch

ROOT = Path(__file__).resolve().parents[1]
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
TINY_SIZE = {"image_size": (64, 128), "encoder_dim": 64, "encoder_depth": 1, "encoder_heads": 4, "map_channels": 32,
             "dim": 32, "denoiser_depth": 1, "transformer_dim": 64, "transformer_heads": 4}  # fmt: skip
LOSSES = {"tiny": LossConfig(loss_stride=3), "small": LossConfig(loss_stride=2)}  # as in the scripts' recipes


def config_of(preset: str) -> ModelConfig:
    config = dataclasses.replace(PRESETS[preset], backbone_norm="frozen_batch")
    if GPU:
        return config
    return dataclasses.replace(config, **TINY_SIZE, mask_size=config.mask_for(TINY_SIZE["image_size"]))


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
# The parts: each returns figures by name
# ---------------------------------------------------------------------------------------------------------------------


def tests(_: Path | None) -> dict[str, Any]:
    """Run the tests that use a device on this one."""
    files = ["tests/test_presets.py", "tests/test_cuda_path.py"]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *files]
    chosen = ["-k", "not hour" if GPU else "answers or patches"]
    done = subprocess.run(
        [*command, *chosen], cwd=ROOT, env=os.environ | {"TEST_DEVICE": DEVICE.type}, capture_output=True, text=True
    )
    return {"status": done.returncode, "last line": (done.stdout.strip().splitlines() or ["none"])[-1]}


def speed(_: Path | None) -> dict[str, Any]:
    """Each preset: its parts, frames a second at 1, 4 and 8 steps, training, and the share of the matrix rate."""
    make_fast(DEVICE)
    size = 8192 if GPU else 256
    a = torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16)
    rate = 2 * size**3 / seconds(lambda: a @ a)
    figures: dict[str, Any] = {"matrix rate, TFLOP/s": rate / 1e12}
    frame = np.random.default_rng(0).integers(0, 256, (375, 1242, 3)).astype(np.uint8)
    for preset in PRESETS:
        config = config_of(preset)
        model = Pix2SeqD(config).to(DEVICE, memory_format=torch.channels_last)
        torch.nn.init.zeros_(model.denoiser.conv_out.weight)  # otherwise the answer is noise, which is slowest to read
        for ways in ("plain", "graphs") if GPU else ("plain",):
            for steps in (1, 4, 8):
                stream = StreamConfig(first_steps=steps, steps=steps, history_steps=steps, merge=0.0)
                predictor = VideoPredictor(model, stream, DEVICE)
                if ways == "graphs":
                    predictor.only_infer(cuda_graphs=True)
                figures[f"{preset}: {ways}, {steps} steps, frames/s"] = 1 / seconds(lambda p=predictor: p(frame))
        model = Pix2SeqD(config).eval().to(DEVICE, memory_format=torch.channels_last)
        image = torch.rand(1, 3, *config.image_size, device=DEVICE).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast(DEVICE.type, torch.bfloat16):
            condition = model.denoiser.condition(model.encode(image), None)
            given = torch.randn(1, config.bits, *config.mask_size, device=DEVICE), torch.ones(1, device=DEVICE)
            figures[f"{preset}: encoder, ms"] = 1000 * seconds(lambda m=model, i=image: m.encode(i))
            figures[f"{preset}: step, ms"] = 1000 * seconds(lambda m=model, g=given, c=condition: m.denoiser(*g, c))
        figures |= training_speed(preset, model, rate)
    return figures


def training_speed(preset: str, model: Pix2SeqD, rate: float) -> dict[str, float]:
    accelerator = Accelerator(cpu=not GPU, mixed_precision="bf16" if GPU else "no")
    batch = {"tiny": 32, "small": 8, "base": 2}[preset] if GPU else 2
    loss, settings = LOSSES.get(preset, LossConfig()), TrainingConfig(batch_size=batch)

    def step() -> None:
        one_batch(model, loss, settings, accelerator, batch)

    counter = FlopCounterMode(display=False)
    with counter:
        step()
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    each = seconds(step) / batch
    figures = {
        f"{preset}: training, samples/s": 1 / each,
        f"{preset}: training, share of the matrix rate": counter.get_total_flops() / batch / each / rate,
    }
    if GPU:
        figures[f"{preset}: training, peak GiB at {batch}"] = torch.cuda.max_memory_allocated() / 2**30
    return figures


def precision(_: Path | None) -> dict[str, Any]:
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
    return {f"pixels of the same class in bf16 and fp32, {which} weights": float(np.mean(same))}


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


def resume(_: Path | None) -> dict[str, Any]:
    """Whether a resumed run ends with the same weights, to the bit, and its time; also with deterministic kernels."""
    figures: dict[str, Any] = {}
    config = config_of("tiny")
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
                    accelerator = Accelerator(cpu=not GPU, mixed_precision="bf16" if GPU else "no")
                    fit(
                        Pix2SeqD(config), LOSSES["tiny"], settings, Noise(config), folder, accelerator,
                        found and found[1], quiet=True,
                    )  # fmt: skip
                    took += time.perf_counter() - begin
                weights.append(checkpoints.load(Path(folder) / "model-latest.pt")["training"]["weights"])
        equal = all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
        name = "deterministic" if deterministic else "fastest kernels"
        figures |= {f"resume, {name}: the same to the bit": equal, f"resume, {name}: seconds": took}
    torch.use_deterministic_algorithms(False)
    return figures


def learning(data: Path | None) -> dict[str, Any]:
    """200 steps of `small` with pretrain.py: the loss at the start and at the end, and samples a second."""
    with tempfile.TemporaryDirectory() as folder:
        source = ["--dataset", "streets", "--streets_videos", "40" if GPU else "1"]
        if data is not None:
            source = ["--dataset", "cityscapes", "--data_root", str(unpacked(data, Path(folder)))]
        steps = 200 if GPU else 2
        flags = ["--preset", "small", *source, "--backbone_weights", "none", "--steps", str(steps), "--warmup", "20"]
        flags += ["--validate_videos", "0", "--quiet"]
        flags += ["--cache", f"{folder}/cache", "--results_folder", f"{folder}/run"]
        if not GPU:
            for name, value in TINY_SIZE.items():
                flags += [f"--{name}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
            flags += ["--batch_size", "2", "--num_workers", "0", "--backbone", "resnet10", "--device", "cpu"]
        subprocess.run([sys.executable, "pretrain.py", *flags], cwd=ROOT, check=True)
        log = [json.loads(line) for line in Path(folder, "run/log.jsonl").read_text().splitlines()]
    part = max(len(log) // 10, 1)
    ends = {"first": log[:part], "last": log[-part:]}
    figures = {f"small: loss, {n} {part} steps": float(np.mean([e["loss"] for e in ls])) for n, ls in ends.items()}
    return figures | {"small: training, samples/s with loader": float(np.median([e["samples_per_s"] for e in log]))}


def unpacked(data: Path, folder: Path) -> Path:
    """A folder in Cityscapes' layout: `data` itself, or the content of a .zip or .tar."""
    if data.is_dir():
        return data
    shutil.unpack_archive(data, folder / "data")
    found = sorted((folder / "data").rglob("leftImg8bit"))
    return found[0].parent if found else folder / "data"


def compiled(_: Path | None) -> dict[str, Any]:
    """torch.compile for `small`: frames a second at 4 steps, and the wait before the first."""
    if not GPU:
        return {"small: compiled": "not on a CPU"}
    frame = np.zeros((375, 1242, 3), np.uint8)
    stream = StreamConfig(first_steps=4, steps=4, history_steps=4)
    predictor = VideoPredictor(Pix2SeqD(config_of("small")), stream, DEVICE)
    predictor.only_infer(compile=True)
    begin = time.perf_counter()
    for _ in range(2):
        predictor(frame)
    wait = time.perf_counter() - begin
    return {
        "small: compiled, wait, s": wait,
        "small: compiled, 4 steps, frames/s": 1 / seconds(lambda: predictor(frame)),
    }


# The most useful first: name -> (part, limit in seconds on a GPU)
PARTS = {
    "speed": (speed, 130),
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
        target = out / f"{name}.json"
        target.unlink(missing_ok=True)
        command = [sys.executable, "-m", "benchmarks.gpu", *([str(data)] if data else []), "--only", name]
        print(f"{name} ...", flush=True)
        since = time.monotonic()
        part = subprocess.Popen([*command, "--out", str(out)], cwd=ROOT, start_new_session=True)
        try:
            status = part.wait(min(limit, left))
            figures = json.loads(target.read_text()) if target.exists() else {"failed": f"status {status}"}
        except subprocess.TimeoutExpired:
            os.killpg(part.pid, signal.SIGKILL)  # with its child processes
            part.wait()
            figures = {"failed": f"more than {min(limit, left):.0f} s"}
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="What a GPU makes of the presets.")
    parser.add_argument("data", nargs="?", type=Path, help="training frames in Cityscapes' layout, packed or a folder")
    parser.add_argument("--out", type=Path, default=Path("results/gpu"), help="folder of gpu.json and gpu.md")
    parser.add_argument("--only", choices=tuple(PARTS), help="one part, in this process")
    args = parser.parse_args()
    data = args.data.resolve() if args.data else None
    out = args.out.resolve()
    if args.only:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{args.only}.json").write_text(json.dumps(PARTS[args.only][0](data)))
    else:
        run(data, out)


if __name__ == "__main__":
    main()
