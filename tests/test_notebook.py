"""visualize.ipynb runs top to bottom: without any inference, and on one of a user's own frames."""

import json
import os
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

from data.io.images import write_image, write_panoptic
from model import checkpoint as checkpoints
from tests.small import lively_model

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "visualize.ipynb"
FILMS = ("video", "panoptic", "semantic", "instance", "video_overlay")


def execute(folder: Path, monkeypatch, frames: int) -> str:
    """Run the notebook as it is in an empty folder; returns what it printed."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("VISUALIZE_FRAMES", str(frames))
    notebook = nbformat.read(NOTEBOOK, 4)
    NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "stream" and o.name == "stderr"]
    return "".join(o.text for o in outputs if o.output_type == "stream")


def check_films(folder: Path, frames: int, size: tuple[int, int]) -> None:
    for film in FILMS:
        with Image.open(folder / f"outputs/results/result_{film}.gif") as gif:
            assert (gif.n_frames, gif.size) == (frames, size), film


def test_without_any_inference_it_runs_the_demos(tmp_path, monkeypatch):
    model = lively_model()
    weights = {"format": checkpoints.FORMAT, "config": model.config.to_dict(), "weights": model.state_dict()}
    checkpoints.save(tmp_path / "results/pretrained/model-tiny.pt", weights)
    (tmp_path / "results/train").mkdir()
    lines = [f'{{"step": {i}, "loss": {9 / i}, "semantic": {9 / i}, "instance": {8 / i}}}\n' for i in range(1, 9)]
    (tmp_path / "results/train/log.jsonl").write_text("".join(lines) + '{"step": 9, "los')
    printed = execute(tmp_path, monkeypatch, frames=4)
    assert "running the demo's model on one street" in printed and "4 frames, 4 with truth" in printed
    assert "No training run" not in printed and "No checkpoint" not in printed
    check_films(tmp_path, 4, (320, 96))


def test_an_inference_on_own_frames_without_truth(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for number, size in ((8, (50, 91)), (9, (50, 91)), (10, (40, 91))):
        semantic, track = np.zeros(size, np.uint8), np.zeros(size, np.int32)
        semantic[20:30, number : number + 30], track[20:30, number : number + 30] = 13, 300
        write_image(tmp_path / f"data/input/trip one/my frame {number}.png", rng.integers(0, 256, (*size, 3), np.uint8))
        write_panoptic(tmp_path / f"data/output/trip one/my frame {number}_panoptic.png", semantic, track)
        line = {"sequence": "trip one", "frame": number, "file": f"trip one/my frame {number}_panoptic.png"}
        with (tmp_path / "data/output/tracks.jsonl").open("a") as tracks:
            tracks.write(json.dumps(line | {"segments": [{"id": 300, "class": 13, "area": 300}]}) + "\n")
    printed = execute(tmp_path, monkeypatch, frames=24)
    assert "3 frames, 0 with truth; sequences: trip one" in printed and "shown in grey" not in printed
    assert "No ground truth" in printed and "No checkpoint" in printed and "No training run" in printed
    check_films(tmp_path, 3, (91, 50))


@pytest.fixture
def committed() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, 4)


def test_it_is_committed_without_outputs(committed):
    """Outputs are pictures of somebody's frames, and of weights that have changed since."""
    cells = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert cells and not any(cell.outputs or cell.execution_count for cell in cells)


def test_it_defines_nothing(committed):
    sources = [cell.source for cell in committed.cells if cell.cell_type == "code"]
    assert not any(re.search(r"^(def|class) ", source, re.MULTILINE) for source in sources)
