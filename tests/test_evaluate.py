"""evaluate.py: layouts, exports, the official PQ as oracle, reference figures, shards, and what it refuses."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.evaluation.evalPanopticSemanticLabeling import evaluatePanoptic
from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic
from label_samples import blend, random_labels, write_cityscapes, write_video
from PIL import Image
from small import CONFIG

import cli
import evaluate
from data.io.images import read_panoptic, write_panoptic
from data.labels import CLASS_NAMES, THINGS, TRAIN_TO_LABEL
from model import checkpoint as checkpoints

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
KITTI = DATA / "KittiSTEP" / "kitti_out" / "video_sequence" / "val"
CAMVID = DATA / "Cityscapes"
needs_kitti = pytest.mark.skipif(not KITTI.is_dir(), reason=f"the real KITTI-STEP frames are not in {KITTI}")
needs_camvid = pytest.mark.skipif(not CAMVID.is_dir(), reason=f"the real CamVid frames are not in {CAMVID}")


@pytest.fixture
def run(monkeypatch, tmp_path):
    """run(*arguments) -> the JSON that evaluate.py writes; in this process, one worker unless told otherwise."""

    def call(*arguments):
        path = tmp_path / "figures.json"
        path.unlink(missing_ok=True)
        monkeypatch.setattr(sys, "argv", ["evaluate.py", "--workers", "1", "--json", str(path), *map(str, arguments)])
        evaluate.main()
        return json.loads(path.read_text()) if path.exists() else None

    return call


@pytest.fixture
def refuse(monkeypatch, capsys, tmp_path):
    """refuse(*arguments) -> (standard output, the error): status 2, three lines at most, no figures."""

    def call(*arguments):
        path = tmp_path / "refused.json"
        monkeypatch.setattr(sys, "argv", ["evaluate.py", "--workers", "1", "--json", str(path), *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.run(evaluate.main)
        output, error = capsys.readouterr()
        assert stop.value.code == 2
        assert not path.exists()
        assert 1 <= len(error.splitlines()) <= 3
        assert "error:" in error
        return output, error

    return call


@pytest.fixture
def videos(tmp_path):
    """Three videos of 5, 3 and 4 frames: (folder of predictions, folder of ground truth)."""
    rng = np.random.default_rng(7)
    for sequence, frames in (("000002", 5), ("000006", 3), ("000013", 4)):
        truth = [random_labels(rng)] * frames
        write_video(tmp_path / "truth" / "val", sequence, truth)
        write_video(tmp_path / "out", sequence, [blend(rng, t, random_labels(rng), 0.8) for t in truth])
    return tmp_path / "out", tmp_path / "truth"


# ---------------------------------------------------------------------------------------------------------------------
# The official evaluation of PQ
# ---------------------------------------------------------------------------------------------------------------------


def official(truth, exported, tmp_path):
    """cityscapesscripts' figures of gtFine against an export of ours, taken as it is."""
    convert2panoptic(str(truth / "gtFine"), setNames=["val"])
    files = [str(f / f"cityscapes_panoptic_val{end}") for f in (truth / "gtFine", exported) for end in (".json", "")]
    return evaluatePanoptic(*files, str(tmp_path / "official.json"))


def assert_equals_official(ours, theirs):
    for group in ("All", "Things", "Stuff"):
        for key in ("PQ", "SQ", "RQ"):
            assert ours[group][key] == pytest.approx(theirs[group][key.lower()], abs=1e-9)
    for train_id, name in enumerate(CLASS_NAMES):
        expected = theirs["per_class"][int(TRAIN_TO_LABEL[train_id])]
        for key in ("PQ", "SQ", "RQ"):  # the official code says 0 for a class that does not occur, ours null
            assert (ours["per_class"][name][key] or 0.0) == pytest.approx(expected[key.lower()], abs=1e-9)


@pytest.mark.parametrize("seed", [0, 1])
def test_pq_equals_the_official_one_on_random_maps(run, tmp_path, seed):
    rng = np.random.default_rng(seed)
    names = [f"x_000000_{i:06d}" for i in range(6)]
    truth = [random_labels(rng) for _ in names]
    write_cityscapes(tmp_path / "truth", names, truth)
    for name, labels, keep in zip(names, truth, rng.random(6), strict=True):
        prediction = blend(rng, labels, random_labels(rng), keep)
        write_panoptic(tmp_path / "out" / "val" / "x" / f"{name}_panoptic.png", *prediction)
    ours = run("--predictions", tmp_path / "out", "--ground_truth", tmp_path / "truth",
               "--export", "cityscapes", tmp_path / "export")  # fmt: skip
    assert_equals_official(ours["pq"], official(tmp_path / "truth", tmp_path / "export", tmp_path))
    assert ours["stq"]["STQ"] is ours["vpq"]["VPQ"]["all"] is ours["vpq"]["4"]["things"] is None


