"""Golden figures of the shipped weights: a change of the science that no small test sees moves them.

`python -m pytest tests/test_golden.py --renew` writes the figures anew. Do so when new weights are shipped, or when a
change is meant to change answers, and say in the commit why they moved.
"""

import json
from pathlib import Path

import pytest
import torch
from painted import clips_of

from data.clips.settings import ClipFormat
from data.streets.source import Streets, render_video, tracked_only
from metrics import Evaluation
from model import VideoPredictor
from model.diffusion.draws import draw
from model.diffusion.loss import LossConfig, training_loss
from training.step import to_device

WEIGHTS = Path(__file__).resolve().parents[1] / "results/pretrained/model-tiny.pt"
FIGURES = Path(__file__).with_name("golden.json")
SIZE = (96, 320)

pytestmark = [
    pytest.mark.quick,
    pytest.mark.skipif(not WEIGHTS.exists(), reason=f"{WEIGHTS} is not there"),
]


@pytest.fixture(scope="module")
def predictor():
    return VideoPredictor.from_checkpoint(WEIGHTS, device="cpu", mixed_precision="no")


@pytest.fixture
def golden(request):
    """golden(name, value, tolerance): compares with the stored figure, or stores it with --renew."""

    def compare(name, value, **tolerance):
        stored = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
        if request.config.getoption("--renew"):
            FIGURES.write_text(json.dumps(stored | {name: round(value, 6)}, indent=2, sort_keys=True) + "\n")
        else:
            assert value == pytest.approx(stored[name], **tolerance), f"{name}; if it should move: --renew"

    return compare


def test_the_stream_of_two_videos(predictor, golden):
    evaluation = Evaluation()
    for video in range(2):
        predictor.reset(video)
        for image, semantic, instance in render_video(video, "test", 6, SIZE):
            answer = predictor(image)
            truth = semantic, tracked_only(semantic, instance)
            evaluation.update(truth, (answer.semantic, answer.track), video)
    result = evaluation.result()
    golden("STQ", result["stq"]["STQ"], abs=0.005)
    golden("mIoU", result["miou"]["mIoU"], abs=0.005)


@torch.no_grad()
def test_the_loss_of_a_clip(predictor, golden):
    model, config = predictor.model, predictor.model.config
    fmt = ClipFormat(config.image_size, config.mask_size, config.slots, config.history_offsets)
    clips = clips_of(Streets(None, "test", videos=1, image_size=SIZE), fmt)
    batch = to_device(torch.utils.data.default_collate([clips[4]]), torch.device("cpu"))
    draws = draw(0, [0], model, config.mask_size, "cpu")
    loss, _ = training_loss(model, config, LossConfig(stuff_by_class=True), batch, draws)
    golden("loss", loss.item(), rel=1e-4)
