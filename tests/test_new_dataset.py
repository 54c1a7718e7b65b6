"""The data set that CONTRIBUTING.md adds as an example: written as it stands there, registered, and trained on."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests.small import FLAGS

ROOT = Path(__file__).resolve().parent.parent


def write_my_street(root: Path) -> None:
    """Two videos of four frames, one for each split: a car (id 7) drives over a road under a sky."""
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / split / "one" / kind).mkdir(parents=True)
        for frame in range(4):
            labels = np.full((32, 64), 10_000, np.uint16)
            labels[12:] = 0
            labels[14:24, 8 + frame : 24 + frame] = 13_007
            labels[:2, :2] = 65_535
            image = np.stack([labels % 251] * 3, axis=-1).astype(np.uint8)
            Image.fromarray(image).save(root / split / "one/images" / f"{frame:05d}.jpg")
            Image.fromarray(labels).save(root / split / "one/masks" / f"{frame:05d}.png")


def test_the_example_of_contributing_trains(tmp_path):
    # A copy of the code with the example's file and line in it.
    code = tmp_path / "code"
    ignored = shutil.ignore_patterns("__pycache__", "KittiSTEP", "Cityscapes", "Streets", "input", "output")
    for folder in ("data", "model", "metrics", "training"):
        shutil.copytree(ROOT / folder, code / folder, ignore=ignored)
    for script in ROOT.glob("*.py"):
        shutil.copy(script, code)
    file, line = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    (code / "data/sets/my_street.py").write_text(file)
    registry = code / "data/sets/registry.py"
    registry.write_text(f"{registry.read_text()}\nfrom data.sets.my_street import MyStreet\n\n{line}")
    write_my_street(tmp_path / "MyStreet")

    flags = [*FLAGS, "--steps", "2", "--validate_videos", "1", "--backbone_weights", "none"]
    command = [sys.executable, "train.py", "--dataset", "my_street", "--data_root", tmp_path / "MyStreet", *flags]
    done = subprocess.run(
        [*command, "--results_folder", tmp_path / "results"],
        cwd=code,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "4 of my_street" in done.stdout
    log = (tmp_path / "results/log.jsonl").read_text().splitlines()
    assert len(log) == 2 and '"STQ"' in log[-1]
    assert (tmp_path / "results/model-latest.pt").exists()

    # Its labels are what the file says: class and id of the car, void where nothing is known.
    probe = (
        "from data.sets.my_street import MyStreet; s = MyStreet('../MyStreet', 'val'); "
        "image, semantic, ids = s.read(2); "
        "print(image.shape, semantic[16, 12], ids[16, 12], semantic[0, 0], ids[0, 0], ids.max())"
    )
    read = subprocess.run([sys.executable, "-c", probe], cwd=code, capture_output=True, text=True)
    assert read.stdout.split() == ["(32,", "64,", "3)", "13", "7", "255", "0", "7"], read.stderr

    # Classes of one's own beside it: the car is the second of them, and the sky is none.
    own = [{"name": "road", "ids": [0]}, {"name": "car", "ids": [13], "thing": True, "track": True}]
    own = [c | {"color": [n, n, n]} for n, c in enumerate(own)]
    (tmp_path / "MyStreet/classes.json").write_text(json.dumps({"classes": own}))
    read = subprocess.run([sys.executable, "-c", probe], cwd=code, capture_output=True, text=True)
    assert read.stdout.split() == ["(32,", "64,", "3)", "1", "7", "255", "0", "7"], read.stderr
