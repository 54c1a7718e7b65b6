"""The scripts as their users call them: help, refusals in a line, and a few steps from pre-training to evaluation."""

import contextlib
import dataclasses
import importlib
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from accelerate import tracking
from painted import make_kitti
from PIL import Image
from running import call
from small import CONFIG, FLAGS

from data.clips.settings import Augmentation, HistoryConfig
from data.sets import kitti_step
from model import ModelConfig
from model import checkpoint as checkpoints
from model.diffusion.loss import LossConfig
from train import RECIPE
from training.config import TrainingConfig
from training.options import preset_settings

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real frames are not in {DATA}")
LOOK = ("--validate_videos", 1, "--validate_frames", 2)
STREETS = ("--dataset", "streets", "--streets_videos", 2, *LOOK)
KEEP_QUIET = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture
def kitti(tmp_path):
    for split in ("train", "val"):
        make_kitti(tmp_path / "kitti" / "video_sequence" / split, numbers=range(4))
    return tmp_path / "kitti"


# ---------------------------------------------------------------------------------------------------------------------
# Help
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["train", "pretrain", "inference", "evaluate"])
def test_the_help_shows_each_flag_with_one_default(capfd, script):
    result = call(capfd, script, "-h")
    assert result.status == 0 and result.err == ""
    options = result.out.split("\n  --")[1:]
    assert len(options) > 8
    for text in options:
        text = " ".join(text.split())
        assert text.count("(default: ") == 1 and "None" not in text, text


OTHERS = ["data.draw.viewer.__main__", "data.streets.__main__", "model.export"]
OTHERS += [f"benchmarks.{name}" for name in ("gpu", "mutants", "pictures", "quality", "reliability", "speed")]


@pytest.mark.parametrize("module", OTHERS)
def test_every_other_command_has_a_help(capsys, monkeypatch, module):
    main = importlib.import_module(module).main
    monkeypatch.setattr(sys, "argv", ["command", "-h"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code and "usage: " in capsys.readouterr().out


@pytest.mark.parametrize("script", ["train", "pretrain", "inference", "evaluate"])
def test_the_whole_help_is_a_word_away(capfd, script):
    text = call(capfd, script, "-h").out
    everything = call(capfd, script, "-h", "all").out
    flags, all_flags = (set(re.findall(r"^  (--\S+)", t, flags=re.MULTILINE)) for t in (text, everything))
    assert flags < all_flags if script != "evaluate" else flags <= all_flags


def test_every_field_of_every_configuration_is_a_flag(capfd):
    everything = call(capfd, "train", "-h", "all").out
    for config in (ModelConfig, TrainingConfig, LossConfig, HistoryConfig, Augmentation):
        for field in dataclasses.fields(config):
            if field.name not in ("backbone_norm", "classes", "things", "tracked"):  # they follow from others
                assert f"--{field.name} " in everything or f"--[no-]{field.name} " in everything, field.name


def test_the_help_shows_the_defaults_of_the_preset(capfd):
    for preset, size in (("tiny", "208 640"), ("small", "384 1248")):
        text = call(capfd, "train", "--preset", preset, "-h").out
        assert f"(default: {size})" in text[text.index("--image_size N ... ") :][:200]


def test_backbone_weights_are_those_at_hand(capfd):
    for preset, file in (("tiny", "backbone-cspnet.pt"), ("small", "coco")):
        assert json.loads(call(capfd, "train", "--preset", preset, "--dry_run").out)["backbone_weights"].endswith(file)


def test_the_published_preset_recommends_the_published_stream():
    """The history in all steps, and nothing of ours: no merging, splitting, averaging, dropping or finding again."""
    assert preset_settings("base", RECIPE).stream == {
        "first_steps": 20, "steps": 8, "time_difference": 0.0, "history_steps": 8, "average_classes": False,
        "merge": 0.0, "class_split": 0.0, "max_gap": 0, "min_area": 1,
    }  # fmt: skip
    assert "min_area" not in preset_settings("tiny", RECIPE).stream


def test_a_dry_run_prints_the_resolved_configuration_and_does_nothing(capfd, tmp_path):
    folder = tmp_path / "run"
    result = call(capfd, "train", *FLAGS, "--lr", 0.25, "--results_folder", folder, "--dry_run")
    resolved = json.loads(result.out)
    assert result.status == 0 and not folder.exists()
    assert resolved["TrainingConfig"]["lr"] == 0.25 and resolved["TrainingConfig"]["batch_size"] == 4
    assert resolved["ModelConfig"]["image_size"] == [32, 64] and resolved["preset"] == "tiny"
    assert resolved["HistoryConfig"]["history_dropout"] == 0.2 and "flip" in resolved["Augmentation"]
    base = json.loads(call(capfd, "pretrain", "--preset", "base", "--dry_run").out)
    assert base["ModelConfig"]["backbone_norm"] == "frozen_batch" and base["TrainingConfig"]["steps"] == 4_650


# ---------------------------------------------------------------------------------------------------------------------
# Refusals
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--step", 3), "did you mean --steps?"),
        (("--learning_rate", 1), "did you mean --lr?"),
        (("--learning_rat=1",), "did you mean --lr?"),
        (("--steps", 0), "steps must be 1 or more"),
        (("--steps", "many"), "--steps"),
        (("--lr", "nan"), "lr must be above 0"),
        (("--beta2", 2), "beta2"),
        (("--accumulate", 3), "batch_size 4 must be a multiple of 3 slices"),
        (("--image_size", 4, 4), "image_size"),
        (("--image_size", 0, 0, "--mask_size", 16, 32), "image_size"),
        (("--code_bits", 4, 4), "code_bits"),
        (("--dropout", 2), "dropout"),
        (("--encoder_heads", 3), "multiple of 4 times"),
        (("--scale_range", 2, 1), "scale_range"),
        (("--dataset", "streets", "streets", "--dataset_weights", 0, 0), "--dataset_weights must be"),
        (("--dataset_weights", 1, 2), "1 data sets need as many --dataset_weights"),
        (("--data_root", "a", "b"), "1 data sets need as many --data_root"),
        (("--dataset", "imagenet"), "invalid choice"),
        (("--validate_frames", 0), "--validate_frames"),
        (("--device", "cuda"), "no CUDA device"),
        (("--backbone_weights", "nowhere.pth"), "there is no such file"),
        (("--init", "nowhere.pt"), "there is no checkpoint nowhere.pt"),
    ],
)
def test_wrong_values_are_refused_in_a_line(capfd, tmp_path, kitti, flags, said):
    if "cuda" in flags and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    root = () if {"--data_root", "--dataset"} & set(flags) else ("--data_root", kitti)
    result = call(capfd, "train", *FLAGS, *root, *LOOK, "--results_folder", tmp_path / "run", *flags)
    assert result.status == 2 and said in result.message