@needs_kitti
def test_pq_equals_the_official_one_on_real_frames(run, tmp_path):
    files = sorted(KITTI.glob("*_panoptic.png"))
    frames = [read_panoptic(file) for file in files]
    names = [f"x_{file.name.removesuffix('_panoptic.png')}" for file in files]
    write_cityscapes(tmp_path / "truth", names, frames)
    for i, name in enumerate(names):
        write_panoptic(tmp_path / "out" / f"{name}_panoptic.png", *frames[max(i - 1, 0)])
    ours = run("--predictions", tmp_path / "out", "--ground_truth", tmp_path / "truth",
               "--export", "cityscapes", tmp_path / "export")  # fmt: skip
    assert 0.5 < ours["pq"]["All"]["PQ"] < 0.99
    assert_equals_official(ours["pq"], official(tmp_path / "truth", tmp_path / "export", tmp_path))


# ---------------------------------------------------------------------------------------------------------------------
# Reference figures and shards
# ---------------------------------------------------------------------------------------------------------------------


@needs_kitti
def test_reference_previous_on_real_frames(run, capsys):
    """What the STEP authors' published code gives."""
    result = run("--ground_truth", DATA / "KittiSTEP", "--reference", "previous")
    assert result["stq"]["STQ"] == pytest.approx(0.816938, abs=1e-6)
    assert result["stq"]["AQ"] == pytest.approx(0.885711, abs=1e-6)
    assert result["stq"]["SQ"] == pytest.approx(0.753506, abs=1e-6)
    assert set(result["stq"]["per_sequence"]) == {"000002"}
    output = capsys.readouterr().out
    assert "81.69   88.57   75.35" in output
    assert run("--ground_truth", KITTI, "--reference", "hold")["stq"]["STQ"] < result["stq"]["STQ"]


def test_references(run, videos, tmp_path):
    _, truth = videos
    for number, row in enumerate(("rrcc", "rccr", "ccrr")):
        semantic = np.array([[{"r": 0, "c": 13}[letter] for letter in row]], np.uint8)
        write_panoptic(
            tmp_path / "toy" / f"000000_{number + 8}_panoptic.png", semantic, (semantic == 13).astype(np.int32)
        )
    # Frames 8, 9, 10, ordered by number. Car: 6 true, 6 predicted pixels. Previous: overlaps 2, 1, 1; hold: 2, 1, 0.
    previous = run("--ground_truth", tmp_path / "toy", "--reference", "previous")
    assert previous["stq"]["AQ"] == pytest.approx(4 / 6 * 4 / 8, abs=1e-12)
    hold = run("--ground_truth", tmp_path / "toy", "--reference", "hold")
    assert hold["stq"]["AQ"] == pytest.approx(3 / 6 * 3 / 9, abs=1e-12)
    assert run("--ground_truth", truth, "--reference", "previous")["stq"]["STQ"] == 1.0  # still videos


def test_the_truth_through_a_mask_is_what_the_mask_can_show(run, videos, tmp_path):
    _, truth = videos
    fine = dataclasses.replace(CONFIG, image_size=(512, 1024), mask_size=(512, 1024))
    coarse = dataclasses.replace(CONFIG, image_size=(32, 64), mask_size=(8, 16))
    figures = []
    for n, config in enumerate((fine, coarse)):
        content = {"format": checkpoints.FORMAT, "config": config.to_dict(), "weights": {}}
        checkpoints.save(tmp_path / f"{n}.pt", content)
        arguments = ("--ground_truth", truth, "--reference", "mask", "--checkpoint", tmp_path / f"{n}.pt")
        figures.append(run(*arguments)["stq"]["STQ"])
    assert figures[0] > 0.99 and figures[1] < figures[0]


