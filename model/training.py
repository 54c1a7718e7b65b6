"""fit(): step, log, validate, save.

All randomness is drawn from (seed, number of the sample), so that a run that was killed and started again by the same
command continues to the bit, for any number of workers; and the batch of a step is the same for any number of
processes.
"""

import contextlib
import dataclasses
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from ema_pytorch import EMA
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from model import checkpoint as checkpoints
from model.checkpoint import LATEST
from model.diffusion import LossConfig, draw, training_loss
from model.pix2seq_d import ConfigError, Pix2SeqD


def _field(default: Any, group: str, text: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"group": group, "help": text, **metadata})


@dataclass(frozen=True)
class TrainingConfig:
    """One run. Raises ConfigError where the values do not fit together."""

    steps: int = _field(30_000, "training", "optimizer steps")
    batch_size: int = _field(16, "training", "samples of one optimizer step, over all processes and slices")
    accumulate: int = _field(1, "training", "slices in which a step's batch is processed one after the other")
    lr: float = _field(1e-4, "training", "learning rate after the warm-up")
    final_lr: float = _field(0.1, "training", "learning rate at the end, as a share; linear in between")
    warmup: int = _field(500, "training", "steps of linear warm-up")
    weight_decay: float = _field(0.05, "training", "of AdamW, on matrices and kernels")
    beta2: float = _field(0.999, "training", "of AdamW")
    clip: float = _field(1.0, "training", "largest norm of the gradient")
    ema_decay: float = _field(0.999, "training", "largest decay of the averaged weights; they warm up to it")
    freeze_backbone: bool = _field(False, "training", "keep the ResNet as it is")
    max_nonfinite: int = _field(10, "training", "skipped steps in a row (loss or gradient not finite) that end the run")
    save_every: int = _field(500, "saving", "steps between checkpoints")
    keep: int = _field(5, "saving", "numbered checkpoints that are kept; 0 keeps all")
    milestone: int = _field(10, "saving", "each so-manyth checkpoint is kept whatever --keep says; 0: none")
    validate_every: int = _field(1000, "saving", "steps between validations on held-out clips; 0: never")
    seed: int = _field(42, "machine", "of weights, data order, augmentation and noise")
    num_workers: int = _field(2, "machine", "loader processes for each training process")
    compile: bool = _field(False, "machine", "compile the network with torch.compile")

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulate", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, not {getattr(self, name)}")
        for name in ("lr", "clip"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")
        if min(self.num_workers, self.warmup, self.keep, self.milestone, self.validate_every) < 0:
            raise ConfigError("num_workers, warmup, keep, milestone and validate_every must be 0 or more")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay must be 0 or more and below 1, not {self.ema_decay}")


class StepBatches:
    """The batches of sample numbers of one process: for each step `accumulate` slices, contiguous in the step's
    batch, from the step on at which it starts."""

    def __init__(self, config: TrainingConfig, start: int, process: int, processes: int):
        share, rest = divmod(config.batch_size, config.accumulate * processes)
        if rest:
            raise ConfigError(
                f"batch_size {config.batch_size} must be a multiple of {config.accumulate} slices x {processes} "
                "processes"
            )
        self.config, self.start, self.process, self.processes, self.share = config, start, process, processes, share

    def __len__(self) -> int:
        return max(self.config.steps - self.start, 0) * self.config.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.config.steps):
            for piece in range(self.config.accumulate):
                yield self.numbers(step, piece)

    def numbers(self, step: int, piece: int) -> list[int]:
        begin = step * self.config.batch_size + (piece * self.processes + self.process) * self.share
        return list(range(begin, begin + self.share))


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then linear decay to `final_lr` of it at the last step."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return config.lr * (1 - (1 - config.final_lr) * done)


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2), fused=True)


class Log:
    """log.jsonl: a line a step. On resume the lines after the checkpoint's step go, so that there is none twice."""

    def __init__(self, path: Path, step: int):
        lines = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:  # the half line of a run that was killed
                    continue
                if isinstance(entry, dict) and isinstance(entry.get("step"), int) and entry["step"] <= step:
                    lines.append(line)
        temporary = path.with_name(f".{path.name}.part")
        temporary.write_text("".join(f"{line}\n" for line in lines))
        os.replace(temporary, path)
        self.file = path.open("a")

    def write(self, **entry: Any) -> None:
        self.file.write(json.dumps(entry) + "\n")
        self.file.flush()


class Stop:
    """SIGTERM and Ctrl-C end the run after the current step; a second Ctrl-C ends it at once."""

    def __init__(self):
        self.asked = False
        self.before = {}

    def __enter__(self) -> "Stop":
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self.before[number] = signal.signal(number, self._ask)
            except ValueError:  # not the main thread
                break
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True


