"""What the machine allows: how many loader processes, and how many samples at once."""

import os
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset

from data.io.cores import usable_cores
from model import Pix2SeqD
from model.diffusion.draws import draw
from model.diffusion.loss import LossConfig, training_loss
from training.config import TrainingConfig
from training.run import outlive_signals

MARGIN = 0.15  # of the free memory: fragments, and kernels that want room of their own


def loader_workers(config: TrainingConfig, accelerator: Accelerator) -> int:
    """How many loader processes this training process has: with a GPU its share of the cores, 16 at most; on a CPU 2,
    because the cores compute."""
    if config.num_workers != "auto":
        return config.num_workers
    if accelerator.device.type == "cpu":
        return 2
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
    return max(1, min(16, usable_cores() // beside))


def sample_loader(samples: Dataset, batches: Any, config: TrainingConfig, accelerator: Accelerator) -> DataLoader:
    """The samples of a run in its batches (training/step.py, StepBatches), from processes of their own."""
    workers = loader_workers(config, accelerator)
    return DataLoader(
        samples,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=accelerator.device.type == "cuda",
        prefetch_factor=4 if workers else None,
        worker_init_fn=_init_worker if workers else None,
        multiprocessing_context="fork" if workers and os.name == "posix" else None,
    )


def _init_worker(_: int) -> None:
    torch.set_num_threads(1)
    if hasattr(os, "nice"):  # not on Windows
        os.nice(5)  # the process that feeds the GPU comes first
    outlive_signals()


def slices(
    model: Pix2SeqD,
    loss: LossConfig,
    config: TrainingConfig,
    accelerator: Accelerator,
    resume: dict[str, Any] | None = None,
    peak: Callable[[Callable[[], None]], int] | None = None,
    free: int | None = None,
) -> int:
    """Into how many slices each process splits its share of a step: as --accumulate says, or with auto as the free
    memory allows.

    A resumed run with the same number of processes keeps its slices, so that it computes the same. On a CPU it is one.
    Otherwise the memory of a sample is measured: what two samples need beyond one, forward and backward. model: on its
    device, as it is. peak(call) -> bytes that a call takes at most; free: bytes. Tests give both; otherwise they are
    measured.
    """
    if config.accumulate != "auto":
        return config.accumulate
    before = (resume or {}).get("training", {})
    kept = before.get("config", {}).get("accumulate")
    share, rest = divmod(config.batch_size, accelerator.num_processes)
    if isinstance(kept, int) and before.get("processes") == accelerator.num_processes and share % kept == 0:
        return kept
    if rest or (peak is None and accelerator.device.type != "cuda"):
        return 1
    if free is None:
        torch.cuda.empty_cache()
        free, peak = torch.cuda.mem_get_info(accelerator.device)[0], _cuda_peak
    try:
        one, two = (peak(lambda count=count: one_batch(model, loss, config, accelerator, count)) for count in (1, 2))
    except torch.cuda.OutOfMemoryError:  # of two samples, it may be; if of one, the first step says so
        model.zero_grad(set_to_none=True)
        one, two = 0, free  # one at a time
    weights = sum(p.nbytes for p in model.parameters())
    # Averaged weights and the optimizer's two momenta; what is sent to other processes
    later = weights * (4 if accelerator.num_processes > 1 else 3)
    sample, fixed = max(two - one, 1), max(2 * one - two, 0)
    most = ((1 - MARGIN) * free - later - fixed) // sample
    number = next((n for n in range(1, share + 1) if share % n == 0 and share // n <= most), share)
    number = max(gather_object([number])) if accelerator.num_processes > 1 else number
    needed = f"{sample / 2**30:.2f} GiB a sample" if sample < free else "two samples do not fit"
    accelerator.print(
        f"each step in {number} slice{'s' * (number > 1)} of {share // number} a process: {needed}, "
        f"{free / 2**30:.1f} GiB free"
    )
    return number


def one_batch(model: Pix2SeqD, loss: LossConfig, config: TrainingConfig, accelerator: Accelerator, count: int) -> None:
    """Forward and backward of a batch of so many samples, as in training; no weight changes."""
    c, device = model.config, accelerator.device
    maps = torch.zeros(count, len(c.history_offsets) + 1, *c.mask_size, dtype=torch.uint8, device=device)
    image = torch.zeros(count, 3, *c.image_size, device=device).contiguous(memory_format=torch.channels_last)
    batch = {"image": image, "semantic": maps, "instance": maps}
    batch |= {"semantic_known": maps == 0, "instance_known": maps == 0}
    draws = draw(config.seed, range(count), model, c.mask_size, device)
    model.train()
    with torch.enable_grad(), accelerator.autocast():
        value, _ = training_loss(model, c, loss, batch, draws)
    value.backward()
    model.zero_grad(set_to_none=True)


def _cuda_peak(call: Callable[[], None]) -> int:
    call()  # the first time kernels are tried out, which takes memory of its own
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    most = torch.cuda.max_memory_allocated() - before
    torch.cuda.empty_cache()
    return most
