"""Training: a step split into data, forward, backward and optimizer; its memory and work; the loader by itself."""

import contextlib
import statistics
import time
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from ema_pytorch import EMA
from torch import Tensor
from torch.utils.data import DataLoader

import train
from benchmarks.speed_timing import Row, Setup, apart, build, config_of, gflops, row, share_of_rate
from data.clips.cache import Cached
from data.clips.clips import ClipFormat, Clips
from data.clips.mixture import TrainingStream
from data.labels import write_image, write_panoptic
from data.sets.frames import FrameSource
from data.sets.kitti_step import KittiStep
from data.streets.source import Streets, render_video, tracked_only
from model import ModelConfig, Pix2SeqD
from model.diffusion.draws import draw
from model.diffusion.loss import LossConfig, training_loss
from model.stream.predictor import precision
from training import options
from training.config import TrainingConfig
from training.fit import to_device
from training.optimizer import build_optimizer

PARTS = ("data", "forward", "backward", "optimizer")
CPU_BATCH = {"tiny": 16, "small": 2, "base": 1}  # samples of a step, where there is no GPU
PNG_SIZE = (375, 1242)  # of most KITTI frames
AHEAD = 4  # batches that a loader process reads before they are asked for

# ---------------------------------------------------------------------------------------------------------------------
# Data
# ---------------------------------------------------------------------------------------------------------------------


def rendered(folder: Path, config: ModelConfig, frames: int = 6) -> FrameSource:
    """Frames of the built-in world at training size, from its own cache."""
    return Streets(folder / "streets", "train", videos=1, frames=frames, image_size=config.image_size)


def pngs(folder: Path, size: tuple[int, int], frames: int = 6) -> FrameSource:
    """Frames of the built-in world as PNGs in the layout and size of KITTI-STEP."""
    target = folder / f"kitti-{size[0]}x{size[1]}"
    if not target.exists():
        inside = target / "kitti_out" / "video_sequence" / "train"
        for n, (image, semantic, instance) in enumerate(render_video(0, "train", frames, size)):
            write_image(inside / f"000000_{n:06d}_leftImg8bit.png", image)
            write_panoptic(inside / f"000000_{n:06d}_panoptic.png", semantic, tracked_only(semantic, instance))
    return KittiStep(target, "train")


def clips(source: FrameSource, config: ModelConfig, varied: list) -> TrainingStream:
    """varied: the HistoryConfig and the Augmentation."""
    history, augmentation = varied
    fmt = ClipFormat(config.image_size, config.mask_size, config.slots, config.history_offsets)
    return TrainingStream([Clips(source, fmt, augmentation, history_config=history)])


def loader(samples: TrainingStream, batch: int, workers: int, pin: bool = False) -> Iterator[dict[str, Tensor]]:
    """Batches as training draws them, in order."""
    return iter(
        DataLoader(
            samples,
            batch_sampler=[list(range(n * batch, (n + 1) * batch)) for n in range(4096)],
            num_workers=workers,
            pin_memory=pin,
            prefetch_factor=AHEAD if workers else None,
            worker_init_fn=_one_thread,
        )
    )


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def samples_per_second(setup: Setup, samples: TrainingStream, batch: int = 2) -> list[float]:
    """Of one worker process, after its queue has been emptied once."""
    batches = loader(samples, batch, workers=1)
    for _ in range(AHEAD + 1):  # the start of the worker, and what it has ahead
        next(batches)
    rates, begin = [], time.perf_counter()
    while len(rates) < 3 or (time.perf_counter() - begin < setup.seconds and len(rates) < 50):
        start = time.perf_counter()
        for _ in range(3):
            next(batches)
        rates.append(3 * batch / (time.perf_counter() - start))
        if setup.quick:
            break
    return rates


# ---------------------------------------------------------------------------------------------------------------------
# Steps
# ---------------------------------------------------------------------------------------------------------------------


