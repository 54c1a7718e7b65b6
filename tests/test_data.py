"""The data sets, the order of frames and of training, the cache: real frames where ../shared/data is there."""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from painted import FORMAT, Broken, Painted, clips_of, has_history, make_cityscapes, make_kitti, same
from PIL import Image
from torch.utils.data import DataLoader

from data.clips import cache
from data.clips.cache import Cached
from data.clips.mixture import TrainingStream
from data.clips.settings import Augmentation, ClipFormat
from data.io.images import write_image
from data.labels import VOID, DataError
from data.sets import kitti_step
from data.sets.cityscapes import Cityscapes, read_target
from data.sets.frames import FrameRef, count_gaps, history_index, natural_key, usual_step
from data.sets.kitti_step import KittiStep
from training import samples

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
needs_kitti = pytest.mark.skipif(not (SHARED / "KittiSTEP").is_dir(), reason="../shared/data/KittiSTEP is not there")
needs_cityscapes = pytest.mark.skipif(
    not (SHARED / "Cityscapes").is_dir(), reason="../shared/data/Cityscapes is not there"
)

# --- files ---------------------------------------------------------------------------------------------------------


@needs_kitti
def test_kitti_step_reads_real_frames_in_order():
    source = KittiStep(SHARED / "KittiSTEP", "val")
    assert [f.number for f in source.frames] == list(range(len(source.frames)))
    assert KittiStep(SHARED / "KittiSTEP/kitti_out/video_sequence", "val").frames == source.frames
    assert KittiStep(SHARED / "KittiSTEP/kitti_out", "val").frames == source.frames
    image, semantic, instance = source.read(7)
    rgb = np.array(Image.open(source.frames[7].label)).astype(int)  # decoded a second time, pixel by pixel
    assert image.shape == (188, 621, 3)
    np.testing.assert_array_equal(semantic, rgb[..., 0])
    np.testing.assert_array_equal(instance, rgb[..., 1] * 256 + rgb[..., 2])
    assert set(np.unique(semantic[instance > 0])) <= set(source.tracked)
    assert instance.max() > 0


@needs_cityscapes
def test_cityscapes_tiff_and_png_decode_to_the_same_maps():
    tiffs = sorted((SHARED / "Cityscapes/gtFinePanopticParts").glob("*/*/*.tif"))
    assert tiffs
    for tiff in tiffs[::6]:
        folder = SHARED / "Cityscapes/gtFine" / tiff.parent.relative_to(SHARED / "Cityscapes/gtFinePanopticParts")
        png = folder / tiff.name.replace("_gtFinePanopticParts.tif", "_gtFine_instanceIds.png")
        for a, b in zip(read_target(tiff), read_target(png), strict=True):
            np.testing.assert_array_equal(a, b)


@needs_cityscapes
def test_cityscapes_reads_real_frames():
    source = Cityscapes(SHARED / "Cityscapes", "val")
    assert len(source.frames) == 26
    assert all(f.label.name.endswith(".tif") for f in source.frames)
    image, semantic, instance = source.read(3)
    assert image.shape == (240, 320, 3)
    assert {0, 2, VOID} <= set(np.unique(semantic))
    assert instance.max() == 0
    sample = clips_of(source, FORMAT)[3]
    assert not has_history(sample).any()
    thing = sample["semantic"] > 11  # its things have no ids: crowd
    assert thing.any()
    assert not sample["instance_known"][thing].any()


#            uid       class  id     with 2 digits, 4-5 digits and 6-7 digits; 29 = caravan is void
UIDS = {24: (11, 0), 24000: (11, 1), 26012: (13, 13), 2601203: (13, 13), 7: (0, 0), 29001: (255, 0), 700001: (0, 0)}


