"""Data sets as people have them: each trains, and its truth evaluated against itself is 100."""

import contextlib
import json
import shutil

import numpy as np
import pytest
from label_samples import write_cityscapes
from painted import Painted
from PIL import Image
from running import call
from small import FLAGS

from data.io.export import export_cityscapes
from data.io.images import write_image, write_panoptic
from data.io.label_files import find_labels, read_labels
from data.labels import CAR, PERSON, VOID, DataError
from data.sets import check
from data.sets.coco_panoptic import CocoPanoptic, read_json
from data.sets.frames import source_key
from data.sets.kitti_step import KittiStep
from data.sets.mots import Mots

FRAMES = 4
SPLITS = {"train": "0000", "val": "0002"}


@pytest.fixture(autouse=True)
def no_memory(tmp_path, monkeypatch):
    """What one test looked at is not remembered by the next."""
    monkeypatch.setattr(check, "REMEMBERED", tmp_path / "cache")


def scenes():
    """(split, sequence, number, image, semantic, instance) of a small video for each split."""
    for split, sequence in SPLITS.items():
        source = Painted(range(FRAMES), size=(32, 64), seed=int(sequence))
        for n in range(FRAMES):
            yield (split, sequence, n, *source.read(n))


def kitti_official(root):
    for split, sequence, n, image, semantic, instance in scenes():
        write_image(root / f"images/{split}/{sequence}/{n:06d}.png", image)
        write_panoptic(root / f"panoptic_maps/{split}/{sequence}/{n:06d}.png", semantic, instance)


def kitti_hub(root, image=".png", label=".png", nested=False):
    for split, sequence, n, picture, semantic, instance in scenes():
        folder = root / "kitti_out/video_sequence" / split / (sequence if nested else "")
        write_panoptic(folder / f"{sequence}_{n:06d}_panoptic{label}", semantic, instance)
        Image.fromarray(picture).save(folder / f"{sequence}_{n:06d}_leftImg8bit{image}")


def cityscapes(root):
    for split, sequence, n, image, semantic, instance in scenes():
        name = f"x_{sequence}_{n:06d}"
        write_image(root / f"leftImg8bit/{split}/x/{name}_leftImg8bit.png", image)
        write_cityscapes(root / "labels" / split, [name], [(semantic, instance % 100)])
        (root / f"gtFine/{split}").mkdir(parents=True, exist_ok=True)
        shutil.copytree(root / f"labels/{split}/gtFine/val/x", root / f"gtFine/{split}/x", dirs_exist_ok=True)
    shutil.rmtree(root / "labels")


