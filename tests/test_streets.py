"""Streets: exact and stable labels, a world worth solving, both layouts, and the cache."""

import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from data.io.images import read_image, read_panoptic
from data.labels import CLASS_NAMES, DEFAULT_SPACE, NUM_CLASSES, THINGS, VOID, DataError
from data.streets.render import _order
from data.streets.source import SPLITS, Streets, StreetsConfig, render, render_video, tracked_only
from data.streets.write import cityscapes_ids, write_cityscapes, write_kitti_step

SMALL = (48, 160)


@pytest.fixture(scope="module")
def videos():
    """Eight validation videos at the default size: {seed: [(image, semantic, instance), ...]}."""
    return {seed: list(render_video(seed, "val", frames=16)) for seed in range(8)}


def same(a, b):
    return all(np.array_equal(x, y) for f, g in zip(a, b, strict=True) for x, y in zip(f, g, strict=True))


def test_a_video_is_a_function_of_split_and_seed():
    first = list(render_video(3, "train", 4, SMALL))
    assert same(first, list(render_video(3, "train", 4, SMALL)))
    assert same(first[:2], list(render_video(3, "train", 2, SMALL)))  # a longer video goes on, it does not change
    assert not same(first, list(render_video(4, "train", 4, SMALL)))
    assert not same(first, list(render_video(3, "val", 4, SMALL)))


def test_splits_never_share_a_random_state():
    states = {
        tuple(np.random.SeedSequence([number, seed]).generate_state(4))
        for number in SPLITS.values()
        for seed in range(500)
    }
    assert len(set(SPLITS.values())) == len(SPLITS) and len(states) == 500 * len(SPLITS)


def test_shapes_types_and_values(videos):
    for image, semantic, instance in videos[0]:
        assert (image.shape, image.dtype) == ((96, 320, 3), np.uint8)
        assert (semantic.shape, semantic.dtype) == ((96, 320), np.uint8)
        assert (instance.shape, instance.dtype) == ((96, 320), np.int32)
        assert set(np.unique(semantic)) <= {*range(NUM_CLASSES), VOID}
    assert videos[0][0][0].std() > 10  # no grey frame


def test_every_thing_has_an_id_and_every_id_one_class(videos):
    for video in videos.values():
        owner = {}
        for _, semantic, instance in video:
            assert np.array_equal(instance > 0, np.isin(semantic, THINGS))
            for track in np.unique(instance[instance > 0]):
                classes = np.unique(semantic[instance == track])
                assert len(classes) == 1 and owner.setdefault(int(track), int(classes[0])) == classes[0]


def test_the_camera_and_the_things_move_but_not_by_leaps(videos):
    """Between neighbouring frames something changes, and large objects mostly overlap themselves."""
    overlaps = []
    for video in videos.values():
        assert not np.array_equal(video[0][1], video[-1][1])
        for (_, _, a), (_, _, b) in pairwise(video):
            for track in np.intersect1d(a[a > 0], b[b > 0]):
                p, q = a == track, b == track
                if p.sum() > 200:
                    overlaps.append((p & q).sum() / (p | q).sum())
    assert np.median(overlaps) > 0.6


def describe(config: StreetsConfig, seeds: Iterable[int], split: str = "val", hidden_below: float = 0.7) -> dict:
    """Figures of some videos' persons and cars (other classes only in "classes").

    A track is partly hidden where, in some frame, less than `hidden_below` of what it would cover in the frame (at
    least 16 pixels) is visible. Sizes are visible pixels of a person or a car in a frame.
    """
    tracks, hidden, lives, sizes, in_view = [], [], [], [], []
    classes: dict[int, int] = defaultdict(int)
    for seed in seeds:
        seen: dict[int, list[float]] = {}
        for frame in render(config, seed, split, full=True):
            for cls in np.unique(frame.semantic):
                classes[int(cls)] += 1
            ids, areas = np.unique(tracked_only(frame.semantic, frame.instance), return_counts=True)
            areas = dict(zip(ids.tolist(), areas.tolist(), strict=True))
            areas.pop(0, None)
            in_view.append(len(areas))
            for track, area in areas.items():
                full = frame.full.get(track, 0)
                seen.setdefault(track, []).append(area / full if full >= 16 else 1.0)
                sizes.append(area)
            for track in seen.keys() - areas.keys():  # wholly hidden, for now
                if frame.full.get(track, 0) >= 16:
                    seen[track].append(0.0)
        tracks.append(len(seen))
        hidden += [min(shares) < hidden_below for shares in seen.values()]
        lives += [len(shares) for shares in seen.values()]

    def spread(values) -> dict[str, float]:
        points = np.percentile(values, [0, 25, 50, 75, 100]).round(1).tolist() if len(values) else [0.0] * 5
        return dict(zip(("min", "quartile", "median", "upper quartile", "max"), points, strict=True))

    return {
        "videos": len(tracks),
        "tracks of a video": spread(tracks),
        "share of tracks partly hidden": float(np.mean(hidden)) if hidden else 0.0,
        "frames of a track": spread(lives),
        "persons and cars in view": spread(in_view),
        "share of frames with 2 to 12": float(np.mean([2 <= n <= 12 for n in in_view])),
        "pixels of a person or car": spread(sizes),
        "share smaller than 16 pixels": float(np.mean(np.array(sizes) < 16)) if sizes else 0.0,
        "classes": {("void" if c == VOID else CLASS_NAMES[c]): n / len(in_view) for c, n in sorted(classes.items())},
    }