class Stepper:
    """One optimizer step as model.training.fit does it, with a mark of time after each part."""

    def __init__(self, setup: Setup, model: Pix2SeqD, training: TrainingConfig, loss: LossConfig, batch: int):
        self.device, self.loss, self.training, self.batch = torch.device(setup.device), loss, training, batch
        self.model = model.to(self.device, memory_format=torch.channels_last).train()
        self.model.encoder.recompute = self.model.denoiser.recompute = training.recompute
        if setup.compile:
            self.model.compile()
        self.optimizer = build_optimizer(self.model, training)
        self.ema = EMA(self.model, beta=training.ema_decay, update_every=1, include_online_model=False)
        self.dtype = precision(setup.mixed_precision, self.device)
        self.number = 0

    def draws(self, mask_size):
        numbers = range(self.number * self.batch, (self.number + 1) * self.batch)
        return draw(0, numbers, self.model, mask_size, self.device, self.loss.self_aligned_rate > 0)

    def forward(self, batch: dict[str, Tensor], coins: float | None = None) -> Tensor:
        """The loss. coins: in place of those that are drawn."""
        draws = self.draws(batch["semantic"].shape[-2:])
        if coins is not None:
            draws = draws._replace(coins=torch.full_like(draws.coins, coins))
        autocast = torch.autocast(self.device.type, self.dtype) if self.dtype else contextlib.nullcontext()
        with autocast:
            return training_loss(self.model, self.model.config, self.loss, batch, draws)[0]

    def update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip)
        self.optimizer.step()
        self.ema.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.number += 1

    def step(self, batches: Iterator[dict[str, Tensor]], coins: float | None = None) -> dict[str, float]:
        """Milliseconds of each part, and of the step. On a GPU by events, with one synchronisation at the end."""
        marks = [self._mark()]
        batch = to_device(next(batches), self.device)
        marks.append(self._mark())
        loss = self.forward(batch, coins)
        marks.append(self._mark())
        loss.backward()
        marks.append(self._mark())
        self.update()
        marks.append(self._mark())
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            times = [a.elapsed_time(b) for a, b in pairwise(marks)]
        else:
            times = [1e3 * (b - a) for a, b in pairwise(marks)]
        return dict(zip(PARTS, times, strict=True)) | {"step": sum(times)}

    def _mark(self):
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def repeat(setup: Setup, step, warm_up: int = 1) -> list[dict[str, float]]:
    """The marks of several steps after a warm-up."""
    for _ in range(1 if setup.quick else warm_up):
        step()
    done, begin = [], time.perf_counter()
    while len(done) < setup.fewest or (time.perf_counter() - begin < 5 * setup.seconds and len(done) < 50):
        done.append(step())
    return done


def batch_of(setup: Setup, preset: str, training: TrainingConfig) -> int:
    """How many samples a training step is measured with."""
    return setup.batch_size or (training.batch_size if setup.cuda else CPU_BATCH[preset])


def _steps(setup: Setup, preset: str) -> tuple[list[dict[str, float]], float, int]:
    """The marks of a preset's training steps, their work in GFLOP, and their batch; called in a process of its own."""
    config = config_of(preset, setup.image_size)
    _, training, loss, *varied = options.preset_settings(preset, train.RECIPE)
    batch = batch_of(setup, preset, training)
    samples = clips(rendered(setup.folder, config), config, varied)
    batches = loader(samples, batch, workers=0 if setup.quick else 1, pin=setup.cuda)
    stepper = Stepper(setup, build(config)[0], training, loss, batch)
    done = repeat(setup, lambda: stepper.step(batches))
    ready = to_device(next(batches), stepper.device)
    return done, gflops(lambda: stepper.forward(ready).backward()), batch


def training(setup: Setup, preset: str, rates: dict[str, float]) -> list[Row]:
    """A preset's training step, its work and its memory."""
    rendered(setup.folder, config_of(preset, setup.image_size))  # before the process whose memory is measured
    (done, work, batch), peak, start = apart(setup, _steps, setup, preset)
    step = statistics.median(d["step"] for d in done)
    rows = [row(f"{preset}: {part}", [d[part] for d in done]) for part in PARTS]
    share = share_of_rate(work, step, setup, rates)
    note = f"batch {batch}; {work:.0f} GFLOP, {share:.0f} % of the matrix rate"
    rows.append(row(f"{preset}: step", [d["step"] for d in done], note=note))
    rows.append(row(f"{preset}: training", [1e3 * batch / d["step"] for d in done], "samples/s"))
    rows.append(Row(f"{preset}: training, peak memory", peak, "MB", note=f"{start:.0f} MB of it before the model"))
    return rows


@cache
def loader_rates(setup: Setup, preset: str) -> dict[str, list[float]]:
    """Samples a second of one loader process: from the built-in world, from PNGs, from PNGs through the cache."""
    config = config_of(preset, setup.image_size)
    varied = options.preset_settings(preset, train.RECIPE)[3:]
    source = pngs(setup.folder, PNG_SIZE if not setup.quick else (48, 160))
    cached = Cached(source, config.image_size, setup.folder / "cache")
    cached.fill(quiet=True)
    kinds = {"rendered frames": rendered(setup.folder, config), "PNGs": source, "PNGs, cached": cached}
    return {name: samples_per_second(setup, clips(frames, config, varied)) for name, frames in kinds.items()}


def loading(setup: Setup, preset: str) -> list[Row]:
    note = "frames of {}x{}".format(*PNG_SIZE)
    return [
        row(f"{preset}: loader, {name}, a worker", rates, "samples/s", note if "PNG" in name else "")
        for name, rates in loader_rates(setup, preset).items()
    ]
