"""fit(): step, log, validate, save.

All randomness is drawn from (seed, number of the sample), so that a run that was killed and started again by the same
command continues to the bit, for any number of workers; and the batch of a step is the same for any number of
processes.
"""

import contextlib
import dataclasses
import math
import os
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
from model.diffusion.draws import draw
from model.diffusion.loss import LossConfig, training_loss
from model.network.config import ConfigError
from model.network.pix2seq_d import Pix2SeqD
from training.config import TrainingConfig
from training.log import Log
from training.optimizer import build_optimizer, learning_rate, set_learning_rate
from training.signals import Stop, outlive_signals
from training.start import loader_workers, slices


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


Validate = Callable[[Pix2SeqD, int], dict[str, Any]]
Picture = Callable[[Pix2SeqD, int, int], None]


@dataclass
class Run:
    """What one call of `fit` works with, and where it stands."""

    model: Pix2SeqD
    ema: EMA
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    config: TrainingConfig
    folder: Path
    extra: dict[str, Any] = field(default_factory=dict)
    validate: Validate | None = None
    picture: Picture | None = None
    step: int = 0
    saved: int = 0  # the step of the last checkpoint
    whole: bool = True  # False while an update of the weights is under way

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
                "processes": self.accelerator.num_processes,
            },
            **self.extra,
        }

    def resume(self, stored: dict[str, Any]) -> None:
        training = stored["training"]
        unwrapped = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        checkpoints.load_weights(unwrapped, training["weights"], "the checkpoint")
        checkpoints.load_weights(self.ema.ema_model, stored["weights"], "the checkpoint")
        chosen = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        try:
            self.optimizer.load_state_dict(training["optimizer"])
            checkpoints.check_moments(self.optimizer)
            if self.accelerator.scaler is not None and training.get("scaler"):
                self.accelerator.scaler.load_state_dict(training["scaler"])
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise checkpoints.CheckpointError(f"the optimizer's state does not fit this run: {error}") from None
        for group, settings in zip(self.optimizer.param_groups, chosen, strict=True):
            group.update(settings)  # of this command line, and not of the file
        self.ema.step.fill_(training["ema_step"])
        self.ema.initted.fill_(True)
        self.step = self.saved = training["step"]

    def save(self) -> None:
        """Write model-latest.pt, and model-<N>.pt and its picture where it is the time. A full disk stops nothing."""
        number, rest = divmod(self.step, self.config.save_every)
        if self.accelerator.is_main_process:
            self._write(number if rest == 0 else None)
            if rest == 0 and self.picture:
                self.picture(self.ema.ema_model, number, self.step)
        if rest == 0 and self.picture:
            self.accelerator.wait_for_everyone()

    def _write(self, number: int | None) -> None:
        state = self.state()
        try:
            checkpoints.save(self.folder / LATEST, state)
            self.saved = self.step
            if number is not None:
                checkpoints.save(self.folder / f"model-{number}.pt", state)
                checkpoints.prune(self.folder, self.config.keep, self.config.milestone)
        except OSError as error:
            self.say(f"step {self.step}: could not save ({error}); the last checkpoint stands; tried again next time")

    def end(self) -> None:
        """Raise OSError where the last step could not be saved, in all processes; it is tried once more before."""
        if self.accelerator.is_main_process and self.saved < self.step:
            self._write(None)
        if _any_process(self.accelerator.is_main_process and self.saved < self.step, self.accelerator):
            raise OSError(f"step {self.step} is not saved: make room in {self.folder}; the same command goes on")

    def validated(self) -> dict[str, Any]:
        """The figures of a validation of the averaged weights, for which all processes work together."""
        return self.validate(self.ema.ema_model, self.step)

    def say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            tqdm.write(text)


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
    picture: Picture | None = None,
) -> int:
    """Train a model and leave checkpoints and log.jsonl in `folder`.

    samples: item n is the n-th training sample (see data/clips/mixture.py), the same for the same n always; resume: a
    training checkpoint to go on from; validate: called with the averaged model every `validate_every` steps and at
    the end, in every process, gives figures for the log; picture: called with it, N and the step after each
    model-<N>.pt;
    extra: plain values that go into each checkpoint. Returns the number of steps done. Raises FloatingPointError after
    `max_nonfinite` steps in a row without a finite loss and gradient, OSError where the last step cannot be saved. An
    error ends the run with the last whole step saved.
    """
    folder = Path(folder)
    if config.freeze_backbone:
        for part in (model.encoder.stem, model.encoder.stages):
            part.requires_grad_(False)
    model.encoder.recompute = model.denoiser.recompute = config.recompute
    model = model.to(accelerator.device, memory_format=torch.channels_last)
    config = dataclasses.replace(config, accumulate=slices(model, loss_config, config, accelerator, resume))
    if config.compile:
        model.compile()
    wrapped, optimizer = accelerator.prepare(model, build_optimizer(model, config))
    ema = EMA(
        model, beta=config.ema_decay, update_every=1, update_after_step=0, include_online_model=False, use_foreach=True
    ).to(accelerator.device)
    ema.ema_model.eval()
    ema.step, ema.initted = ema.step.cpu(), ema.initted.cpu()  # it reads its counters in each step
    run = Run(model, ema, optimizer, accelerator, config, folder, extra or {}, validate, picture)
    if resume is not None:
        run.resume(resume)
    if run.step >= config.steps:
        run.say(f"{folder} holds a run of {run.step} steps already: give more --steps to go on")
        return run.step

    log = Log(folder / "log.jsonl", run.step) if accelerator.is_main_process else None
    batches = StepBatches(config, run.step, accelerator.process_index, accelerator.num_processes)
    loader = _loader(samples, batches, loader_workers(config, accelerator), accelerator.device)
    with Stop() as stop:
        try:
            _loop(run, wrapped, loss_config, iter(loader), batches, log, stop, quiet)
        except Exception:
            if run.whole and run.step > run.saved:
                run.picture = None
                run.save()
            raise
        finally:
            if log is not None:
                log.close()
    run.end()
    accelerator.wait_for_everyone()
    if run.step < config.steps:
        run.say(f"stopped after step {run.step} and saved; the same command goes on from there")
    return run.step


