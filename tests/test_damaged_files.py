"""A file is not believed: neither its bytes, nor its sizes, nor its configuration."""

import resource
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from small import CONFIG, Scenes

from model import CheckpointError, ConfigError, ModelConfig, Pix2SeqD, VideoPredictor
from model import checkpoint as checkpoints
from model.checks import MAX_PIXELS
from model.diffusion.loss import LossConfig
from training.config import TrainingConfig
from training.fit import fit

MEMORY = 2 << 30  # bytes beyond what this process has; each of the files below asks for more


@pytest.fixture
def little_memory():
    """An allocation of more than MEMORY fails, and is not taken for a refusal."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def stored(weights, **config):
    return {"format": checkpoints.FORMAT, "config": CONFIG.to_dict() | config, "weights": weights}


def test_an_altered_byte_is_found(tmp_path):
    path = tmp_path / "a.pt"
    checkpoints.save(path, stored({"a": torch.arange(1000.0)}))
    data = bytearray(path.read_bytes())
    data[data.index(torch.arange(1000.0).numpy().tobytes()) + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"the checksum of .* does not fit"):
        checkpoints.load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder_dim": 8192, "encoder_depth": 100, "transformer_dim": 8192, "denoiser_depth": 100},  # 300 GB
        {"multipliers": [1, 64, 64, 64]},
        {"map_channels": 8192, "dim": 8192},
    ],
)
def test_a_configuration_that_its_weights_do_not_bear_out_is_not_built(tmp_path, little_memory, changes):
    checkpoints.save(tmp_path / "a.pt", stored(Pix2SeqD(CONFIG).state_dict(), **changes))
    with pytest.raises(CheckpointError, match="is of another configuration"):
        VideoPredictor.from_checkpoint(tmp_path / "a.pt", device="cpu")


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": [16_384, 16_384]}, {"mask_size": [16_384, 16_384]}, {"history_offsets": [-(10**12), -1]},
        {"code_bits": [5, 8, 8, 8]}, {"multipliers": [1] * 10**6}, {"multipliers": []}, {"dim": 16.0}, {"dim": True},
        {"image_size": 64}, {"image_size": [32.5, 64]}, {"scale": float("inf")}, {"dropout": "0"}, {"backbone": ["a"]},
        {"published": 1}, {"tracked": [[11]]},
    ],
    ids=str,
)  # fmt: skip
def test_a_configuration_that_no_weight_bears_out_is_bounded(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        ModelConfig.from_dict(CONFIG.to_dict() | changes)


def test_a_mask_that_a_files_proportions_would_blow_up_is_refused():
    config = ModelConfig.from_dict(CONFIG.to_dict() | {"image_size": [8, 8], "mask_size": [2048, 2048]})
    with pytest.raises(ConfigError, match=f"{MAX_PIXELS:,} pixels at most"):
        config.sizes_for((384, 1248), (384, 1248))


def run(folder, resume=None, steps=1):
    config = TrainingConfig(steps=steps, batch_size=2, num_workers=0, validate_every=0, save_every=1, seed=0)
    return fit(Pix2SeqD(CONFIG), LossConfig(), config, Scenes(), folder, Accelerator(cpu=True), resume, quiet=True)


def test_an_optimizer_that_is_of_other_parameters_is_refused(tmp_path):
    run(tmp_path)
    checkpoint = checkpoints.load(tmp_path / "model-latest.pt")
    optimizer = checkpoint["training"]["optimizer"]
    settings = optimizer["param_groups"][0]
    settings.update(maximize=True, eps=1e9)  # of the file, and not of this run
    run(tmp_path / "again", checkpoint, steps=2)
    after = checkpoints.load(tmp_path / "again" / "model-latest.pt")["training"]["optimizer"]["param_groups"][0]
    assert after["maximize"] is False and after["eps"] < 1e-3
    for moment in (torch.zeros(3), "many"):
        optimizer["state"][0]["exp_avg"] = moment
        with pytest.raises(CheckpointError, match="the optimizer's state does not fit"):
            run(tmp_path / "other", checkpoint, steps=2)
    optimizer["state"] = [1]
    with pytest.raises(CheckpointError, match="the optimizer's state does not fit"):
        run(tmp_path / "other", checkpoint, steps=2)


@pytest.mark.parametrize("changes", [{"step": -1}, {"ema_step": 10**30}, {"step": True}, {"step": 1.0}])
def test_steps_that_nobody_counted_are_refused(tmp_path, changes):
    weights = {"a": torch.zeros(1)}
    training = {"step": 1, "ema_step": 1, "weights": weights, "optimizer": {}} | changes
    checkpoints.save(tmp_path / "a.pt", stored(weights) | {"training": training})
    with pytest.raises(CheckpointError, match="not whole"):
        checkpoints.load(tmp_path / "a.pt")
