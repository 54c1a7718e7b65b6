"""fit(): a run that is interrupted is the run that was not, one process is as many, faults cost nothing.

Runs are made in forked processes, which can be killed and cost no start.
"""

import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import resource
import signal
import socket
import time

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from ema_pytorch import EMA
from small import CONFIG, Scenes, reduced, scene

from model import PRESETS, ConfigError, Pix2SeqD
from model import checkpoint as checkpoints
from model.diffusion.loss import LossConfig
from train import RECIPE
from training.config import TrainingConfig
from training.fit import fit
from training.machine import MARGIN, slices
from training.run import Log
from training.step import StepBatches, learning_rate

SETTINGS = {
    "steps": 7, "batch_size": 4, "save_every": 3, "warmup": 2, "lr": 1e-3, "ema_decay": 0.9, "num_workers": 0,
    "validate_every": 0, "keep": 0,
}  # fmt: skip
LOSS = LossConfig()


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in another order are other sums; and forked processes need it
    yield
    torch.set_num_threads(before)


def double(model):
    """The same model in float64, but for its inputs and its loss."""
    model = model.double()
    for part in (model, *(m for m in model.modules() if next(m.parameters(recurse=False), None) is not None)):
        part.register_forward_pre_hook(lambda _, args: tuple(a.double() if _is_float(a) else a for a in args))
    return model


def _is_float(value):
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def train(folder, samples=None, precise=False, **changes):
    """One call of the same command: resume, or start from seed 0."""
    keys = ("validate", "picture", "extra")
    options = {k: changes.pop(k) for k in keys if k in changes}
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Pix2SeqD(changes.pop("config", CONFIG))
    found = checkpoints.newest(folder)
    resume = found[1] if found else None
    model = double(model) if precise else model
    settings = TrainingConfig(**SETTINGS | changes)
    return fit(model, LOSS, settings, samples or Scenes(), folder, Accelerator(cpu=True), resume, quiet=True, **options)


def started(folder, environment=None, **options):
    def target():
        os.setpgrp()
        os.environ.update(environment or {})
        PartialState._reset_state()
        AcceleratorState._reset_state(True)
        train(folder, **options)

    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    return process