def test_the_world_is_worth_solving():
    figures = describe(StreetsConfig(frames=12), range(20), "val")
    assert sum(share > 0.05 for name, share in figures["classes"].items() if name != "void") >= 14
    assert figures["share of tracks partly hidden"] > 1 / 3
    assert figures["share of frames with 2 to 12"] > 0.95
    assert 4 <= figures["persons and cars in view"]["median"] <= 10
    assert figures["persons and cars in view"]["max"] <= 12
    assert figures["share smaller than 16 pixels"] < 0.12


def test_each_video_has_many_classes(videos):
    assert np.median([len(np.unique(video[0][1])) for video in videos.values()]) >= 9
    together = set().union(*(np.unique(s).tolist() for v in videos.values() for _, s, _ in v))
    assert len(together - {VOID}) >= 12


def test_unhidden_areas_are_at_least_the_visible_ones():
    for frame in render(StreetsConfig(frames=6), 1, "val", full=True):
        ids, areas = np.unique(frame.instance[frame.instance > 0], return_counts=True)
        assert ids.size
        for track, area in zip(ids.tolist(), areas.tolist(), strict=True):
            assert frame.full[track] >= area


@pytest.mark.parametrize("size", [(24, 64), (50, 333), (128, 128), (192, 640)])
def test_any_size_shows_the_same_scene(size):
    reference = next(render_video(5, "val", 1))[1]
    image, semantic, instance = next(render_video(5, "val", 1, size))
    assert image.shape == (*size, 3) and semantic.shape == instance.shape == size
    if size == (192, 640):
        assert (semantic[::2, ::2] == reference).mean() > 0.93


def test_long_videos_keep_going():
    seen, alive = set(), []
    for _, _, instance in render_video(2, "train", 200, (24, 80)):
        alive.append(set(np.unique(instance)) - {0})
        seen |= alive[-1]
    assert len(seen) > 20 and max(seen) < 65536
    assert seen - set().union(*alive[:100])  # newcomers in the second half


def test_order_draws_what_is_hidden_first():
    #                x0, x1, z0, z1: a far car, a house on the right, a walker before it, a lead car
    boxes = np.array([[-1, 1, 30, 34], [6, 16, 5, 25], [4, 4.5, 12, 12.5], [-1, 1, 8, 12]])
    order = _order(boxes).tolist()
    assert order.index(0) < order.index(3) and order.index(1) < order.index(2)
    # A parked car on the left and a bus in the lane beside it: the bus stands before it, wherever the houses are.
    boxes = np.array([[-7, -5.4, 9, 14], [-4.7, -2.2, 6, 17], [-20, -9, 4, 15], [6, 17, 1, 14]])
    order = _order(boxes).tolist()
    assert order.index(2) < order.index(0) < order.index(1)


@pytest.mark.parametrize(
    "arguments", [{"split": "trian"}, {"image_size": (0, 320)}, {"image_size": (96,)}, {"frames": 0}, {"seed": -1}]
)
def test_wrong_values_are_refused(arguments):
    with pytest.raises(DataError):
        next(render_video(**({"seed": 0} | arguments)))


# The data set --------------------------------------------------------------------------------------------------------


def test_the_data_set_reads_what_was_rendered(tmp_path):
    data = Streets(tmp_path, "val", videos=2, frames=3, image_size=SMALL, workers=1)
    assert [(f.sequence, f.number) for f in data.frames] == [(f"val{s:06d}", n) for s in (0, 1) for n in range(3)]
    assert data.tracked == (11, 13) and data.is_video and data.name == "streets"
    image, semantic, instance = list(render_video(1, "val", 3, SMALL))[2]
    read = data.read(5)
    assert np.array_equal(read[0], image) and np.array_equal(read[1], semantic)
    assert np.array_equal(read[2], tracked_only(semantic, instance))
    assert [a.dtype for a in read] == [np.uint8, np.uint8, np.int32] and all(a.flags.writeable for a in read)
    assert all(np.array_equal(a, b) for a, b in zip(data.read_labels(5), read[1:], strict=True))
    with pytest.raises(IndexError):
        data.read(6)


def test_only_persons_and_cars_have_ids_in_the_data_set():
    semantic = np.array([[11, 12, 13, 14, 18, 0]], np.uint8)
    assert tracked_only(semantic, np.arange(1, 7, dtype=np.int32)[None]).tolist() == [[1, 0, 3, 0, 0, 0]]