def test_workers_give_the_same_bits(run, videos):
    predictions, truth = videos
    arguments = ("--predictions", predictions, "--ground_truth", truth)
    one = run(*arguments)
    assert 0 < one["stq"]["STQ"] < 1
    assert set(one["stq"]["per_sequence"]) == {"000002", "000006", "000013"}
    assert run(*arguments, "--workers", 2) == one
    assert run(*arguments, "--workers", 0) == one


def test_errors_of_workers_are_told(refuse, videos):
    predictions, truth = videos
    path = predictions / "000002_000003_panoptic.png"
    path.write_bytes(path.read_bytes()[:-30])
    output, error = refuse("--predictions", predictions, "--ground_truth", truth, "--workers", 2)
    assert path.name in output
    assert path.name in error


# ---------------------------------------------------------------------------------------------------------------------
# Layouts and exports
# ---------------------------------------------------------------------------------------------------------------------


def test_shape_of_the_json(run, videos):
    predictions, truth = videos
    result = run("--predictions", predictions, "--ground_truth", truth)
    assert {name: list(part) for name, part in result.items()} == {
        "stq": ["STQ", "AQ", "SQ", "per_class", "per_sequence"],
        "vpq": ["VPQ", "1", "2", "3", "4"],
        "pq": ["All", "Things", "Stuff", "per_class"],
        "miou": ["mIoU", "per_class"],
    }
    assert all(list(scores) == ["all", "things", "stuff"] for scores in result["vpq"].values())
    assert list(result["pq"]["per_class"]) == list(result["miou"]["per_class"]) == list(CLASS_NAMES)
    assert list(result["pq"]["Things"]) == list(result["pq"]["per_class"]["car"]) == ["PQ", "SQ", "RQ"]


def test_all_cityscapes_layouts_agree(run, tmp_path, capsys):
    rng = np.random.default_rng(3)
    names = [f"x_000000_{i:06d}" for i in range(5)]
    truth = [random_labels(rng) for _ in names]
    write_cityscapes(tmp_path / "truth", names, truth)
    for name, labels in zip(names, truth, strict=True):
        write_panoptic(tmp_path / "out" / f"{name}_panoptic.png", *blend(rng, labels, random_labels(rng), 0.8))
    base = tmp_path / "truth"
    predictions = ("--predictions", tmp_path / "out")
    expected = run(*predictions, "--ground_truth", base, "--export", "cityscapes", tmp_path / "export")
    convert2panoptic(str(base / "gtFine"), setNames=["val"])
    (tmp_path / "by_train_id").mkdir()
    convert2panoptic(str(base / "gtFine"), str(tmp_path / "by_train_id"), True, ["val"])
    for folder in (
        "truth/gtFine",
        "truth/gtFinePanopticParts",
        "truth/gtFine/val",
        "truth/gtFine/val/x",
        "by_train_id",
    ):
        assert run(*predictions, "--ground_truth", tmp_path / folder) == expected, folder
    # The panoptic JSON alone, as truth and as prediction.
    for path in (base / "gtFine" / "val").rglob("*.png"):
        path.unlink()
    assert run(*predictions, "--ground_truth", base / "gtFine") == expected
    assert run("--predictions", tmp_path / "export", "--ground_truth", base / "gtFine") == expected
    capsys.readouterr()


@needs_camvid
def test_images_without_instances(run):
    """The official code divides by zero here."""
    result = run("--predictions", CAMVID / "gtFine", "--ground_truth", CAMVID)
    assert result["pq"]["All"] == result["pq"]["Stuff"] == {"PQ": 1.0, "SQ": 1.0, "RQ": 1.0}
    assert result["pq"]["Things"] == {"PQ": None, "SQ": None, "RQ": None}
    assert result["miou"]["mIoU"] == 1.0
    assert result["stq"]["STQ"] is result["vpq"]["VPQ"]["all"] is None


def test_export_kitti_step_goes_round(run, videos, tmp_path):
    predictions, truth = videos
    expected = run("--predictions", predictions, "--ground_truth", truth, "--export", "kitti_step", tmp_path / "export")
    files = sorted(path.relative_to(tmp_path / "export").as_posix() for path in (tmp_path / "export").rglob("*.png"))
    assert len(files) == 12
    assert files[0] == "0002/000000.png"  # as STEP's own folders
    for original in predictions.glob("*.png"):
        sequence, frame, _ = original.stem.split("_")
        copy = read_panoptic(tmp_path / "export" / sequence[2:] / f"{frame}.png")
        assert all(np.array_equal(a, b) for a, b in zip(read_panoptic(original), copy, strict=True))
    assert run("--predictions", tmp_path / "export", "--ground_truth", truth) == expected


