"""Checkpoints: complete or absent, verified, free of code, and clear about what does not fit."""

import dataclasses
import os
import pickle
import random
import resource
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small import CONFIG

from data.labels import DEFAULT_SPACE
from model import CheckpointError, Pix2SeqD, VideoPredictor
from model import checkpoint as checkpoints
from model.checkpoint import check_plain, load, newest, prune, save, saved_numbers
from training.start import initial_model


def content(step=None, value=0.0, **extra):
    """A small file of the right form; with a step it can be gone on from."""
    weights = {"a": torch.full((100, 100), value)}
    checkpoint = {"format": checkpoints.FORMAT, "config": {}, "weights": weights, **extra}
    if step is not None:
        checkpoint["training"] = {"step": step, "ema_step": step, "weights": weights, "optimizer": {}}
    return checkpoint


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    written = content(3, 0.5, classes=["road"], nested={"list": [1, 2.5, None, True, "x", (1, 2)]})
    save(tmp_path / "new" / "model-1.pt", written)
    read = load(tmp_path / "new" / "model-1.pt")
    assert torch.equal(read.pop("weights")["a"], written.pop("weights")["a"])
    assert torch.equal(read["training"].pop("weights")["a"], written["training"].pop("weights")["a"])
    assert read == written and [p.name for p in (tmp_path / "new").iterdir()] == ["model-1.pt"]


@pytest.mark.parametrize(
    "value",
    [{1, 2}, np.zeros(3), np.float32(1), torch.nn.Parameter(torch.zeros(1)), object(), {1.5: 0}, [{"a": print}], 1j],
)
def test_what_is_neither_tensor_nor_plain_is_refused_before_anything_is_written(tmp_path, value):
    save(tmp_path / "a.pt", content(1))
    before = (tmp_path / "a.pt").read_bytes()
    with pytest.raises(CheckpointError, match=r"checkpoint\.extra"):
        save(tmp_path / "a.pt", content(2, extra=value))
    assert (tmp_path / "a.pt").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_the_message_says_where_the_wrong_value_is():
    with pytest.raises(CheckpointError, match=r"checkpoint\.training\.list\[1\] is a set"):
        check_plain({"training": {"list": [1, {2}]}})


@pytest.mark.parametrize("fault", ["save", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_file_that_was_there(tmp_path, monkeypatch, fault):
    save(tmp_path / "a.pt", content(1))
    before = (tmp_path / "a.pt").read_bytes()

    def fail(*args):
        if fault == "save":
            args[1].write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*{"save": (torch, "save"), "fsync": (os, "fsync"), "replace": (os, "replace")}[fault], fail)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path / "a.pt", content(2))
    monkeypatch.undo()
    assert (tmp_path / "a.pt").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_file_that_may_not_grow_is_an_oserror_and_the_next_write_works(tmp_path):
    """As on a full disk; torch's writer has errors of its own for it."""
    save(tmp_path / "a.pt", content(1))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
        with pytest.raises(OSError, match=r"."):
            save(tmp_path / "a.pt", content(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert load(tmp_path / "a.pt")["training"]["step"] == 1 and len(list(tmp_path.iterdir())) == 1
    save(tmp_path / "a.pt", content(2))
    assert load(tmp_path / "a.pt")["training"]["step"] == 2


def test_what_a_killed_run_left_half_written_is_written_over(tmp_path):
    (tmp_path / ".model-1.pt.part").write_bytes(b"half")
    save(tmp_path / "model-1.pt", content(1))
    assert [p.name for p in tmp_path.iterdir()] == ["model-1.pt"]


# ---------------------------------------------------------------------------------------------------------------------
# Files that cannot be trusted
# ---------------------------------------------------------------------------------------------------------------------


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_file_that_carries_code_is_refused_and_does_not_run_it(tmp_path):
    mark = tmp_path / "owned"
    torch.save(content(1, extra=Payload(mark)), tmp_path / "zip.pt")
    torch.save(content(1, extra=Payload(mark)), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Payload(mark)))
    for name in ("zip.pt", "old.pt", "pickle.pt"):
        with pytest.raises(CheckpointError, match=rf"{name} is (refused|damaged)"):
            load(tmp_path / name)
    assert not mark.exists()
    torch.load(tmp_path / "zip.pt", weights_only=False)
    assert mark.exists()  # the payload would have worked


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        ([1, 2], "no checkpoint of this program"),
        ({"format": "other/1"}, "no checkpoint of this program"),
        (content() | {"config": None}, "lacks its configuration"),
        (content() | {"weights": {"a": 3}}, "lacks its configuration or its weights"),
        (content() | {"training": {"step": "7"}}, "not whole"),
        (content() | {"training": {"step": 7, "ema_step": 7, "optimizer": {}}}, "not whole"),
        (content() | {"training": [1]}, "not whole"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path, stored, reason):
    torch.save(stored, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=reason):
        load(tmp_path / "a.pt")


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*nowhere\.pt"):
        load(tmp_path / "nowhere.pt")
    with pytest.raises(CheckpointError, match="is a folder"):
        load(tmp_path)


def test_each_altered_byte_of_the_values_is_noticed(tmp_path):
    """A flipped bit anywhere in the stored tensors and values, which torch.load alone lets pass."""
    path = tmp_path / "a.pt"
    save(path, content(1))
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        spans = [(i.header_offset, i.file_size) for i in archive.infolist() if i.file_size > 1000]
    rng = random.Random(0)
    for k in range(60):
        start, size = spans[k % len(spans)]
        place = whole.index(b"FB", start) + 200 + rng.randrange(size - 400)
        altered = bytearray(whole)
        altered[place] ^= 1 << rng.randrange(8)
        path.write_bytes(altered)
        with pytest.raises(CheckpointError, match="damaged"):
            load(path)


@pytest.mark.parametrize("size", [0, 1, 100, 5000, -1000, -1])
def test_truncated_files_are_noticed(tmp_path, size):
    path = tmp_path / "a.pt"
    save(path, content(1))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="damaged"):
        load(path)


