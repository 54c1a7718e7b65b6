"""A model's own predictions as the history of training clips."""

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from painted import FORMAT, Painted, same
from running import call
from small import CONFIG, FLAGS, lively_model

from data.clips.clips import Clips
from data.clips.history import HistoryConfig
from data.clips.own_history import OwnHistory, named_by_truth
from data.labels import CAR, PERSON
from data.sets.frames import whole_runs
from model import checkpoint as checkpoints
from training import own_history as rollout

ALWAYS = HistoryConfig(history_own=1.0, history_dropout=0.0)


def maps(*frames):
    """(T, 1, n) classes and ids of frames written as strings: a digit is the id of a car, a letter that of a person."""
    ids = np.array([[[0 if c == "." else int(c, 36) for c in frame]] for frame in frames], np.int32)
    classes = np.array([[[0 if c == "." else CAR if c.isdigit() else PERSON for c in frame]] for frame in frames])
    return classes.astype(np.uint8), ids


@pytest.mark.parametrize(
    "predicted, truth, named",
    [
        (("11..2", "11.22"), ("77..8", "77..8"), [[7, 7, 0, 0, 8], [7, 7, 0, 8, 8]]),  # as it should be
        (("...", "111"), ("778", "778"), [[0, 0, 0], [7, 7, 7]]),  # two as one: the larger of them; 8 has none
        (("...", "112"), ("777", "777"), [[0, 0, 0], [7, 7, 20]]),  # one as two: the smaller part is another
        (("11..", "..11"), ("7...", "..8."), [[8, 8, 0, 0], [0, 0, 8, 8]]),  # went over to another: what it is now
        (("1...", "...."), ("7...", "...."), [[7, 0, 0, 0], [0, 0, 0, 0]]),  # lost: what it was
        (("....", "1111"), ("....", "7..."), [[0] * 4, [7] * 4]),  # all of the smaller one
        (("....", "11.."), (".777", ".777"), [[0] * 4, [7, 7, 0, 0]]),  # half of the smaller one
        (("....", "111."), ("..77", "..77"), [[0] * 4, [7, 7, 7, 0]]),
        (("......", "111..."), ("..7777", "..7777"), [[0] * 6, [20, 20, 20, 0, 0, 0]]),  # a third is not enough
        (("..", "1."), ("..", "a."), [[0, 0], [20, 0]]),  # a car is no person
        (("...", "123"), ("...", "..."), [[0] * 3, [20, 21, 22]]),  # nothing there
    ],
)
def test_tracks_take_the_ids_of_what_they_are(predicted, truth, named):
    assert named_by_truth(*maps(*predicted), *maps(*truth), unused=20)[:, 0].tolist() == named


def test_an_id_may_be_of_its_class_alone():
    semantic = np.array([[[CAR, CAR, PERSON, PERSON]]], np.uint8)
    track, truth = np.array([[[3, 3, 4, 4]]], np.int32), np.ones((1, 1, 4), np.int32)
    assert named_by_truth(semantic, track, semantic, truth, unused=20).tolist() == truth.tolist()


def predictions(folder, source, shift=3):
    """As a model would have them that is late by some pixels and numbers its tracks from 1."""
    own = OwnHistory(folder, source.frames)
    for i in range(len(source.frames)):
        semantic, instance = (np.roll(labels, shift, 1) for labels in source.read_labels(i))
        own.write(i, np.where(semantic == 255, 0, semantic), np.where(instance > 0, instance - 99, 0))
    return own


def test_a_clip_has_the_predictions_as_history_and_the_truth_as_target(tmp_path):
    source = Painted(objects=3)
    own = predictions(tmp_path, source)
    true, clip = (
        Clips(source, FORMAT, fixed_slots=True, history_config=ALWAYS, own_history=o).sample(
            5, np.random.default_rng(0)
        )
        for o in (None, own)
    )
    assert torch.equal(clip["image"], true["image"])
    assert torch.equal(clip["semantic"][-1], true["semantic"][-1])
    moved = torch.from_numpy(np.roll(true["semantic"][0].numpy(), 1, 1))
    assert (clip["semantic"][0] == moved)[:, 4:].float().mean() > 0.9
    assert not torch.equal(clip["semantic"][0], true["semantic"][0])
    for slot in true["instance"][-1].unique()[1:]:  # the history names it as the target does
        a, b = true["instance"][-2] == slot, clip["instance"][-2] == slot
        assert (a & b).sum() > 0.5 * a.sum() > 0
    assert torch.equal(clip["instance"][-1], true["instance"][-1])


def test_only_a_share_of_the_clips_and_only_whole_histories(tmp_path):
    source = Painted(numbers=range(40))
    own = predictions(tmp_path, source)
    plain = Clips(source, FORMAT, history_config=HistoryConfig(history_dropout=0.0))
    for share, low, high in ((0.0, 0, 0), (0.5, 10, 28), (1.0, 37, 39)):
        config = HistoryConfig(history_own=share, history_dropout=0.0)
        clips = Clips(source, FORMAT, history_config=config, own_history=own)
        others = sum(not torch.equal(clips[i]["semantic"], plain[i]["semantic"]) for i in range(40))
        assert low <= others <= high
    clips = Clips(source, FORMAT, history_config=ALWAYS, own_history=own)
    own.path(6).unlink()
    for i, alike in ((6, False), (7, True), (8, True), (9, False)):  # 7 and 8 would need it
        assert torch.equal(clips[i]["semantic"], plain[i]["semantic"]) == alike
    assert torch.equal(clips[0]["semantic"], plain[0]["semantic"])  # a first frame