def together(folder, processes, **options):
    """The same command in several processes, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    running = [
        started(folder, shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, **options) for rank in range(processes)
    ]
    for process in running:
        process.join()
    assert [p.exitcode for p in running] == [0] * processes


def wait_for(condition, process):
    while not condition() and process.is_alive():
        time.sleep(0.002)


def log_of(folder):
    path = folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def lines(folder):
    path = folder / "log.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def end_of(folder):
    return checkpoints.load(folder / "model-latest.pt")


def tensors(checkpoint):
    states = checkpoint["training"]["optimizer"]["state"]
    moments = {f"{i}.{k}": v for i, s in states.items() for k, v in s.items() if isinstance(v, torch.Tensor)}
    raw = {f"raw.{k}": v for k, v in checkpoint["training"]["weights"].items()}
    return checkpoint["weights"] | raw | moments


def assert_same_run(folder, other):
    a, b = end_of(folder), end_of(other)
    assert a["training"]["step"] == b["training"]["step"] and a["training"]["ema_step"] == b["training"]["ema_step"]
    left, right = tensors(a), tensors(b)
    assert left.keys() == right.keys() and len(left) > 300
    assert [k for k in left if not torch.equal(left[k], right[k])] == []
    plain = [[{k: v for k, v in e.items() if k != "samples_per_s"} for e in log_of(f)] for f in (folder, other)]
    assert plain[0] == plain[1]


def difference(folder, other):
    """Between the weights of two runs, relative to their size."""
    a, b = (end_of(f)["training"]["weights"] for f in (folder, other))
    flat = [torch.cat([w[k].double().flatten() for k in sorted(a)]) for w in (a, b)]
    return ((flat[0] - flat[1]).norm() / flat[0].norm()).item()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = started(folder)
    process.join()
    assert process.exitcode == 0
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# Exact resume
# ---------------------------------------------------------------------------------------------------------------------


def test_a_run_leaves_its_log_and_checkpoints(uninterrupted):
    assert sorted(p.name for p in uninterrupted.iterdir()) == [
        "log.jsonl", "model-1.pt", "model-2.pt", "model-latest.pt"
    ]  # fmt: skip
    log = log_of(uninterrupted)
    assert [e["step"] for e in log] == list(range(1, 8))
    config = TrainingConfig(**SETTINGS)
    for entry in log:
        assert {"loss", "semantic", "instance", "grad_norm", "lr", "samples_per_s"} <= entry.keys()
        assert math.isfinite(entry["loss"]) and entry["lr"] == learning_rate(entry["step"] - 1, config)
    steps = {n: checkpoints.load(uninterrupted / f"model-{n}.pt")["training"]["step"] for n in (1, 2, "latest")}
    assert steps == {1: 3, 2: 6, "latest": 7}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_goes_on_to_the_same_weights(uninterrupted, tmp_path, workers):
    """Killed before the first save, while a file is half written, between saves, and after the last."""
    part = tmp_path / ".model-2.pt.part"
    moments = (lambda: lines(tmp_path) >= 2, lambda: lines(tmp_path) >= 4, part.exists, lambda: lines(tmp_path) >= 7)
    for moment in moments:
        process = started(tmp_path, num_workers=workers)
        wait_for(moment, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    process = started(tmp_path, num_workers=workers)
    process.join()
    assert process.exitcode == 0
    assert_same_run(uninterrupted, tmp_path)


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 2), (signal.SIGINT, 0)])
def test_a_signal_to_the_whole_group_ends_the_step_and_saves(uninterrupted, tmp_path, number, workers):
    process = started(tmp_path, num_workers=workers)
    wait_for(lambda: lines(tmp_path) >= 4, process)
    os.killpg(process.pid, number)
    process.join()
    assert process.exitcode == 0
    stopped_at = end_of(tmp_path)["training"]["step"]
    assert 4 <= stopped_at < 7 and [e["step"] for e in log_of(tmp_path)] == list(range(1, stopped_at + 1))
    train(tmp_path, num_workers=workers)
    assert_same_run(uninterrupted, tmp_path)


def test_a_finished_run_is_left_as_it_is(uninterrupted, capsys):
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in uninterrupted.iterdir()}
    assert train(uninterrupted) == 7
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in uninterrupted.iterdir()} == before
    assert "give more --steps" in capsys.readouterr().out


def test_a_damaged_log_is_mended(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n\xff\xfe\n[3]\n{"step": "2"}\n{"step": 2}\n{"step": 3}\n{"st')
    log = Log(path, 2)
    log.write(step=3)
    log.close()
    assert [e["step"] for e in log_of(tmp_path)] == [1, 2, 3]


# ---------------------------------------------------------------------------------------------------------------------
# Slices and processes
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def precise(tmp_path_factory):
    folder = tmp_path_factory.mktemp("float64")
    process = started(folder, precise=True)
    process.join()
    assert process.exitcode == 0
    return folder


class ClipsOf(Scenes):
    """Scenes whose image has the size that a configuration wants."""

    def __init__(self, config):
        super().__init__()
        self.config = config

    def __getitem__(self, n):
        sample = scene(n % self.count, dataclasses.replace(self.config, image_size=self.config.mask_size))
        image = torch.nn.functional.interpolate(sample["image"][None], self.config.image_size)[0]
        return sample | {"image": image}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("precise", "limit"), [(True, 1e-6), (False, 1e-3)])
def test_two_processes_do_the_training_of_one(preset, precise, limit, tmp_path):
    """After ten steps, to 1e-6 in float64; in float32, where sums depend on their order, to 1e-3."""
    backbone = "cspnet" if preset == "tiny" else "resnet10"
    config = reduced(preset, (32, 64), backbone=backbone)
    options = {"precise": precise, "steps": 10, "config": config, "samples": ClipsOf(config), "batch_size": 2}
    options["save_every"] = 10
    process = started(tmp_path / "one", **options)
    process.join()
    together(tmp_path / "two", 2, **options)
    assert difference(tmp_path / "one", tmp_path / "two") < limit
    losses = [[e["loss"] for e in log_of(tmp_path / name)] for name in ("one", "two")]
    assert len(losses[0]) == 10 and losses[0] == pytest.approx(losses[1], rel=10 * limit)


def needs(sample, fixed=0):
    """A stand-in for what a GPU measures: bytes that a call takes, so many a sample."""

    def peak(call):
        call()
        return fixed + sample * call.__defaults__[0]

    return peak


def test_slices_are_as_many_as_the_free_memory_asks_for(monkeypatch):
    torch.manual_seed(0)
    model, accelerator = Pix2SeqD(CONFIG), Accelerator(cpu=True)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    weights = sum(p.nbytes for p in model.parameters())
    config = TrainingConfig(batch_size=12)

    def number(room, resume=None, config=config, **options):
        free = math.ceil((3 * weights + 50 + room) / (1 - MARGIN)) + 1
        return slices(model, LOSS, config, accelerator, resume, needs(1000, 50), free, **options)

    assert [number(1000 * most) for most in (12, 11, 6, 5, 4, 1, 0)] == [1, 2, 2, 3, 3, 12, 12]
    assert slices(model, LOSS, config, accelerator) == 1  # on a CPU

    def full(call):  # one sample fits, two do not
        if call.__defaults__[0] == 2:
            raise torch.cuda.OutOfMemoryError
        return 1000

    assert slices(model, LOSS, config, accelerator, None, full, 10_000) == 12
    told = []  # of two processes each tells the other, whatever it has found: else the other would wait
    monkeypatch.setattr("training.machine.gather_object", lambda numbers: told.extend(numbers) or numbers)
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    assert slices(model, LOSS, config, accelerator, None, full, 10_000) == 6 and told == [6]
    monkeypatch.undo()
    assert number(1000, config=dataclasses.replace(config, accumulate=3)) == 3
    kept = {"training": {"config": {"accumulate": 4}, "processes": 1}}
    assert number(12_000, kept) == 4  # a run that goes on computes the same
    kept["training"]["processes"] = 2
    assert number(12_000, kept) == 1
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_the_slices_are_in_the_checkpoint(tmp_path):
    train(tmp_path, steps=1, accumulate=2)
    stored = end_of(tmp_path)["training"]
    assert stored["config"]["accumulate"] == 2 and stored["processes"] == 1
    train(tmp_path, steps=2, accumulate="auto")
    assert end_of(tmp_path)["training"]["config"]["accumulate"] == 2


class Noted(Scenes):
    """Writes down which samples are asked for, by whichever process; at number 8, in step 3, comes a SIGTERM."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def __getitem__(self, n):
        with self.path.open("a") as file:
            file.write(f"{n}\n")
        if n == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().__getitem__(n)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_run_goes_on_with_another_number_of_processes(precise, tmp_path, before, after):
    """It is the training of one process, of the same samples: each is seen once, and none is left out."""
    folder, samples = tmp_path / "run", Noted(tmp_path / "samples")
    for processes, steps in ((before, 3), (after, 7)):
        together(folder, processes, precise=True, samples=samples)
        assert end_of(folder)["training"]["step"] == steps
        seen = sorted(map(int, samples.path.read_text().split()))
        assert seen == list(range(4 * steps))  # batches of 4
    assert difference(precise, folder) < 1e-6 and [e["step"] for e in log_of(folder)] == list(range(1, 8))


