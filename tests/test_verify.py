"""A file is believed nothing: neither its sizes, nor its configuration, nor what its pickle names."""

import contextlib
import resource
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from small import CONFIG, Scenes

from model import CheckpointError, ConfigError, ModelConfig, Pix2SeqD, VideoPredictor
from model import checkpoint as checkpoints
from model.diffusion import LossConfig
from model.pix2seq_d import MAX_PIXELS
from model.training import TrainingConfig, fit
from model.verify import Claim, Refused, verify

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


def with_pickle(path, change):
    """A small whole checkpoint, but for its pickle."""
    torch.save(stored({"a": torch.arange(4.0)}), path)
    with zipfile.ZipFile(path) as file:
        records = {record.filename: file.read(record) for record in file.infolist()}
    name = next(name for name in records if name.endswith("/data.pkl"))
    changed = change(records[name])
    assert changed != records[name]
    with zipfile.ZipFile(path, "w") as file:
        for key, data in (records | {name: changed}).items():
            file.writestr(key, data)
    return path


def call(function, number):
    """A pickle of one call, which torch.load with weights_only does."""
    return b"\x80\x02c" + function.replace(".", "\n").encode() + b"\n\x8a\x08" + struct.pack("<q", number) + b"\x85R."


def test_the_structure_of_a_whole_file(tmp_path):
    model = Pix2SeqD(CONFIG)
    torch.save(stored(model.state_dict()), tmp_path / "a.pt")
    content = verify(tmp_path / "a.pt")
    assert content["weights"] == {k: Claim(tuple(v.shape)) for k, v in model.state_dict().items()}
    assert content["config"] == CONFIG.to_dict()


@pytest.mark.parametrize("call_of", ["builtins.bytearray", "torch.FloatTensor", "torch.Tensor"])
def test_a_pickle_that_asks_for_memory_is_refused(tmp_path, little_memory, call_of):
    path = with_pickle(tmp_path / "a.pt", lambda _: call(call_of, 10**11))
    with pytest.raises(CheckpointError, match=rf"a\.pt is refused: .*{call_of}"):
        checkpoints.load(path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"K\x04tq", b"J\xff\xff\xff\x7ftq", "record of another size"),  # values of the storage
        (b"K\x04\x85", b"K\x05\x85", "beyond its values"),  # shape
        (b"K\x04\x85", b"J\xff\xff\xff\xff\x85", "impossible size"),
        (b"ctorch\nFloatStorage", b"ctorch\nDoubleStorage", "record of another size"),
        (b"ctorch._utils\n_rebuild_tensor_v2", b"ctorch._utils\n_rebuild_sparse_tensor", "_rebuild_sparse_tensor"),
        (b"ctorch._utils\n_rebuild_tensor_v2", b"ctorch._utils\n_rebuild_meta_tensor_no_storage", "_rebuild_meta"),
        (b"ccollections\nOrderedDict", b"ccollections\nCounter", "collections.Counter"),
    ],
)
def test_claims_that_the_records_do_not_bear_out_are_refused(tmp_path, old, new, said):
    path = with_pickle(tmp_path / "a.pt", lambda data: data.replace(old, new))
    with pytest.raises(Refused, match=said):
        verify(path)


def test_a_value_that_is_repeated_without_end_is_refused(tmp_path, little_memory):
    """A stride of zero: a kilobyte on the disk, 400 GB in memory."""
    torch.save(stored({"a": torch.zeros(1).expand(10**11)}), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="claim 400,000,000,000 bytes, far more than the file holds"):
        checkpoints.load(tmp_path / "a.pt")


def test_a_dictionary_whose_methods_are_replaced_is_refused(tmp_path):
    """torch.load lets a file set the attributes of an OrderedDict."""
    weights = Pix2SeqD(CONFIG).state_dict()
    weights.other = 3
    torch.save(stored(weights), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="a dictionary with attributes"):
        checkpoints.load(tmp_path / "a.pt")


@pytest.mark.parametrize("other", ["{}/data.pkl", "{}/DATA.PKL", "other/data.pkl"])
def test_a_second_structure_is_refused(tmp_path, other):
    """PyTorch's reader might take the one, ours the other."""
    torch.save(stored({}), tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt", "a") as file:
        folder = file.namelist()[0].partition("/")[0]
        with contextlib.nullcontext() if "{}/data" not in other else pytest.warns(UserWarning, match="Duplicate"):
            file.writestr(other.format(folder), b"x")
    with pytest.raises(CheckpointError, match="two of its records"):
        checkpoints.load(tmp_path / "a.pt")


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
        {"self_conditioning": 1}, {"tracked": [[11]]},
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