def test_export_without_ground_truth(run, videos, tmp_path):
    predictions, _ = videos
    arguments = ("--predictions", predictions, "--no-evaluate", "--split", "test", "--ground_truth", tmp_path / "none")
    assert run(*arguments, "--export", "cityscapes", tmp_path / "export") is None
    content = json.loads((tmp_path / "export" / "cityscapes_panoptic_test.json").read_text())
    assert len(content["annotations"]) == 12
    frame = content["annotations"][0]
    image = np.array(Image.open(tmp_path / "export" / "cityscapes_panoptic_test" / frame["file_name"])).astype(int)
    ids = image @ (1, 256, 65536)
    for segment in frame["segments_info"]:
        mask = ids == segment["id"]
        x, y, width, height = segment["bbox"]
        assert mask.sum() == mask[y : y + height, x : x + width].sum() == segment["area"]
        assert mask[y : y + height, x].any()
        assert mask[y, x : x + width].any()


def test_folders_are_found(run, videos, tmp_path):
    """Sub-folders, other splits beside, other files between, folders that are linked in."""
    predictions, truth = videos
    expected = run("--predictions", predictions, "--ground_truth", truth)
    write_video(truth / "train", "000099", [random_labels(np.random.default_rng(0))])
    (truth / "val" / "notes.txt").write_text("none")
    (predictions / "overlay.gif").write_bytes(b"GIF89a")
    (predictions / "deep" / "er").mkdir(parents=True)
    first = predictions / "000002_000000_panoptic.png"
    first.rename(predictions / "deep" / "er" / first.name)
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "val").symlink_to(truth / "val", target_is_directory=True)
    for folder in (truth, truth / "val", tmp_path / "link"):
        assert run("--predictions", predictions, "--ground_truth", folder) == expected


def test_videos_in_folders_and_splits_by_folder(run, tmp_path):
    """`<video>/<number>_panoptic.png`, and predictions that keep the split's folder when the split's own is named."""
    rng = np.random.default_rng(5)
    labels = [random_labels(rng) for _ in range(6)]
    for i, frame in enumerate(labels):
        for folder in ("test/deep/train", "out/train"):
            write_panoptic(tmp_path / folder / f"video{i // 3}" / f"{i % 3:04d}_panoptic.png", *frame)
    result = run("--predictions", tmp_path / "out", "--ground_truth", tmp_path / "test" / "deep" / "train")
    assert set(result["stq"]["per_sequence"]) == {"video0", "video1"}
    assert result["stq"]["STQ"] == 1.0
    assert run("--predictions", tmp_path / "out", "--ground_truth", tmp_path / "test", "--split", "train") == result


def test_things(run, videos):
    predictions, truth = videos
    arguments = ("--predictions", predictions, "--ground_truth", truth)
    assert run(*arguments, "--things", "person", "car") == run(*arguments)
    every = run(*arguments, "--things", *(CLASS_NAMES[c] for c in THINGS))
    assert every["pq"]["per_class"]["rider"] != run(*arguments)["pq"]["per_class"]["rider"]


# ---------------------------------------------------------------------------------------------------------------------
# What it refuses
# ---------------------------------------------------------------------------------------------------------------------


def test_all_that_is_wrong_with_the_pairs_is_listed(refuse, videos):
    predictions, truth = videos
    rng = np.random.default_rng(0)
    (predictions / "000002_000001_panoptic.png").unlink()
    (predictions / "000006_000002_panoptic.png").unlink()
    write_video(predictions, "000050", [random_labels(rng)])
    write_panoptic(predictions / "000002_000002_panoptic.png", *random_labels(rng, 20, 40))
    Image.fromarray(random_labels(rng)[0]).save(predictions / "000002_000003_panoptic.png")
    (predictions / "000002_000004_panoptic.png").write_bytes(b"\x89PNG no more")
    for name, wrong in (("000013_000000", 19), ("000013_000001", 200)):
        semantic, instance = (a.copy() for a in random_labels(rng))
        semantic[0, 0] = wrong
        write_panoptic(predictions / f"{name}_panoptic.png", semantic, instance)
    output, error = refuse("--predictions", predictions, "--ground_truth", truth)
    for expected in (
        "missing: 000002_000001 ",
        "missing: 000006_000002 ",
        f"extra: {predictions}/000050_000000_panoptic.png",
        f"other size: {predictions}/000002_000002_panoptic.png is 40x20, its ground truth 40x24",
        f"unreadable: {predictions}/000002_000003_panoptic.png is no panoptic PNG: its mode is L",
        f"unreadable: {predictions}/000002_000004_panoptic.png",
        "000013_000000_panoptic.png holds class 19",
        "000013_000001_panoptic.png holds class 200",
    ):
        assert expected in output
    assert "2 missing, 1 other size, 2 unreadable, 1 extra, 2 unfit labels" in error
    assert "000002_000001" in error