def test_cityscapes_ids_are_shifted_by_one_and_parts_are_dropped(tmp_path):
    path = tmp_path / "a_000000_000001_gtFinePanopticParts.tif"
    Image.fromarray(np.array([list(UIDS)], np.int32)).save(path)
    semantic, instance = read_target(path)
    assert [*zip(semantic[0].tolist(), instance[0].tolist(), strict=True)] == list(UIDS.values())
    fine = {uid: v for uid, v in UIDS.items() if uid < 65536}
    path = tmp_path / "a_000000_000001_gtFine_instanceIds.png"
    Image.fromarray(np.array([list(fine)], np.uint16)).save(path)
    semantic, instance = read_target(path)
    assert [*zip(semantic[0].tolist(), instance[0].tolist(), strict=True)] == list(fine.values())


@pytest.mark.parametrize("uid", [34, 99, 500, -1, 99999, 12_345_678])
def test_cityscapes_refuses_what_is_no_label(tmp_path, uid):
    path = tmp_path / "a_gtFinePanopticParts.tif"
    Image.fromarray(np.array([[7, uid]], np.int32)).save(path)
    with pytest.raises(DataError, match="labelId"):
        read_target(path)


def test_cityscapes_unpacks_archives_that_lie_in_the_root(tmp_path):
    made, root = make_cityscapes(tmp_path / "made"), tmp_path / "root"
    root.mkdir()
    for folder, archive in (("leftImg8bit", "leftImg8bit_trainvaltest"), ("gtFine", "gtFine_trainvaltest")):
        with zipfile.ZipFile(root / f"{archive}.zip", "w") as file:
            file.writestr("README", "as in the real ones")
            for path in sorted((made / folder).rglob("*.png")):
                file.write(path, path.relative_to(made))
    source = Cityscapes(root)
    assert [f.sequence for f in source.frames] == ["ulm_000000", "ulm_000001"]
    assert source.read(0)[2].max() == 1
    assert not (root / "README").exists()


def test_cityscapes_says_what_is_missing(tmp_path):
    with pytest.raises(DataError, match=r"missing is missing.*setup\.sh cityscapes"):
        Cityscapes(tmp_path / "missing")
    with pytest.raises(DataError, match="no leftImg8bit"):
        Cityscapes(tmp_path)
    root = make_cityscapes(tmp_path)
    with pytest.raises(DataError, match="split 'val'"):
        Cityscapes(root, "val")
    label = root / "gtFine/train/ulm/ulm_000001_000019_gtFine_instanceIds.png"
    label.rename(root / "kept")
    with pytest.raises(DataError, match=r"ulm_000001_000019_leftImg8bit.png is there without a label"):
        Cityscapes(root)
    (root / "kept").rename(label)
    (root / "leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png").unlink()
    with pytest.raises(DataError, match="without its image ulm_000000_000019"):
        Cityscapes(root)


def test_kitti_step_says_what_is_missing(tmp_path):
    with pytest.raises(DataError, match=r"is missing. KITTI-STEP is the file kitti_step.zip"):
        KittiStep(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no kitti_out"):
        KittiStep(tmp_path)
    folder = make_kitti(tmp_path / "kitti_out/video_sequence/train")
    with pytest.raises(DataError, match=r"no split 'val'.*there are train"):
        KittiStep(tmp_path, "val")
    (folder / "000000_000002_leftImg8bit.png").rename(tmp_path / "kept")
    with pytest.raises(DataError, match=r"000000_000002_panoptic.png is there without its image"):
        KittiStep(tmp_path)
    (tmp_path / "kept").rename(folder / "000000_000002_leftImg8bit.png")
    (folder / "000000_000010_panoptic.png").unlink()
    with pytest.raises(DataError, match=r"000000_000010_leftImg8bit.png is there without its label"):
        KittiStep(tmp_path)


def test_kitti_step_test_split_needs_no_labels(tmp_path):
    for path in make_kitti(tmp_path / "test").glob("*_panoptic.png"):
        path.unlink()
    source = KittiStep(tmp_path, "test")
    assert len(source.frames) == 4
    with pytest.raises(DataError, match="no labels"):
        source.read(0)


def test_kitti_step_is_fetched_and_unpacked_where_it_is_missing(tmp_path, monkeypatch, serve):
    """And the download is not begun where there is no room for what it unpacks to."""
    make_kitti(tmp_path / "made" / "kitti_out" / "video_sequence" / "train", numbers=range(3))
    body = Path(shutil.make_archive(str(tmp_path / "kitti_step"), "zip", tmp_path / "made")).read_bytes()
    server = serve(body=body)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(kitti_step, "DEFAULT_ROOT", tmp_path / "KittiSTEP")
    monkeypatch.setattr(kitti_step, "ARCHIVE_SIZE", len(body))
    monkeypatch.setattr(kitti_step, "ARCHIVE_SHA256", hashlib.sha256(body).hexdigest())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=kitti_step.UNPACKED_SIZE + len(body) - 1))
    with pytest.raises(ValueError, match=r"16\.4 GB free, and 16\.4 GB are needed"):
        KittiStep()
    assert server.requests == []
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=kitti_step.UNPACKED_SIZE + len(body)))
    source = KittiStep()
    assert len(source.frames) == 3 and source.read(1)[0].shape == (60, 128, 3)