# ---------------------------------------------------------------------------------------------------------------------
# Which one to go on from
# ---------------------------------------------------------------------------------------------------------------------


def test_the_highest_stored_step_is_gone_on_from(tmp_path):
    assert newest(tmp_path) is None and newest(tmp_path / "nowhere") is None
    for number, step in ((1, 500), (2, 1000), (10, 5000)):
        save(tmp_path / f"model-{number}.pt", content(step))
    save(tmp_path / "model-latest.pt", content(5200))
    assert newest(tmp_path)[0].name == "model-latest.pt"
    save(tmp_path / "model-latest.pt", content(700))  # an old one, put back
    assert newest(tmp_path)[0].name == "model-10.pt"
    (tmp_path / "model-latest.pt").unlink()
    save(tmp_path / "model-3.pt", content(6000))  # numbered under another --save_every
    path, stored = newest(tmp_path)
    assert path.name == "model-3.pt" and stored["training"]["step"] == 6000


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b[:30000] + b"\x7f" + b[30001:], lambda b: b""]
)
def test_a_damaged_latest_falls_back_to_the_one_before_and_says_so(tmp_path, damage):
    save(tmp_path / "model-1.pt", content(500))
    save(tmp_path / "model-2.pt", content(1000))
    save(tmp_path / "model-latest.pt", content(1000))
    for name, expected in (("model-latest.pt", "model-2.pt"), ("model-2.pt", "model-1.pt")):
        (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
        said = []
        assert newest(tmp_path, report=said.append)[0].name == expected
        assert any(name in line and "damaged" in line and f"going on with {expected}" in line for line in said)
    (tmp_path / "model-1.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no other is left: move it away"):  # and is not started over
        newest(tmp_path)


def test_weights_alone_are_never_gone_on_from(tmp_path):
    save(tmp_path / "model-latest.pt", content())
    save(tmp_path / "model-0.pt", content(9000))  # the user's: its step does not count
    assert newest(tmp_path) is None
    save(tmp_path / "model-1.pt", content(500))
    assert newest(tmp_path)[0].name == "model-1.pt"


def test_the_newest_numbered_checkpoints_are_the_last_written(tmp_path):
    """With a larger --save_every the numbers start lower again."""
    for time, n in enumerate((46, 47, 48, 49, 50, 11)):
        (tmp_path / f"model-{n}.pt").touch()
        os.utime(tmp_path / f"model-{n}.pt", (time, time))
    prune(tmp_path, keep=2, milestone=0)
    assert saved_numbers(tmp_path) == [11, 50]


def test_old_numbered_checkpoints_go_and_milestones_stay(tmp_path):
    for n in range(26):
        (tmp_path / f"model-{n}.pt").touch()
    for name in ("model-latest.pt", "model-x.pt", "model-03.pt", "other-3.pt"):
        (tmp_path / name).touch()
    prune(tmp_path, keep=0, milestone=10)
    assert saved_numbers(tmp_path) == list(range(1, 26))
    prune(tmp_path, keep=3, milestone=10)
    assert saved_numbers(tmp_path) == [10, 20, 23, 24, 25]
    prune(tmp_path, keep=1, milestone=0)
    assert saved_numbers(tmp_path) == [25]
    assert all((tmp_path / f"{n}.pt").exists() for n in ("model-0", "model-latest", "model-x", "model-03", "other-3"))


# ---------------------------------------------------------------------------------------------------------------------
# Weights into models
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Pix2SeqD(CONFIG)


def file_of(model, path, step=None, **changes):
    config = dataclasses.replace(model.config, **changes)
    stored = content(step) | {"config": config.to_dict(), "weights": model.state_dict()}
    if step is not None:
        stored["training"]["weights"] = model.state_dict()
    save(path, stored)
    return path


def start(config, folder, say=str, **flags):
    args = {"preset": "tiny", "init": None, "backbone_weights": "none", "results_folder": folder} | flags
    return initial_model(config, DEFAULT_SPACE, SimpleNamespace(**args), SimpleNamespace(print=say, num_processes=1))


def test_model_0_gives_its_weights_once_and_is_never_written(model, tmp_path):
    path = file_of(model, tmp_path / "model-0.pt", step=777)
    before = path.read_bytes()
    said = []
    taken, resume = start(CONFIG, tmp_path, said.append)
    assert resume is None and "model-0.pt" in said[0]
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in taken.state_dict().items())
    file_of(model, tmp_path / "model-latest.pt", step=4)
    _, resume = start(CONFIG, tmp_path, said.append, init=path)
    assert resume["training"]["step"] == 4 and "step 4" in said[1]
    assert path.read_bytes() == before