@dataclass
class Run:
    """What one call of `fit` works with; `stored` of a checkpoint to go on from."""

    model: Pix2SeqD
    ema: EMA
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    config: TrainingConfig
    folder: Path
    extra: dict[str, Any] = field(default_factory=dict)
    step: int = 0

    def state(self) -> dict[str, Any]:
        """The checkpoint: averaged weights for inference, and all that training goes on from."""
        unwrapped = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        scaler = self.accelerator.scaler
        return {
            "format": checkpoints.FORMAT,
            "config": unwrapped.config.to_dict(),
            "weights": self.ema.ema_model.state_dict(),
            "training": {
                "step": self.step,
                "weights": unwrapped.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "ema_step": int(self.ema.step),
                "scaler": scaler.state_dict() if scaler is not None else None,
                "config": dataclasses.asdict(self.config),
            },
            **self.extra,
        }

    def resume(self, stored: dict[str, Any]) -> None:
        training = stored["training"]
        unwrapped = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        checkpoints.load_weights(unwrapped, training["weights"], "the checkpoint")
        checkpoints.load_weights(self.ema.ema_model, stored["weights"], "the checkpoint")
        try:
            self.optimizer.load_state_dict(training["optimizer"])
        except (ValueError, KeyError) as error:
            raise checkpoints.CheckpointError(f"the optimizer's state does not fit this run: {error}") from None
        self.ema.step.fill_(training["ema_step"])
        self.ema.initted.fill_(True)
        if self.accelerator.scaler is not None and training["scaler"]:
            self.accelerator.scaler.load_state_dict(training["scaler"])
        self.step = training["step"]

    def save(self, numbered: bool) -> bool:
        """Write model-latest.pt, and model-<N>.pt where it is the time. A disk that fails stops nothing."""
        if not self.accelerator.is_main_process:
            return True
        try:
            state = self.state()
            if numbered:
                path = self.folder / f"model-{self.step // self.config.save_every}.pt"
                checkpoints.save(path, state)
                checkpoints.prune(self.folder, self.config.keep, self.config.milestone)
            checkpoints.save(self.folder / LATEST, state)
        except OSError as error:
            self.say(f"step {self.step}: could not save ({error}); the last checkpoint stands; tried again next time")
            return False
        return True

    def say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            tqdm.write(text)


Validate = Callable[[Pix2SeqD, int], dict[str, Any]]


def fit(
    model: Pix2SeqD,
    loss_config: LossConfig,
    config: TrainingConfig,
    samples: Dataset,
    folder: str | Path,
    accelerator: Accelerator,
    resume: dict[str, Any] | None = None,
    validate: Validate | None = None,
    extra: dict[str, Any] | None = None,
    quiet: bool = False,
) -> int:
    """Train a model and leave checkpoints and log.jsonl in `folder`.

    samples: item n is the n-th training sample (see data/mixture.py), the same for the same n always; resume: a
    training checkpoint to go on from; validate: called with the averaged model every `validate_every` steps and at
    the end, in the main process, gives figures for the log; extra: plain values that go into each checkpoint.
    Returns the number of steps done. Raises FloatingPointError after `max_nonfinite` steps in a row without a finite
    loss and gradient, with the state before them saved.
    """
    folder = Path(folder)
    if config.freeze_backbone:
        for part in (model.encoder.stem, model.encoder.stages):
            part.requires_grad_(False)
    model = model.to(accelerator.device, memory_format=torch.channels_last)
    if config.compile:
        model.compile()
    wrapped, optimizer = accelerator.prepare(model, build_optimizer(model, config))
    ema = EMA(
        model, beta=config.ema_decay, update_every=1, update_after_step=0, include_online_model=False, use_foreach=True
    ).to(accelerator.device)
    ema.ema_model.eval()
    run = Run(model, ema, optimizer, accelerator, config, folder, extra or {})
    if resume is not None:
        run.resume(resume)
    if run.step >= config.steps:
        run.say(f"{folder} holds a run of {run.step} steps already: give more --steps to go on")
        return run.step

    log = Log(folder / "log.jsonl", run.step) if accelerator.is_main_process else None
    batches = StepBatches(config, run.step, accelerator.process_index, accelerator.num_processes)
    loader = DataLoader(
        samples,
        batch_sampler=batches,
        num_workers=config.num_workers,
        pin_memory=accelerator.device.type == "cuda",
        prefetch_factor=4 if config.num_workers else None,
        worker_init_fn=_init_worker,
        multiprocessing_context="fork" if config.num_workers and os.name == "posix" else None,
    )
    with Stop() as stop:
        _loop(run, wrapped, loss_config, iter(loader), batches, log, stop, validate, quiet)
    accelerator.wait_for_everyone()
    return run.step


