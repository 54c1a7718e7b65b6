"""Classes of one's own, from classes.json to the figures."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from running import call
from small import CONFIG, FLAGS

from data.io.images import read_panoptic, write_panoptic
from data.io.label_files import find_labels, read_labels
from data.labels import DEFAULT_SPACE, DataError, LabelSpace, label_space_of
from data.sets.cityscapes import Cityscapes
from data.sets.coco_panoptic import CocoPanoptic
from data.sets.kitti_step import KittiStep
from data.sets.mots import Mots
from model import Pix2SeqD, VideoPredictor
from model import checkpoint as checkpoints

CLASSES = {
    "classes": [
        {"name": "floor", "ids": [3, 4], "color": [90, 90, 90]},
        {"name": "shelf", "ids": [7], "thing": False, "color": [120, 60, 20]},
        {"name": "box", "ids": [10], "thing": True, "track": True, "color": [250, 200, 0]},
        {"name": "label", "ids": [20], "thing": True, "track": False, "color": [0, 200, 90]},
    ]
}
SIZE = 48, 96


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory):
    """A data set in KITTI-STEP's layout: a box that moves along a shelf; 255 and the unlisted 99 are void."""
    root = tmp_path_factory.mktemp("warehouse")
    (root / "classes.json").write_text(json.dumps(CLASSES))
    for split in ("train", "val"):
        folder = root / "kitti_out/video_sequence" / split
        folder.mkdir(parents=True)
        for n in range(4):
            values, ids = np.full(SIZE, 3, np.uint8), np.zeros(SIZE, np.int32)
            values[:20], values[:4, :8], values[-4:, -8:] = 7, 99, 4
            values[24:44, 10 + 8 * n : 40 + 8 * n], ids[24:44, 10 + 8 * n : 40 + 8 * n] = 10, 5
            write_panoptic(folder / f"000001_{n:06d}_panoptic.png", values, ids)
            Image.fromarray(np.repeat(values[..., None] * 10, 3, -1)).save(folder / f"000001_{n:06d}_leftImg8bit.png")
    return root


def small_weights(path):
    torch.manual_seed(0)
    content = {"format": checkpoints.FORMAT, "config": CONFIG.to_dict(), "weights": Pix2SeqD(CONFIG).state_dict()}
    checkpoints.save(path, content)
    return path


def test_label_files_are_read_as_the_listed_classes(warehouse):
    source = KittiStep(warehouse)
    assert source.space.names == ("floor", "shelf", "box", "label") and source.tracked == (2,)
    semantic, instance = source.read_labels(1)
    assert semantic[30, 20] == 2 and instance[30, 20] == 5 and semantic[10, 50] == 1
    assert semantic[0, 0] == 255 and semantic[-1, -1] == semantic[-1, 0] == 0  # unlisted; both ids of the floor


def test_cityscapes_and_coco_have_them_too(tmp_path):
    city, fine = (tmp_path / f"a/{name}/train/town" for name in ("leftImg8bit", "gtFine"))
    label = np.full((8, 8), 3, np.uint16)
    label[:2], label[2:4] = 10_001, 500
    for folder, name, array in (
        (city, "leftImg8bit", np.zeros((8, 8, 3), np.uint8)),
        (fine, "gtFine_instanceIds", label),
    ):
        folder.mkdir(parents=True)
        Image.fromarray(array).save(folder / f"town_000000_000001_{name}.png")
    (tmp_path / "a/classes.json").write_text(json.dumps(CLASSES))
    semantic, instance = Cityscapes(tmp_path / "a").read_labels(0)
    assert semantic[0, 0] == 2 and instance[0, 0] == 2 and semantic[3, 0] == 255 and semantic[7, 7] == 0

    root = tmp_path / "b"
    (root / "panoptic_train").mkdir(parents=True)
    (root / "classes.json").write_text(json.dumps(CLASSES))
    png = np.zeros((8, 8, 3), np.uint8)
    png[:4, :, 0], png[4:, :, 0] = 1, 2
    Image.fromarray(png).save(root / "panoptic_train/one.png")
    Image.fromarray(png).save(root / "one.jpg")
    segments = [{"id": 1, "category_id": 10}, {"id": 2, "category_id": 77}]
    content = {
        "images": [{"id": 1, "file_name": "one.jpg"}],
        "annotations": [{"image_id": 1, "file_name": "one.png", "segments_info": segments}],
        "categories": [{"id": 10, "name": "car"}, {"id": 77, "name": "road"}],
    }
    (root / "panoptic_train.json").write_text(json.dumps(content))
    semantic, instance = CocoPanoptic(root).read_labels(0)
    assert semantic[0, 0] == 2 and instance[0, 0] == 1 and semantic[7, 7] == 255


