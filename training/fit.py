"""fit(): step, log, validate, save.

All randomness comes from (seed, number of the sample). So a killed run that is started again by the same command gives
the same result to the bit, with any number of workers, and a step has the same batch with any number of processes.
"""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import Dataset
from tqdm import tqdm

from model.checkpoint import LATEST
from model.diffusion.loss import LossConfig
from model.network.pix2seq_d import Pix2SeqD
from training.config import TrainingConfig
from training.machine import sample_loader, slices
from training.optimizer import build_average, build_optimizer
from training.run import Log, Picture, Run, Stop, Validate, log_entry
from training.step import StepBatches, learning_rate, optimizer_step, set_learning_rate


def fit(
    model: Pix2SeqD,
    loss: LossConfig,
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

    samples: item n is always the n-th training sample (data/clips/mixture.py); resume: a training checkpoint to
    continue from; validate: called in every process with the averaged model, every `validate_every` steps and at the
    end, returns figures for the log; picture: called with the averaged model, N and the step after each model-<N>.pt;
    extra: plain values that go into each checkpoint. Returns the number of steps done. Raises FloatingPointError after
    `max_nonfinite` steps in a row without a finite loss and gradient, OSError if the last step cannot be saved. After
    an error the last complete step is saved.
    """
    folder = Path(folder)
    if config.freeze_backbone:
        for part in (model.encoder.stem, model.encoder.stages):
            part.requires_grad_(False)
    model.encoder.recompute = model.denoiser.recompute = config.recompute
    model = model.to(accelerator.device, memory_format=torch.channels_last)
    config = dataclasses.replace(config, accumulate=slices(model, loss, config, accelerator, resume))
    if config.compile:
        model.compile()
    parallel_model, optimizer = accelerator.prepare(model, build_optimizer(model, config))
    ema = build_average(model, config, accelerator.device)
    run = Run(model, parallel_model, ema, optimizer, accelerator, config, loss, folder, extra or {}, validate, picture)
    if resume is not None:
        run.resume(resume)
    if run.step >= config.steps:
        run.say(f"{folder} holds a run of {run.step} steps already: give more --steps to go on")
        return run.step

    log = Log(folder / "log.jsonl" if accelerator.is_main_process else None, run.step)
    batches = StepBatches(config, run.step, accelerator.process_index, accelerator.num_processes)
    loader = sample_loader(samples, batches, config, accelerator)
    with Stop() as stop:
        try:
            _loop(run, iter(loader), batches, log, stop, quiet)
        except Exception:
            if run.consistent and run.step > run.saved:
                run.picture = None
                run.save()
            raise
        finally:
            log.close()
    run.end()
    accelerator.wait_for_everyone()
    if run.step < config.steps:
        run.say(f"stopped after step {run.step} and saved; the same command goes on from there")
    return run.step


def _loop(run: Run, loader, batches, log, stop, quiet) -> None:
    config, accelerator = run.config, run.accelerator
    bar = tqdm(
        total=config.steps, initial=run.step, unit="step", disable=quiet or not accelerator.is_main_process,
        dynamic_ncols=True, smoothing=0.05,
    )  # fmt: skip
    figures, bad, stopping = {}, 0, False
    while run.step < config.steps and not stopping:
        begin = time.perf_counter()
        lr = learning_rate(run.step, config)
        set_learning_rate(run.optimizer, lr)
        values, stopping = optimizer_step(run, loader, batches, stop)
        bad = 0 if all(math.isfinite(v) for v in values.values()) else bad + 1

        seconds = time.perf_counter() - begin
        entry = log_entry(run.step, values, lr, config.batch_size / seconds)
        last = run.step == config.steps
        due = last or (config.validate_every and run.step % config.validate_every == 0)
        try:
            if run.validate and due and not stopping:
                figures = run.validated()
                entry.update(figures)
        finally:  # a step that is saved is logged, whatever becomes of the other processes and of its validation
            log.write(**entry)
            accelerator.log({k: v for k, v in entry.items() if v is not None and k != "step"}, run.step)
        shown = {k: f"{v:.3f}" for k, v in figures.items() if isinstance(v, float) and k in ("STQ", "mIoU")}
        bar.set_postfix(loss=f"{values['loss']:.3f}", samples_s=f"{config.batch_size / seconds:.1f}", **shown)
        bar.update()

        if run.step % config.save_every == 0 or last or stopping:
            run.save()
        if bad >= config.max_nonfinite:
            raise FloatingPointError(
                f"{bad} steps in a row without a finite loss and gradient, up to step {run.step}; the weights before "
                f"them are in {run.folder / LATEST}: try a lower --lr or --mixed_precision no"
            )
    bar.close()