def test_the_cache_is_used_and_damage_is_repaired(tmp_path):
    def make(videos=2):
        return Streets(tmp_path, "val", videos=videos, frames=2, image_size=SMALL, workers=1)

    files = sorted(make().folder.iterdir())
    assert len(files) == 6 and not any(f.name.startswith(".") for f in files)
    times = [f.stat().st_mtime_ns for f in files]
    whole = files[0].read_bytes()
    make()
    assert [f.stat().st_mtime_ns for f in files] == times  # nothing was rendered again
    files[0].write_bytes(whole[: len(whole) // 2])
    reader = make()
    assert files[0].read_bytes() == whole
    files[0].write_bytes(whole[:-1])  # cut off while in use
    assert reader.read(0)[0].shape == (*SMALL, 3) and files[0].read_bytes() == whole
    files[1].unlink()
    make()
    assert files[1].exists()
    other = Streets(tmp_path, "val", videos=1, frames=2, image_size=(32, 96), workers=1)
    assert other.folder != reader.folder


def test_a_disk_without_room_is_told_before_anything_is_rendered(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Disk", (), {"free": 1000}))
    with pytest.raises(DataError, match=r"Streets takes 0\.\d GB, and .* has 0\.0 GB free"):
        Streets(tmp_path, "val", videos=1, frames=2, image_size=SMALL, workers=1)
    assert not list(tmp_path.rglob("*.npy"))


def test_several_processes_render_the_same(tmp_path):
    one = Streets(tmp_path / "a", "val", videos=3, frames=2, image_size=SMALL, workers=1)
    two = Streets(tmp_path / "b", "val", videos=3, frames=2, image_size=SMALL, workers=2)
    assert same([one.read(i) for i in range(6)], [two.read(i) for i in range(6)])


# Files ---------------------------------------------------------------------------------------------------------------


def test_kitti_step_files_decode_to_the_same_maps(tmp_path):
    folder = write_kitti_step(tmp_path, "val", videos=2, frames=2, image_size=SMALL)
    assert folder == tmp_path / "kitti_out" / "video_sequence" / "val" and len(list(folder.iterdir())) == 8
    for seed in (0, 1):
        for n, (image, semantic, instance) in enumerate(render_video(seed, "val", 2, SMALL)):
            assert np.array_equal(read_image(folder / f"{seed:06d}_{n:06d}_leftImg8bit.png"), image)
            stored = read_panoptic(folder / f"{seed:06d}_{n:06d}_panoptic.png")
            assert np.array_equal(stored[0], semantic)
            assert np.array_equal(stored[1], tracked_only(semantic, instance))


def test_cityscapes_files_decode_to_the_same_maps(tmp_path):
    write_cityscapes(tmp_path, "train", videos=1, frames=2, image_size=SMALL)
    for n, (image, semantic, instance) in enumerate(render_video(0, "train", 2, SMALL)):
        stem = f"train/streets/streets_000000_{n:06d}"
        ids = np.array(Image.open(tmp_path / "gtFine" / f"{stem}_gtFine_instanceIds.png")).astype(np.int64)
        parts = np.array(Image.open(tmp_path / "gtFinePanopticParts" / f"{stem}_gtFinePanopticParts.tif"))
        labels = np.array(Image.open(tmp_path / "gtFine" / f"{stem}_gtFine_labelIds.png"))
        assert np.array_equal(read_image(tmp_path / "leftImg8bit" / f"{stem}_leftImg8bit.png"), image)
        assert parts.dtype == np.int32 and np.array_equal(parts, ids) and np.array_equal(parts >= 1000, instance > 0)
        label = np.where(ids >= 1000, ids // 1000, ids)
        assert np.array_equal(DEFAULT_SPACE.index[label], semantic) and np.array_equal(labels, label)
        pairs = np.unique(np.stack([ids[instance > 0], instance[instance > 0]]), axis=1)  # one to one
        assert len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1] > 0


def test_cityscapes_instances_count_from_zero_and_crowd_keeps_the_label():
    semantic = np.array([[11, 11, 11, 13, 0, 255]], np.uint8)
    instance = np.array([[7, 9, 0, 9, 0, 0]], np.int32)
    assert cityscapes_ids(semantic, instance).tolist() == [[24000, 24001, 24, 26000, 7, 0]]


def test_the_command_line_writes_and_answers_mistakes_in_one_line(tmp_path):
    def call(*arguments):
        command = [sys.executable, "-m", "data.streets", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    done = call("--output_folder", str(tmp_path), "--videos", "1", "--frames", "1", "--image_size", "32", "96")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kitti_out/video_sequence/val/000000_000000_panoptic.png").exists()
    wrong = call("--image_size", "1", "1")
    assert wrong.returncode == 2 and len(wrong.stderr.splitlines()) == 1 and "pixels" in wrong.stderr
