"""One optimizer step: its batch, the loss and its gradient, the update of the weights and of their average."""

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from model.checks import ConfigError
from model.diffusion.draws import draw
from model.diffusion.loss import training_loss
from training.config import TrainingConfig
from training.run import Run, Stop


class StepBatches:
    """The sample numbers of one process. Each step has `accumulate` slices, and a slice is a run of consecutive
    numbers. The first step is `start`."""

    def __init__(self, config: TrainingConfig, start: int, process: int, processes: int):
        size, rest = divmod(config.batch_size, config.accumulate * processes)
        if rest:
            raise ConfigError(
                f"batch_size {config.batch_size} must be a multiple of {config.accumulate} slices x {processes} "
                "processes"
            )
        self.config, self.start, self.process, self.processes, self.size = config, start, process, processes, size

    def __len__(self) -> int:
        return max(self.config.steps - self.start, 0) * self.config.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.config.steps):
            for piece in range(self.config.accumulate):
                yield self.numbers(step, piece)

    def numbers(self, step: int, piece: int) -> list[int]:
        begin = step * self.config.batch_size + (piece * self.processes + self.process) * self.size
        return list(range(begin, begin + self.size))


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then linear decay, which reaches `final_lr` of it after the last step."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return config.lr * (1 - (1 - config.final_lr) * done)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Each group takes its share of the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_share", 1.0)


def optimizer_step(run: Run, loader, batches: StepBatches, stop: Stop) -> tuple[dict[str, float], bool]:
    """One optimizer step of a run: its loss, parts and gradient norm, and whether any process was asked to stop.

    The update is skipped where these are not finite. The device is waited for once, when they are read.
    """
    accelerator, config = run.accelerator, run.config
    run.parallel_model.train()
    totals: dict[str, Tensor] = {}
    for piece in range(config.accumulate):
        batch = to_device(next(loader), accelerator.device)
        mask_size = batch["semantic"].shape[-2:]
        draws = draw(config.seed, batches.numbers(run.step, piece), run.model, mask_size, accelerator.device)
        sync = piece == config.accumulate - 1
        with torch.enable_grad(), contextlib.nullcontext() if sync else accelerator.no_sync(run.parallel_model):
            with accelerator.autocast():
                loss, parts = training_loss(run.parallel_model, run.model.config, run.loss, batch, draws, run.step)
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
    run.consistent = False
    # With fp16 the gradient scaler skips by itself, and must see the gradient to lower its scale.
    if all(math.isfinite(v) for v in values.values()) or accelerator.scaler is not None:
        run.optimizer.step()
        if math.isfinite(values["grad_norm"]):
            run.ema.update()
    run.optimizer.zero_grad(set_to_none=True)
    run.step, run.consistent = run.step + 1, True
    return values, stopping


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Move a batch of clips to the device. Its image becomes float in [0, 1] there; labels stay small integers."""
    batch = {k: v.to(device, non_blocking=True) for k, v in batch.items()}
    batch["image"] = (batch["image"].float() / 255).contiguous(memory_format=torch.channels_last)
    return batch