def coco(root, tracks="track_id"):
    """As COCO lays it out. tracks: the field of a segment's track; "id": the segments' own ids go on; "": none."""
    categories = [
        {"id": 100 + c, "name": name, "isthing": 1}
        for c, name in ((PERSON, "person"), (CAR, "car"), (0, "road"), (10, "sky-other-merged"))
    ]
    content = {split: {"images": [], "annotations": [], "categories": categories} for split in SPLITS}
    for split, sequence, n, image, semantic, instance in scenes():
        keys = semantic.astype(np.int64) * 1000 + instance
        ids, segments = np.zeros(keys.shape, np.int64), []
        for place, key in enumerate(np.unique(keys[semantic != VOID]).tolist(), 1):
            number = key + 1 if tracks == "id" else place + 300 * n
            ids[keys == key] = number
            entry = {"id": number, "category_id": 100 + key // 1000, "iscrowd": int(key == CAR * 1000)}
            segments.append(entry | ({tracks: key % 1000} if tracks not in ("", "id") else {}))
        file, number = f"{sequence}/{n:06d}", len(content[split]["images"])
        write_image(root / f"{split}2017/{file}.jpg", image)
        png = np.stack([ids >> s & 255 for s in (0, 8, 16)], -1).astype(np.uint8)
        write_image(root / f"annotations/panoptic_{split}2017/{file}.png", png)
        content[split]["images"].append({"id": number, "file_name": f"{file}.jpg"})
        content[split]["annotations"].append(
            {"image_id": number, "file_name": f"{file}.png", "segments_info": segments}
        )
    for split, of_split in content.items():
        (root / f"annotations/panoptic_{split}2017.json").write_text(json.dumps(of_split))


def mots(root):
    for _, sequence, n, image, semantic, instance in scenes():
        value = np.zeros(semantic.shape, np.uint16)
        for ours, theirs in ((CAR, 1), (PERSON, 2)):
            value[(semantic == ours) & (instance > 0)] = theirs * 1000
        value += np.where(value > 0, instance, 0).astype(np.uint16)
        value[:2] = 10_000  # ignore
        write_image(root / f"instances/{sequence}/{n:06d}.png", value)
        write_image(root / f"training/image_02/{sequence}/{n:06d}.png", image)
        write_image(root / f"testing/image_02/{sequence}/{n:06d}.png", 255 - image)  # other streets of the same numbers


LAYOUTS = {
    "kitti_official": (kitti_official, "kitti_step", "train", "panoptic_maps/val"),
    "kitti_hub": (kitti_hub, "kitti_step", "train", "kitti_out/video_sequence/val"),
    "cityscapes": (cityscapes, "cityscapes", "pretrain", "gtFine/val"),
    "coco_panoptic": (coco, "coco_panoptic", "train", "annotations"),
    "mots": (mots, "mots", "train", "instances"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_trains_and_its_truth_is_a_hundred(layout, tmp_path, capfd):
    make, name, script, truth = LAYOUTS[layout]
    make(tmp_path / "root")
    result = call(
        capfd, script, *FLAGS, "--dataset", name, "--data_root", tmp_path / "root", "--steps", 5, "--batch_size", 2,
        "--backbone_weights", "none", "--results_folder", tmp_path / "run", "--validate_videos", 1,
        "--validate_frames", 2,
    )  # fmt: skip
    assert result.status == 0, result.err
    log = (tmp_path / "run/log.jsonl").read_text().splitlines()
    assert len(log) >= 1 and json.loads(log[-1])["step"] == 5

    result = call(
        capfd, "evaluate", "--predictions", tmp_path / "root" / truth, "--ground_truth", tmp_path / "root" / truth,
        "--json", tmp_path / "figures.json", "--workers", 1,
    )  # fmt: skip
    assert result.status == 0, result.err
    figures = json.loads((tmp_path / "figures.json").read_text())
    is_video = layout != "cityscapes"
    for group, score in (("stq", "STQ"), ("stq", "AQ"), ("miou", "mIoU")):
        assert figures[group][score] == (1.0 if is_video or group == "miou" else None), (group, score)
    assert figures["vpq"]["VPQ"]["all"] == (1.0 if is_video else None) and figures["pq"]["All"]["PQ"] == 1.0
    assert ("these are single images" in result.out) != is_video


def test_frames_are_the_same_in_all_layouts(tmp_path):
    for make in (kitti_official, kitti_hub, coco, mots):
        make(tmp_path / make.__name__)
    reference = KittiStep(tmp_path / "kitti_hub", "val")
    for source in (
        KittiStep(tmp_path / "kitti_official", "val"),
        CocoPanoptic(tmp_path / "coco", "val"),
        Mots(tmp_path / "mots", "val"),
    ):
        assert source.is_video and [(f.sequence, f.number) for f in source.frames] == [
            ("0002", n) for n in range(FRAMES)
        ]
        for i in range(FRAMES):
            image, semantic, instance = source.read(i)
            expected = reference.read(i)
            known = semantic != VOID
            if source.name != "coco_panoptic":  # its images are JPEG
                assert np.array_equal(image, expected[0])
            assert known.any() and np.array_equal(semantic[known], expected[1][known])
            ids = np.stack([instance[known], expected[2][known]])
            assert len(np.unique(ids[0])) == len(np.unique(ids, axis=1).T) == len(np.unique(ids[1]))
            if source.name == "mots":
                assert not known[:2].any() and set(np.unique(semantic)) == {PERSON, CAR, VOID}


@pytest.mark.parametrize(
    "options", [{"image": ".jpg"}, {"image": ".JPEG"}, {"image": ".PNG", "label": ".PNG"}, {"nested": True}], ids=str
)
def test_kitti_step_in_what_people_have(tmp_path, options):
    kitti_hub(tmp_path, **options)
    folder = tmp_path / "kitti_out/video_sequence/train"
    for name in ("._0000_000000_leftImg8bit.png", "._0000_000000_panoptic.png", "@eaDir/0000_000000_panoptic.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\0\5\x16\7")
    assert [f.number for f in KittiStep(tmp_path, "train").frames] == list(range(FRAMES))


# --- tracks in a JSON -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tracks", ["track_id", "instance_id", "id"])
def test_a_json_that_holds_tracks_keeps_them(tmp_path, tracks, capfd):
    coco(tmp_path, tracks)
    frames = read_json(tmp_path / "annotations/panoptic_val2017.json")
    assert all(frame.has_tracks for frame in frames)
    ids = [{s.track for s in frame.segments if s.semantic == CAR and not s.crowd} for frame in frames]
    assert ids[0] and all(one == ids[0] for one in ids)


def test_a_json_without_tracks_says_so(tmp_path, capfd):
    coco(tmp_path / "json", "")
    kitti_hub(tmp_path / "truth")
    result = call(
        capfd, "evaluate", "--predictions", tmp_path / "json", "--ground_truth", tmp_path / "truth",
        "--json", tmp_path / "figures.json", "--workers", 1,
    )  # fmt: skip
    assert result.status == 0 and "numbers its segments anew in each frame: no tracks" in result.out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["stq"]["STQ"] is figures["vpq"]["VPQ"]["all"] is None and figures["pq"]["All"]["PQ"] == 1.0


def test_our_own_export_keeps_its_tracks(tmp_path, capfd):
    """Case 01: the truth, exported as a JSON, is the truth."""
    kitti_hub(tmp_path / "truth")
    labels = find_labels(tmp_path / "truth", "val")
    export_cityscapes([labels[key] for key in sorted(labels)], tmp_path / "json", "val")
    result = call(
        capfd, "evaluate", "--predictions", tmp_path / "json", "--ground_truth", tmp_path / "truth",
        "--json", tmp_path / "figures.json", "--workers", 1,
    )  # fmt: skip
    assert result.status == 0 and json.loads((tmp_path / "figures.json").read_text())["stq"]["STQ"] == 1.0


def test_tracks_that_each_class_counts_from_0_are_tracks(tmp_path):
    """A person 0 and a car 0 in each frame, which is no crowd."""
    coco(tmp_path)
    path = tmp_path / "annotations/panoptic_val2017.json"
    content = json.loads(path.read_text())
    for entry in content["annotations"]:
        for category in (100 + PERSON, 100 + CAR):
            named = (s for s in entry["segments_info"] if s["category_id"] == category and not s["iscrowd"])
            for number, segment in enumerate(named):
                segment["track_id"] = number
    path.write_text(json.dumps(content))
    source = CocoPanoptic(tmp_path, "val")
    semantic, instance = source.read_labels(0)
    assert source.is_video and all(1 in instance[semantic == label] for label in (PERSON, CAR))


def test_images_of_one_name_are_those_of_the_split_or_refused(tmp_path):
    coco(tmp_path)
    write_image(tmp_path / "val2017/0000/000000.png", np.zeros((32, 64, 3), np.uint8))
    for folder in ("test2017", "annotations/semantic"):
        write_image(tmp_path / folder / "0000/000000.jpg", np.zeros((32, 64, 3), np.uint8))
    (image, *_) = (frame.image for frame in CocoPanoptic(tmp_path).frames)
    assert image == tmp_path / "train2017/0000/000000.jpg"
    write_image(tmp_path / "more/train/0000/000000.jpg", np.zeros((32, 64, 3), np.uint8))
    with pytest.raises(DataError, match="could both be the image of"):
        CocoPanoptic(tmp_path)


def test_an_edited_json_is_another_data_set_for_the_cache(tmp_path):
    coco(tmp_path)
    before = source_key(CocoPanoptic(tmp_path))
    path = tmp_path / "annotations/panoptic_train2017.json"
    path.write_text(path.read_text() + " ")
    assert source_key(CocoPanoptic(tmp_path)) != before


def test_kittis_left_camera_is_the_one_with_labels(tmp_path):
    mots(tmp_path)
    for name in ("depth", "image_03"):
        shutil.copytree(tmp_path / "training/image_02", tmp_path / "training" / name)
    assert all("image_02" in frame.image.parts for frame in Mots(tmp_path).frames)
    shutil.rmtree(tmp_path / "training/image_02")
    with pytest.raises(DataError, match="are both of one frame"):
        Mots(tmp_path)


# --- pairs and damaged labels -----------------------------------------------------------------------------------------


def write_video(folder, sequence, pattern="{n:06d}_panoptic.png"):
    source = Painted(range(3), size=(32, 64))
    for n in range(3):
        write_panoptic(folder / sequence / pattern.format(n=n), *source.read_labels(n))


@pytest.mark.parametrize(
    ("predictions", "truth", "named"),
    [
        (("out", ""), ("truth", "0002"), "truth/0002"),  # inference.py --input_folder images/val/0002
        (("out", ""), ("truth", "0002"), "truth"),
        (("0002", ""), ("truth", "0002"), "truth"),
        (("out", "MOTS20-02/img1"), ("truth", "MOTS20-02"), "truth"),
        (("out", "0002"), ("truth", "0002/image_02"), "truth"),
    ],
)
def test_predictions_of_a_sequence_pair_with_its_truth(tmp_path, capfd, predictions, truth, named):
    write_video(tmp_path / predictions[0], predictions[1])
    write_video(tmp_path / truth[0], truth[1], "{n:06d}.png")
    if predictions[0] == "0002":
        write_video(tmp_path / "truth", "0007", "9{n:05d}.png")
    result = call(capfd, "evaluate", "--predictions", tmp_path / predictions[0], "--ground_truth", tmp_path / named)
    if predictions[0] == "0002":  # the other sequence has no predictions, and that alone is missing
        assert "3 missing (listed" in result.err
    else:
        assert result.status == 0 and "100.00  100.00  100.00" in result.out, result.err


def test_the_notebook_pairs_as_evaluation_does(tmp_path):
    from data.draw import shown

    write_video(tmp_path / "pred", "0002")
    write_video(tmp_path / "truth", "0002", "{n:06d}.png")
    for n in range(3):
        write_image(tmp_path / f"images/0002/{n:06d}.png", np.zeros((32, 64, 3), np.uint8))
    frames = shown.load_frames(shown.Inference(tmp_path / "pred", tmp_path / "images"), truth=tmp_path / "truth")
    assert [frame.truth is not None for frame in frames] == [True] * 3
    with pytest.raises(DataError, match="wrong holds no predictions"):
        shown.last_inference(tmp_path / "wrong")


def test_labels_with_swapped_channels_or_from_jpeg_are_named(tmp_path, capfd):
    kitti_hub(tmp_path)
    labels = find_labels(tmp_path, "val")
    path = labels["2_0"].path
    whole = np.asarray(Image.open(path))
    Image.fromarray(np.ascontiguousarray(whole[..., ::-1])).save(path)
    with pytest.raises(DataError, match=r"red and blue swapped|holds class"):
        read_labels(labels["2_0"])
    small = whole.copy()
    small[..., 2] = np.where(whole[..., 2] > 0, whole[..., 2] % 7 + 1, 0)
    Image.fromarray(np.ascontiguousarray(small[..., ::-1])).save(path)
    with pytest.raises(DataError, match="red and blue swapped"):
        read_labels(labels["2_0"])
    Image.fromarray(whole).save(path, format="JPEG")
    with pytest.raises(DataError, match="it is a JPEG"):
        read_labels(labels["2_0"])


def test_classes_on_edges_alone_are_told(tmp_path, capfd):
    for n in range(2):
        semantic = np.zeros((32, 64), np.uint8)
        semantic[:16] = 10
        semantic[15, ::4], semantic[15, 1::4], semantic[15, 2::4] = 3, 5, 8  # what a smooth resize leaves between 0, 10
        write_panoptic(tmp_path / f"a/0_{n}_panoptic.png", semantic, np.zeros_like(semantic, np.int32))
    result = call(capfd, "evaluate", "--predictions", tmp_path / "a", "--ground_truth", tmp_path / "a")
    assert "ground truth: wall, pole, vegetation on edges or single pixels alone" in result.out
    assert "STQ, AQ: -, as no thing of the ground truth has an id" in result.out


# --- the look at all files before a training --------------------------------------------------------------------------


def train(capfd, tmp_path, *flags):
    command = ("--data_root", tmp_path / "root", "--steps", 1, "--batch_size", 1, "--backbone_weights", "none")
    return call(
        capfd, "train", *FLAGS, *command, "--results_folder", tmp_path / "run", "--validate_videos", 0, *flags
    )  # fmt: skip


def test_bad_files_are_found_before_training_begins(tmp_path, capfd):
    kitti_official(tmp_path / "root")
    image, label = (tmp_path / f"root/{kind}/train/0000/000003.png" for kind in ("images", "panoptic_maps"))
    sound = image.read_bytes()
    for content, said in ((sound[:-40], "is cut off"), (b"", "cannot be read"), (None, "is 9x9, but its label")):
        image.write_bytes(content) if content is not None else write_image(image, np.zeros((9, 9, 3), np.uint8))
        message = train(capfd, tmp_path).message
        assert said in message and "000003.png" in message and not (tmp_path / "run/model-latest.pt").exists()
    assert train(capfd, tmp_path, "--skip_bad_files").status == 0
    image.write_bytes(sound)
    label.write_bytes(label.read_bytes()[:-40])
    assert "panoptic_maps" in train(capfd, tmp_path).message


def test_what_is_sound_is_looked_at_once(tmp_path, monkeypatch):
    kitti_official(tmp_path)
    looks = []
    monkeypatch.setattr(check, "_look", lambda source, quiet: looks.append(source) or ([], []))
    for _ in range(3):
        check.check(KittiStep(tmp_path))
    assert len(looks) == 1
    path = tmp_path / "images/train/0000/000001.png"
    path.write_bytes(path.read_bytes() + b"\0")
    check.check(KittiStep(tmp_path))
    assert len(looks) == 2


def test_a_bad_first_label_is_skipped_with_a_cache_too(tmp_path, capfd):
    kitti_official(tmp_path / "root")
    (tmp_path / "root/panoptic_maps/train/0000/000000.png").write_bytes(b"")
    assert train(capfd, tmp_path, "--skip_bad_files", "--cache", tmp_path / "frames").status == 0


def test_classes_that_were_mended_are_looked_at_anew(tmp_path):
    kitti_official(tmp_path)
    for ids, refused in (([77], True), ([CAR], False)):
        own = {"name": "car", "ids": ids, "thing": True, "track": True, "color": [1, 2, 3]}
        (tmp_path / "classes.json").write_text(json.dumps({"classes": [own]}))
        with pytest.raises(DataError, match="no known pixel") if refused else contextlib.nullcontext():
            check.check(KittiStep(tmp_path), quiet=True)


def test_frames_without_a_known_pixel(tmp_path, capfd):
    kitti_official(tmp_path / "root")
    void = np.full((32, 64), VOID, np.uint8), np.zeros((32, 64), np.int32)
    folder = tmp_path / "root/panoptic_maps/train/0000"
    write_panoptic(folder / "000001.png", *void)
    check.check(KittiStep(tmp_path / "root"))
    assert "1 frames without a known pixel" in capfd.readouterr().out
    for n in range(FRAMES):
        write_panoptic(folder / f"{n:06d}.png", *void)
    assert "has no known pixel" in train(capfd, tmp_path).message