def test_a_checkpoint_of_another_preset_is_refused_as_init(capfd, tmp_path, kitti):
    path = tmp_path / "other.pt"
    config = CONFIG.to_dict() | {"dim": 32}
    checkpoints.save(path, {"format": checkpoints.FORMAT, "config": config, "weights": {"a": torch.zeros(1)}})
    flags = (*FLAGS, "--scale", CONFIG.scale, "--data_root", kitti, "--results_folder", tmp_path / "run")
    result = call(capfd, "train", *flags, "--init", path)
    assert result.status == 2 and "is of another configuration than --preset tiny: dim is 32, not 16" in result.message


def test_damaged_data_is_named_in_a_line(capfd, tmp_path, kitti):
    train = ("train", *FLAGS, "--data_root", kitti, "--results_folder", tmp_path / "run", "--steps", 2, *LOOK)
    image = kitti / "video_sequence" / "train" / "000000_000002_leftImg8bit.png"
    image.write_bytes(image.read_bytes()[:-100])
    for workers in (0, 1):
        result = call(capfd, *train, "--num_workers", workers)
        assert result.status == 2 and image.name in result.message
    image.unlink()
    result = call(capfd, *train)
    assert result.status == 2 and "is there without its image" in result.message


def test_missing_data_says_how_to_get_it(capfd, tmp_path):
    (tmp_path / "empty").mkdir()
    for script, named, how in (("train", "KITTI-STEP", "without --data_root it is downloaded"),
                               ("pretrain", "Cityscapes", "setup.sh cityscapes")):  # fmt: skip
        for folder in ("nowhere", "empty"):
            result = call(capfd, script, *FLAGS, "--data_root", tmp_path / folder, "--results_folder", tmp_path / "run")
            assert result.status == 2 and named in result.message and how in result.message and folder in result.message