def test_training_inference_and_evaluation_with_four_classes(warehouse, tmp_path, capfd):
    before = checkpoints.load(small_weights(tmp_path / "first.pt"))["weights"]
    flags = ["--dataset", "kitti_step", "--data_root", warehouse, "--results_folder", tmp_path / "results"]
    flags += ["--init", tmp_path / "first.pt", "--steps", "2", "--warmup", "0", "--lr", "1e-6", "--validate_every", "2"]
    flags += ["--save_every", "2"]
    flags += ["--scale", "0.5"]
    result = call(capfd, "train", *flags, *FLAGS)
    assert result.status == 0 and "the class scores of the last layer start anew" in result.out

    # All weights but the rows of the classes are those of the first model, as far as two small steps leave them
    stored = checkpoints.load(tmp_path / "results/model-latest.pt")
    after = stored["weights"]
    assert after["denoiser.conv_out.weight"].shape[0] == 5 + 32
    assert torch.allclose(after["denoiser.conv_out.weight"][5:], before["denoiser.conv_out.weight"][20:], atol=1e-4)
    assert torch.allclose(after["denoiser.to_tokens.weight"], before["denoiser.to_tokens.weight"], atol=1e-4)
    picture = np.asarray(Image.open(tmp_path / "results/sample-1.png").convert("RGB"))
    assert (picture == (120, 60, 20)).all(axis=-1).any()  # the shelf of the truth, in its own colour
    predictor = VideoPredictor.from_checkpoint(tmp_path / "results")
    assert predictor.classes == ("floor", "shelf", "box", "label")
    config = predictor.model.config
    assert (config.classes, config.things, config.tracked) == (4, (2, 3), (2,))

    frames, output = warehouse / "kitti_out/video_sequence/val", tmp_path / "output"
    words = ["--input_folder", frames, "--output_folder", output, "--checkpoint", tmp_path / "results/model-latest.pt"]
    result = call(capfd, "inference", *words, "--overlay", "mp4", "html", "--device", "cpu", "--quiet")
    assert result.status == 0, result.err
    semantic, _ = read_panoptic(output / "000001_000000_panoptic.png", 4)
    assert set(np.unique(semantic)) <= {0, 1, 2, 3}
    assert label_space_of(output).names == predictor.classes and '"box"' in (output / "000001_view.html").read_text()

    compared = ["--ground_truth", warehouse, "--json", tmp_path / "figures.json"]
    assert call(capfd, "evaluate", "--predictions", output, *compared).status == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert set(figures["miou"]["per_class"]) == {"floor", "shelf", "box", "label"} and figures["stq"]["STQ"] is not None

    # The truth, as a prediction, against itself
    (tmp_path / "truth").mkdir()
    own = LabelSpace.from_dict(CLASSES, "here")
    for path in sorted(frames.glob("*_panoptic.png")):
        write_panoptic(tmp_path / "truth" / path.name, *read_panoptic(path, index=own.index))
    (tmp_path / "truth/classes.json").write_text((output / "classes.json").read_text())
    assert call(capfd, "evaluate", "--predictions", tmp_path / "truth", *compared).status == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["stq"]["STQ"] == figures["pq"]["All"]["PQ"] == figures["miou"]["mIoU"] == 1

    # A run of other classes is not continued, and predictions of other classes are not compared
    refused = call(capfd, "train", *flags[4:], "--dataset", "streets", "--streets_videos", "1", *FLAGS)
    assert refused.status == 2 and "was trained on other classes" in refused.message
    other = tmp_path / "other"
    other.mkdir()
    write_panoptic(other / "000001_000000_panoptic.png", np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.int32))
    refused = call(capfd, "evaluate", "--predictions", other, *compared)
    assert refused.status == 2 and "--classes" in refused.message


