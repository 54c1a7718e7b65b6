"""benchmarks/gpu.py at its tiny size: every part but the tests, which are run here."""

import json

import pytest

from benchmarks import gpu
from model import PRESETS


def test_the_gpu_hour_runs_on_a_cpu(tmp_path):
    parts = {name: part for name, part in gpu.PARTS.items() if name != "tests"}  # which are run here
    results = gpu.run(None, tmp_path, parts)
    assert results["left out"] == [] and list(results["parts"]) == list(parts)
    for name, figures in results["parts"].items():
        assert "failed" not in figures and len(figures) > 1, (name, figures)
    speeds = [k for k in results["parts"]["speed"] if "samples/s" in k]
    assert [k.split(":")[0] for k in speeds] == list(PRESETS)
    assert results["parts"]["resume"]["resume, deterministic: the same to the bit"]
    assert json.loads((tmp_path / "gpu.json").read_text()) == results
    assert "| precision | pixels" in (tmp_path / "gpu.md").read_text()


def test_the_gpu_hour_goes_on_after_a_failed_part_and_says_why_and_what_did_not_fit(tmp_path, capfd):
    (tmp_path / "data.zip").write_bytes(b"no archive")
    parts = {"compiled": (None, 8), "learning": (None, 200), "precision": (None, 200)}
    results = gpu.run(tmp_path / "data.zip", tmp_path / "out", parts)["parts"]
    assert "more than 8 s" in results["compiled"]["failed"]
    assert "data.zip" in results["learning"]["failed"] and "failed" not in results["precision"]
    assert gpu.run(None, tmp_path / "out", {"tests": (None, 500)}, total=5)["left out"] == ["tests"]
    with pytest.raises(SystemExit):
        gpu.main([str(tmp_path / "none.zip")])
    assert "none.zip does not exist" in capfd.readouterr().err
