"""Inputs as people have them: which frames they are, in which order, of which video, and how they are seen."""

import gc
import http.server
import json
import os
import shutil
import struct
import threading
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image
from running import call
from test_inference import QUICK, draw, folder_of, infer, masks, save_model, tracks, two_threads  # noqa: F401

from data.io.files import whole
from data.io.images import read_image
from data.io.listing import walk
from data.io.pixels import to_rgb
from data.labels import DataError
from data.videos import output as outputs
from data.videos import overlays, resume, video
from data.videos.cuts import Cuts
from data.videos.find import find_sequences
from data.videos.names import ordered_videos
from data.videos.video import VideoWriter, read_video, upright, video_length

SHARED = Path(__file__).resolve().parents[2] / "shared"
needs_kitti = pytest.mark.skipif(not (SHARED / "data/KittiSTEP").is_dir(), reason="../shared/data is not there")
needs_cases = pytest.mark.skipif(not (SHARED / "cases").is_dir(), reason="../shared/cases is not there")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("weights") / "model.pt", 0)


def film(path, frames=3, size=(32, 48), fps=10):
    with VideoWriter(path, fps) as writer:
        for n in range(frames):
            writer.write(np.full((*size, 3), 40 + 5 * n, np.uint8))
    return path


# --- order and grouping of names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        [f"cam_10-59-{n}" for n in range(54, 60)] + [f"cam_11-00-{n:02d}" for n in range(6)],
        ["2023-12-31 23-59-58", "2023-12-31 23-59-59", "2024-01-01 00-00-00", "2024-01-01 00-00-01"],
        ["img_1600000000_900000000", "img_1600000000_950000000", "img_1600000001_000000000"],
        ["1305031452.82", "1305031452.853", "1305031453.01"],
        ["IMG_20240101_105959_0", "IMG_20240101_105959_1", "IMG_20240101_110000_0"],
        ["frame_9_jpg.rf.a1", "frame_10_jpg.rf.7f", "frame_11_jpg.rf.0c"],
        ["0bcef9c4", "4dedb224", "5e732a18", "a1", "b77f"],
        ["a 9", "a 10", "a 100"],
        ["2", "poster", "sunset"],
        ["31.12.2023_23-59-59", "01.01.2024_00-00-00"],
        ["f_-2", "f_-1", "f_0", "f_1"],
        ["0008", "0009", "000a", "000b", "0010"],
    ],
    ids=lambda names: names[0],
)
def test_names_of_one_video_in_the_order_of_a_person(names):
    shuffled = [names[i] for i in np.random.default_rng(0).permutation(len(names))]
    ((name, order, _),) = ordered_videos(shuffled)
    assert name == "" and [shuffled[i] for i in order] == names


@pytest.mark.parametrize(
    ("names", "videos"),
    [
        ([f"{v}_{n:04d}" for v in "ab" for n in range(3)], {"a": 3, "b": 3}),
        ([f"{n}_{v}" for v in ("left", "right") for n in range(4)], {"left": 4, "right": 4}),
        ([f"{v:04d}_{n:04d}_x_{9999 + 5 * n:06d}" for v in (5, 10) for n in range(25, 28)], {"0005_x": 3, "0010_x": 3}),
        ([f"{v:06d}_{n:06d}" for v in range(3) for n in range(5)], {"000000": 5, "000001": 5, "000002": 5}),
        ([f"{n:04d}_{camera}" for n in range(9) for camera in (0, 1)], {"0": 9, "1": 9}),
        ([f"frame{n}" for n in range(8, 12)] + ["cover"], {"frame": 4, "cover": 1}),
    ],
)
def test_several_videos_in_one_flat_folder(names, videos):
    found = ordered_videos(names[::-1])
    assert {name: len(order) for name, order, _ in found} == videos
    for _, order, numbers in found:
        assert numbers == sorted(numbers)
        assert [names[::-1][i] for i in order] == sorted((names[::-1][i] for i in order), key=names.index)


def test_uneven_steps_are_no_gap_and_jumps_are(tmp_path):
    stamps = [1403636579763555584 + 50_000_000 * n + (n % 2) * 256 for n in range(6)]
    for names, gaps in (([f"{s}.png" for s in stamps], 0), ([f"{n}.png" for n in (0, 2, 5, 7, 10, 30, 32)], 1)):
        (sequence,) = find_sequences(folder_of(tmp_path / str(gaps), names))
        assert sum(frame.after_gap for frame in sequence.frames) == gaps


