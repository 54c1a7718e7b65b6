"""inference.py: what it writes for which input, and that stopping, batching and bad files change nothing else."""

import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from running import call
from small import CONFIG, lively_model

import inference
from data.draw import render
from data.io.images import read_image, read_panoptic, write_panoptic
from data.labels import DataError
from data.videos import output as outputs
from data.videos.find import find_sequences, remarks
from data.videos.video import VideoWriter, read_video, video_length
from model import checkpoint as checkpoints

QUICK = ("--first_steps", 2, "--steps", 1, "--device", "cpu", "--mixed_precision", "no", "--min_area", 1, "--quiet")


@pytest.fixture(autouse=True)
def two_threads():
    """Frames are seen ahead of their turn."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("weights") / "model.pt", 0)


def save_model(path, seed):
    model = lively_model(seed)
    stored = {"format": checkpoints.FORMAT, "config": CONFIG.to_dict(), "weights": model.state_dict()}
    checkpoints.save(path, stored)
    return path


def draw(path, seed, size=(30, 50)):
    path.parent.mkdir(parents=True, exist_ok=True)
    light = np.add.outer(np.linspace(60, 120, size[0]), np.linspace(0, 60, size[1]))  # what pictures have in common
    noise = np.random.default_rng(seed).integers(0, 70, (*size, 3))
    Image.fromarray((light[..., None] + noise).astype(np.uint8)).save(path)
    return path


def folder_of(path, names, size=(30, 50)):
    for seed, name in enumerate(names):
        draw(path / name, seed, size)
    return path


def named(sequence, numbers):
    return [f"{sequence}_{n:06d}_leftImg8bit.png" for n in numbers]


def infer(capfd, weights, source, output, *flags, overlay="none"):
    command = ("--input_folder", source, "--output_folder", output, "--checkpoint", weights, "--overlay", overlay)
    return call(capfd, "inference", *command, *QUICK, *flags)


def masks(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*_panoptic.png"))}


def tracks(folder):
    return [json.loads(line) for line in (folder / "tracks.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------------------------------------------------------------
# Inputs
# ---------------------------------------------------------------------------------------------------------------------


def test_names_sizes_and_order(weights, tmp_path, capfd, monkeypatch):
    """Sub-folders, sequences by name and plain names side by side; each frame keeps its size; 9 comes before 10."""
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("nobody asked for a network"))
    source = folder_of(tmp_path / "in", [*named("0002", (3, 4)), "b/frame_10.png", "b/frame_9.jpg", "b/deep/1.png"])
    draw(source / "b" / "frame_11.png", 7, (41, 77))
    draw(source / "b" / "frame_9_panoptic.png", 8)  # labels and films beside the images are none
    draw(source / "b_overlay.webp", 8)
    result = infer(capfd, weights, source, tmp_path / "out")
    assert result.status == 0
    written = masks(tmp_path / "out")
    assert sorted(written) == sorted(
        ["0002_000003_panoptic.png", "0002_000004_panoptic.png", "b/deep/1_panoptic.png"]
        + [f"b/frame_{n}_panoptic.png" for n in (9, 10, 11)]
    )
    assert read_panoptic(tmp_path / "out/b/frame_11_panoptic.png")[0].shape == (41, 77)
    assert read_panoptic(tmp_path / "out/b/frame_10_panoptic.png")[0].shape == (30, 50)
    lines = tracks(tmp_path / "out")
    assert [(e["sequence"], e["frame"]) for e in lines] == [
        ("0002", 3), ("0002", 4), ("b", 9), ("b", 10), ("b", 11), ("b/deep", 1)
    ]  # fmt: skip


def test_lines_of_tracks_describe_the_masks(weights, tmp_path, capfd):
    source = folder_of(tmp_path / "in", ["1.png", "2.png"])
    infer(capfd, weights, source, tmp_path / "out")
    for line in tracks(tmp_path / "out"):
        semantic, track = read_panoptic(tmp_path / "out" / line["file"])
        assert len(line["segments"]) > 3
        assert len({(s["id"], s["class"]) for s in line["segments"]}) == len(line["segments"])
        for s in line["segments"]:
            y, x = np.nonzero((semantic == s["class"]) & (track == s["id"]))
            assert s["area"] == y.size and s["box"] == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert sum(s["area"] for s in line["segments"]) == semantic.size


@pytest.mark.parametrize("history_steps", [0, 1])  # frames are seen ahead of their turn, or not
def test_sequences_never_share_history_and_gaps_end_it(weights, tmp_path, capfd, monkeypatch, history_steps):
    """A sequence after another is as alone; the frame after a gap is a first frame, with ids of its own."""
    import inference

    seen, followed = [], []

    class Watched(inference.VideoPredictor):
        def see(self, frames, moments, *rest):
            seen.extend(moments)
            return super().see(frames, moments, *rest)

        def follow(self, answer, state, frame):
            followed.append((*state.moment, state.next_track))
            return super().follow(answer, state, frame)

    monkeypatch.setattr(inference, "VideoPredictor", Watched)
    source = folder_of(
        tmp_path / "in", [*named("a", (0, 1, 2, 7, 8)), *named("b", (0, 2, 4)), *named("c", (0, 1, 2, 3))]
    )
    (bad,) = (p for p in source.iterdir() if p.name.startswith("c_000001"))
    bad.write_bytes(bad.read_bytes()[:60])
    flags = "--history_steps", str(history_steps), "--skip_bad_files"
    assert infer(capfd, weights, source, tmp_path / "out", *flags).status == 1
    assert [m[:3] for m in followed] == sorted(seen)
    firsts = {v: [(frame, first) for video, frame, first, _ in followed if video == v] for v in range(3)}
    assert firsts[0] == [(0, True), (1, False), (2, False), (3, True), (4, False)]
    assert firsts[1] == [(0, True), (1, False), (2, False)]
    assert firsts[2] == [(0, True), (2, True), (3, False)]  # nothing is known of the frame before
    assert followed[3][3] > followed[1][3] > 1 and followed[5][3] == 1
    followed.clear()
    assert infer(capfd, weights, source, tmp_path / "apart", *flags, "--independent_frames").status == 1
    assert [m[2:] for m in followed] == [(True, 1)] * 11


def test_frames_seen_ahead_have_the_same_masks(weights, whole, tmp_path, capfd, monkeypatch):
    import inference

    seen = []

    def see(self, frames, *rest):
        seen.append(threading.current_thread())
        return before(self, frames, *rest)

    before = inference.VideoPredictor.see
    monkeypatch.setattr(inference.VideoPredictor, "see", see)
    source, output = whole
    assert infer(capfd, weights, source, tmp_path / "ahead").status == 0
    assert len(seen) == 9 and threading.main_thread() not in seen
    torch.set_num_threads(1)
    seen.clear()
    assert infer(capfd, weights, source, tmp_path / "in_turn").status == 0
    torch.set_num_threads(2)
    assert set(seen) == {threading.main_thread()}
    assert masks(tmp_path / "ahead") == masks(tmp_path / "in_turn") == masks(output)
    assert tracks(tmp_path / "ahead") == tracks(tmp_path / "in_turn")


def test_gaps_in_the_numbers_are_told_once_a_video(weights, tmp_path, capfd):
    source = folder_of(tmp_path / "in", [*named("a", (0, 1, 2, 7, 8, 10, 20, 30)), *named("b", (0, 2, 4))])
    (said,) = remarks(find_sequences(source), True)[1:]
    assert said.startswith("a: 3 gaps in the frame numbers, before 7, 20, 30; taken as a cut")
    source = folder_of(tmp_path / "few", named("c", (0, 1, 5)))
    command = ("inference", "--input_folder", source, "--checkpoint", weights, "--overlay", "none", *QUICK[:-1])
    told = call(capfd, *command, "--output_folder", tmp_path / "told")
    alone = call(capfd, *command, "--output_folder", tmp_path / "alone", "--independent_frames")
    quiet = call(capfd, *command, "--output_folder", tmp_path / "quiet", "--quiet")
    assert (
        told.out.startswith("c: a gap in the frame numbers, before 5; taken as a cut")
        and len(told.out.splitlines()) == 2
    )
    assert alone.out == f"3 frames are in {tmp_path / 'alone'}\n" and quiet.out == ""


def test_a_folder_beside_images_of_the_same_name_is_another_sequence(tmp_path):
    source = folder_of(tmp_path / "a", [*named("b", (0, 1)), "x.png", "a/1.png", "b/1.png"])
    names = [s.name for s in find_sequences(source)]
    assert len(names) == 4 == len(set(names))


def test_frames_that_would_share_a_prediction_are_refused(weights, tmp_path, capfd):
    source = folder_of(tmp_path / "in", ["1.png", "1.jpg"])
    assert "would share the prediction" in infer(capfd, weights, source, tmp_path / "out").message
    with VideoWriter(tmp_path / "films" / "my.mp4", 10) as film:
        film.write(np.zeros((32, 48, 3), np.uint8))
    draw(tmp_path / "films" / "my_000001.png", 0)  # one of its own frames
    assert "would share the prediction" in infer(capfd, weights, tmp_path / "films", tmp_path / "out").message


def test_inputs_above_and_beside_stay_within_the_output(tmp_path, monkeypatch):
    folder_of(tmp_path / "up", ["1.png"])
    folder_of(tmp_path / "here/down", ["1.png"])
    monkeypatch.chdir(tmp_path / "here")
    sequences = find_sequences(["../up", "down"])
    assert [s.name for s in sequences] == ["here/down", "up"]
    assert all(".." not in frame.output.parts for s in sequences for frame in s.frames)


def test_a_video_of_more_ids_than_a_mask_holds_ends_alone(weights, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(inference, "MAX_ID", 20)
    source, out = folder_of(tmp_path / "in", [*named("a", range(5)), *named("b", (0,))]), tmp_path / "out"
    for _ in range(2):  # the same command says the same again
        result = infer(capfd, weights, source, out, "--max_gap", 0)
        assert (
            result.status == 1
            and result.err.count("would need more than 20 ids: give the rest as a video of its own") == 1
        )
        assert 0 < len([name for name in masks(out) if name.startswith("a")]) < 5
        assert "b_000000_panoptic.png" in masks(out) and {line["sequence"] for line in tracks(out)} == {"a", "b"}


def test_a_video_file_in_and_films_out(weights, tmp_path, capfd):
    with VideoWriter(tmp_path / "street.mp4", 10) as film:
        for seed in range(5):
            image = np.full((36, 52, 3), 40 * seed, np.uint8)
            image[5:20, 5 + 4 * seed : 25 + 4 * seed] = (250, 0, 0)
            film.write(image)
    assert len(list(read_video(tmp_path / "street.mp4"))) == 5
    for kind in ("gif", "mp4", "webp"):
        out = tmp_path / kind
        assert infer(capfd, weights, tmp_path / "street.mp4", out, overlay=kind).status == 0
        assert sorted(masks(out)) == [f"street_{n:06d}_panoptic.png" for n in range(5)]
        film = out / f"street_overlay.{kind}"
        if kind == "mp4":
            with av.open(str(film)) as container:
                assert sum(1 for _ in container.decode(video=0)) == 5
        else:
            with Image.open(film) as image:
                assert image.n_frames == 5 and image.size == (52, 36)
        assert not list(out.glob(".*.part"))
    assert masks(tmp_path / "gif") == masks(tmp_path / "mp4") == masks(tmp_path / "webp")


def test_a_video_that_breaks_off_is_done_up_to_there(weights, tmp_path, capfd, monkeypatch):
    def broken(path):
        yield from np.zeros((3, 20, 30, 3), np.uint8)
        raise DataError(f"{path} cannot be decoded as a video")

    (tmp_path / "v.mp4").write_bytes(b"x")
    monkeypatch.setattr("data.videos.sequences.read_video", broken)
    result = infer(capfd, weights, tmp_path / "v.mp4", tmp_path / "out")
    assert result.status == 1 and "; 3 frames were read" in result.err and len(masks(tmp_path / "out")) == 3
    monkeypatch.undo()
    assert "cannot be decoded" in infer(capfd, weights, tmp_path / "v.mp4", tmp_path / "other").message


def film(path, frames=40, **options):
    """A video of a moving pattern, a key frame in each eight; returns its bytes."""
    pattern = np.random.default_rng(0).integers(0, 256, (64, 200, 3)).astype(np.uint8)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libvpx" if path.suffix == ".webm" else "libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.options = 96, 64, "yuv420p", {"g": "8"}
        for n in range(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pattern[:, n : n + 96]), format="rgb24")
            picture.time_base, picture.pts = Fraction(1, 1000), 40 * n
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path.read_bytes()


@pytest.mark.parametrize("fault", ["cut off", "damaged"])
def test_what_can_be_decoded_of_a_video_is_done_and_the_rest_is_said(weights, tmp_path, capfd, fault):
    content = film(tmp_path / "v.mp4", movflags="+faststart")
    half, end = len(content) // 2, len(content) * 6 // 10
    rest = b"" if fault == "cut off" else b"U" * (end - half) + content[end:]
    (tmp_path / "v.mp4").write_bytes(content[:half] + rest)
    result = infer(capfd, weights, tmp_path / "v.mp4", tmp_path / "out")
    done = len(masks(tmp_path / "out"))
    assert result.status == 1 and f"; {done} frames were read" in result.err and "cannot be decoded" in result.err
    assert 12 <= done <= 24 if fault == "cut off" else 28 <= done < 40
    assert len((tmp_path / "out" / "tracks.jsonl").read_text().splitlines()) == done


def test_a_video_without_its_length_has_the_rate_of_its_first_frames(tmp_path):
    film(tmp_path / "v.webm", live="1")
    assert video_length(tmp_path / "v.webm") == (25.0, None)
    frames = [Image.new("RGB", (48, 32), (80 * n, 0, 0)) for n in range(3)]
    for kind in ("gif", "webp"):
        path = tmp_path / f"v.{kind}"
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=[100, 200, 300])
        (sequence,) = find_sequences([str(path)], {})
        assert sequence.rate_and_length() == (5.0, 3)


def test_a_playlist_in_a_videos_clothes_opens_no_connection(tmp_path):
    with multiprocessing.connection.Listener(("127.0.0.1", 0)) as listener:
        text = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:{listener.address[1]}/x.ts\n"
        for name in ("a.mp4", "b.mkv"):
            (tmp_path / name).write_text(text)
            with pytest.raises(DataError, match="cannot be decoded"):
                list(read_video(tmp_path / name))
        listener._listener._socket.settimeout(0.05)
        with pytest.raises(TimeoutError):
            listener._listener._socket.accept()


# ---------------------------------------------------------------------------------------------------------------------
# The same answer in another way
# ---------------------------------------------------------------------------------------------------------------------


def test_videos_side_by_side_give_the_same_files(weights, tmp_path, capfd):
    source = folder_of(tmp_path / "in", [*named("a", range(4)), *named("b", (0, 1)), *named("c", (0, 1, 5))])
    draw(source / "c_000001_leftImg8bit.png", 9, (44, 44))
    for width in (1, 2):
        assert infer(capfd, weights, source, tmp_path / f"{width}", "--batch_videos", width).status == 0
    assert masks(tmp_path / "1") == masks(tmp_path / "2") and len(masks(tmp_path / "1")) == 9
    assert (tmp_path / "1/tracks.jsonl").read_bytes() == (tmp_path / "2/tracks.jsonl").read_bytes()


@pytest.fixture(scope="module")
def whole(weights, tmp_path_factory):
    """Two videos and their predictions by an uninterrupted run."""
    source = folder_of(tmp_path_factory.mktemp("in"), [*named("a", range(5)), *named("b", range(4))])
    output = tmp_path_factory.mktemp("whole")
    assert in_another_process(weights, source, output, wait=True) == 0
    return source, output


def in_another_process(weights, source, output, flags=(), kill_at=None, wait=False, by=signal.SIGKILL):
    """The same in a forked process, ended by a signal once that many predictions are there."""

    def target():
        import sys

        import cli
        import inference

        torch.set_num_threads(1)  # a forked process has none of the others
        torch.get_num_threads = lambda: 2  # frames are seen ahead
        outputs.STATE_EVERY = 2
        command = ("--input_folder", source, "--output_folder", output, "--checkpoint", weights, "--overlay", "gif")
        sys.argv = ["inference.py", *map(str, (*command, *QUICK, *flags))]
        cli.run(inference.main)

    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    while not wait and process.is_alive():
        if len(list(output.rglob("*_panoptic.png"))) >= kill_at:
            os.kill(process.pid, by)
            break
        time.sleep(0.002)
    process.join()
    return process.exitcode


def test_after_an_interrupt_the_tracks_so_far_are_there_and_the_command_goes_on(weights, whole, tmp_path, capfd):
    source, expected = whole
    assert in_another_process(weights, source, tmp_path, kill_at=3, by=signal.SIGINT) == 130
    assert "interrupted; the same command goes on from here" in capfd.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "tracks.jsonl").read_text().splitlines()]
    assert 3 <= len(lines) < 9 and {line["file"] for line in lines} == {p.name for p in tmp_path.glob("*_panoptic.png")}
    assert in_another_process(weights, source, tmp_path, wait=True) == 0
    assert masks(tmp_path) == masks(expected)
    assert (tmp_path / "tracks.jsonl").read_bytes() == (expected / "tracks.jsonl").read_bytes()


def test_a_killed_run_goes_on_to_the_same_files(weights, whole, tmp_path, capfd):
    source, expected = whole
    for kill_at in (1, 3, 7):
        assert in_another_process(weights, source, tmp_path, kill_at=kill_at) == -signal.SIGKILL
    assert list((tmp_path / ".inference").glob("*.pt"))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("a_*_panoptic.png")}
    assert in_another_process(weights, source, tmp_path, wait=True) == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before  # what was done was not done again
    assert masks(tmp_path) == masks(expected) and len(masks(tmp_path)) == 9
    for name in ("tracks.jsonl", "a_overlay.gif", "b_overlay.gif"):
        assert (tmp_path / name).read_bytes() == (expected / name).read_bytes()
    assert not list(tmp_path.glob(".*.part"))


def test_a_damaged_state_costs_time_and_no_mask(weights, whole, tmp_path, capfd):
    """A flipped bit in the stored history, which would go on in all later frames; a mask emptied by a power cut."""
    source, expected = whole
    assert in_another_process(weights, source, tmp_path, kill_at=3) == -signal.SIGKILL
    (state,) = (tmp_path / ".inference").glob("*.pt")
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    state.write_bytes(data)
    assert in_another_process(weights, source, tmp_path, wait=True) == 0 and masks(tmp_path) == masks(expected)
    for path in (tmp_path / ".inference").glob("*.pt"):  # as an earlier version wrote them
        path.write_bytes(zlib.decompress(path.read_bytes()))
    again = infer(capfd, weights, source, tmp_path, overlay="gif")
    assert again.status == 0 and "starting over" not in again.out and masks(tmp_path) == masks(expected)
    (tmp_path / "a_000001_panoptic.png").write_bytes(b"")
    assert in_another_process(weights, source, tmp_path, wait=True) == 0 and masks(tmp_path) == masks(expected)


def test_what_has_changed_starts_over_and_says_so(weights, tmp_path, capfd):
    source, out = folder_of(tmp_path / "in", named("a", range(3))), tmp_path / "out"
    infer(capfd, weights, source, out)
    first = masks(out)
    again = infer(capfd, weights, source, out)
    assert again.status == 0 and "starting over" not in again.out and masks(out) == first
    other = save_model(tmp_path / "other.pt", 1)
    for flags, checkpoint in (((), other), (("--seed", 1), weights)):
        changed = infer(capfd, checkpoint, source, out, *flags)
        assert "have changed, starting over" in changed.out and masks(out) != first
        assert len(tracks(out)) == 3
        assert "starting over" in infer(capfd, weights, source, out).out and masks(out) == first
    draw(source / "a_000001_leftImg8bit.png", 99)
    assert "starting over" in infer(capfd, weights, source, out).out
    moved = masks(out)
    assert moved["a_000000_panoptic.png"] == first["a_000000_panoptic.png"] and moved != first
    (out / "a_000002_panoptic.png").unlink()
    infer(capfd, weights, source, out)
    assert masks(out) == moved


def test_no_mask_of_another_run_stays(weights, tmp_path, capfd):
    """Not that of a frame which the new run cannot read either."""
    source, out = folder_of(tmp_path / "in", named("a", range(3))), tmp_path / "out"
    infer(capfd, weights, source, out)
    assert len(masks(out)) == 3
    (source / "a_000001_leftImg8bit.png").write_bytes(b"no picture")
    assert infer(capfd, weights, source, out, "--skip_bad_files").status == 1
    assert sorted(masks(out)) == ["a_000000_panoptic.png", "a_000002_panoptic.png"]


def test_the_first_masks_can_be_given(weights, tmp_path, capfd):
    source, out = folder_of(tmp_path / "in", named("a", range(4))), tmp_path / "out"
    infer(capfd, weights, source, out)
    free = masks(out)
    semantic, track = np.zeros((30, 50), np.uint8), np.zeros((30, 50), np.int32)
    semantic[5:25, 10:40], track[5:25, 10:40] = 13, 4321
    for n in (0, 1):
        write_panoptic(out / f"a_{n:06d}_panoptic.png", semantic, track)
    given = (out / "a_000000_panoptic.png").read_bytes()
    assert infer(capfd, weights, source, out, "--use_frames_before", 2).status == 0
    after = masks(out)
    assert after["a_000000_panoptic.png"] == after["a_000001_panoptic.png"] == given
    assert after["a_000003_panoptic.png"] != free["a_000003_panoptic.png"]
    ids = [s["id"] for line in tracks(out)[2:] for s in line["segments"] if s["id"]]
    assert ids and min(ids) >= 4321
    track[track > 0] = 5000  # a given mask that was changed is taken anew
    write_panoptic(out / "a_000001_panoptic.png", semantic, track)
    assert "starting over" in infer(capfd, weights, source, out, "--use_frames_before", 2).out
    (out / "a_000001_panoptic.png").unlink()
    assert "which is missing" in infer(capfd, weights, source, out, "--use_frames_before", 2).message


def test_masks_that_no_inference_made_are_never_overwritten(weights, tmp_path, capfd):
    """Labels of a data set, and masks that an earlier run was given."""
    source = folder_of(tmp_path / "in", named("a", range(4)))
    semantic, track = np.zeros((30, 50), np.uint8), np.zeros((30, 50), np.int32)
    write_panoptic(source / "a_000002_panoptic.png", semantic, track)
    before = masks(source)
    for flags in ((), ("--restart",)):
        refused = infer(capfd, weights, source, source, *flags)
        assert refused.status == 2 and "a_000002_panoptic.png is not of an inference" in refused.message
    assert masks(source) == before

    out = tmp_path / "out"
    for n in (0, 1):
        write_panoptic(out / f"a_{n:06d}_panoptic.png", semantic, track)
    assert infer(capfd, weights, source, out, "--use_frames_before", 2).status == 0
    before = masks(out)
    for flags in ((), ("--restart",), ("--use_frames_before", 1)):
        refused = infer(capfd, weights, source, out, *flags)
        assert refused.status == 2 and "repeat --use_frames_before 2" in refused.message
    assert masks(out) == before
    assert infer(capfd, weights, source, out, "--use_frames_before", 2).status == 0


def test_the_first_masks_of_a_film_can_be_given(weights, tmp_path, capfd):
    out = tmp_path / "out"
    with VideoWriter(tmp_path / "v.mp4", 10) as film:
        for frame in read_video_of_noise(4):
            film.write(frame)
    assert (
        "v_000000_panoptic.png, which is missing"
        in infer(capfd, weights, tmp_path / "v.mp4", out, "--use_frames_before", 2).message
    )
    semantic, track = np.full((32, 48), 13, np.uint8), np.full((32, 48), 77, np.int32)
    for number in range(2):
        write_panoptic(out / f"v_{number:06d}_panoptic.png", semantic, track)
    given = (out / "v_000000_panoptic.png").read_bytes()
    for flags in ((), ("--seed", 7)):  # other flags: all is made anew but what was given
        assert infer(capfd, weights, tmp_path / "v.mp4", out, "--use_frames_before", 2, *flags).status == 0
        assert len(masks(out)) == 4 and (out / "v_000000_panoptic.png").read_bytes() == given


def test_a_mask_of_a_film_that_was_deleted_is_made_again(weights, tmp_path, capfd):
    out = tmp_path / "out"
    with VideoWriter(tmp_path / "v.mp4", 10) as film:
        for frame in read_video_of_noise(4):
            film.write(frame)
    for _ in range(2):
        assert infer(capfd, weights, tmp_path / "v.mp4", out).status == 0
        (out / "v_000001_panoptic.png").unlink(missing_ok=True)
    assert infer(capfd, weights, tmp_path / "v.mp4", out).status == 0 and len(masks(out)) == 4


def read_video_of_noise(count):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 32, 48, 3), dtype=np.uint8)


def test_a_half_done_video_keeps_its_noise_when_another_joins(weights, tmp_path, capfd):
    import inference

    source = folder_of(tmp_path / "in", named("b", range(3)))
    seen = []

    class Watched(inference.VideoPredictor):
        def see(self, frames, moments, *rest):
            seen.extend(moments)
            return super().see(frames, moments, *rest)

    assert infer(capfd, weights, source, tmp_path / "out").status == 0
    folder_of(source, [*named("a", range(2)), *named("b", range(3, 5))])  # b goes on, and is now the second
    before, inference.VideoPredictor = inference.VideoPredictor, Watched
    try:
        assert infer(capfd, weights, source, tmp_path / "out").status == 0
    finally:
        inference.VideoPredictor = before
    assert {m.video for m in seen if m.frame >= 3} == {0}


def test_a_checkpoint_that_recommends_to_sample_as_published_is_followed(weights, tmp_path, capfd, monkeypatch):
    import inference

    stored = checkpoints.load(weights) | {"sampling": {"merge": 0.0, "average_classes": False, "history_steps": 1}}
    checkpoints.save(tmp_path / "model.pt", stored)
    used = []
    monkeypatch.setattr(inference.VideoPredictor, "only_infer", lambda self, *_: used.append(self.config))
    source = folder_of(tmp_path / "in", named("a", range(2)))
    assert infer(capfd, tmp_path / "model.pt", source, tmp_path / "a").status == 0
    assert infer(capfd, tmp_path / "model.pt", source, tmp_path / "b", "--merge", 0.4, "--average_classes").status == 0
    assert [(c.merge, c.average_classes, c.history_steps) for c in used] == [(0.0, False, 1), (0.4, True, 1)]


# ---------------------------------------------------------------------------------------------------------------------
# Bad files
# ---------------------------------------------------------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[:-200])


def test_a_truncated_image_stops_before_anything_is_written(weights, tmp_path, capfd):
    source, out = folder_of(tmp_path / "in", named("a", range(4))), tmp_path / "out"
    cut(source / "a_000001_leftImg8bit.png")
    (source / "a_000002_leftImg8bit.png").write_bytes(b"")
    message = infer(capfd, weights, source, out).message
    assert "a_000001_leftImg8bit.png is cut off" in message and "and 1 more" in message
    assert not out.exists()
    for _ in range(2):  # the second time it is all done, and the list is the same
        result = infer(capfd, weights, source, out, "--skip_bad_files")
        assert result.status == 1 and "frames without a prediction: 2" in result.err and "Traceback" not in result.err
        assert sorted(masks(out)) == ["a_000000_panoptic.png", "a_000003_panoptic.png"]
        assert [e["frame"] for e in tracks(out)] == [0, 3]


def test_a_flipped_bit_costs_its_frame_alone(weights, tmp_path, capfd):
    source, out = folder_of(tmp_path / "in", named("a", range(3))), tmp_path / "out"
    path = source / "a_000001_leftImg8bit.png"
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 4] ^= 0xFF  # the header of the compressed stream
    path.write_bytes(data)
    result = infer(capfd, weights, source, out, "--no-quiet", overlay="gif")
    assert result.status == 1 and "frames without a prediction: 1" in result.err and path.name in result.err
    assert sorted(masks(out)) == ["a_000000_panoptic.png", "a_000002_panoptic.png"] and "2 frames are in" in result.out
    with Image.open(out / "a_overlay.gif") as film:
        assert film.n_frames == 2


def test_a_page_that_cannot_be_served_is_said_so(weights, tmp_path, capfd, monkeypatch):
    def refuse(*_):
        raise OSError("no port is free")

    monkeypatch.setattr("data.draw.live.Live.__init__", refuse)
    source = folder_of(tmp_path / "in", named("a", range(1)))
    result = infer(capfd, weights, source, tmp_path / "out", "--live")
    assert result.status == 2 and "--live: no page can be served" in result.message


def test_bytes_after_a_whole_image_are_no_fault(weights, tmp_path, capfd):
    source = folder_of(tmp_path / "in", ["1.jpg", "2.png"])
    for path in source.iterdir():
        path.write_bytes(path.read_bytes() + bytes(500))
    assert infer(capfd, weights, source, tmp_path / "out").status == 0


def test_a_bomb_is_refused_unopened(weights, tmp_path, capfd):
    source = folder_of(tmp_path / "in", ["1.png"])
    data = bytearray((source / "1.png").read_bytes())
    import zlib

    for side in (60_000, 9_000):  # beyond and below what Pillow itself refuses
        data[16:24] = side.to_bytes(4, "big") * 2
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
        (source / "1.png").write_bytes(data)
        assert "1.png" in infer(capfd, weights, source, tmp_path / "out").message


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--checkpoint", "nowhere.pt"), "there is no checkpoint nowhere.pt"),
        (("--checkpoint", Path(__file__).parent), "tests/model-latest.pt: train one"),
        (("--image_size", 0, 0), "image_size"),
        (("--fps", "nan"), "--fps must be 0.01 to 1000"),
        (("--fps", 0), "--fps must be 0.01 to 1000"),
        (("--min_area", -5), "min_area must be 0 or more"),
        (("--batch_videos", 0), "--batch_videos must be 1"),
        (("--time_difference", 2), "time_difference must be 0 to 1"),
        (("--first_steps", 0), "steps must be 1 or more"),
        (("--device", "cuda"), "no CUDA device"),
        (("--stepz", 3), "did you mean --steps?"),
        (("--weights", "x.pt"), "did you mean --checkpoint?"),
        (("my_video.mp4",), "did you mean --input_folder my_video.mp4?"),
        (("--sampler", "euler"), "invalid choice"),
    ],
)
def test_wrong_values_are_refused_in_a_line(weights, tmp_path, capfd, flags, said):
    if "cuda" in flags and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    source = folder_of(tmp_path / "in", ["1.png"])
    result = infer(capfd, weights, source, tmp_path / "out", *flags)
    assert result.status == 2 and said in result.message and not (tmp_path / "out").exists()


def test_inputs_that_are_none_are_refused_in_a_line(weights, tmp_path, capfd):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("x")
    for source, said in (("empty", "holds no images"), ("gone", "is missing"), ("text.txt", "neither a folder")):
        result = infer(capfd, weights, tmp_path / source, tmp_path / "out")
        assert result.status == 2 and said in result.message
    (tmp_path / "out").write_text("a file")
    result = infer(capfd, weights, folder_of(tmp_path / "in", ["1.png"]), tmp_path / "out")
    assert result.status == 2 and "cannot be written to" in result.message


def test_a_full_disk_ends_in_a_line_and_what_was_written_is_whole(weights, tmp_path, capfd, monkeypatch):
    source = folder_of(tmp_path / "in", named("a", range(3)))
    real = outputs.write_panoptic

    def full(path, *maps):
        if "000002" in path.name:
            raise OSError(28, "No space left on device", str(path))
        real(path, *maps)

    monkeypatch.setattr(outputs, "write_panoptic", full)
    result = infer(capfd, weights, source, tmp_path / "out")
    assert result.status == 2 and "No space left" in result.message and len(masks(tmp_path / "out")) == 2
    monkeypatch.undo()
    assert infer(capfd, weights, source, tmp_path / "out").status == 0 and len(masks(tmp_path / "out")) == 3


def test_nothing_prepared_says_what_to_do_in_three_lines(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call(capfd, "inference")
    first, *rest = result.message.splitlines()
    assert result.status == 2 and "data/input is missing" in first and len(rest) == 2
    assert "data.streets" in rest[0] and "inference.py --input_folder data/sample" in rest[1]


def test_from_another_folder_the_shipped_weights_are_found_and_a_link_names_its_video(tmp_path, capfd, monkeypatch):
    folder_of(tmp_path / "camera", ["0.png", "1.png"])
    (tmp_path / "crossing").symlink_to("camera")
    monkeypatch.chdir(tmp_path)
    command = ("--input_folder", "crossing", "--output_folder", "out", "--device", "cpu", "--mixed_precision", "no")
    result = call(capfd, "inference", *command, "--overlay", "gif")
    assert result.status == 0 and f"weights: {Path(inference.__file__).parent / inference.SHIPPED}" in result.out
    assert {line["sequence"] for line in tracks(tmp_path / "out")} == {"crossing"}
    assert (tmp_path / "out/crossing_overlay.gif").exists()


def test_no_overlay_beside_another_is_refused(weights, tmp_path, capfd):
    source = folder_of(tmp_path / "in", ["0.png"])
    result = infer(capfd, weights, source, tmp_path / "out", "--overlay", "none", "mp4")
    assert result.status == 2 and "none stands alone" in result.message and not (tmp_path / "out").exists()


def test_a_phones_pictures_and_videos_are_upright(tmp_path):
    picture = Image.fromarray(np.arange(20 * 40 * 3, dtype=np.uint32).reshape(20, 40, 3).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    picture.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), np.rot90(np.asarray(picture), -1))


def test_sixteen_bits_of_grey_are_scaled(tmp_path):
    grey = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "a.png")
    expected = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    assert np.array_equal(read_image(tmp_path / "a.png"), expected)


def test_films_of_folders_within_folders_have_names_of_their_own(weights, tmp_path, capfd):
    source = folder_of(tmp_path / "in", ["a/b/1.png", "a_b/1.png", "city_panoptic_1.png"])
    infer(capfd, weights, source, tmp_path / "out", overlay="gif")
    films = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.gif")}
    assert films == {"a/b_overlay.gif", "a_b_overlay.gif", "in_overlay.gif"}


def test_a_film_of_pictures_of_several_sizes_distorts_none(weights, tmp_path, capfd):
    draw(tmp_path / "in" / "1.png", 0, (24, 48))
    draw(tmp_path / "in" / "2.png", 1, (48, 24))  # upright: 12 wide at the film's height
    infer(capfd, weights, tmp_path / "in", tmp_path / "out", overlay="gif")
    with Image.open(tmp_path / "out" / "in_overlay.gif") as film:
        film.seek(1)
        lit = np.asarray(film.convert("RGB")).max(axis=(0, 2)) > 40
    assert lit.tolist() == [18 <= x < 30 for x in range(48)]


def test_a_film_in_colours_for_all_kinds_of_colour_vision(weights, tmp_path, capfd):
    draw(tmp_path / "in" / "1.png", 0)
    films = []
    for flags in ((), ("--colorblind",)):
        infer(capfd, weights, tmp_path / "in", tmp_path / "out", *flags, overlay="gif")
        with Image.open(tmp_path / "out" / "in_overlay.gif") as film:
            films.append(np.asarray(film.convert("RGB")))
    image, maps = read_image(tmp_path / "in" / "1.png"), read_panoptic(tmp_path / "out" / "1_panoptic.png")
    for film, colorblind in zip(films, (False, True), strict=True):
        drawn = render.overlay(image, *maps, colorblind=colorblind)
        assert np.abs(film.astype(int) - drawn).mean() < 8 < np.abs(film.astype(int) - films[not colorblind]).mean()


def test_a_film_keeps_the_speed_of_its_video(weights, tmp_path, capfd):
    with VideoWriter(tmp_path / "v.mp4", fps=25) as video:
        for n in range(3):
            video.write(np.full((32, 48, 3), 60 * n, np.uint8))
    assert video_length(tmp_path / "v.mp4") == (25.0, 3) and video_length(tmp_path / "none.mp4") == (None, None)
    infer(capfd, weights, tmp_path / "v.mp4", tmp_path / "out", overlay="mp4")
    assert video_length(tmp_path / "out" / "v_overlay.mp4") == (25.0, 3)
