"""Predictors to and from folders as the Hugging Face hub keeps them, without a network."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file, save_file

from model import CheckpointError, StreamConfig, VideoPredictor
from model import checkpoint as checkpoints
from model.hub import Card, HubMixin
from tests.small import CONFIG, lively_model

OPTIONS = {"config": StreamConfig(first_steps=2, steps=1), "device": "cpu", "mixed_precision": "no"}
FRAMES = np.random.default_rng(0).integers(0, 256, (2, 30, 70, 3)).astype(np.uint8)


@pytest.fixture
def predictor() -> VideoPredictor:
    return VideoPredictor(lively_model(), **OPTIONS)


@pytest.fixture
def saved(predictor, tmp_path) -> Path:
    predictor.save_pretrained(tmp_path / "saved", Card(data="Drawn.", license="cc-by-nc-sa-3.0"), "me/streets")
    return tmp_path / "saved"


def test_a_folder_gives_the_same_predictor_back(predictor, saved):
    again = VideoPredictor.from_pretrained(saved, **OPTIONS)
    assert isinstance(again, HubMixin) and type(again) is VideoPredictor
    assert again.model.config == CONFIG and again.config == OPTIONS["config"] and not again.model.training
    for frame in FRAMES:
        a, b = predictor(frame), again(frame)
        assert (a.semantic == b.semantic).all() and (a.track == b.track).all()


def test_what_is_written(saved):
    assert sorted(p.name for p in saved.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert json.loads((saved / "config.json").read_text())["code_bits"] == [5, 5]
    card = ModelCard.load(saved / "README.md")
    assert card.data.license == "cc-by-nc-sa-3.0" and card.data.pipeline_tag == "image-segmentation"
    for part in ("Drawn.", 'from_pretrained("me/streets")', "## Limits", "None stated."):
        assert part in card.text


def test_the_recommended_sampling_is_kept_and_can_be_replaced(saved):
    assert VideoPredictor.from_pretrained(saved).config == OPTIONS["config"]
    assert VideoPredictor.from_pretrained(saved, first_steps=9).config.first_steps == 9


def test_no_licence_is_claimed_that_nobody_stated(predictor, tmp_path):
    predictor.save_pretrained(tmp_path / "plain")
    card = ModelCard.load(tmp_path / "plain" / "README.md")
    assert card.data.license == "other" and "terms of the training data" in card.text


def test_weights_that_were_changed_for_speed_are_not_saved(tmp_path, monkeypatch):
    ready = VideoPredictor(lively_model(), OPTIONS["config"], "cpu", "bf16")
    ready.only_infer()
    with pytest.raises(CheckpointError, match="load the checkpoint anew"):
        ready.save_pretrained(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: pytest.fail("a repository was made"))
    with pytest.raises(CheckpointError, match="load the checkpoint anew"):
        ready.push_to_hub("me/streets")


def test_saving_changes_nothing_in_the_predictor(predictor, tmp_path):
    state = torch.get_rng_state()
    before = {k: v.clone() for k, v in predictor.model.state_dict().items()}
    predictor.save_pretrained(tmp_path / "a")
    assert (torch.get_rng_state() == state).all()
    assert all((before[k] == v).all() for k, v in predictor.model.state_dict().items())


def test_figures_of_the_card_are_those_of_evaluate(predictor, tmp_path):
    figures = {
        "stq": {"STQ": 0.5, "AQ": 0.4321, "SQ": None},
        "vpq": {"VPQ": {"all": 0.25, "things": 0.1, "stuff": 0.4}},
        "pq": {"All": {"PQ": 0.6, "SQ": 1.0, "RQ": 1.0}},
        "miou": {"mIoU": 0.7},
    }
    predictor.save_pretrained(tmp_path, Card(figures=figures))
    text = (tmp_path / "README.md").read_text()
    assert "| STQ | AQ | VPQ | PQ | mIoU |" in text and "| 50.0 | 43.2 | 25.0 | 60.0 | 70.0 |" in text


def test_loading_is_strict(saved):
    weights = load_file(saved / "model.safetensors")
    name = next(iter(weights))
    save_file({k: v for k, v in weights.items() if k != name}, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match="1 missing"):
        VideoPredictor.from_pretrained(saved)
    save_file({**weights, "surplus": torch.zeros(1)}, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match="1 unknown"):
        VideoPredictor.from_pretrained(saved)
    (saved / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(CheckpointError, match="damaged"):
        VideoPredictor.from_pretrained(saved)


@pytest.mark.parametrize("change", [{"surplus": 1}, {"scale": -1}])
def test_a_configuration_that_is_not_ours_is_refused(saved, change):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        VideoPredictor.from_pretrained(saved)
    (saved / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        VideoPredictor.from_pretrained(saved)


def test_files_and_folders_of_training_are_taken_too(predictor, tmp_path):
    weights = predictor.model.state_dict()
    stored = {"format": checkpoints.FORMAT, "config": CONFIG.to_dict(), "weights": weights}
    checkpoints.save(tmp_path / "run/model-latest.pt", stored)
    (tmp_path / "run/config.json").write_text('{"of": "the run"}')
    for source in (tmp_path / "run", tmp_path / "run/model-latest.pt"):
        loaded = VideoPredictor.from_pretrained(source, **OPTIONS).model.state_dict()
        assert all((loaded[k] == v).all() for k, v in weights.items())
    with pytest.raises(CheckpointError, match="training run"):
        predictor.save_pretrained(tmp_path / "run")
    assert (tmp_path / "run/config.json").read_text() == '{"of": "the run"}'


@pytest.mark.parametrize("source", ["a/b/c", "results/not there"])
def test_what_is_nowhere_is_told_in_one_line(source):
    with pytest.raises(CheckpointError, match="no file and no folder") as caught:
        VideoPredictor.from_pretrained(source, local_files_only=True)
    assert "\n" not in str(caught.value)


def test_push_uploads_what_save_writes(predictor, monkeypatch):
    seen = {}

    class Repository:
        repo_id = "me/streets"

    def create_repo(self, repo_id, **options):
        seen["created"] = (repo_id, options)
        return Repository

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        seen["files"] = {p.name: p.read_bytes() for p in Path(folder_path).iterdir()}
        return "the commit"

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    assert predictor.push_to_hub("streets", Card(data="Drawn."), private=True) == "the commit"
    assert seen["created"] == ("streets", {"private": True, "exist_ok": True})
    assert set(seen["files"]) == {"README.md", "config.json", "model.safetensors"}
    assert b'from_pretrained("me/streets")' in seen["files"]["README.md"]