# --- cuts -------------------------------------------------------------------------------------------------------------


def scene(seed, shift=0):
    blocks = np.random.default_rng(seed).integers(0, 255, (4, 12, 3)).astype(np.uint8)
    return np.roll(blocks.repeat(24, 0).repeat(24, 1), shift, axis=1)


def cuts_of(frames):
    cuts = Cuts()
    return [n for n, frame in enumerate(frames) if cuts(frame)]


def test_a_cut_is_where_the_pictures_change():
    drive = [scene(0, 2 * n) for n in range(8)]
    assert cuts_of([*drive, *(scene(1, 2 * n) for n in range(4))]) == [8]
    assert cuts_of([*drive, *(np.ascontiguousarray(np.rot90(f)) for f in drive)]) == [8]
    assert cuts_of([*drive, *(f // 3 + 20 for f in drive[::-1])]) == []  # a change of light is none
    first = Cuts()
    assert [first(f) for f in drive] == [False] * 8
    assert Cuts(first.state)(scene(1)) and not Cuts(first.state)(scene(0, 16))  # a resumed video goes on the same


@needs_kitti
def test_real_streets_have_no_cut_that_is_none():
    folder = SHARED / "data/KittiSTEP/kitti_out/video_sequence"
    for split in ("train", "val"):
        assert cuts_of(read_image(p) for p in sorted((folder / split).glob("*_leftImg8bit.*"))) == []


@needs_cases
def test_no_id_is_on_both_sides_of_a_cut(weights, tmp_path, capfd):
    for flags, expected in (((), True), (("--no-cuts",), False)):
        out = tmp_path / str(expected)
        assert infer(capfd, weights, SHARED / "cases/26/cut", out, *flags).status == 0
        ids = [{s["id"] for s in line["segments"] if s["id"]} for line in tracks(out)]
        before, after = set().union(*ids[:12]), set().union(*ids[12:])
        assert before and after and (not before & after) == expected


# --- what is not taken, and what is stale -----------------------------------------------------------------------------


def test_hidden_system_and_linked_folders(tmp_path, capfd):
    source = folder_of(tmp_path / "in", ["1.png", "2.png"])
    for name in (".ipynb_checkpoints/1.png", "@eaDir/1.png", "__MACOSX/1.png", "._1.png"):
        draw(source / name, 0)
    draw(tmp_path / "elsewhere" / "7.png", 0)
    (source / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (source / "linked" / "back").symlink_to(source, target_is_directory=True)  # round and round
    (source / "3.png").symlink_to(tmp_path / "gone.png")
    (source / "notes.txt").write_text("")
    left_out = {}
    names = [f.output.as_posix() for s in find_sequences(source, left_out) for f in s.frames]
    assert names == ["1_panoptic.png", "2_panoptic.png", "linked/7_panoptic.png"]
    assert {reason: [p.name for p in paths] for reason, paths in left_out.items()} == {
        "broken links": ["3.png"], ".txt files": ["notes.txt"], "linked twice": ["back"]
    }  # fmt: skip


def test_unreadable_folders_are_named(tmp_path, monkeypatch):
    source = folder_of(tmp_path / "in", ["1.png", "shut/2.png"])
    real = os.scandir

    def refuse(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr("os.scandir", refuse)
    left_out = {}
    assert len(list(walk(source, left_out))) == 1 and left_out == {"unreadable": [source / "shut"]}
    with pytest.raises(PermissionError, match="shut"):  # a data set is whole, or there is none
        list(walk(source))


def test_a_file_that_two_write_at_once_is_one_of_theirs_and_whole(tmp_path):
    path = tmp_path / "sub" / "a.bin"
    with whole(path, shared=True) as one, whole(path, shared=True) as other:
        one.write_bytes(b"one"), other.write_bytes(b"other")
        assert not path.exists() and one != other
    assert path.read_bytes() == b"one" and [p.name for p in path.parent.iterdir()] == ["a.bin"]
    with pytest.raises(ZeroDivisionError), whole(path) as temporary:
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"one" and [p.name for p in path.parent.iterdir()] == ["a.bin"]


def test_what_is_left_out_is_told_at_the_end(weights, tmp_path, capfd):
    source = folder_of(tmp_path / "in", ["1.png", "1_overlay.jpg"])
    (source / "a.heic").write_bytes(b"x")
    command = ("--input_folder", source, "--output_folder", tmp_path / "o", "--checkpoint", weights)
    result = call(capfd, "inference", *command, *QUICK[:-1])  # but --quiet
    assert "left out: 1 named as labels or overlays" in result.out
    assert "1 .heic files, which need `pip install pillow-heif`" in result.out or (source / "a.heic").name in result.err


def test_inputs_by_relative_and_absolute_paths_and_the_folder_of_a_training(weights, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        folder_of(tmp_path / name, ["0.png"])
    (tmp_path / "run").mkdir()
    shutil.copy(weights, tmp_path / "run/model-latest.pt")
    result = infer(capfd, tmp_path / "run", Path("a"), tmp_path / "out", "--input_folder", "a", tmp_path / "b")
    assert result.status == 0, result.message
    assert list(masks(tmp_path / "out")) == ["a/0_panoptic.png", "b/0_panoptic.png"]
    assert json.loads((tmp_path / "out/.inference/run.json").read_text())["input_folder"] == str(tmp_path)


def test_a_shorter_film_of_the_same_name_leaves_no_mask_of_the_longer(weights, tmp_path, capfd):
    for frames in (5, 3):
        film(tmp_path / "v.mp4", frames)
        assert infer(capfd, weights, tmp_path / "v.mp4", tmp_path / "out", overlay="mp4").status == 0
        assert len(masks(tmp_path / "out")) == len(tracks(tmp_path / "out")) == frames
    assert video_length(tmp_path / "out/v_overlay.mp4")[1] == 3


def test_masks_of_other_videos_are_refused_or_removed(weights, tmp_path, capfd):
    out = tmp_path / "out"
    infer(capfd, weights, film(tmp_path / "a.mp4"), out, overlay="gif")
    result = infer(capfd, weights, film(tmp_path / "b.mp4"), out)
    assert "holds predictions of other videos (a)" in result.message and len(masks(out)) == 3
    assert infer(capfd, weights, tmp_path / "b.mp4", out, "--restart").status == 0
    assert {name[0] for name in masks(out)} == {"b"} and not (out / "a_overlay.gif").exists()


def test_what_is_unchanged_stays(weights, tmp_path, capfd, monkeypatch):
    """A folder that was copied again, a frame that was added, one that was taken away, one that was changed."""
    monkeypatch.setattr(resume, "KEPT_EVERY", 2)
    monkeypatch.setattr(outputs, "STATE_EVERY", 1)
    source, out = folder_of(tmp_path / "in", [f"{n}.png" for n in range(6)]), tmp_path / "out"
    infer(capfd, weights, source, out)

    def again(fresh=True):
        times = {p.name: p.stat().st_mtime_ns for p in out.glob("*_panoptic.png")}
        assert infer(capfd, weights, source, out).status == 0
        shutil.rmtree(tmp_path / "alone", ignore_errors=True)
        infer(capfd, weights, source, tmp_path / "alone")
        assert masks(out) == masks(tmp_path / "alone") and len(tracks(out)) == len(masks(out))
        return {int(p.name[0]) for p in out.glob("*_panoptic.png") if times.get(p.name) != p.stat().st_mtime_ns}

    for path in source.iterdir():
        os.utime(path, (1, 1))
    assert again() == set()
    draw(source / "6.png", 6)
    assert again() == {6}
    (source / "6.png").unlink()
    assert again() == set()
    draw(source / "4.png", 44)
    assert again() == {4, 5}
    draw(source / "1.png", 11)
    assert again() == {0, 1, 2, 3, 4, 5}


# --- how files are seen -----------------------------------------------------------------------------------------------


GREY = np.arange(256, dtype=np.uint16).reshape(16, 16)


@pytest.mark.parametrize(
    ("picture", "suffix"),
    [
        (GREY.astype(np.uint8), ".png"),
        (GREY * 4, ".png"),  # 10 bits in 16
        (GREY * 16, ".png"),  # 12 bits in 16
        (GREY * 257, ".png"),
        (GREY.astype(np.int32), ".tif"),
        (GREY.astype(np.int32) * 257, ".tif"),
        (GREY.astype(np.float32) / 255, ".tif"),
        (GREY.astype(np.float32), ".tif"),
    ],
)
def test_grey_of_all_depths_is_as_bright_as_it_was(tmp_path, picture, suffix):
    Image.fromarray(picture).save(tmp_path / f"a{suffix}")
    expected = GREY.astype(np.uint8)[..., None].repeat(3, 2)
    assert np.array_equal(read_image(tmp_path / f"a{suffix}"), expected)
    assert np.array_equal(to_rgb(Image.open(tmp_path / f"a{suffix}")), expected)


@pytest.mark.parametrize("value", [-1.0, np.nan, 1e9])
def test_pixels_that_are_none_are_refused(tmp_path, value):
    Image.fromarray(np.full((4, 4), value, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif cannot be used"):
        read_image(tmp_path / "a.tif")


def test_colours_of_twelve_bits_in_sixteen_are_refused(tmp_path):
    """Pillow would show black."""
    for shift in (0, 4):
        deep = np.full((8, 8, 3), 60_000 >> shift, np.uint16)
        with av.open(str(tmp_path / f"{shift}.png"), "w", format="image2") as container:
            stream = container.add_stream("png")
            stream.width, stream.height, stream.pix_fmt = 8, 8, "rgb48be"
            frame = av.VideoFrame.from_ndarray(deep, "rgb48be")
            container.mux([*stream.encode(frame), *stream.encode(None)])
    assert (read_image(tmp_path / "0.png") == 60_000 >> 8).all()
    with pytest.raises(DataError, match=r"4\.png cannot be used: its colours have 12 bits"):
        read_image(tmp_path / "4.png")
    with pytest.raises(ValueError, match="12 bits"):
        to_rgb(Image.open(tmp_path / "4.png"))


def test_script_and_api_see_the_same(weights, tmp_path):
    from model import StreamConfig, VideoPredictor

    exif = Image.Exif()
    exif[0x0112] = 6
    draw(tmp_path / "b.png", 0)
    Image.open(tmp_path / "b.png").save(tmp_path / "a.jpg", exif=exif)
    Image.fromarray((np.add.outer(np.arange(30), np.arange(50)) * 800).astype(np.uint16)).save(tmp_path / "c.png")
    predictor = VideoPredictor.from_checkpoint(weights, device="cpu", config=StreamConfig(first_steps=1, steps=1))
    for name, size in (("a.jpg", (50, 30)), ("c.png", (30, 50))):
        predictor.reset(0)
        by_script = predictor(read_image(tmp_path / name))
        predictor.reset(0)
        by_api = predictor(Image.open(tmp_path / name))
        assert by_api.semantic.shape == size and np.array_equal(by_api.semantic, by_script.semantic)


def test_every_display_matrix():
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    one = 1 << 16
    for (a, b, c, d), expected in {
        (1, 0, 0, 1): picture, (-1, 0, 0, 1): picture[:, ::-1], (1, 0, 0, -1): picture[::-1],
        (-1, 0, 0, -1): picture[::-1, ::-1], (0, 1, -1, 0): np.rot90(picture, -1), (0, -1, 1, 0): np.rot90(picture),
        (0, 1, 1, 0): picture.swapaxes(0, 1),
    }.items():  # fmt: skip
        matrix = np.array([a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30], np.int32)
        assert np.array_equal(upright(picture, matrix), expected), (a, b, c, d)


def test_a_mirrored_and_turned_video(tmp_path):
    """The matrix in the header of an mp4 as phones write it."""
    with VideoWriter(tmp_path / "v.mp4", 10) as writer:
        picture = np.zeros((32, 64, 3), np.uint8)
        picture[:16, :32] = 220  # bright at the top left
        for _ in range(3):
            writer.write(picture)
    data = bytearray((tmp_path / "v.mp4").read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version and flags, times, numbers
    for numbers, (size, corner) in {
        (-1, 0, 0, 1): ((32, 64), (0, -1)), (0, 1, -1, 0): ((64, 32), (0, -1)), (0, -1, 1, 0): ((64, 32), (-1, 0)),
    }.items():  # fmt: skip
        a, b, c, d = (n << 16 for n in numbers)
        data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
        (tmp_path / "v.mp4").write_bytes(data)
        for frame in (frames := list(read_video(tmp_path / "v.mp4"))):
            assert frame.shape[:2] == size and frame[corner].mean() > 150 and frame.mean() < 100
        assert len(frames) == 3


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted where Linux lists them")
def test_videos_leave_no_threads_behind(tmp_path):
    """A process that is forked later, as the loader's are, would wait for them when it collects garbage."""
    gc.collect()
    gc.disable()
    try:
        before = len(os.listdir("/proc/self/task"))
        with pytest.raises(InterruptedError) as kept, VideoWriter(tmp_path / "broken.mp4") as writer:
            writer.write(np.zeros((32, 48, 3), np.uint8))
            raise InterruptedError
        film(tmp_path / "v.mp4", 12)
        assert len(list(read_video(tmp_path / "v.mp4"))) == 12
        assert kept and len(os.listdir("/proc/self/task")) == before
    finally:
        gc.enable()


def test_a_cover_picture_is_no_video(tmp_path):
    with av.open(str(tmp_path / "cover.mkv"), "w") as container:
        cover, main = container.add_stream("mjpeg", rate=1), container.add_stream("libx264", rate=10)
        cover.width, cover.height, cover.pix_fmt = 16, 16, "yuvj420p"
        main.width, main.height, main.pix_fmt = 48, 32, "yuv420p"
        cover.disposition = av.stream.Disposition.attached_pic.value
        for stream, size, count in ((cover, 16, 1), (main, (32, 48), 3)):
            for n in range(count):
                shape = (size, size, 3) if isinstance(size, int) else (*size, 3)
                picture = av.VideoFrame.from_ndarray(np.full(shape, 100, np.uint8), format="rgb24")
                picture.pts = n
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
    assert [f.shape for f in read_video(tmp_path / "cover.mkv")] == [(32, 48, 3)] * 3


@pytest.mark.parametrize("matrix", [Colorspace.ITU601, Colorspace.ITU709])
@pytest.mark.parametrize("reach", [ColorRange.MPEG, ColorRange.JPEG])
def test_colours_are_those_that_the_file_says(tmp_path, matrix, reach):
    """With the wrong matrix red is off by 20; PyAV older than 17 takes always the same one."""
    picture = np.zeros((32, 96, 3), np.uint8)
    picture[:] = np.array([(200, 30, 30), (30, 170, 60), (40, 60, 210)], np.uint8).repeat(32, 0)
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 96, 32, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, reach
        frame = av.VideoFrame.from_ndarray(picture, "rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=matrix, dst_color_range=reach)
        container.mux([*stream.encode(frame), *stream.encode(None)])
    (seen,) = read_video(tmp_path / "v.mp4")
    assert np.abs(seen[8:24, [16, 48, 80]].astype(int) - picture[8:24, [16, 48, 80]]).max() < 6


# --- kinds of input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tiff"])
def test_images_that_hold_several_frames(weights, tmp_path, capfd, kind):
    pictures = [Image.fromarray(np.full((20, 30, 3), 60 * n, np.uint8)) for n in range(4)]
    pictures[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=pictures[1:])
    assert infer(capfd, weights, tmp_path / f"a.{kind}", tmp_path / "out").status == 0
    assert sorted(masks(tmp_path / "out")) == [f"a_{n:06d}_panoptic.png" for n in range(4)]


def test_a_stack_with_a_thumbnail_is_one_picture_and_says_so(tmp_path):
    draw(tmp_path / "b.png", 0)
    Image.open(tmp_path / "b.png").save(tmp_path / "a.tif", save_all=True, append_images=[Image.new("RGB", (5, 5))])
    left_out = {}
    assert [len(s.frames) for s in find_sequences(tmp_path / "a.tif", left_out)] == [1]
    assert list(left_out) == ["with pages of several sizes, of which the first is taken"]


@pytest.mark.parametrize("suffix", ["ts", "mpg", "avi", "mov", "mkv", "3gp", "wmv", "m2ts"])
def test_videos_of_other_containers(tmp_path, suffix):
    codec = {"mpg": "mpeg2video", "wmv": "wmv2"}.get(suffix, "libx264")
    kind = {"ts": "mpegts", "m2ts": "mpegts", "wmv": "asf", "mkv": "matroska"}.get(suffix)
    with av.open(str(tmp_path / f"a.{suffix}"), "w", format=kind) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for n in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 64, 3), 9 * n, np.uint8), "rgb24")))
        container.mux(stream.encode(None))
    (sequence,) = find_sequences(tmp_path / f"a.{suffix}")
    assert [image.shape for _, image in sequence.read()] == [(32, 64, 3)] * 5


def test_a_folder_of_videos_a_pattern_and_one_picture(weights, tmp_path, capfd):
    for name in ("in/b.mp4", "in/a.mp4", "in/deep/c.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        film(tmp_path / name, 2)
    draw(tmp_path / "in/one.jfif.jpg", 0)
    names = [s.name for s in find_sequences(tmp_path / "in")]
    assert names == ["in", "a", "b", "deep/c"]
    assert [s.name for s in find_sequences(tmp_path / "in/*.mp4")] == ["a", "b"]
    assert infer(capfd, weights, tmp_path / "in/one.jfif.jpg", tmp_path / "out").status == 0
    assert list(masks(tmp_path / "out")) == ["one.jfif_panoptic.png"]
    assert infer(capfd, weights, tmp_path / "in", tmp_path / "all", overlay="mp4").status == 0
    assert "deep/c_000001_panoptic.png" in masks(tmp_path / "all") and (tmp_path / "all/deep/c_overlay.mp4").exists()


def test_a_bad_video_is_found_before_the_others_are_done(weights, tmp_path, capfd):
    (tmp_path / "in").mkdir()
    film(tmp_path / "in/a.mp4")
    (tmp_path / "in/b.mp4").write_bytes(b"x")
    assert "b.mp4 cannot be decoded" in infer(capfd, weights, tmp_path / "in", tmp_path / "out").message
    assert not (tmp_path / "out").exists()
    result = infer(capfd, weights, tmp_path / "in", tmp_path / "out", "--skip_bad_files")
    assert result.status == 1 and "b.mp4 cannot be decoded" in result.err and len(masks(tmp_path / "out")) == 3


def test_a_stream_by_its_address_until_it_is_interrupted(weights, tmp_path, capfd, monkeypatch):
    film(tmp_path / "v.ts.mp4", 4)
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: handler(*a, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/v.ts.mp4"
    result = infer(capfd, weights, address, tmp_path / "out", overlay="mp4")
    server.shutdown()
    assert result.status == 0 and len(masks(tmp_path / "out")) == 4

    def endless(_):
        yield from np.zeros((3, 20, 30, 3), np.uint8)
        raise KeyboardInterrupt

    monkeypatch.setattr("data.videos.sequences.read_video", endless)
    assert infer(capfd, weights, "/dev/video7", tmp_path / "live", overlay="mp4").status == 0
    assert len(masks(tmp_path / "live")) == len(tracks(tmp_path / "live")) == 3
    assert video_length(tmp_path / "live/dev_video7_overlay.mp4")[1] == 3
    assert not list((tmp_path / "live/.inference").glob("*.pt"))  # nothing to go on from
    again = infer(capfd, weights, "/dev/video7", tmp_path / "live", overlay="mp4")
    assert again.status == 2 and "holds an earlier recording of dev_video7" in again.message
    assert len(masks(tmp_path / "live")) == 3 and (tmp_path / "live/dev_video7_overlay.mp4").exists()
    assert infer(capfd, weights, "/dev/video7", tmp_path / "live", "--restart").status == 0
    mixed = infer(capfd, weights, "/dev/video7", tmp_path / "mixed", "--input_folder", "/dev/video7", tmp_path)
    assert mixed.status == 2 and "give films and folders by another command" in mixed.message
    assert infer(capfd, weights, tmp_path, tmp_path / "file").status == 130  # of a file it is an interruption


# --- films ------------------------------------------------------------------------------------------------------------


def test_a_fast_film_as_gif_and_several_overlays_at_once(weights, tmp_path, capfd):
    film(tmp_path / "v.mp4", 24, fps=120)
    assert infer(capfd, weights, tmp_path / "v.mp4", tmp_path / "out", "--overlay", "gif", "mp4").status == 0
    with Image.open(tmp_path / "out/v_overlay.gif") as gif:
        assert gif.n_frames == 8  # 40 a second
    assert video_length(tmp_path / "out/v_overlay.mp4") == (120.0, 24) and len(masks(tmp_path / "out")) == 24


def test_films_are_no_wider_than_they_need_and_gifs_end(weights, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(overlays, "WIDTH", {"mp4": 80, "gif": 40, "webp": 40})
    monkeypatch.setattr(video, "LARGEST", {"gif": 4_000})
    for n in range(20):
        draw(tmp_path / f"in/{n}.png", n, (60, 120))
    result = infer(capfd, weights, tmp_path / "in", tmp_path / "out", "--overlay", "mp4", "gif")
    assert result.status == 0
    with Image.open(tmp_path / "out/in_overlay.gif") as gif:
        assert gif.size == (40, 20) and 1 < gif.n_frames < 20
    (first, *_) = read_video(tmp_path / "out/in_overlay.mp4")
    assert first.shape[:2] == (40, 80)


def test_a_webp_that_is_long_ends_and_says_so(weights, tmp_path, capfd, monkeypatch):
    """Its encoder keeps all frames in memory to the end."""
    monkeypatch.setattr(video, "MOST", {"webp": 3})
    folder_of(tmp_path / "in", [f"{n}.png" for n in range(5)])
    result = infer(capfd, weights, tmp_path / "in", tmp_path / "out", "--no-quiet", overlay="webp")
    assert result.status == 0 and "in_overlay.webp ends after 3 frames" in result.out
    with Image.open(tmp_path / "out/in_overlay.webp") as film_of_three:
        assert film_of_three.n_frames == 3


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 1)])
def test_a_frame_of_one_pixel(weights, tmp_path, capfd, size):
    draw(tmp_path / "in/1.png", 0, size)
    result = infer(capfd, weights, tmp_path / "in", tmp_path / "out", "--overlay", "mp4", "gif")
    assert result.status in (0, 2) and "Traceback" not in result.err
    assert result.status == 0 or "1.png" in result.message


def test_names_that_are_not_utf8(weights, tmp_path, capfd):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    draw(folder / os.fsdecode(b"na\xefve_1.png"), 0)
    draw(folder / os.fsdecode(b"na\xefve_2.png"), 1)
    assert infer(capfd, weights, folder, tmp_path / "out", "--overlay", "mp4", "html").status == 0
    assert len(masks(tmp_path / "out")) == 2 == len(list((tmp_path / "out").glob("*_overlay.mp4"))) * 2
    (folder / os.fsdecode(b"na\xefve_2.png")).write_bytes(b"x")
    assert infer(capfd, weights, folder, tmp_path / "other").status == 2


def test_a_full_disk_is_named_and_nothing_half_written_stays(weights, tmp_path, capfd, monkeypatch):
    film(tmp_path / "v.mp4", 4)
    real = Path.write_bytes

    def full(self, data):
        if ".inference" in str(self):
            raise OSError(28, "No space left on device")
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    result = infer(capfd, weights, tmp_path / "v.mp4", tmp_path / "out", "--overlay", "gif", "mp4")
    assert "No space left on device; make room" in result.message and ".inference" in result.message
    assert not list((tmp_path / "out").rglob("*.part"))


def test_what_nobody_thought_of_is_one_line_that_names_the_frame(weights, tmp_path, capfd, monkeypatch):
    import inference

    folder_of(tmp_path / "in", ["1.png"])
    monkeypatch.setattr(inference.VideoPredictor, "see", lambda *_: 1 / 0)
    result = infer(capfd, weights, tmp_path / "in", tmp_path / "out")
    (line,) = result.err.strip().splitlines()
    assert result.status == 1 and "ZeroDivisionError: division by zero" in line and "1.png" in line
    monkeypatch.setenv("TRACEBACK", "1")
    with pytest.raises((ZeroDivisionError, pytest.fail.Exception)):
        infer(capfd, weights, tmp_path / "in", tmp_path / "out")