def _init_worker(_: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the training process ends the run, and its workers with it


def _loop(run: Run, wrapped, loss_config, loader, batches, log, stop, validate, quiet) -> None:
    config, accelerator = run.config, run.accelerator
    bar = tqdm(
        total=config.steps, initial=run.step, unit="step", disable=quiet or not accelerator.is_main_process,
        dynamic_ncols=True, smoothing=0.05,
    )  # fmt: skip
    figures: dict[str, Any] = {}
    bad = 0
    while run.step < config.steps:
        begin = time.perf_counter()
        lr = learning_rate(run.step, config)
        for group in run.optimizer.param_groups:
            group["lr"] = lr
        values = _step(run, wrapped, loss_config, loader, batches)
        finite = all(math.isfinite(v) for v in values.values())
        run.step += 1
        bad = 0 if finite else bad + 1
        stopping = _any_process(stop.asked, accelerator)

        seconds = time.perf_counter() - begin
        entry = {"step": run.step, **values, "lr": lr, "samples_per_s": round(config.batch_size / seconds, 2)}
        if not finite:
            entry = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in entry.items()}
            entry["skipped"] = True
        last = run.step == config.steps
        if validate and (last or (config.validate_every and run.step % config.validate_every == 0)) and not stopping:
            if accelerator.is_main_process:
                figures = validate(run.ema.ema_model, run.step)
                entry.update(figures)
            accelerator.wait_for_everyone()
        if log is not None:
            log.write(**entry)
        bar.set_postfix(loss=f"{values['loss']:.3f}", samples_s=f"{config.batch_size / seconds:.1f}", **_short(figures))
        bar.update()

        numbered = run.step % config.save_every == 0
        if numbered or last or stopping or bad >= config.max_nonfinite:
            run.save(numbered)
        if bad >= config.max_nonfinite:
            raise FloatingPointError(
                f"{bad} steps in a row without a finite loss and gradient, up to step {run.step}; the weights before "
                f"them are in {run.folder / LATEST}: try a lower --lr or --mixed_precision no"
            )
        if stopping:
            bar.close()
            run.say(f"stopped after step {run.step} and saved; the same command goes on from there")
            return
    bar.close()


def _step(run: Run, wrapped: nn.Module, loss_config: LossConfig, loader, batches: StepBatches) -> dict[str, float]:
    """One optimizer step; its loss, parts and gradient norm. The step is skipped where these are not finite."""
    accelerator, config = run.accelerator, run.config
    wrapped.train()
    totals: dict[str, Tensor] = {}
    for piece in range(config.accumulate):
        batch = to_device(next(loader), accelerator.device)
        twice = loss_config.self_aligned_rate > 0
        mask_size = batch["semantic"].shape[-2:]
        draws = draw(config.seed, batches.numbers(run.step, piece), run.model, mask_size, accelerator.device, twice)
        sync = piece == config.accumulate - 1
        with torch.enable_grad(), _no_sync(accelerator, wrapped, not sync):
            with accelerator.autocast():
                loss, parts = training_loss(wrapped, run.model.config, loss_config, batch, draws)
            accelerator.backward(loss / config.accumulate)
        for name, value in {"loss": loss.detach(), **parts}.items():
            totals[name] = totals.get(name, 0) + value / config.accumulate
    norm = accelerator.clip_grad_norm_(run.model.parameters(), config.clip)
    stacked = accelerator.reduce(torch.stack([*totals.values()]), "mean")
    values = dict(zip([*totals, "grad_norm"], [*stacked.tolist(), float(norm)], strict=True))
    # With fp16 the gradient scaler skips by itself, and must see the gradient to lower its scale.
    if all(math.isfinite(v) for v in values.values()) or accelerator.scaler is not None:
        run.optimizer.step()
        if math.isfinite(values["grad_norm"]):
            run.ema.update()
    run.optimizer.zero_grad(set_to_none=True)
    return values


def _no_sync(accelerator: Accelerator, model: nn.Module, skip: bool):
    return accelerator.no_sync(model) if skip else contextlib.nullcontext()


def _any_process(flag: bool, accelerator: Accelerator) -> bool:
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum") > 0)


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """A batch of clips on the device, where its image becomes float in [0, 1]; labels stay small integers."""
    batch = {k: v.to(device, non_blocking=True) for k, v in batch.items()}
    batch["image"] = (batch["image"].float() / 255).contiguous(memory_format=torch.channels_last)
    return batch


def _short(figures: dict[str, Any]) -> dict[str, str]:
    return {k: f"{v:.3f}" for k, v in figures.items() if isinstance(v, float) and k in ("STQ", "mIoU")}