def test_slices_are_the_training_of_the_whole_batch(precise, tmp_path):
    train(tmp_path, precise=True, accumulate=2)
    assert difference(precise, tmp_path) < 1e-6


class At(Scenes):
    """Scenes at a configuration's sizes."""

    def __init__(self, config):
        self.config = config

    def __getitem__(self, n):
        sample = scene(n, dataclasses.replace(self.config, image_size=self.config.mask_size))
        image = torch.nn.functional.interpolate(sample["image"][None], tuple(self.config.image_size))[0]
        return sample | {"image": image}


@pytest.mark.parametrize("preset", PRESETS)
def test_each_preset_trains_in_two_processes_as_in_one(tmp_path, preset):
    config = reduced(preset, (32, 64) if preset == "base" else (48, 96))
    optimizer = RECIPE["optimizer"][list(PRESETS).index(preset)]
    options = {"config": config, "samples": At(config), "precise": True, "optimizer": optimizer, "steps": 3}
    train(tmp_path / "one", **options)
    together(tmp_path / "two", 2, **options)
    assert difference(tmp_path / "one", tmp_path / "two") < 1e-6


@pytest.mark.parametrize(("accumulate", "processes"), [(1, 1), (2, 3), (3, 2), (1, 4)])
def test_the_batch_of_a_step_is_the_same_however_it_is_shared(accumulate, processes):
    config = TrainingConfig(steps=4, batch_size=12, accumulate=accumulate)
    shares = [list(StepBatches(config, 1, p, processes)) for p in range(processes)]
    assert all(len(s) == 3 * accumulate == len(StepBatches(config, 1, 0, processes)) for s in shares)
    for k in range(3):
        batch = itertools.chain.from_iterable(
            itertools.chain(*s[k * accumulate : (k + 1) * accumulate]) for s in shares
        )
        assert sorted(batch) == list(range(12 * (k + 1), 12 * (k + 2)))


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ConfigError, match="batch_size 10 must be a multiple of 3 slices x 2 processes"):
        StepBatches(TrainingConfig(batch_size=10, accumulate=3), 0, 0, 2)