def test_init_comes_before_model_0_and_after_a_resume(model, tmp_path):
    file_of(model, tmp_path / "model-0.pt")
    torch.manual_seed(1)
    other = Pix2SeqD(CONFIG)
    init = file_of(other, tmp_path / "shared.pt")
    taken, resume = start(CONFIG, tmp_path, str, init=init)
    assert resume is None and torch.equal(taken.encoder.stem[0].weight, other.encoder.stem[0].weight)


@pytest.mark.parametrize("changes", [{"image_size": (48, 96), "mask_size": (24, 48)}, {"tracked": (11,)}])
def test_another_size_never_keeps_weights_from_loading(model, tmp_path, changes):
    path = file_of(model, tmp_path / "a.pt", **changes)
    taken, _ = start(CONFIG, tmp_path / "run", str, init=path)
    assert taken.config == CONFIG
    predictor = VideoPredictor.from_checkpoint(path, device="cpu")
    frame = np.zeros((40, 70, 3), np.uint8)
    assert predictor.image_size == tuple(changes.get("image_size", CONFIG.image_size))
    assert predictor(frame).semantic.shape == (40, 70)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"dim": 32}, "dim is 16, not 32"), ({"code_bits": (5, 6)}, r"code_bits is \(5, 5\), not \(5, 6\)")],
)
def test_a_checkpoint_of_another_preset_is_refused_with_what_differs(model, tmp_path, changes, said):
    path = file_of(model, tmp_path / "a.pt")
    wanted = dataclasses.replace(CONFIG, **changes)
    with pytest.raises(CheckpointError, match=f"another configuration than --preset tiny: {said}"):
        start(wanted, tmp_path / "run", str, init=path)


def test_weights_that_do_not_fit_their_configuration_are_refused(model, tmp_path):
    weights = dict(model.state_dict())
    first = next(iter(weights))
    weights["stray"] = weights.pop(first)
    key = "denoiser.conv_out.weight"
    weights[key] = weights[key][:5]
    save(tmp_path / "a.pt", content() | {"config": CONFIG.to_dict(), "weights": weights})
    with pytest.raises(
        CheckpointError, match=r"1 tensors of another size, 1 missing, 1 unknown \(as denoiser.conv_out"
    ):
        VideoPredictor.from_checkpoint(tmp_path / "a.pt", device="cpu")


def test_half_precision_weights_are_widened(model, tmp_path):
    weights = {k: v.half() for k, v in model.state_dict().items()}
    save(tmp_path / "a.pt", content() | {"config": CONFIG.to_dict(), "weights": weights})
    loaded = VideoPredictor.from_checkpoint(tmp_path / "a.pt", device="cpu").model.state_dict()
    assert all(v.dtype == torch.float32 and torch.equal(v, weights[k].float()) for k, v in loaded.items())


@pytest.mark.parametrize(
    "changes", [{"dim": "wide"}, {"dim": None}, {"multipliers": 3}, {"backbone": "vgg"}, {"new_setting": 1},
                {"code_bits": [5, 5, "x"]}, {"encoder_heads": 0}, {"dim": 10**9}],
)  # fmt: skip
def test_a_configuration_that_nobody_wrote_is_refused(tmp_path, changes):
    save(tmp_path / "a.pt", content() | {"config": CONFIG.to_dict() | changes})
    with pytest.raises(CheckpointError, match=r"a\.pt"):
        VideoPredictor.from_checkpoint(tmp_path / "a.pt", device="cpu")