def test_a_classes_json_of_the_users_is_never_lost(warehouse, tmp_path, capfd):
    """A model with the built-in classes writes none, and takes away none but its own."""
    weights, output = small_weights(tmp_path / "weights.pt"), tmp_path / "output"
    output.mkdir()
    (output / "classes.json").write_text(json.dumps(CLASSES))
    words = ["--input_folder", warehouse / "kitti_out/video_sequence/val", "--checkpoint", weights, "--quiet"]
    words += ["--overlay", "none", "--device", "cpu", "--steps", "1", "--first_steps", "1"]
    refused = call(capfd, "inference", *words, "--output_folder", output)
    assert refused.status == 2 and "has other classes than the model" in refused.message
    assert (output / "classes.json").read_text() == json.dumps(CLASSES)


def test_predictions_have_the_classes_of_their_own_folder_alone(warehouse, tmp_path):
    """Beneath the data's classes.json, but of a model with the built-in ones: class 3 is not the floor."""
    (tmp_path / "data/output").mkdir(parents=True)
    (tmp_path / "data/classes.json").write_text(json.dumps(CLASSES))
    write_panoptic(tmp_path / "data/output/a_1_panoptic.png", np.full(SIZE, 3, np.uint8), np.zeros(SIZE, np.int32))
    (file,) = find_labels(tmp_path / "data/output", "val", levels=0).values()
    assert file.space is None and read_labels(file)[0][0, 0] == 3
    (file,) = find_labels(tmp_path / "data/output", "val").values()
    assert file.space.names[0] == "floor" and read_labels(file)[0][0, 0] == 0


def test_servers_and_mots_know_their_own_classes_alone(tmp_path, capfd):
    write_panoptic(tmp_path / "out/a_1_panoptic.png", np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.int32))
    (tmp_path / "out/classes.json").write_text(json.dumps(CLASSES))
    words = ["--predictions", tmp_path / "out", "--no-evaluate", "--export", "kitti_step", tmp_path / "sent"]
    refused = call(capfd, "evaluate", *words)
    assert refused.status == 2 and "the built-in classes alone" in refused.message
    folder = tmp_path / "mots/instances/0001"
    folder.mkdir(parents=True)
    Image.fromarray(np.full((8, 8), 1001, np.uint16)).save(folder / "000001.png")
    (tmp_path / "mots/classes.json").write_text(json.dumps(CLASSES))
    for read in (Mots, lambda root: find_labels(root, "val")):
        with pytest.raises(DataError, match="classes of their own"):
            read(tmp_path / "mots")


def test_data_sets_of_different_classes_do_not_mix(warehouse, tmp_path, capfd):
    flags = ["--dataset", "kitti_step", "streets", "--data_root", warehouse, "none", "--results_folder", tmp_path]
    refused = call(capfd, "train", *flags, "--streets_videos", "1", *FLAGS)
    assert refused.status == 2 and "different classes" in refused.message


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"name": "shelf"}, "two classes are named"),
        ({"name": ""}, "has no name"),
        ({"ids": [7]}, "the id 7 is"),
        ({"ids": [0]}, "the id 0 is"),
        ({"ids": []}, "the ids of"),
        ({"ids": [70_000]}, "the ids of"),
        ({"color": [0, 0, 256]}, "the color of"),
        ({"color": "red"}, "the color of"),
        ({"thing": False, "track": True}, "only a thing has tracks"),
        ({"thing": 1}, "true or false"),
    ],
)
def test_a_wrong_class_is_named(tmp_path, change, what):
    content = json.loads(json.dumps(CLASSES))
    content["classes"][1]["ids"] = [7, 0]
    content["classes"][3] |= change
    (tmp_path / "classes.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=what):
        label_space_of(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"classes": []}', '{"classes": [3]}', json.dumps({"classes": [{}] * 255})])
def test_a_wrong_file_is_named(tmp_path, text):
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(DataError, match=r"classes\.json"):
        label_space_of(tmp_path)


def test_the_default_classes_survive_their_own_file():
    assert LabelSpace.from_dict(json.loads(json.dumps(DEFAULT_SPACE.to_dict())), "here") == DEFAULT_SPACE