@pytest.mark.parametrize(
    "values",
    [{"steps": 0}, {"lr": math.nan}, {"lr": math.inf}, {"beta2": 1.0}, {"ema_decay": -0.1}, {"max_nonfinite": 0},
     {"num_workers": -1}, {"final_lr": -1.0}],
)  # fmt: skip
def test_impossible_settings_are_refused(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        TrainingConfig(**values)


# ---------------------------------------------------------------------------------------------------------------------
# Schedules
# ---------------------------------------------------------------------------------------------------------------------


def test_the_learning_rate_rises_and_falls():
    config = TrainingConfig(steps=100, warmup=10, lr=2.0, final_lr=0.1)
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (k + 1) for k in range(10)])
    assert rates[10] == 2.0 and rates[55] == pytest.approx(1.1) and rates[99] == pytest.approx(0.22)
    assert learning_rate(0, TrainingConfig(steps=5, warmup=0, lr=2.0)) == 2.0


def test_the_averaged_weights_follow_their_decay(tmp_path):
    """decay of update k: 1 - k^(-2/3), at most ema_decay; the first one copies."""
    train(tmp_path, steps=5, save_every=1, ema_decay=0.5)
    stored = [checkpoints.load(tmp_path / f"model-{k}.pt") for k in range(1, 6)]
    key = "denoiser.conv_out.weight"
    average = stored[0]["training"]["weights"][key]
    for k, checkpoint in enumerate(stored, start=1):
        decay = 0.0 if k == 1 else min(0.5, 1 - k ** (-2 / 3))
        average = decay * average + (1 - decay) * checkpoint["training"]["weights"][key]
        assert torch.allclose(checkpoint["weights"][key], average, atol=1e-7)
    assert not torch.allclose(average, stored[-1]["training"]["weights"][key], atol=1e-6)


def test_the_published_average_has_its_decay_from_the_start(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "training.optimizer.EMA", lambda *args, **options: seen.append(EMA(*args, **options)) or seen[-1]
    )
    for preset in ("tiny", "base"):
        config = reduced(preset, (32, 64))
        train(tmp_path / preset, ClipsOf(config), config=config, steps=2, batch_size=2, ema_decay=0.9)
    assert [float(ema.get_current_decay()) for ema in seen] == pytest.approx([1 - 2 ** (-2 / 3), 0.9])


# ---------------------------------------------------------------------------------------------------------------------
# Faults
# ---------------------------------------------------------------------------------------------------------------------


class Poisoned(Scenes):
    """From sample `first` up to `last` the images are not a number."""

    def __init__(self, first, last=2**30):
        super().__init__()
        self.first, self.last = first, last

    def __getitem__(self, n):
        sample = super().__getitem__(n)
        bad = self.first <= n < self.last
        return sample | {"image": sample["image"] * math.nan if bad else sample["image"].float()}


def test_a_step_that_is_not_finite_is_skipped_and_logged(uninterrupted, tmp_path):
    train(tmp_path / "two", steps=7, samples=Poisoned(12, 16))
    log = log_of(tmp_path / "two")
    assert [e["step"] for e in log if e.get("skipped")] == [4] and log[3]["loss"] is None
    assert [e["loss"] for e in log[:3]] == [e["loss"] for e in log_of(uninterrupted)[:3]]
    assert all(math.isfinite(e["loss"]) for e in log[4:])
    assert all(v.isfinite().all() for v in tensors(end_of(tmp_path / "two")).values())


def test_steps_that_stay_not_finite_end_the_run_with_the_state_before_them(uninterrupted, tmp_path):
    with pytest.raises(FloatingPointError, match=r"2 steps in a row.*up to step 5.*model-latest.pt"):
        train(tmp_path, samples=Poisoned(12), max_nonfinite=2)
    end, before = end_of(tmp_path), checkpoints.load(uninterrupted / "model-1.pt")
    assert end["training"]["step"] == 5
    left, right = tensors(end), tensors(before)
    assert all(torch.equal(left[k], right[k]) for k in left)
    assert [e["step"] for e in log_of(tmp_path)] == [1, 2, 3, 4, 5]


class Breaking(Scenes):
    def __getitem__(self, n):
        if n == 4 * 4 + 1:
            raise ValueError("frame 17 is broken")
        return super().__getitem__(n)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_data_loses_no_step(uninterrupted, tmp_path, workers):
    with pytest.raises(ValueError, match="frame 17 is broken"):
        train(tmp_path, samples=Breaking(), num_workers=workers)
    assert end_of(tmp_path)["training"]["step"] == 4 and lines(tmp_path) == 4
    train(tmp_path)
    assert_same_run(uninterrupted, tmp_path)