def test_wrong_arguments(refuse, videos, tmp_path):
    predictions, truth = videos
    both = ("--predictions", predictions, "--ground_truth", truth)
    (tmp_path / "empty").mkdir()
    for arguments, message in [
        (("--predictions", tmp_path / "none", "--ground_truth", truth), "--predictions"),
        (("--predictions", predictions, "--ground_truth", tmp_path / "none"), "--ground_truth"),
        (("--predictions", tmp_path / "empty", "--ground_truth", truth), "holds no label maps"),
        (("--predictions", predictions, "--ground_truth", tmp_path / "empty"), "holds no label maps"),
        ((*both, "--split", "train"), "--split"),
        ((*both, "--split", "vla"), "--split"),
        ((*both, "--workers", "-1"), "--workers"),
        ((*both, "--workers", "two"), "--workers"),
        ((*both, "--things", "cow"), "cow"),
        ((*both, "--export", "coco", tmp_path / "export"), "cityscapes or kitti_step"),
        ((*both, "--export", "cityscapes", predictions / "export"), "choose another"),
        ((*both, "--export", "cityscapes"), "--export"),
        ((*both, "--json", tmp_path), "is a folder"),
        ((*both, "--json", predictions / "000002_000000_panoptic.png" / "x.json"), "cannot be made"),
        ((*both, "--no-evaluate"), "--export"),
        ((*both, "--reference", "previous", "--export", "cityscapes", tmp_path / "export"), "--reference"),
        ((*both, "--prediction", "x"), "did you mean --predictions"),
    ]:
        _, error = refuse(*arguments)
        assert message in error, arguments


def test_reference_of_single_images(refuse, tmp_path):
    write_cityscapes(tmp_path, ["x_000000_000000"], [random_labels(np.random.default_rng(0))])
    assert "needs videos" in refuse("--ground_truth", tmp_path, "--reference", "hold")[1]


def test_two_files_for_one_frame_and_two_layouts(refuse, videos):
    predictions, truth = videos
    labels = random_labels(np.random.default_rng(0))
    write_panoptic(predictions / "again" / "000002_000000_panoptic.png", *labels)
    assert "both for 000002_000000" in refuse("--predictions", predictions, "--ground_truth", truth)[1]
    write_cityscapes(truth, ["x_000000_000000"], [labels])
    assert "both Cityscapes and KITTI-STEP" in refuse("--predictions", predictions, "--ground_truth", truth)[1]


def test_damaged_panoptic_json(refuse, videos, tmp_path):
    predictions, _ = videos
    for content in ('{"annotations": [{"image_id": "x"}]}', '{"annotations": ', '{"annotations": 3}'):
        (tmp_path / "coco").mkdir(exist_ok=True)
        (tmp_path / "coco" / "cityscapes_panoptic_val.json").write_text(content)
        assert "panoptic JSON" in refuse("--predictions", predictions, "--ground_truth", tmp_path / "coco")[1]


def test_a_damaged_first_label_file_is_named(refuse, tmp_path):
    for folder in ("out", "truth"):
        for number in range(2):
            name = f"{number:06d}{'_panoptic' * (folder == 'out')}.png"
            write_panoptic(tmp_path / folder / "0001" / name, *random_labels(np.random.default_rng(0)))
    (tmp_path / "truth/0001/000000.png").write_bytes(b"")
    assert "000000.png" in refuse("--predictions", tmp_path / "out", "--ground_truth", tmp_path / "truth")[1]


def test_help_shows_defaults(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "-h", "all"])
    with pytest.raises(SystemExit) as stop:
        evaluate.main()
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for group in evaluate.OPTIONS.values():
        assert all(f"--{option.name}" in text.replace("--[no-]", "--") for option in group)
    assert text.count("(default: ") == sum(map(len, evaluate.OPTIONS.values()))
