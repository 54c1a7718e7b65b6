"""What full trainings would cost: estimates, from counted work, an assumed share of a GPU's rate, and the measured
loader. The work is counted on tensors without values, so that this takes seconds for any preset."""

import torch

import train
from benchmarks.speed_inference import sizes
from benchmarks.speed_timing import Row, Setup, config_of, gflops
from benchmarks.speed_training import loader_rates
from model import PRESETS, ModelConfig, Pix2SeqD
from model.diffusion.draws import Draws
from model.diffusion.loss import LossConfig, training_loss
from training import options

# Published: steps and batch
FULL_TRAINING = {"Cityscapes pre-training": (30_000, 16), "KITTI-STEP training": (50_000, 32)}
RATE, SHARE = 312e12, 0.4  # bf16 FLOP/s of an A100 80 GB by its data sheet, and the share that is assumed of it
GPUS = (1, 8)


def estimate(setup: Setup) -> list[Row]:
    """Hours of the published trainings for `small` and `base`, and the loader processes that they need a GPU."""
    rows = []
    for preset in [name for name in PRESETS if name != "tiny"]:
        config = config_of(preset, setup.image_size)
        loss = options.preset_settings(preset, train.RECIPE)[2]
        work = work_of(config, loss)
        rows.append(Row(f"{preset}: work of a training sample", work, "GFLOP", note=f"counted; {sizes(config)}"))
        a_second = RATE * SHARE / (work * 1e9)
        for name, (steps, batch) in FULL_TRAINING.items():
            for gpus in GPUS:
                hours = steps * batch / a_second / gpus / 3600
                note = f"estimate: {steps:,} steps of {batch}, {SHARE:.0%} of {RATE / 1e12:.0f} TFLOP/s (an A100's)"
                rows.append(Row(f"{preset}: {name}, {gpus} GPU{'s' * (gpus > 1)}", hours, "h", note=note))
        rows.append(
            Row(f"{preset}: samples that a GPU asks for", a_second, "samples/s", note="estimate: the same rate")
        )
        if preset in setup.presets:  # whose loader is measured
            rate = loader_rates(setup, preset)["PNGs, cached"]
            workers = a_second / sorted(rate)[len(rate) // 2]
            note = "estimate: from the loader's measured rate, frames cached; a core of this machine each"
            rows.append(Row(f"{preset}: loader processes a GPU needs", workers, "", note=note))
    return rows


def work_of(config: ModelConfig, loss: LossConfig) -> float:
    """GFLOP of one training sample, forward and backward, without recomputed activations (which are no use of it)."""
    with torch.device("meta"):
        model = Pix2SeqD(config).train()
        maps = (1, len(config.history_offsets) + 1, *config.mask_size)
        batch = {name: torch.zeros(maps, dtype=torch.uint8) for name in ("semantic", "instance")}
        batch |= {name: torch.ones(maps, dtype=torch.bool) for name in ("semantic_known", "instance_known")}
        batch["image"] = torch.zeros(1, 3, *config.image_size)
        noise = torch.zeros(1, config.bits, *config.mask_size)
        draws = Draws(torch.zeros(1), noise, torch.zeros(1), noise, torch.zeros(1, 2))
        return gflops(lambda: training_loss(model, config, loss, batch, draws)[0].backward())