def test_an_error_of_the_validation_loses_no_step(tmp_path):
    def validate(model, step):
        raise OSError("the held-out folder is gone")

    with pytest.raises(OSError, match="held-out"):
        train(tmp_path, validate=validate, validate_every=2)
    assert end_of(tmp_path)["training"]["step"] == 2 and [e["step"] for e in log_of(tmp_path)] == [1, 2]


def test_validation_figures_and_pictures_come_in_their_time(tmp_path):
    pictures = []

    def validate(model, step):
        assert not model.training
        return {"STQ": step / 10, "AQ": None}

    def picture(model, number, step):
        pictures.append((number, step, (tmp_path / f"model-{number}.pt").exists()))

    train(tmp_path, steps=5, save_every=2, validate_every=3, validate=validate, picture=picture, extra={"data": ["a"]})
    assert {e["step"]: e["STQ"] for e in log_of(tmp_path) if "STQ" in e} == {3: 0.3, 5: 0.5}
    assert pictures == [(1, 2, True), (2, 4, True)] and end_of(tmp_path)["data"] == ["a"]


class Skipping(Scenes):
    def __getitem__(self, n):
        return super().__getitem__(n) | {"skipped": torch.tensor(2 if n in (5, 7) else 0)}


def test_files_that_were_skipped_are_counted(tmp_path):
    train(tmp_path, samples=Skipping(), steps=3, accumulate=2)
    assert [e.get("skipped_files") for e in log_of(tmp_path)] == [None, 4, None]


def test_dropout_is_drawn_from_the_step(tmp_path, monkeypatch):
    """With it on, too, a run that was interrupted is the run that was not."""
    train(tmp_path / "none", steps=4, final_lr=1.0)
    monkeypatch.setitem(globals(), "CONFIG", dataclasses.replace(CONFIG, dropout=0.3))
    for step in (2, 4):
        torch.manual_seed(step)
        train(tmp_path / "halves", steps=step, final_lr=1.0)
    train(tmp_path / "whole", steps=4, final_lr=1.0)
    assert difference(tmp_path / "whole", tmp_path / "halves") == 0
    assert difference(tmp_path / "whole", tmp_path / "none") > 0


def test_a_full_disk_keeps_the_last_good_checkpoint_and_the_run_goes_on(uninterrupted, tmp_path, capfd):
    """Files may not grow past 100 kB from step 2 to step 5."""

    def validate(model, step):
        soft = 100_000 if 2 <= step < 5 else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))
        return {}

    process = started(tmp_path, steps=7, save_every=1, keep=0, validate_every=1, validate=validate)
    process.join()
    assert process.exitcode == 0
    there = sorted(p.name for p in tmp_path.iterdir())
    assert there == ["log.jsonl", *(f"model-{n}.pt" for n in (1, 5, 6, 7)), "model-latest.pt"]
    said = capfd.readouterr().out
    assert all(f"step {n}: could not save" in said for n in (2, 3, 4)) and "step 5" not in said
    assert_same_run(uninterrupted, tmp_path)


def test_a_last_step_that_cannot_be_saved_is_said_so(tmp_path, monkeypatch, capsys):
    """Without room in the end the run is no success; started again when there is room, it goes on."""
    save, refused = checkpoints.save, []

    def full(path, state):
        if state["training"]["step"] >= 3:
            refused.append(path.name)
            raise OSError("no space left")
        save(path, state)

    monkeypatch.setattr("training.run.checkpoints.save", full)
    with pytest.raises(OSError, match=r"step 4 is not saved: make room in .*; the same command goes on"):
        train(tmp_path, steps=4, save_every=2)
    assert refused == ["model-latest.pt", "model-latest.pt"]  # in its time, and once more
    assert "stopped" not in capsys.readouterr().out and end_of(tmp_path)["training"]["step"] == 2
    monkeypatch.undo()
    train(tmp_path, steps=4, save_every=2)
    assert end_of(tmp_path)["training"]["step"] == 4 and [e["step"] for e in log_of(tmp_path)] == [1, 2, 3, 4]


def test_lines_of_the_log_wait_for_room(tmp_path):
    log = Log(tmp_path / "log.jsonl", 0)

    class Full:
        def write(self, _):
            raise OSError(28, "No space left on device")

    file, log.file = log.file, Full()
    log.write(step=1)
    log.write(step=2)
    log.file = file
    assert lines(tmp_path) == 0
    log.write(step=3)
    log.close()
    assert [e["step"] for e in log_of(tmp_path)] == [1, 2, 3]
