"""Drawing: colours that stay and stay apart, text inside the pictures, errors; and looking into the sampler."""

import dataclasses
import json
import time

import numpy as np
import pytest
import torch
from PIL import Image
from running import call

from data.draw import figures, render, shown
from data.io.images import write_image, write_panoptic
from data.labels import CAR, DEFAULT_SPACE, NUM_CLASSES, PERSON, VOID, DataError
from data.videos.video import VideoWriter
from model import StreamConfig, VideoPredictor
from model.stream.denoising import denoising_steps
from tests.small import lively_model

PALETTE = DEFAULT_SPACE.palette

# Machado et al. 2009, severity 1, in linear RGB.
SIGHT = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def lab_distances(colors: np.ndarray, sight: str = "normal") -> np.ndarray:
    """Distances in CIELAB of colours uint8 (N, 3): (N, N), infinite on the diagonal."""
    c = colors / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ SIGHT[sight].T
    xyz = linear.clip(0, 1) @ np.array([[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]])
    f = np.cbrt(xyz / [0.9505, 1, 1.089])
    lab = np.stack([116 * f[:, 1], 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=-1)
    distances = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    return distances


def street(height: int = 96, width: int = 320) -> tuple[np.ndarray, np.ndarray]:
    """Sky over road, two large cars (ids 3 and 4) side by side, a small person (id 700), void in a corner."""
    semantic, track = np.full((height, width), 10, np.uint8), np.zeros((height, width), np.int32)
    semantic[height // 3 :] = 0
    for left, id_ in ((width // 4, 3), (width // 2, 4)):
        semantic[height // 3 : height * 2 // 3, left : left + width // 4] = CAR
        track[height // 3 : height * 2 // 3, left : left + width // 4] = id_
    semantic[-8:, :3], track[-8:, :3] = PERSON, 700
    semantic[:5, :5] = VOID
    return semantic, track


def test_classes_have_the_cityscapes_palette_and_void_is_black():
    semantic = np.array([[0, 10, 13, 18, VOID]], np.uint8)
    assert render.draw_semantic(semantic)[0].tolist() == [
        [128, 64, 128], [70, 130, 180], [0, 0, 142], [119, 11, 32], [0, 0, 0],
    ]  # fmt: skip


def test_an_id_has_one_colour_whatever_else_is_in_the_frame():
    one, many = np.array([[7]], np.int32), np.array([[0, 3, 7, 65_535]], np.int32)
    assert (render.draw_instances(one)[0, 0] == render.draw_instances(many)[0, 2]).all()
    assert (render.draw_instances(one)[0, 0] == render.track_colors(8)[7]).all()
    assert (render.track_colors(65_536)[:8] == render.track_colors(8)).all()
    assert (render.draw_instances(many)[0, 0] == 0).all()
    assert render.draw_instances(np.array([[70_000]])).any()  # more than files can hold


def test_tracks_are_distinct_and_neighbours_far_apart():
    distances = lab_distances(render.track_colors(49)[1:])
    assert distances[:24, :24].min() > 12 and distances.min() > 5
    assert min(distances[i, i + k] for k in (1, 2, 3) for i in range(48 - k)) > 30


@pytest.mark.parametrize("sight", SIGHT)
def test_the_colorblind_palettes_stay_apart_in_every_kind_of_sight(sight):
    assert lab_distances(render.class_colors(colorblind=True)[:NUM_CLASSES], sight).min() > 18
    assert lab_distances(render.track_colors(13, colorblind=True)[1:], sight).min() > 18


def test_cityscapes_own_palette_does_not():
    assert min(lab_distances(PALETTE[:NUM_CLASSES], sight).min() for sight in SIGHT) < 5


def test_panoptic_outlines_and_colours():
    semantic, track = street()
    picture = render.draw_panoptic(semantic, track)
    assert (picture[10, 100] == PALETTE[10]).all() and (picture[90, 100] == PALETTE[0]).all()
    assert (picture[48, 120] == render.track_colors(4)[3]).all()
    assert (picture[48, 159] == 255).all() and (picture[48, 160] == 255).all()  # where the two cars touch
    border = render.outlines(semantic, track)
    assert border[48, 80] and not border[48, 79] and not border[31, 120]  # inside the car, not outside


def test_overlay_mixes_and_leaves_void_alone():
    semantic, track = street()
    image = np.full((*semantic.shape, 3), 201, np.uint8)
    picture = render.overlay(image, semantic, track, opacity=0.25, labels=False)
    assert (picture[0, 0] == 201).all()
    assert picture[10, 100].tolist() == [round(0.75 * 201 + 0.25 * c) for c in PALETTE[10].tolist()]
    assert (render.overlay(image, semantic, track, 0.0, labels=False)[60, 5] == 201).all()
    assert (image == 201).all()


def test_names_are_written_where_they_fit():
    semantic, track = street(192, 640)
    plain, named = render.draw_panoptic(semantic, track), render.draw_panoptic(semantic, track, labels=True)
    changed = (plain != named).any(axis=-1)
    for id_ in (3, 4):
        inside = np.argwhere(changed & (track == id_))
        middle = np.argwhere(track == id_).mean(axis=0)
        assert len(inside) > 30 and np.abs(inside.mean(axis=0) - middle).max() < 12
    assert changed[semantic == 10].any() and changed[semantic == 0].any()
    assert not changed[semantic == PERSON].any()  # too small
    assert not changed[[0, -1]].any() and not changed[:, [0, -1]].any()  # nothing is cut off
    assert render.label_of(CAR, 3) == "car 3" and render.label_of(0, 0) == "road" and render.label_of(VOID, 0) == ""


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (40, 2)])
def test_tiny_pictures_are_drawn_too(shape):
    semantic, track = np.zeros(shape, np.uint8), np.ones(shape, np.int64)
    image = np.zeros((*shape, 3), np.uint8)
    assert render.overlay(image, semantic, track).shape == (*shape, 3)


def test_strip_with_titles_and_legend_keep_all_their_parts():
    tile = np.full((40, 120, 3), 7, np.uint8)
    plain = render.strip([[tile, tile], [tile]])
    assert plain.shape == (84, 244, 3) and (plain[44:, 124:] == 255).all() and (plain[:40, :120] == 7).all()
    titled = render.strip([[tile, tile], [tile]], titles=("input", "a long title of a column"))
    assert (titled[-84:] == plain).all()
    head = titled[:-84]
    assert (head[:, :120] < 128).any() and (head[:, 124:] < 128).any()
    assert not (head[:, -2:] < 128).any()  # the long one is not cut off
    legend = render.legend(range(NUM_CLASSES), [(CAR, i) for i in range(1, 20)], width=300)
    assert legend.shape[1] == 300 and (legend[:, -2:] > 128).all()
    present = {tuple(c) for c in legend.reshape(-1, 3).tolist()}
    assert all(tuple(c) in present for c in PALETTE[:NUM_CLASSES].tolist() + render.track_colors(20)[1:].tolist())


def test_fit_keeps_the_aspect():
    picture = np.full((10, 10, 3), 9, np.uint8)
    fitted = render.fit(picture, 20, 60)
    assert fitted.shape == (20, 60, 3) and (fitted[:, 20:40] == 9).all() and not fitted[:, :20].any()


def test_an_overlay_of_a_kitti_frame_is_fast():
    semantic, track = street(375, 1242)
    image = np.zeros((375, 1242, 3), np.uint8)
    seconds = []
    for _ in range(10):
        start = time.process_time()
        render.overlay(image, semantic, track)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.05  # 0.02 on an idle core


# ---------------------------------------------------------------------------------------------------------------------
# An inference, shown
# ---------------------------------------------------------------------------------------------------------------------


def frame_of(number: int, track: np.ndarray, truth_track: np.ndarray, semantic=None) -> shown.Shown:
    semantic = np.full(track.shape, CAR, np.uint8) if semantic is None else semantic
    image = np.zeros((*track.shape, 3), np.uint8)
    return shown.Shown("a", number, image, semantic, track, (np.full(track.shape, CAR, np.uint8), truth_track))


def test_errors_by_hand():
    truth = np.array([[1, 1, 1, 2, 2, 0]], np.int32)
    first = frame_of(0, np.array([[5, 5, 5, 6, 6, 6]], np.int32), truth)
    second = frame_of(
        1, np.array([[5, 6, 9, 5, 6, 0]], np.int32), truth, np.array([[13, 13, 13, 13, 11, 13]], np.uint8)
    )
    partners = figures.match_tracks([first, second])
    assert partners == {("a", CAR, 1): 5, ("a", CAR, 2): 6}
    assert figures.error_map(first, partners).tolist() == [[0, 0, 0, 0, 0, 0]]  # the last pixel is crowd
    assert figures.error_map(second, partners).tolist() == [[0, 2, 2, 2, 1, 0]]
    second.truth[0][0, 0] = VOID
    assert figures.error_map(second, partners)[0, 0] == 3


def test_frames_are_found_with_their_images_and_truth(tmp_path):
    semantic, track = street()
    rng = np.random.default_rng(0)
    for number in (9, 10):
        stem = f"0003_{number}"
        write_image(tmp_path / f"in/{stem}_leftImg8bit.png", rng.integers(0, 256, (96, 320, 3)).astype(np.uint8))
        write_panoptic(tmp_path / f"out/{stem}_panoptic.png", semantic, track * (number - 8))
    write_panoptic(tmp_path / "in/0003_10_panoptic.png", semantic, track)
    inference = shown.last_inference(tmp_path / "out", tmp_path / "in")
    frames = shown.load_frames(inference)
    assert [(f.sequence, f.number, f.truth is not None) for f in frames] == [("0003", 9, False), ("0003", 10, True)]
    assert frames[0].image.std() > 0 and (frames[1].track == track * 2).all() and (frames[1].truth[1] == track).all()
    lives = shown.track_lives(inference)
    assert lives["0003"][3] == (CAR, [9]) and lives["0003"][6] == (CAR, [10])
    with pytest.raises(DataError, match="nothing holds no predictions"):  # not the demo's, which nobody asked for
        shown.last_inference(tmp_path / "nothing")

    # what tracks.jsonl and run.json say goes before what is guessed
    line = {
        "sequence": "x",
        "frame": 1,
        "segments": [{"id": 2, "class": 11, "area": 9}, {"id": 0, "class": 0, "area": 1}],
    }
    (tmp_path / "out/tracks.jsonl").write_text(json.dumps(line) + "\n")
    assert shown.track_lives(inference) == {"x": {2: (11, [1])}}
    (tmp_path / "out/.inference").mkdir()
    (tmp_path / "out" / shown.RUN).write_text('{"input_folder": "some/where", "checkpoint": "a.pt"}')
    run = shown.last_inference(tmp_path / "out")
    assert (str(run.inputs), str(run.checkpoint)) == ("some/where", "a.pt")


def test_what_is_shown_is_the_last_inference_by_its_own_names(tmp_path):
    """Names that are bare numbers belong to the sequence that inference gave them; what lies there from before is not
    shown."""
    for name in ("2", "10", "an older one"):
        write_panoptic(tmp_path / f"out/{name}_panoptic.png", *street())
    lines = [
        {
            "sequence": "trip",
            "frame": int(n),
            "file": f"{n}_panoptic.png",
            "segments": [{"id": 3, "class": CAR, "area": 9}],
        }
        for n in ("2", "10", "11")  # the last is not there, as when it was deleted
    ]
    (tmp_path / "out/tracks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    inference = shown.Inference(tmp_path / "out", tmp_path / "in")
    assert [(f.sequence, f.number) for f in shown.load_frames(inference)] == [("trip", 2), ("trip", 10)]
    assert list(shown.track_lives(inference)) == ["trip"]


def test_frames_beyond_the_room_are_read_again(tmp_path, monkeypatch):
    """A long video of large frames takes no more memory than KEPT; its frames are the same at each look."""
    semantic, track = street()
    for number in range(6):
        write_panoptic(tmp_path / f"out/a_{number}_panoptic.png", semantic, np.roll(track, number, axis=1))
    frames = shown.load_frames(shown.Inference(tmp_path / "out", tmp_path / "in"))
    monkeypatch.setattr(shown, "KEPT", int(2.5 * sum(m.nbytes for m in (frames[0].image, semantic, frames[0].track))))
    for _ in range(2):
        for number, frame in enumerate(frames):
            assert frame.number == number and (frame.track == np.roll(track, number, axis=1)).all()
    assert sorted(frames.kept) == [0, 1]
    odd = frames.where(lambda frame: frame.number % 2 == 1)
    assert [frame.number for frame in odd] == [1, 3, 5] and [f.number for f in odd[1:]] == [3, 5]


def test_a_video_files_frames_are_shown(tmp_path):
    with VideoWriter(tmp_path / "v.mp4", fps=10) as video:
        for n in range(3):
            video.write(np.full((96, 320, 3), 80 * n, np.uint8))
            write_panoptic(tmp_path / f"out/v_{n:06d}_panoptic.png", *street())
    frames = shown.load_frames(shown.Inference(tmp_path / "out", tmp_path / "v.mp4"))
    assert [abs(int(f.image.mean()) - 80 * n) < 4 for n, f in enumerate(frames)] == [True] * 3


def test_photographs_that_are_numbers_alone_are_no_truth(tmp_path):
    """Frames `<sequence>/<number>.png` are named as the label files of KITTI-STEP are."""
    for number in range(2):
        write_image(tmp_path / f"in/drive/{number:06d}.png", np.full((96, 320, 3), 99, np.uint8))
        write_panoptic(tmp_path / f"out/drive/{number:06d}_panoptic.png", *street())
    inference = shown.Inference(tmp_path / "out", tmp_path / "in")
    assert [(f.image.mean(), f.truth) for f in shown.load_frames(inference)] == [(99, None)] * 2
    write_panoptic(tmp_path / "truth/drive/000001.png", *street())
    frames = shown.load_frames(inference, truth=tmp_path / "truth")
    assert [f.truth is not None for f in frames] == [False, True]


def test_small_pictures_are_drawn_small_and_not_shrunk():
    """Names on a large frame stay as large on the page as on a small one; labels are never mixed."""
    semantic, track = (m.repeat(4, 0).repeat(4, 1) for m in street())
    large = shown.Shown("a", 0, np.zeros((*track.shape, 3), np.uint8), semantic, track, (semantic, track))
    small = figures.at_width(large, 320)
    assert (small.semantic == street()[0]).all() and (small.truth[1] == street()[1]).all()
    assert figures.at_width(small, 320) is small
    page = figures.comparison([large] * 3)  # input | truth | prediction | errors
    f = figures.at_width(large, figures.PAGE // 4 - 3)
    (height, width), drawn = f.track.shape, render.draw_panoptic(f.semantic, f.track, labels=True)
    assert page.shape[1] == 4 * width + 3 * 4 and width == 267
    assert (page[-height:, 2 * (width + 4) :][:, :width] == drawn).all()
    assert (drawn != render.draw_panoptic(f.semantic, f.track)).any()  # names are on it


def test_the_readmes_picture_is_drawn_of_the_demos_output(tmp_path, capfd):
    semantic, track = street()
    for n, name in enumerate(("000000_000000", "000000_000001", "000001_000000")):
        write_image(tmp_path / f"in/{name}_leftImg8bit.png", np.zeros((*track.shape, 3), np.uint8))
        write_panoptic(tmp_path / f"in/{name}_panoptic.png", semantic, track)
        write_panoptic(tmp_path / f"out/{name}_panoptic.png", semantic, np.roll(track, 9 * n, axis=1))
    (tmp_path / "out" / shown.RUN).parent.mkdir()
    (tmp_path / "out" / shown.RUN).write_text(json.dumps({"input_folder": str(tmp_path / "in")}))
    flags = ("--predictions", tmp_path / "out", "--docs", tmp_path / "docs", "--moving", 0)
    assert call(capfd, "benchmarks.pictures", *flags).status in (0, None)
    with Image.open(tmp_path / "docs/demo.gif") as film:
        assert film.n_frames == 2 and film.size == (640, 388)
    refused = call(capfd, "benchmarks.pictures", *flags[:4], "--moving", 2)
    assert refused.status == 2 and "--moving must be 0 to 1" in refused.message


def test_frames_that_are_not_found_are_grey(tmp_path, capsys):
    write_panoptic(tmp_path / "out/a_1_panoptic.png", *street())
    frames = shown.load_frames(shown.Inference(tmp_path / "out", tmp_path / "in"))
    assert (frames[0].image == 128).all() and frames[0].truth is None
    assert "1 of 1 frames are not in" in capsys.readouterr().out


def test_denoising_steps_are_those_of_the_prediction():
    model = lively_model()
    config = StreamConfig(first_steps=4, steps=3, history_steps=1)
    predictor = VideoPredictor(model, config, device="cpu", mixed_precision="no")
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 40, 64, 3)).astype(np.uint8)
    steps, answer, state = denoising_steps(predictor, frames[0])
    later, _, _ = denoising_steps(predictor, frames[1], state)
    assert [s.time for s in steps] == [1.0, 0.75, 0.5, 0.25] and [s.time for s in later] == [1.0, 1.0, 0.5]
    predictor.config = dataclasses.replace(predictor.config, steps=2)  # both looks side by side
    beside, _, _ = denoising_steps(predictor, frames[1], state)
    assert [(s.time, s.fresh) for s in beside] == [(1.0, False), (1.0, True)]
    for one, other in zip(beside, later, strict=False):  # the same noise, and a first answer that has nothing before it
        assert (one.noisy_bits == other.noisy_bits).all() and (one.semantic == other.semantic).all()
    assert not any(s.fresh for s in steps) and [s.fresh for s in later] == [False, True, True]
    assert steps[0].noisy_bits.shape == (10, 18, 29) and steps[0].semantic.shape == (18, 29)
    assert abs(steps[0].noisy_bits.std() - 1) < 0.1
    expected = predictor(frames[0])
    assert (expected.semantic == answer.semantic).all() and (expected.track == answer.track).all()
    assert not model.denoiser._forward_hooks
    assert figures.denoising_strip(later).shape[1] <= figures.PAGE
    picture = figures.denoising_strip(steps, columns=3)
    assert picture.shape[1] == 3 * 356 + 2 * 4 <= figures.PAGE and torch.is_inference_mode_enabled() is False