def test_predictions_are_not_damaged_further_but_left_out(tmp_path):
    source = Painted()
    own = predictions(tmp_path, source)
    spoiled = HistoryConfig(history_own=1.0, history_dropout=0.0, history_corruption=1.0, corruption_drop=1.0)
    clip = Clips(source, FORMAT, fixed_slots=True, history_config=spoiled, own_history=own)[5]
    whole = Clips(source, FORMAT, fixed_slots=True, history_config=ALWAYS, own_history=own)[5]
    assert same(clip, whole)
    absent = Clips(source, FORMAT, history_config=HistoryConfig(history_own=1.0, history_absent=1.0), own_history=own)
    assert not absent[5]["semantic_known"][:-1].any()


def checkpoint(path):
    model = lively_model()
    checkpoints.save(path, {"format": checkpoints.FORMAT, "config": CONFIG.to_dict(), "weights": model.state_dict()})
    return path


def test_videos_are_predicted_once_and_up_to_a_gap(tmp_path, monkeypatch):
    source = Painted(numbers=[0, 1, 2, 3, 7, 8, 9, 20, 21])
    file, accelerator = checkpoint(tmp_path / "model.pt"), Accelerator(cpu=True)

    def predict():
        return rollout.predicted_history(source, file, tmp_path / "own", (32, 64), accelerator, True, frames=5)

    assert whole_runs(source.frames) == [[0, 1, 2, 3], [4, 5, 6], [7, 8]]
    own = predict()
    assert [i in own for i in range(9)] == [True] * 7 + [False] * 2  # whole runs, until there are 5
    first = {i: own.path(i).read_bytes() for i in range(7)}
    semantic, track = own.read(3)
    assert semantic.shape == source.size and len(np.unique(semantic)) > 1 and track.dtype == np.int32
    own.path(6).unlink()  # as if it had been killed there
    own.done(4).unlink()
    (mtime,) = {own.path(0).stat().st_mtime_ns}
    assert {i: predict().path(i).read_bytes() for i in range(7)} == first
    assert own.path(0).stat().st_mtime_ns == mtime
    monkeypatch.setattr(rollout, "_predict", lambda *_: pytest.fail("there already"))
    predict()


def test_frames_that_cannot_be_read_end_their_video(tmp_path):
    class Cut(Painted):
        def read(self, i):
            if i == 2:
                raise rollout.DataError("broken")
            return super().read(i)

    source = Cut(numbers=range(5))
    args = (tmp_path / "own", (32, 64), Accelerator(cpu=True), True)
    own = rollout.predicted_history(source, checkpoint(tmp_path / "model.pt"), *args)
    assert [i in own for i in range(5)] == [True, True, False, False, False]
    assert own.done(0).exists()  # and is not tried again


def test_each_data_set_has_its_own(tmp_path):
    file, accelerator = checkpoint(tmp_path / "model.pt"), Accelerator(cpu=True)
    made = [
        rollout.predicted_history(
            Painted(numbers=range(2), sequence=s), file, tmp_path / "own", (32, 64), accelerator, True
        )
        for s in "ab"
    ]
    assert made[0].folder != made[1].folder and all(1 in own for own in made)
    with pytest.raises(ValueError, match="history_config"):
        Clips(Painted(), FORMAT, own_history=made[0])


def test_training_on_its_own_history_goes_on_to_the_bit(capfd, tmp_path):
    file = checkpoint(tmp_path / "model.pt")
    flags = (*FLAGS, "--dataset", "streets", "--data_root", tmp_path / "streets", "--streets_videos", 1)
    flags += ("--validate_videos", 0, "--warmup", 0, "--history_from", file, "--history_own", 1, "--history_dropout", 0)
    for folder, steps in (("whole", (4,)), ("parts", (2, 4))):
        for n in steps:
            run = call(capfd, "train", *flags, "--results_folder", tmp_path / folder, "--steps", n, "--final_lr", 1)
            assert run.status == 0, run.err
    assert len(list((tmp_path / "whole" / "own_history").glob("streets-train-*/*_panoptic.png"))) == 24
    logs = [
        [json.loads(line)["loss"] for line in (tmp_path / f / "log.jsonl").read_text().splitlines()]
        for f in ("whole", "parts")
    ]
    assert logs[0] == logs[1] and len(logs[0]) == 4
    run = call(capfd, "train", *flags, "--results_folder", tmp_path / "none", "--history_from", tmp_path / "no.pt")
    assert run.status == 2 and "no.pt" in run.message
    run = call(capfd, "train", *flags, "--results_folder", tmp_path, "--history_from", file)
    assert run.status == 2 and "--history_from" in run.message