def test_image_and_label_of_different_size_are_named(tmp_path):
    folder = make_kitti(tmp_path / "train")
    write_image(folder / "000000_000001_leftImg8bit.png", np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(DataError, match=r"000000_000001_leftImg8bit.png is 9x9, but its label .* is 128x60"):
        KittiStep(tmp_path).read(1)


def test_damaged_label_is_named(tmp_path):
    path = make_kitti(tmp_path / "train") / "000000_000001_panoptic.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"000000_000001_panoptic.png"):
        KittiStep(tmp_path).read_labels(1)


def test_labels_and_data_sets_need_no_torch():
    code = "import sys; sys.modules['torch'] = None; import data.labels, data.io.label_files, data.sets.kitti_step"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# --- order and history ------------------------------------------------------------------------------------------------


def test_frames_are_ordered_by_number_and_not_by_string(tmp_path):
    make_kitti(tmp_path / "train", (9, 10, 100), "2")
    for path in make_kitti(tmp_path / "other", (7,), "10").iterdir():
        path.rename(tmp_path / "train" / path.name.replace("000007", "7"))
    order = [(f.sequence, f.number) for f in KittiStep(tmp_path).frames]
    assert order == [("2", 9), ("2", 10), ("2", 100), ("10", 7)]
    assert sorted(["f10", "f9", "a", "10", "9"], key=natural_key) == ["9", "10", "a", "f9", "f10"]


def test_usual_step():
    assert usual_step([5]) == 1
    assert usual_step([0, 1, 2, 10, 11]) == 1
    assert usual_step([0, 5, 10, 30, 35]) == 5


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([0, 1, 2, 3], [(-1, -1), (-1, 0), (0, 1), (1, 2)]),
        ([0, 1, 2, 10, 11, 12], [(-1, -1), (-1, 0), (0, 1), (-1, -1), (-1, 3), (3, 4)]),
        ([0, 1, 2, 4, 5], [(-1, -1), (-1, 0), (0, 1), (1, 2), (2, 3)]),  # a dropped frame is none
        ([0, 2, 5, 7, 10, 17], [(-1, -1), (-1, 0), (0, 1), (1, 2), (2, 3), (-1, -1)]),  # 10 of 25 frames a second
        ([0, 5, 10, 21], [(-1, -1), (-1, 0), (0, 1), (-1, -1)]),
    ],
)
def test_history_stops_at_gaps(numbers, expected):
    frames = [FrameRef("a", n) for n in numbers]
    assert [tuple(row) for row in history_index(frames, (-2, -1)).tolist()] == expected


def test_history_never_crosses_sequences():
    frames = [FrameRef("a", 0), FrameRef("a", 1), FrameRef("b", 2), FrameRef("b", 3)]
    assert history_index(frames, (-2, -1)).tolist() == [[-1, -1], [-1, 0], [-1, -1], [-1, 2]]


def test_gaps_are_counted_within_sequences():
    numbers = {"a": (0, 1, 2, 10, 11, 12, 15), "b": (20, 25, 30, 41), "c": (7,)}
    assert count_gaps([FrameRef(sequence, n) for sequence, all_of_it in numbers.items() for n in all_of_it]) == 3


