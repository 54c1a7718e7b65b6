"""The viewer's page without a browser: label maps come back exactly, errors are counted, files are whole or absent."""

import base64
import io
import json
import re
import sys

import numpy as np
import pytest
from PIL import Image
from running import Result
from viewing import read_varints, standing, street, unpack

import cli
from data.draw.figures import error_map, match_tracks
from data.draw.render import overlay
from data.draw.shown import Shown
from data.draw.viewer import Page, ShownClass, inline
from data.draw.viewer import __main__ as command
from data.draw.viewer.coding import (
    PictureCoder,
    areas_of,
    code_map,
    fit_labels,
    fit_picture,
    pack_frame,
    runs_of,
    shown_size,
    varints,
)
from data.draw.viewer.errors import Comparison
from data.draw.viewer.folders import write_pages
from data.draw.viewer.page import SCRIPTS, SOURCE
from data.io.images import read_image, write_image, write_panoptic
from data.labels import CAR, NUM_CLASSES, PERSON, VOID, DataError
from data.videos.video import VideoWriter
from metrics import Evaluation

RNG = np.random.default_rng(0)


def shifted(semantic: np.ndarray, track: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """A prediction with errors: all a little to the right, and from frame 2 on in other tracks."""
    semantic, track = np.roll(semantic, 3, axis=1), np.roll(track, 3, axis=1)
    return semantic, np.where(track > 0, track + (100 if k >= 2 else 0), 0).astype(np.int32)


def maps() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    _, semantic, track = next(iter(street(1)))
    noise = RNG.integers(0, NUM_CLASSES, (20, 30)).astype(np.uint8)
    return {
        "street": (semantic, track),
        "noise": (noise, RNG.integers(0, 3, noise.shape).astype(np.int32)),
        "one colour": (np.full((9, 7), 4, np.uint8), np.zeros((9, 7), np.int32)),
        "one pixel": (np.full((1, 1), VOID, np.uint8), np.zeros((1, 1), np.int32)),
        "one row": (np.array([[1, 1, 2, 13]], np.uint8), np.array([[0, 0, 0, 65_535]], np.int32)),
        "one column": (np.array([[1], [1], [2], [13]], np.uint8), np.zeros((4, 1), np.int32)),
        "many segments": (np.full((30, 30), CAR, np.uint8), np.arange(900, dtype=np.int32).reshape(30, 30)),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Coding
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", maps())
def test_a_label_map_comes_back_exactly(name):
    semantic, track = maps()[name]
    key = track.astype(np.int64) << 8 | semantic
    areas = areas_of(semantic, track)
    assert areas == dict(zip(*(a.tolist() for a in np.unique(key, return_counts=True)), strict=True))
    numbers = {k: n for n, k in enumerate(reversed(areas))}
    packed = pack_frame([code_map(semantic, track, areas, numbers)] * 2, b"picture")
    decoded, picture = unpack(packed, semantic.shape, 2)
    keys = np.array(list(numbers))
    for index, found in decoded:
        assert (keys[index] == key).all()
        assert found == {numbers[k]: area for k, area in areas.items()}
    assert picture == b"picture"


def test_numbers_of_any_size_are_packed():
    numbers = [0, 1, 127, 128, 16_383, 16_384, 64_000_000, 2**35 - 1]
    assert list(read_varints(varints(numbers))) == numbers
    assert varints([]) == b""


def test_a_smooth_mask_costs_a_tenth_of_a_byte_a_pixel():
    semantic, track = maps()["street"]
    areas = areas_of(semantic, track)
    packed = pack_frame([code_map(semantic, track, areas, {k: n for n, k in enumerate(areas)})], b"")
    assert len(packed) < semantic.size / 10 and len(runs_of(semantic, track)[0]) > 300


def test_a_wide_frame_is_shown_smaller_and_a_narrow_one_as_it_is():
    assert shown_size(375, 1242, 640) == (193, 640)
    assert shown_size(96, 320, 640) == (96, 320)
    assert shown_size(2, 4000, 640) == (1, 640)


def test_a_shown_label_is_the_one_beneath_the_middle_of_its_pixel():
    labels = np.arange(36).reshape(6, 6)
    assert fit_labels(labels, (2, 2), VOID).tolist() == [[7, 10], [25, 28]]
    assert fit_labels(labels, (6, 6), VOID) is labels
    tall = fit_labels(np.array([[1], [2]]), (2, 4), 9)
    assert tall.tolist() == [[9, 1, 9, 9], [9, 2, 9, 9]]
    picture = np.asarray(fit_picture(np.full((2, 1, 3), 200, np.uint8), (2, 4)))
    assert (picture[:, 1] == 200).all() and (picture[:, [0, 2, 3]] == 0).all()  # placed as the labels are


# ---------------------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------------------


def test_errors_of_a_hand_drawn_video():
    truth = np.array([[0, 0, CAR, CAR, VOID]], np.uint8), np.array([[0, 0, 1, 1, 0]], np.int32)
    right = np.array([[0, 0, CAR, CAR, 0]], np.uint8), np.array([[0, 0, 7, 7, 0]], np.int32)
    lost = np.array([[0, CAR, CAR, CAR, 0]], np.uint8), np.array([[0, 7, 9, 8, 0]], np.int32)
    comparison = Comparison(NUM_CLASSES, (PERSON, CAR))
    for first, second in ((truth, right), (None, right), (truth, lost)):
        comparison.add(first, second)
    assert comparison.partners() == {(CAR, 1): 7}
    assert comparison.shares() == [(0, 0), None, (1 / 4, 2 / 4)]


def test_errors_are_those_of_the_notebook():
    comparison, shown = Comparison(NUM_CLASSES, (PERSON, CAR)), []
    for k, (image, semantic, track) in enumerate(street(5)):
        prediction = shifted(semantic, track, k)
        comparison.add((semantic, track), prediction)
        shown.append(Shown("a", k, image, *prediction, (semantic, track)))
    partners = match_tracks(shown)
    assert comparison.partners() == {(c, g): p for (_, c, g), p in partners.items()} and len(partners) > 2
    for shares, frame in zip(comparison.shares(), shown, strict=True):
        counts = np.bincount(error_map(frame, partners).ravel(), minlength=4)
        assert shares == pytest.approx((counts[1:3] / counts[:3].sum()).tolist())
    assert any(s[1] > 0 for s in comparison.shares()) and all(s[0] > 0 for s in comparison.shares())


def test_the_figures_are_those_of_the_metrics():
    comparison, evaluation = Comparison(NUM_CLASSES, (PERSON, CAR)), Evaluation((PERSON, CAR))
    for k, (_, semantic, track) in enumerate(street(4)):
        prediction = shifted(semantic, track, k)
        comparison.add((semantic, track), prediction)
        evaluation.update((semantic, track), prediction, "a")
        if k == 0:
            assert comparison.quality() == {"STQ": None, "AQ": None, "SQ": None}  # one frame is no video
    stq = evaluation.result()["stq"]
    assert comparison.quality() == {name: stq[name] for name in ("STQ", "AQ", "SQ")} and 0.1 < stq["STQ"] < 0.95


# ---------------------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------------------


def data_of(path) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.S)
    return json.loads(found[1])


def frame_of(path, k: int) -> bytes:
    return base64.b64decode(re.search(rf'id="f{k}">([^<]*)<', path.read_text())[1])


def test_each_frame_of_a_page_holds_its_own_picture_and_mask(tmp_path):
    path, frames = tmp_path / "a" / "street_view.html", list(street(4))
    with Page(path, fps=12.5) as page:
        for k, frame in enumerate(frames):
            page.add(*frame, number=10 * k)
        assert not path.exists()
    data = data_of(path)
    assert data["numbers"] == [0, 10, 20, 30] and data["fps"] == 12.5 and data["title"] == "street"
    assert (data["height"], data["width"], data["truth"], data["links"]) == (48, 160, None, [])
    segments = data["runs"][0]["segments"]
    for k, (image, semantic, track) in enumerate(frames):
        decoded, picture = unpack(frame_of(path, k), (48, 160), 2)
        index, areas = decoded[0]
        assert (np.array([s[0] for s in segments])[index] == semantic).all()
        assert (np.array([s[1] for s in segments])[index] == track).all()
        (tmp_path / "picture").write_bytes(picture)
        assert np.abs(read_image(tmp_path / "picture").astype(int) - image).mean() < 8
        for number, (klass, id_, *_, seen) in enumerate(segments):
            area = int(((semantic == klass) & (track == id_)).sum())
            assert areas.get(number, 0) == area
            assert any(a <= k <= b for a, b in zip(seen[::2], seen[1::2], strict=True)) == (area > 0)
    assert sorted(p.name for p in path.parent.iterdir()) == ["street_view.html"]


def test_a_small_segment_is_known_by_its_full_area(tmp_path):
    semantic, track = np.zeros((40, 1280), np.uint8), np.zeros((40, 1280), np.int32)
    semantic[0, 0], track[0, 0] = CAR, 5  # between the pixels that are shown
    with Page(tmp_path / "a_view.html") as page:
        page.add(np.zeros((40, 1280, 3), np.uint8), semantic, track)
    data = data_of(tmp_path / "a_view.html")
    (index, areas), _ = unpack(frame_of(tmp_path / "a_view.html", 0), (20, 640), 2)[0]
    assert {tuple(data["runs"][0]["segments"][n][:2]): a for n, a in areas.items() if a} == {
        (0, 0): 51_199,
        (CAR, 5): 1,
    }
    assert len(np.unique(index)) == 1


def test_gaps_of_a_track_are_kept(tmp_path):
    image = np.zeros((4, 8, 3), np.uint8)
    with Page(tmp_path / "a_view.html") as page:
        for k in range(7):
            track = np.full((4, 8), 3 if k in (1, 2, 5) else 4, np.int32)
            page.add(image, np.full((4, 8), CAR, np.uint8), track)
    seen = {track: runs for _, track, _, _, runs in data_of(tmp_path / "a_view.html")["runs"][0]["segments"]}
    assert seen[3] == [1, 2, 5, 5] and seen[4] == [0, 0, 3, 4, 6, 6]


def test_a_page_is_whole_or_as_it_was(tmp_path):
    path, (frame,) = tmp_path / "a_view.html", street(1)
    path.write_text("before")
    with pytest.raises(InterruptedError), Page(path) as page:
        page.add(*frame)
        raise InterruptedError
    with Page(path):
        pass  # no frame, no page
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    with Page(path) as page:
        page.add(*frame)
    assert path.read_text().startswith("<!doctype html>") and list(tmp_path.iterdir()) == [path]


def test_frames_that_do_not_fit_are_refused(tmp_path):
    image, semantic, track = next(street(1))
    with Page(tmp_path / "a_view.html") as page:
        with pytest.raises(DataError, match="prediction of frame 0 is not of its image's size"):
            page.add(image[1:], semantic, track)
        with pytest.raises(DataError, match="truth of frame 0 is not"):
            page.add(image, semantic, track, truth=(semantic[1:], track[1:]))
        with pytest.raises(DataError, match="holds class 19, of 19 classes"):
            page.add(image, np.full_like(semantic, 19), track)
        with pytest.raises(DataError, match="a frame has 2 masks, the page shows 1"):
            page.add(image, semantic, track, other=(semantic, track))
    with pytest.raises(ValueError, match="one run or two"):
        Page(tmp_path / "a_view.html", runs=("a", "b", "c"))


def test_a_label_space_of_ones_own_is_the_pages(tmp_path):
    classes = [
        ShownClass("</script><b>sea", (1, 2, 3), (4, 5, 6), False, False),
        ShownClass("boat", (255, 0, 16), (0, 0, 255), True, True),
    ]
    with Page(tmp_path / "a_view.html", classes, title="<i>&") as page:
        page.add(np.zeros((2, 2, 3), np.uint8), np.array([[0, 1], [1, VOID]], np.uint8), np.ones((2, 2), np.int32))
    text, data = (tmp_path / "a_view.html").read_text(), data_of(tmp_path / "a_view.html")
    assert [c["name"] for c in data["classes"]] == ["</script><b>sea", "boat"] and "<b>" not in text
    assert data["classes"][1] == {
        "name": "boat",
        "color": "#ff0010",
        "colorblind": "#0000ff",
        "thing": True,
        "track": True,
    }
    assert "<title>&lt;i&gt;&amp;</title>" in text and "road" not in json.dumps(data)


def test_a_page_needs_no_network(tmp_path):
    with Page(tmp_path / "a_view.html") as page:
        page.add(*next(street(1)))
    text = (tmp_path / "a_view.html").read_text()
    assert set(re.findall(r"https?://[\w./]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, never fetched
    assert "default-src 'none'" in text and not re.search(r"<(script|img|link)[^>]*(src|href)=\"(?!data:)", text)
    assert "&quot;default-src" not in text and "srcdoc" in inline(tmp_path / "a_view.html")


def test_where_the_camera_stands_a_picture_holds_what_has_changed(tmp_path):
    frames = list(standing(40))
    coder, whole, changes, under = PictureCoder(75), [], [], None
    for image, *_ in frames:
        data, key = coder.code(Image.fromarray(image))
        (whole if key else changes).append(len(data))
        picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA")).astype(float)
        under = picture if key else under
        seen = np.where(picture[..., 3:] > 0, picture, under)[..., :3]
        assert np.abs(seen - image).mean() < 6
        assert np.abs(seen - image).reshape(6, 16, 12, 16, 3).mean((1, 3, 4)).max() < 20  # nowhere an old block
    assert len(whole) < 8 and np.mean(changes) < np.mean(whole) / 3


def test_where_most_of_a_picture_changes_it_is_whole():
    coder = PictureCoder(75)
    assert all(coder.code(Image.fromarray(next(street(1, seed=n))[0]))[1] for n in range(4))


def test_a_page_is_at_most_three_times_the_film(tmp_path):
    frames = list(street(12, (192, 640)))
    with Page(tmp_path / "a_view.html") as page, VideoWriter(tmp_path / "a.mp4") as film:
        for image, semantic, track in frames:
            page.add(image, semantic, track)
            film.write(overlay(image, semantic, track))
    data = sum(len(line) for line in (tmp_path / "a_view.html").read_bytes().splitlines() if b' id="f' in line)
    assert data < 3 * (tmp_path / "a.mp4").stat().st_size


# ---------------------------------------------------------------------------------------------------------------------
# From folders
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path):
    """Two videos of three frames with truth, and two runs: one right, one with errors and without the last frame."""
    for video in range(2):
        for k, (image, semantic, track) in enumerate(street(3, (24, 80), seed=video)):
            name = f"{video:06d}_{k:06d}"
            write_image(tmp_path / f"world/test/{name}_leftImg8bit.png", image)
            write_panoptic(tmp_path / f"world/test/{name}_panoptic.png", semantic, track)
            write_panoptic(tmp_path / f"right/out/{name}_panoptic.png", semantic, track)
            if k < 2:
                write_panoptic(tmp_path / f"wrong/out/{name}_panoptic.png", *shifted(semantic, track, k))
    return tmp_path


def test_a_folder_gives_a_page_a_video(world):
    pages = write_pages(
        world / "right/out", input_folder=world / "world/test", ground_truth=world / "world", split="test"
    )
    assert [p.name for p in pages] == ["000000_view.html", "000001_view.html"]
    for page in pages:
        data = data_of(page)
        assert data["numbers"] == [0, 1, 2] and data["runs"][0]["quality"]["STQ"] == 1
        assert data["runs"][0]["errors"] == [[0, 0]] * 3
    assert not any(p.name.startswith(".") for p in (world / "right/out").iterdir())


def test_two_runs_are_compared_on_the_frames_that_both_have(world, capsys):
    pages = write_pages(
        world / "right/out",
        world / "wrong/out",
        input_folder=world / "world/test",
        ground_truth=world / "world",
        split="test",
    )
    assert [p.name for p in pages] == ["000000_compare_view.html", "000001_compare_view.html"]
    data = data_of(pages[0])
    assert [r["name"] for r in data["runs"]] == ["right", "wrong"] and data["numbers"] == [0, 1]
    assert data["runs"][0]["quality"]["STQ"] == 1 > data["runs"][1]["quality"]["STQ"]
    assert "2 frames of" in capsys.readouterr().out
    assert {(link["first"], link["second"]) for link in data["links"]} == {(2, 0), (2, 1), (0, 1)}


def test_frames_that_are_not_found_are_grey(world, capsys):
    (page, _) = write_pages(world / "right/out", input_folder=world / "right")
    assert "their pictures are grey" in capsys.readouterr().out and data_of(page)["numbers"] == [0, 1, 2]


def test_truth_is_paired_as_in_evaluation(tmp_path):
    """In a folder for each sequence, and numbers alone."""
    for k, (image, semantic, track) in enumerate(street(2, (24, 80))):
        for folder in ("in/0002", "flat"):
            write_image(tmp_path / folder / f"{k:06d}.png", image)
        for folder in ("out/0002", "flat_out"):
            write_panoptic(tmp_path / folder / f"{k:06d}_panoptic.png", semantic, track)
        write_panoptic(tmp_path / f"truth/0002/{k:06d}.png", semantic, track)
    for source, output in (("in", "out"), ("flat", "flat_out")):
        (page,) = write_pages(tmp_path / output, input_folder=tmp_path / source, ground_truth=tmp_path / "truth")
        assert data_of(page)["runs"][0]["errors"] == [[0, 0]] * 2


def test_films_have_their_own_speed_and_a_bad_one_costs_no_page(tmp_path, capsys):
    for name, fps in (("a", 30), ("c", 15)):
        with VideoWriter(tmp_path / f"films/{name}.mp4", fps=fps) as film:
            for k, (image, semantic, track) in enumerate(street(2, (24, 80))):
                film.write(image)
                write_panoptic(tmp_path / f"out/{name}_{k:06d}_panoptic.png", semantic, track)
    (tmp_path / "films/b.mp4").write_bytes(b"no film")
    pages = write_pages(tmp_path / "out", input_folder=tmp_path / "films")
    assert [(page.name, data_of(page)["fps"]) for page in pages] == [("a_view.html", 30), ("c_view.html", 15)]
    assert "b.mp4 cannot be decoded" in capsys.readouterr().out


@pytest.mark.parametrize("address", ["/dev/video7", "rtsp://host/video7"])
def test_a_camera_is_not_looked_through_again(tmp_path, monkeypatch, capsys, address):
    monkeypatch.setattr("data.videos.sequences.read_video", lambda _: pytest.fail("the camera was opened"))
    write_panoptic(tmp_path / "dev_video7_000000_panoptic.png", *next(street(1))[1:])
    (tmp_path / ".inference").mkdir()
    (tmp_path / ".inference/run.json").write_text(json.dumps({"input_folder": address}))
    (page,) = write_pages(tmp_path)
    assert page.name == "dev_video7_view.html" and f"are not in {address}; their pictures" in capsys.readouterr().out


def call(capfd, *arguments) -> Result:
    before, sys.argv = sys.argv, ["viewer", *map(str, arguments)]
    capfd.readouterr()
    try:
        with pytest.raises(SystemExit) as end:
            cli.run(command.main)
    finally:
        sys.argv = before
    return Result(end.value.code or 0, *capfd.readouterr())


def test_the_command_names_its_pages(world, capfd):
    result = call(capfd, world / "right/out", "--input_folder", world / "world/test", "--width", 40)
    assert result.status == 0 and str(world / "right/out/000001_view.html") in result.out
    assert data_of(world / "right/out/000001_view.html")["width"] == 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["right/none"], "is no folder"),
        (["empty"], "holds no predictions"),
        (["right/out", "--width", "3"], "--width must be 16 or more"),
        (["right/out", "--tracked", "boat"], "--tracked boat: classes are road"),
        (["right/out", "--input_folder", "nothing"], "nothing is missing"),
        (["right/out", "--ground_truth", "nothing"], "nothing is no folder"),
        (["right/out", "world"], "none of the frames"),
        (["right/out", "--ground_truth", "other"], "truth of no frame"),
    ],
)
def test_what_cannot_be_shown_is_said_in_one_line(world, capfd, monkeypatch, arguments, message):
    monkeypatch.chdir(world)
    write_panoptic(world / "other/000009_000000_panoptic.png", *next(street(1))[1:])
    (world / "empty").mkdir()
    result = call(capfd, *arguments)
    assert result.status == 2 and message in result.message
    assert not list(world.rglob("*.part"))


def test_the_sources_are_plain():
    """Short lines, no leftovers, no text that is put in as HTML; every class in the style is used."""
    scripts = {p.name: p.read_text() for p in SOURCE.glob("*.js")}
    assert set(scripts) == set(SCRIPTS)
    for name, text in {**scripts, **{n: (SOURCE / n).read_text() for n in ("page.css", "page.html")}}.items():
        lines = text.splitlines()
        assert len(lines) < 400 and max(map(len, lines)) <= 120, name
        assert "\t" not in text and not any(line != line.rstrip() for line in lines), name
    for name, text in scripts.items():
        assert not re.search(r"\bvar |console\.|innerHTML|debugger|[^=!]==[^=]|!=[^=]", text), name
    everything = (SOURCE / "page.html").read_text() + "".join(scripts.values())
    styled = set(re.findall(r"[.#]([a-z][\w-]*)(?=[^{};]*\{)", (SOURCE / "page.css").read_text()))
    assert styled and {name for name in styled if not re.search(rf"\b{name}\b", everything)} == set()
