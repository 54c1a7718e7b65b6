"""The benchmarks run, and print what they say."""

import dataclasses
import json
import sys

import pytest
from accelerate.state import AcceleratorState
from painted import make_cityscapes
from small import CONFIG, lively_model

import cli
from benchmarks import mutants, quality, speed
from data.io.images import write_image, write_panoptic
from data.streets.source import render_video, tracked_only
from model import PRESETS
from model import checkpoint as checkpoints


@pytest.fixture
def weights(tmp_path):
    model = lively_model()
    stored = {"format": checkpoints.FORMAT, "config": CONFIG.to_dict(), "weights": model.state_dict()}
    checkpoints.save(tmp_path / "model.pt", stored)
    return tmp_path / "model.pt"


def run(monkeypatch, module, *words):
    monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.run(module.main)
    return end.value.code


@pytest.fixture
def fresh_accelerator():
    """accelerate allows one precision a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_speed_measures_each_section(monkeypatch, tmp_path, weights, capfd, fresh_accelerator):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PRESETS, "tiny", dataclasses.replace(CONFIG, mask_size=(18, 36), patch=3))
    assert not run(monkeypatch, speed, "--quick", "--checkpoint", weights, "--json", tmp_path / "all.json")
    figures = json.loads((tmp_path / "all.json").read_text())
    assert set(figures) == set(speed.SECTIONS)
    assert all(value > 0 for name in ("frame", "files", "training") for value in figures[name].values())
    make_cityscapes(tmp_path / "data")
    words = ("training", "--quick", "--checkpoint", weights, "--data_root", tmp_path / "data")
    assert not run(monkeypatch, speed, *words, "--json", tmp_path / "training.json")
    figures = json.loads((tmp_path / "training.json").read_text())["training"]
    assert all(any(kind in name for name in figures) for kind in ("decoded", "from the cache"))
    assert run(monkeypatch, speed, "everything") == 2 and "no section" in capfd.readouterr().err


def test_quality_of_a_small_video(monkeypatch, tmp_path, weights, capsys):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "kitti" / "val"
    for number, (image, semantic, ids) in enumerate(render_video(1, "test", 3)):
        write_image(folder / f"000001_{number:06d}_leftImg8bit.png", image)
        write_panoptic(folder / f"000001_{number:06d}_panoptic.png", semantic, tracked_only(semantic, ids))
    words = ["--checkpoint", weights, "--dataset", "kitti_step", "--data_root", tmp_path / "kitti"]
    words += ["--settings", "1,1,0", "--components", "--references", "--json", tmp_path / "rows.json"]
    assert not run(monkeypatch, quality, *words)
    plain, components, previous, held = json.loads((tmp_path / "rows.json").read_text())
    assert plain["SQ"] == components["SQ"] and 0 < held["STQ"] <= previous["STQ"] < 1
    assert previous["AQ pix"] >= previous["AQ"]
    assert "previous" in capsys.readouterr().out
    assert run(monkeypatch, quality, *words[:6], "--settings", "4") == 2


def test_each_mutant_changes_something():
    texts = {m.file: (mutants.ROOT / m.file).read_text() for m in mutants.MUTANTS}
    assert [m.name for m in mutants.MUTANTS if texts[m.file].count(m.before) != 1] == []