def _loader(samples: Dataset, batches: StepBatches, workers: int, device: torch.device) -> DataLoader:
    return DataLoader(
        samples,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if workers else None,
        worker_init_fn=_init_worker if workers else None,
        multiprocessing_context="fork" if workers and os.name == "posix" else None,
    )


def _init_worker(_: int) -> None:
    torch.set_num_threads(1)
    outlive_signals()


def _loop(run: Run, wrapped, loss_config, loader, batches, log, stop, quiet) -> None:
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
        set_learning_rate(run.optimizer, lr)
        values, stopping = _step(run, wrapped, loss_config, loader, batches, stop)
        finite = all(math.isfinite(v) for v in values.values())
        bad = 0 if finite else bad + 1

        seconds = time.perf_counter() - begin
        entry = {"step": run.step, **values, "lr": lr, "samples_per_s": round(config.batch_size / seconds, 2)}
        if skipped := round(entry.pop("skipped_files", 0)):
            entry["skipped_files"] = skipped
        if not finite:
            entry = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in entry.items()}
            entry["skipped"] = True
        last = run.step == config.steps
        due = last or (config.validate_every and run.step % config.validate_every == 0)
        try:
            if run.validate and due and not stopping:
                figures = run.validated()
                entry.update(figures)
        finally:  # a step that is saved is logged, whatever becomes of the other processes and of its validation
            if log is not None:
                log.write(**entry)
            if accelerator.trackers:
                accelerator.log({k: v for k, v in entry.items() if v is not None and k != "step"}, run.step)
        bar.set_postfix(loss=f"{values['loss']:.3f}", samples_s=f"{config.batch_size / seconds:.1f}", **_short(figures))
        bar.update()

        if run.step % config.save_every == 0 or last or stopping:
            run.save()
        if bad >= config.max_nonfinite:
            raise FloatingPointError(
                f"{bad} steps in a row without a finite loss and gradient, up to step {run.step}; the weights before "
                f"them are in {run.folder / LATEST}: try a lower --lr or --mixed_precision no"
            )
        if stopping:
            break
    bar.close()


def _step(
    run: Run, wrapped: nn.Module, loss_config: LossConfig, loader, batches: StepBatches, stop: Stop
) -> tuple[dict[str, float], bool]:
    """One optimizer step: its loss, parts and gradient norm; and whether any process was asked to stop before its end.
    The step is skipped where these are not finite. The device is waited for once, when they are read."""
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
                loss, parts = training_loss(wrapped, run.model.config, loss_config, batch, draws, run.step)
            accelerator.backward(loss / config.accumulate)
        if "skipped" in batch:  # files that could not be read: a count over all slices and processes
            parts["skipped_files"] = batch["skipped"].sum() * (config.accumulate * accelerator.num_processes)
        for name, value in {"loss": loss.detach(), **parts}.items():
            totals[name] = totals.get(name, 0) + value / config.accumulate
    totals["stop"] = torch.full((), float(stop.asked), device=accelerator.device)
    norm = accelerator.clip_grad_norm_(run.model.parameters(), config.clip)
    means = accelerator.reduce(torch.stack([*totals.values()]), "mean")
    values = dict(zip([*totals, "grad_norm"], torch.cat([means, norm[None].to(means)]).tolist(), strict=True))
    stopping = values.pop("stop") > 0 or (stop.asked and accelerator.num_processes == 1)
    run.whole = False
    # With fp16 the gradient scaler skips by itself, and must see the gradient to lower its scale.
    if all(math.isfinite(v) for v in values.values()) or accelerator.scaler is not None:
        run.optimizer.step()
        if math.isfinite(values["grad_norm"]):
            run.ema.update()
    run.optimizer.zero_grad(set_to_none=True)
    run.step, run.whole = run.step + 1, True
    return values, stopping


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