def test_without_a_network_the_default_data_has_a_way_out(capfd, tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(kitti_step, "DEFAULT_ROOT", tmp_path / "KittiSTEP")
    for size in ("ARCHIVE_SIZE", "UNPACKED_SIZE"):
        monkeypatch.setattr(kitti_step, size, 1000)
    monkeypatch.setattr("socket.create_connection", unreachable)
    monkeypatch.setattr("socket.getaddrinfo", unreachable)
    monkeypatch.setattr("time.sleep", lambda _: None)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    result = call(capfd, "train", *FLAGS, "--results_folder", tmp_path / "run")
    lines = result.err.strip().split("\n")  # what is left of the progress bar, and the error
    assert result.status == 2 and len(lines) <= 2 and "error: kitti_step.zip cannot be fetched (" in lines[-1]
    assert "By hand: " in lines[-1] and "KittiSTEP/kitti_step.zip" in lines[-1]


def test_results_that_cannot_be_written_are_refused(capfd, tmp_path, kitti):
    (tmp_path / "file").write_text("")
    result = call(capfd, "train", *FLAGS, "--data_root", kitti, "--results_folder", tmp_path / "file" / "run")
    assert result.status == 2 and "cannot be written to" in result.message


def test_a_missing_package_says_how_to_activate_the_environment(tmp_path):
    """As of a Python without torch: a stand-in for it that is missing something."""
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('no', name='torch')")
    for script in ("train", "inference"):
        command = [sys.executable, "-S", str(ROOT / f"{script}.py")]
        done = subprocess.run(command, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
        assert done.returncode == 2 and "source .venv/bin/activate" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Runs
# ---------------------------------------------------------------------------------------------------------------------


def test_a_run_leaves_what_is_promised_and_goes_on(capfd, tmp_path, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("nobody asked for a network"))
    folder = tmp_path / "run"
    command = ("train", *FLAGS, *STREETS, "--results_folder", folder, "--save_every", 2, "--validate_every", 3)
    assert call(capfd, *command, "--steps", 3).status == 0
    expected = {"config.json", "log.jsonl", "model-1.pt", "model-latest.pt", "sample-1.png"}
    assert {p.name for p in folder.iterdir()} == expected
    log = log_of(folder)
    assert [e["step"] for e in log] == [1, 2, 3] and all(math.isfinite(e["loss"]) for e in log)
    assert "STQ" not in log[1] and {"STQ", "AQ", "SQ", "PQ", "mIoU"} <= log[2].keys() and 0 <= log[2]["mIoU"] <= 1
    config = json.loads((folder / "config.json").read_text())
    assert config["TrainingConfig"]["steps"] == 3 and config["dataset"] == ["streets"]
    with Image.open(folder / "sample-1.png") as picture:  # input, truth and prediction side by side
        assert picture.size[0] == 3 * (picture.size[0] - 8) // 3 + 8 and len(set(picture.convert("L").getdata())) > 20
    result = call(capfd, *command, "--steps", 4)
    assert result.status == 0 and "resuming from" in result.out and "step 3" in result.out
    assert {p.name for p in folder.iterdir()} == expected | {"model-2.pt", "sample-2.png"}
    assert [e["step"] for e in log_of(folder)] == [1, 2, 3, 4]
    stored = checkpoints.load(folder / "model-latest.pt")
    assert (
        stored["config"]["tracked"] == [11, 13]
        and len(stored["label_space"]["classes"]) == 19
        and stored["training"]["step"] == 4
    )


def test_a_run_is_logged_to_trackers_too(capfd, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = tmp_path / "run"
    flags = (*FLAGS, *STREETS, "--save_every", 2, "--validate_every", 2, "--results_folder", folder)
    result = call(capfd, "train", *flags, "--steps", 3, "--log_with", "tensorboard")
    assert result.status == 0, result.err
    events = accumulator.EventAccumulator(str(folder / "pix2seq_d")).Reload()
    log = log_of(folder)
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3]
    assert [e.value for e in events.Scalars("loss")] == pytest.approx([entry["loss"] for entry in log])
    assert [e.step for e in events.Scalars("STQ")] == [2, 3]
    assert [e.step for e in events.Images("input, truth, prediction")] == [2]


def test_a_run_is_logged_to_weights_and_biases(capfd, tmp_path, monkeypatch):
    """With a module in wandb's place that has what accelerate calls."""
    logged, started, folder = [], [], tmp_path / "run"
    run = SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda: logged.append("end"))
    stub = ModuleType("wandb")
    stub.init = lambda **options: started.append(options) or run
    stub.config = SimpleNamespace(update=lambda values, **_: started.append(values))
    stub.Image = lambda picture: picture.shape
    monkeypatch.setitem(sys.modules, "wandb", stub)
    monkeypatch.setattr("training.options.is_wandb_available", lambda: True)
    monkeypatch.setattr(tracking, "_available_trackers", [tracking.LoggerType.WANDB])
    flags = (*FLAGS, *STREETS, "--save_every", 2, "--validate_every", 2, "--results_folder", folder)
    result = call(capfd, "train", *flags, "--steps", 2, "--log_with", "wandb")
    assert result.status == 0, result.err
    assert started[0] == {"project": "pix2seq_d", "dir": str(folder)} and started[1]["TrainingConfig.steps"] == 2
    losses = [(step, values["loss"]) for step, values in logged[:-1] if "loss" in values]
    assert losses == [(entry["step"], entry["loss"]) for entry in log_of(folder)] and logged[-1] == "end"
    ((step, shapes),) = [e for e in logged[:-1] if "input, truth, prediction" in e[1]]
    assert step == 2 and shapes["input, truth, prediction"][0][2] == 3


def test_a_tracker_that_is_not_installed_is_refused(capfd, tmp_path, monkeypatch):
    monkeypatch.setattr("training.options.is_wandb_available", lambda: False)
    result = call(capfd, "train", *FLAGS, *STREETS, "--results_folder", tmp_path / "run", "--log_with", "wandb")
    assert result.status == 2 and result.err.strip().endswith("pip install wandb") and not (tmp_path / "run").exists()


def test_training_goes_on_without_bad_files_and_counts_them(capfd, tmp_path, kitti):
    folder = tmp_path / "run"
    for split, number in (("train", 0), ("train", 1), ("val", 1)):
        path = kitti / "video_sequence" / split / f"000000_{number:06d}_leftImg8bit.png"
        path.write_bytes(path.read_bytes()[:-100])
    command = ("train", *FLAGS, "--data_root", kitti, *LOOK, "--results_folder", folder, "--skip_bad_files")
    result = call(capfd, *command, "--steps", 2, "--save_every", 1)
    assert result.status == 0 and "skipped: " in result.err and (folder / "sample-1.png").exists()
    assert sum(e.get("skipped_files", 0) for e in log_of(folder)) >= 4  # of 8 samples, 4 are of the two frames


def test_the_whole_way_on_real_frames(capfd, tmp_path):
    """Pre-training on Cityscapes' layout, training on KITTI-STEP, inference and evaluation: 2 steps each."""
    if not DATA.is_dir():
        pytest.skip(f"the real frames are not in {DATA}")
    first, second, out = tmp_path / "pretrain", tmp_path / "train", tmp_path / "out"
    few = (*FLAGS, *LOOK, "--steps", 2, "--save_every", 2)
    assert call(capfd, "pretrain", *few, "--data_root", DATA / "Cityscapes", "--results_folder", first).status == 0
    assert log_of(first)[1]["STQ"] is None and log_of(first)[1]["mIoU"] >= 0
    init = ("--init", first / "model-latest.pt")
    result = call(capfd, "train", *few, "--data_root", DATA / "KittiSTEP", "--results_folder", second, *init)
    assert result.status == 0 and f"weights of {first}" in result.out and log_of(second)[1]["STQ"] >= 0
    assert (first / "sample-1.png").exists() and (second / "sample-1.png").exists()

    val = DATA / "KittiSTEP" / "kitti_out" / "video_sequence" / "val"
    source, truth = tmp_path / "frames", tmp_path / "truth"
    for folder, kind in ((source, "leftImg8bit"), (truth, "panoptic")):
        folder.mkdir()
        for number in range(3):
            (folder / f"000002_{number:06d}_{kind}.png").symlink_to(val / f"000002_{number:06d}_{kind}.png")
    fast = ("--first_steps", 2, "--steps", 1, "--device", "cpu", "--overlay", "gif", "--quiet")
    paths = ("--input_folder", source, "--output_folder", out, "--checkpoint", second / "model-latest.pt")
    assert call(capfd, "inference", *paths, *fast).status == 0
    for path in truth.iterdir():
        with Image.open(path) as a, Image.open(out / path.name) as b:
            assert a.size == b.size and b.mode == "RGB" and np.asarray(b)[..., 0].max() < 19
    figures = tmp_path / "figures.json"
    result = call(capfd, "evaluate", "--predictions", out, "--ground_truth", truth, "--json", figures, "--workers", 1)
    assert result.status == 0 and "STQ" in result.out and "3 frames" in result.out
    assert json.loads(figures.read_text())["miou"]["mIoU"] >= 0


def test_two_processes_by_torchrun_and_a_group_that_is_told_to_stop(tmp_path):
    """The command of the README, stopped by SIGTERM and started again."""
    folder = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    options = [*FLAGS, *STREETS[:4], "--validate_videos", "0", "--results_folder", folder, "--steps", "400"]
    command = [*torchrun, str(ROOT / "train.py"), *map(str, options)]
    running = subprocess.Popen(command, env=os.environ | KEEP_QUIET, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    path = folder / "log.jsonl"
    while running.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") >= 2):
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(timeout=0.05)
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=300)
    stored = checkpoints.load(folder / "model-latest.pt")
    step = stored["training"]["step"]
    assert 2 <= step < 400 and [e["step"] for e in log_of(folder)] == list(range(1, step + 1))

    # A process that dies ends the run with a message, and the same command goes on.
    running = subprocess.Popen(command, env=os.environ | KEEP_QUIET, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while running.poll() is None and path.read_bytes().count(b"\n") < step + 2:
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(timeout=0.05)
    workers = [p for p in psutil.Process(running.pid).children() if str(ROOT / "train.py") in p.cmdline()]
    assert len(workers) == 2
    workers[1].kill()
    _, errors = running.communicate(timeout=300)
    assert running.returncode == 1 and b"SIGKILL" in errors and not any(p.is_running() for p in workers)
    saved = checkpoints.load(folder / "model-latest.pt")["training"]["step"]
    assert saved >= step  # the other one may have saved its last step
    command[command.index("--steps") + 1] = str(saved + 1)
    subprocess.run(command, env=os.environ | KEEP_QUIET, check=True, capture_output=True, timeout=300)
    assert [e["step"] for e in log_of(folder)] == list(range(1, saved + 2))


def test_two_processes_share_validation_and_inference(capfd, tmp_path):
    """Figures and files are those of one process."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for split in ("train", "val"):
        for sequence, frames in (("000000", 3), ("000001", 5), ("000002", 2)):
            make_kitti(tmp_path / "kitti" / "video_sequence" / split, sequence=sequence, numbers=range(frames))
    flags = [*FLAGS, "--data_root", tmp_path / "kitti", "--validate_videos", 3, "--validate_frames", 3, "--steps", 2]
    flags += ["--mixed_precision", "no", "--device", "cpu"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert call(capfd, "train", *flags, "--results_folder", one).status == 0
    command = [*torchrun, str(ROOT / "train.py"), *map(str, flags), "--results_folder", str(two)]
    subprocess.run(command, env=os.environ | KEEP_QUIET, check=True, capture_output=True, timeout=300)
    last, shared = log_of(one)[-1], log_of(two)[-1]
    for name in ("STQ", "AQ", "SQ", "mIoU"):
        assert shared[name] == pytest.approx(last[name], abs=0.02), name

    flags = ["--input_folder", tmp_path / "kitti" / "video_sequence" / "val", "--checkpoint", one / "model-latest.pt"]
    flags += ["--first_steps", 2, "--steps", 1, "--mixed_precision", "no", "--device", "cpu", "--overlay", "none"]
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert call(capfd, "inference", *flags, "--output_folder", alone).status == 0
    command = [*torchrun, str(ROOT / "inference.py"), *map(str, flags), "--output_folder", str(together)]
    subprocess.run(command, env=os.environ | KEEP_QUIET, check=True, capture_output=True, timeout=300)
    names = sorted(p.name for p in alone.iterdir() if p.is_file())
    assert len(names) == 11 and names == sorted(p.name for p in together.iterdir() if p.is_file())
    for name in names:
        assert (alone / name).read_bytes() == (together / name).read_bytes(), name


def test_videos_are_shared_by_length():
    from data.videos.sequences import Sequence
    from inference import share

    videos = [Sequence(str(n), [None] * length) for n, length in enumerate((10, 2, 3, 9, 4))]
    assert [share(videos, n, 2) for n in range(2)] == [[0, 1, 2], [3, 4]]
    assert [share(videos, n, 8) for n in range(8)] == [[0], [3], [4], [2], [1], [], [], []]
