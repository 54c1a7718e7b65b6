"""A training run: its state, its checkpoints, its log, and how it is stopped."""

import dataclasses
import json
import math
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from ema_pytorch import EMA
from torch import nn
from tqdm import tqdm

from data.io.files import whole
from model import checkpoint as checkpoints
from model.checkpoint import LATEST
from model.diffusion.loss import LossConfig
from model.network.pix2seq_d import Pix2SeqD
from training.config import TrainingConfig

Validate = Callable[[Pix2SeqD, int], dict[str, Any]]
Picture = Callable[[Pix2SeqD, int, int], None]


@dataclass
class Run:
    """What one call of `fit` works with, and where it stands."""

    model: Pix2SeqD
    parallel_model: nn.Module  # the same, as it is wrapped for several processes
    ema: EMA
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    config: TrainingConfig
    loss: LossConfig
    folder: Path
    extra: dict[str, Any] = field(default_factory=dict)
    validate: Validate | None = None
    picture: Picture | None = None
    step: int = 0
    saved: int = 0  # the step of the last checkpoint
    consistent: bool = True  # False while an update of the weights is under way

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
        if any_process(self.accelerator.is_main_process and self.saved < self.step, self.accelerator):
            raise OSError(f"step {self.step} is not saved: make room in {self.folder}; the same command goes on")

    def validated(self) -> dict[str, Any]:
        """The figures of a validation of the averaged weights, for which all processes work together."""
        return self.validate(self.ema.ema_model, self.step)

    def say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            tqdm.write(text)


def any_process(flag: bool, accelerator: Accelerator) -> bool:
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum") > 0)


def log_entry(step: int, values: dict[str, float], lr: float, samples_per_s: float) -> dict[str, Any]:
    """A line of the log. What is not finite, for which JSON has no number, is None, and the step is `skipped`."""
    entry = {"step": step, **values, "lr": lr, "samples_per_s": round(samples_per_s, 2)}
    if skipped := round(entry.pop("skipped_files", 0)):
        entry["skipped_files"] = skipped
    if not all(math.isfinite(v) for v in values.values()):
        entry = {k: v if math.isfinite(v) else None for k, v in entry.items()} | {"skipped": True}
    return entry


class Log:
    """log.jsonl: one line a step. On resume the lines after the checkpoint's step are removed, so that no step is
    in it twice.

    A line that cannot be written, as on a full disk, is written together with the next one. Without a path, as in all
    processes but the first, nothing is written.
    """

    def __init__(self, path: Path | None, step: int):
        self.file, lines = None, []
        if path is None:
            return
        if path.exists():
            for line in path.read_text(errors="replace").splitlines():
                try:
                    entry = json.loads(line)
                except (ValueError, RecursionError):  # the half line of a run that was killed
                    continue
                if isinstance(entry, dict) and isinstance(entry.get("step"), int) and entry["step"] <= step:
                    lines.append(line)
        with whole(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines))
        self.file = path.open("ab", buffering=0)
        self.waiting = b""

    def write(self, **entry: Any) -> None:
        if self.file is None:
            return
        self.waiting += (json.dumps(entry) + "\n").encode()
        try:
            while self.waiting:
                self.waiting = self.waiting[self.file.write(self.waiting) :]
        except OSError:
            pass

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


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


def outlive_signals() -> None:
    """For loader processes: ignore the first signals, because the training process ends the run and its loaders.

    A scheduler (torchrun, Slurm, a shell) signals the whole group at once. A loader that obeyed would take away the
    batch that the last step needs. The second SIGTERM ends it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))