# --- training stream --------------------------------------------------------------------------------------------------


def stream(**options) -> TrainingStream:
    clips = [
        clips_of(Painted(range(7)), FORMAT, Augmentation()),
        clips_of(Painted(range(20), size=(48, 96)), FORMAT, Augmentation()),
    ]
    return TrainingStream(clips, **{"weights": (0.5, 0.5), "seed": 3, "samples": 24} | options)


def test_stream_is_the_same_for_any_number_of_workers():
    reference = [stream()[n] for n in range(24)]
    for workers in (0, 1, 2):
        batches = list(DataLoader(stream(), batch_size=4, num_workers=workers))
        for n, sample in enumerate(reference):
            assert all(torch.equal(batches[n // 4][k][n % 4], sample[k]) for k in sample), (workers, n)
    assert same(stream()[17], reference[17])  # on its own, without those before
    assert not same(stream(seed=4)[17], reference[17])
    assert len(stream()) == 24
    with pytest.raises(IndexError):
        stream()[24]


def test_stream_covers_each_data_set_evenly_and_keeps_the_weights():
    s = stream(weights=(3, 1))
    epochs = 50
    places = [s.locate(n) for n in range(epochs * s.epoch_length)]
    count = [np.bincount([i for d, i in places if d == k], minlength=n) for k, n in ((0, 7), (1, 20))]
    assert all(c.max() - c.min() <= 1 for c in count)
    share = count[0].sum() / len(places)
    assert share == pytest.approx(0.75, abs=0.02)
    assert places[: s.epoch_length] != places[s.epoch_length : 2 * s.epoch_length]
    natural = stream(weights=None)
    assert sorted(natural.locate(n) for n in range(27)) == [(d, i) for d, n in ((0, 7), (1, 20)) for i in range(n)]
    assert {stream(weights=(0, 1)).locate(n)[0] for n in range(40)} == {1}


def test_stream_skips_bad_files_only_when_asked(capsys):
    clips = [clips_of(Broken(range(9)), FORMAT)]
    with pytest.raises(DataError, match="broken"):
        list(TrainingStream(clips, samples=9))
    samples = list(TrainingStream(clips, samples=9, skip_bad_files=True))
    assert sum(int(s["skipped"]) for s in samples) >= 3  # three bad ones in the epoch, more where a draw hits another
    assert any(s["skipped"] == 0 for s in samples)
    again = list(TrainingStream(clips, samples=9, skip_bad_files=True))
    assert all(same(a, b) for a, b in zip(samples, again, strict=True))
    first = capsys.readouterr().err.splitlines()[:3]
    assert len(set(first)) == 3  # each file once
    assert all("is broken" in line for line in first)

    class Hopeless(Broken):
        def read(self, i):
            raise DataError("nothing works")

    with pytest.raises(DataError, match="16 samples in a row"):
        TrainingStream([clips_of(Hopeless(), FORMAT)], samples=1, skip_bad_files=True)[0]


# --- cache ------------------------------------------------------------------------------------------------------------


def test_cache_gives_what_the_source_gives_at_its_size(tmp_path):
    source = Painted(size=(48, 96))
    cached = Cached(source, (48, 96), tmp_path)
    for i in range(len(source.frames)):
        for _ in range(2):  # made, then read
            for a, b in zip(cached.read(i), source.read(i), strict=True):
                np.testing.assert_array_equal(a, b)
                assert a.dtype == b.dtype
    assert same(clips_of(cached, FORMAT)[5], clips_of(source, FORMAT)[5])


def test_cache_is_smaller_keyed_and_survives_damage(tmp_path):
    root = tmp_path / "kitti"
    make_kitti(root / "train")
    source = KittiStep(root)
    cached = Cached(source, (24, 48), tmp_path / "cache", margin=1.5)
    for i in range(4):
        cached.read(i)
    assert not list(cached.folder.glob("*.part"))
    image, semantic, instance = cached.read(3)
    assert image.shape[:2] == semantic.shape == (35, 75)  # the size by area of (24, 48), times 1.5, rounded up
    assert set(np.unique(instance)) <= set(np.unique(source.read_labels(3)[1]))
    stored = sorted(cached.folder.glob("*.safetensors"))
    assert len(stored) == 4
    stored[3].write_bytes(stored[3].read_bytes()[:-7])
    np.testing.assert_array_equal(cached.read_labels(3)[1], instance)
    stored[3].write_bytes(b"abc")
    np.testing.assert_array_equal(cached.read(3)[0], image)
    assert Cached(KittiStep(root), (24, 48), tmp_path / "cache", margin=1.5).folder == cached.folder
    assert Cached(source, (24, 48), tmp_path / "cache").folder != cached.folder
    make_kitti(root / "train", (2,))  # written again: another time of change
    assert Cached(KittiStep(root), (24, 48), tmp_path / "cache", margin=1.5).folder != cached.folder


def test_a_portrait_frame_is_stored_whole(tmp_path):
    """Its crops may lie anywhere: nothing of it is cut, and nothing is stored larger than it is."""
    assert Cached(Painted(size=(96, 48)), (24, 96), tmp_path).read(0)[0].shape == (68, 34, 3)
    assert Cached(Painted(size=(24, 48)), (48, 96), tmp_path, margin=2.0).read(0)[0].shape == (24, 48, 3)


def test_ids_of_more_than_16_bits_go_through_the_cache(tmp_path):
    class Coloured(Painted):
        """Its ids are colours, as COCO's are."""

        def read_labels(self, i):
            semantic, instance = super().read_labels(i)
            return semantic, np.where(instance > 0, instance + 10_000_000, 0).astype(np.int32)

        def read(self, i):
            return super().read(i)[0], *self.read_labels(i)

    through = Cached(Coloured(), (60, 128), tmp_path)
    for _ in range(2):  # made, then read
        assert np.array_equal(through.read(0)[2], Coloured().read(0)[2])


def test_the_cache_is_announced_gone_on_with_and_given_up_where_there_is_no_room(tmp_path, monkeypatch):
    make_kitti(tmp_path / "kitti" / "train")
    source, said = KittiStep(tmp_path / "kitti"), []

    def cached(*sources, folder="cache"):
        return samples.cached(list(sources), (24, 48), tmp_path / folder, 1.5, said.append)

    (through,) = cached(source)
    assert "0.0 GB" in said[0] and through.missing_bytes() == 4 * 6 * 35 * 75
    image = through.read(0)[0]
    assert cached(source)[0].missing_bytes() == 3 * 6 * 35 * 75

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:  # full while it is filled
        patch.setattr(cache, "save_file", full)
        assert through.read(1)[0].shape == image.shape and not through._path(1).exists()
        assert through.read_labels(1)[0].shape == image.shape[:2]
    for free, room in ((10_000, []), (60_000, [0]), (120_000, [0, 1])):  # each needs 47,250 bytes more
        monkeypatch.setattr(samples.shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        sources = source, KittiStep(tmp_path / "kitti")
        assert [n for n, after in enumerate(cached(*sources)) if after is not sources[n]] == room
    assert sum("none is silent" in line for line in said) == 3
    (tmp_path / "file").touch()
    assert cached(source, folder="file") == [source]
    assert "cannot be written" in said[-1]
    painted = Painted()  # is made, not read
    assert cached(painted) == [painted]


@needs_kitti
def test_real_clip_from_the_cache(tmp_path):
    source = KittiStep(SHARED / "KittiSTEP", "val")
    source.frames = source.frames[:6]
    clips = clips_of(
        Cached(source, (96, 320), tmp_path), ClipFormat((96, 320), (48, 160), 32, (-2, -1)), Augmentation()
    )
    sample = clips.sample(5, np.random.default_rng(0))
    assert sample["image"].shape == (3, 96, 320)
    assert has_history(sample).all()
    assert 0 < sample["instance"].max() < 32
