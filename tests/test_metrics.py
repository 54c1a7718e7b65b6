"""Metrics on hand-drawn grids, and what they refuse, keep and need."""

import math
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from metrics import PQ, STQ, VOID, VPQ, Evaluation, MeanIoU, co_occurrence

pytestmark = pytest.mark.quick

ROAD, SKY, PERSON, RIDER, CAR = 0, 10, 11, 12, 13
THINGS = (PERSON, CAR)
# A grid is drawn with a letter for each pixel: what it stands for as (class, id).
LEGEND = {
    "r": (ROAD, 0),
    "s": (SKY, 0),
    ".": (VOID, 0),
    "C": (CAR, 0),  # crowd in the truth, a track of id 0 in a prediction
    "a": (CAR, 1),
    "b": (CAR, 2),
    "c": (CAR, 300),
    "p": (PERSON, 1),
    "R": (RIDER, 0),
    "x": (RIDER, 5),
}


def draw(*rows):
    """Rows of letters -> (semantic, instance), each (H, W)."""
    cells = np.array([[LEGEND[letter] for letter in row] for row in rows])
    return cells[..., 0].astype(np.uint8), cells[..., 1].astype(np.int32)


def evaluate(truth, prediction, sequence="0"):
    """One-row frames, drawn -> the result of all metrics; two frames at least, so that STQ and VPQ have a meaning."""
    evaluation = Evaluation(THINGS)
    for t, p in zip(truth, prediction, strict=True):
        evaluation.update(draw(t), draw(p), sequence)
    return evaluation.result()


# ---------------------------------------------------------------------------------------------------------------------
# Hand-drawn grids
# ---------------------------------------------------------------------------------------------------------------------


def test_perfect():
    frames = ["rraab.", "rrabbp", "CCsspp"]
    result = evaluate(frames, frames)
    assert result["stq"]["STQ"] == result["stq"]["AQ"] == result["stq"]["SQ"] == 1.0
    assert result["vpq"]["VPQ"] == {"all": 1.0, "things": 1.0, "stuff": 1.0}
    assert result["pq"]["All"] == {"PQ": 1.0, "SQ": 1.0, "RQ": 1.0}
    assert result["miou"]["mIoU"] == 1.0


def test_all_void():
    result = evaluate(["rraa", "rraa"], ["....", "...."])
    assert result["stq"]["AQ"] == result["stq"]["SQ"] == result["stq"]["STQ"] == 0.0
    assert result["vpq"]["VPQ"]["all"] == result["pq"]["All"]["PQ"] == result["miou"]["mIoU"] == 0.0


def test_one_id_switch():
    # 8 true pixels, 4 + 4 predicted: each TPA 4, union 8. AQ = 1/8 (4 * 4/8 + 4 * 4/8) = 1/2.
    result = evaluate(["aarr"] * 4, ["aarr", "aarr", "bbrr", "bbrr"])
    assert result["stq"]["AQ"] == 0.5
    assert result["stq"]["SQ"] == 1.0
    assert result["stq"]["STQ"] == math.sqrt(0.5)
    # Every single frame is perfect. Windows of 2: (aa), (ab), (bb): in the middle one the true tube meets two of IoU
    # 1/2, which do not match: TP 2, FP 2, FN 1, PQ 2 / 3.5. Of 3: (aab), (abb): 2/3 matches, 1/3 not: TP 2, IoU 4/3,
    # FP 2, PQ 4/9. Of 4: (aabb): FN 1, FP 2.
    assert result["pq"]["Things"]["PQ"] == result["vpq"]["1"]["things"] == 1.0
    assert result["vpq"]["2"]["things"] == pytest.approx(2 / 3.5, abs=1e-12)
    assert result["vpq"]["3"]["things"] == pytest.approx((4 / 3) / 3, abs=1e-12)
    assert result["vpq"]["4"]["things"] == 0.0
    assert result["vpq"]["VPQ"]["things"] == pytest.approx((1 + 2 / 3.5 + 4 / 9) / 4, abs=1e-12)
    assert result["vpq"]["VPQ"]["stuff"] == 1.0


def test_split_track():
    # One car of 8 pixels (2 frames of 4), predicted as two of 6 and 2: 1/8 (6 * 6/8 + 2 * 2/8) = 5/8.
    result = evaluate(["aaaa", "aaaa"], ["aaab", "aaab"])
    assert result["stq"]["AQ"] == pytest.approx(5 / 8, abs=1e-12)
    # In each frame 3/4 matches and 1/4 is a false positive: PQ = 3/4 / 1.5.
    assert result["pq"]["Things"] == pytest.approx({"PQ": 0.5, "SQ": 0.75, "RQ": 1 / 1.5}, abs=1e-12)


def test_merged_tracks():
    # Two cars of 6 and 2 pixels, predicted as one of 8: 1/6 (6 * 6/8) = 3/4 and 1/2 (2 * 2/8) = 1/4, mean 1/2.
    result = evaluate(["aaab", "aaab"], ["aaaa", "aaaa"])
    assert result["stq"]["AQ"] == pytest.approx(0.5, abs=1e-12)
    assert result["pq"]["Things"]["PQ"] == pytest.approx(0.75 / 1.5, abs=1e-12)


def test_crowd():
    # Crowd is left out of areas: the prediction's 2 pixels in it cost nothing in AQ. Predicted road in it costs SQ.
    assert evaluate(["aaCC", "aaCC"], ["aaaa", "aaaa"])["stq"]["AQ"] == 1.0
    result = evaluate(["aaCC", "aaCC"], ["aarr", "aarr"])
    assert result["stq"]["AQ"] == 1.0
    assert result["stq"]["SQ"] == pytest.approx((0.5 + 0.0) / 2, abs=1e-12)  # car 2 of 4; road predicted, never true
    # In PQ crowd is no miss, and a prediction more than half in it no false positive; exactly half is one.
    assert evaluate(["aaCCCs"] * 2, ["aabbbb"] * 2)["pq"]["Things"] == {"PQ": 1.0, "SQ": 1.0, "RQ": 1.0}
    assert evaluate(["aaCCss"] * 2, ["aabbbb"] * 2)["pq"]["Things"]["RQ"] == pytest.approx(1 / 1.5, abs=1e-12)
    # Crowd of another class excuses nothing.
    result = evaluate(["ssCCC"] * 2, ["ssppp"] * 2)
    assert result["pq"]["per_class"]["11"] == {"PQ": 0.0, "SQ": 0.0, "RQ": 0.0}


def test_void_spill():
    # Void is not left out of areas in AQ: an equal area spilled into it makes 1/2 (2 * 2/4) = 1/2 of 1.
    assert evaluate(["aarr"] * 2, ["aarr"] * 2)["stq"]["AQ"] == 1.0
    spilled = evaluate(["aa..rr"] * 2, ["aaaarr"] * 2)
    assert spilled["stq"]["AQ"] == 0.5
    # Everywhere else it is: the union of PQ and VPQ, the pixels of SQ and mIoU.
    assert spilled["stq"]["SQ"] == spilled["miou"]["mIoU"] == 1.0
    assert spilled["pq"]["Things"]["PQ"] == spilled["vpq"]["VPQ"]["things"] == 1.0
    # A prediction wholly in void is no false positive.
    assert evaluate(["aa..rr"] * 2, ["aabbrr"] * 2)["pq"]["Things"]["RQ"] == 1.0


def test_predicted_void():
    # Road 2 of 4, car 4 of 4, and void as a third class of IoU 0 in SQ, but not in mIoU.
    result = evaluate(["rrrraaaa"] * 2, ["rr..aaaa"] * 2)
    assert result["stq"]["SQ"] == pytest.approx((0.5 + 1.0 + 0.0) / 3, abs=1e-12)
    assert result["miou"]["mIoU"] == pytest.approx(0.75, abs=1e-12)
    assert result["stq"]["per_class"]["0"] == result["miou"]["per_class"]["0"] == 0.5
    assert result["stq"]["per_class"]["10"] is None


def test_class_that_only_the_prediction_has():
    # Road 3 of 4, sky 0 of 1: it counts, with IoU 0.
    result = evaluate(["rrrraa"] * 2, ["rrrsaa"] * 2)
    assert result["stq"]["SQ"] == result["miou"]["mIoU"] == pytest.approx((0.75 + 0.0 + 1.0) / 3, abs=1e-12)
    assert result["pq"]["per_class"]["10"]["PQ"] == 0.0
    assert result["pq"]["Stuff"]["PQ"] == pytest.approx(0.75 / 2, abs=1e-12)


def test_tracks_of_the_wrong_class_associate():
    # The person 1 predicted on car 1 is another track than car 1, yet TPA counts its overlap (as in deeplab2).
    result = evaluate(["aarr"] * 2, ["pprr"] * 2)
    assert result["stq"]["AQ"] == 1.0
    assert result["stq"]["per_class"]["13"] == result["stq"]["per_class"]["11"] == 0.0
    # The same id in two classes is two tracks: 1/8 (4 * 4/8 + 4 * 4/8).
    assert evaluate(["aaaa"] * 2, ["aapp"] * 2)["stq"]["AQ"] == 0.5


def test_predicted_id_zero_is_a_segment():
    result = evaluate(["aarr"] * 2, ["CCrr"] * 2)
    assert result["stq"]["AQ"] == result["pq"]["Things"]["PQ"] == result["vpq"]["VPQ"]["things"] == 1.0


def test_ids_of_classes_without_tracks_are_ignored():
    result = evaluate(["xxRR"] * 2, ["RRxx"] * 2)
    assert result["stq"]["AQ"] is None
    assert result["pq"]["Stuff"]["PQ"] == result["vpq"]["VPQ"]["stuff"] == 1.0


def test_two_sequences():
    evaluation = Evaluation(THINGS)
    for sequence, truth, prediction in [
        ("0002", "aabb", "aabb"),  # two tracks of quality 1
        ("0006", "aarr", "rrrr"),  # one of quality 0, though the id and the pixels are those of 0002
        ("0002", "aabb", "aabb"),
        ("0006", "aarr", "rrrr"),  # in turns: windows stay in their sequence
    ]:
        evaluation.update(draw(truth), draw(prediction), sequence)
    result = evaluation.result()
    assert result["stq"]["AQ"] == pytest.approx(2 / 3, abs=1e-12)  # over tracks, not over sequences
    assert result["stq"]["SQ"] == pytest.approx((8 / 12 + 4 / 8) / 2, abs=1e-12)  # car 8 of 12, road 4 of 8
    one, other = (result["stq"]["per_sequence"][name] for name in ("0002", "0006"))
    assert one == {"STQ": 1.0, "AQ": 1.0, "SQ": 1.0}
    assert other == {"STQ": 0.0, "AQ": 0.0, "SQ": 0.25}
    # Windows of 2: one in each sequence. Cars: TP 2, FN 1.
    assert result["vpq"]["2"]["things"] == pytest.approx(2 / 2.5, abs=1e-12)
    assert result["vpq"]["3"] == {"all": None, "things": None, "stuff": None}
    # VPQ is the mean over the k that have windows.
    expected = (result["vpq"]["1"]["all"] + result["vpq"]["2"]["all"]) / 2
    assert result["vpq"]["VPQ"]["all"] == pytest.approx(expected, abs=1e-12)


def test_a_track_goes_on_through_a_gap():
    result = evaluate(["aarr", "rrrr", "aarr"], ["aarr", "rrrr", "aarr"])
    assert result["stq"]["AQ"] == 1.0
    assert evaluate(["aarr", "rrrr", "aarr"], ["aarr", "rrrr", "ccrr"])["stq"]["AQ"] == 0.5


def test_empty_truth():
    result = evaluate(["....", "...."], ["aarr", "aarr"])
    assert result["stq"]["STQ"] is result["stq"]["AQ"] is result["stq"]["SQ"] is None
    assert result["miou"]["mIoU"] is result["pq"]["All"]["PQ"] is result["vpq"]["VPQ"]["all"] is None
    result = evaluate(["rrrr", "rrrr"], ["aarr", "aarr"])  # labelled, but nothing to track
    assert result["stq"]["AQ"] is result["stq"]["STQ"] is None
    assert result["stq"]["SQ"] == pytest.approx((0.5 + 0.0) / 2, abs=1e-12)
    assert result["pq"]["Things"]["PQ"] == 0.0  # false positives only


def test_without_frames_nothing_has_a_meaning():
    result = Evaluation(THINGS).result()
    assert result["stq"] == {"STQ": None, "AQ": None, "SQ": None, "per_class": dict.fromkeys(map(str, range(19)))} | {
        "per_sequence": {}
    }
    assert result["pq"]["All"] == {"PQ": None, "SQ": None, "RQ": None}


def test_single_images_have_no_stq_and_vpq():
    for sequences in ((None, None), ("a", "b")):
        evaluation = Evaluation(THINGS)
        for sequence in sequences:
            evaluation.update(draw("aarr"), draw("aarr"), sequence)
        result = evaluation.result()
        assert (
            result["stq"]["STQ"]
            is result["stq"]["SQ"]
            is result["vpq"]["VPQ"]["all"]
            is result["vpq"]["1"]["all"]
            is None
        )
        assert result["stq"]["per_sequence"] == {}
        assert result["pq"]["All"]["PQ"] == result["miou"]["mIoU"] == 1.0


def test_class_names():
    evaluation = Evaluation((1,), num_classes=2, class_names=("road", "car"))
    frame = (np.array([[0, 1]], np.uint8), np.array([[0, 7]], np.int32))
    evaluation.update(frame, frame, "a")
    assert evaluation.result()["miou"]["per_class"] == {"road": 1.0, "car": 1.0}
    assert list(evaluation.result()["pq"]["per_class"]) == ["road", "car"]


# ---------------------------------------------------------------------------------------------------------------------
# The table, and what it refuses
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [3, 60_000])  # runs, and noise
def test_table_counts_pixels(ids):
    rng = np.random.default_rng(0)
    truth, prediction = (
        (rng.choice([0, 11, 13, 18, VOID], (40, 30)), rng.integers(0, ids, (40, 30)).repeat(2, 1)[:, :30])
        for _ in range(2)
    )
    table = co_occurrence(truth, prediction)
    expected = {}
    for cells in zip(*(a.ravel().tolist() for a in (*truth, *prediction)), strict=True):
        t, p = ((c, 0 if c == VOID else i) for c, i in (cells[:2], cells[2:]))
        expected[t, p] = expected.get((t, p), 0) + 1
    split = [[(code >> 24, code & 0xFFFFFF) for code in column.tolist()] for column in (table.truth, table.prediction)]
    assert dict(zip(zip(*split, strict=True), table.area.tolist(), strict=True)) == expected


def test_layout_and_type_of_the_arrays_do_not_matter():
    rng = np.random.default_rng(1)
    maps = [(rng.choice([0, 11, 13, VOID], (9, 8)), rng.integers(0, 4, (9, 8))) for _ in range(2)]
    expected = co_occurrence(*maps)
    other = [(s.astype(np.uint8)[:, ::-1][:, ::-1], np.asfortranarray(i.astype(np.uint16))) for s, i in maps]
    assert all(np.array_equal(a, b) for a, b in zip(co_occurrence(*other), expected, strict=True))


def test_wrong_input_is_refused_and_changes_nothing():
    good = draw("aarr")
    evaluation = Evaluation(THINGS)
    evaluation.update(good, good, "a")
    evaluation.update(good, good, "a")
    before = evaluation.result()
    for wrong, message in [
        (draw("aarrr"), "one shape"),
        ((good[0], good[1][:, :2]), "one shape"),
        ((np.full((1, 4), 19, np.uint8), good[1]), "class 19"),
        ((good[0], good[1] - 1), "ids -1"),
        ((good[0], good[1] + (1 << 24)), "ids 16777216"),
        ((good[0].astype(float), good[1]), "integer"),
    ]:
        for pair in ((good, wrong), (wrong, good)):
            with pytest.raises(ValueError, match=message):
                evaluation.update(*pair, "a")
    assert evaluation.result() == before


# ---------------------------------------------------------------------------------------------------------------------
# Merging, memory, imports
# ---------------------------------------------------------------------------------------------------------------------


def test_merge_refuses_what_it_cannot_add():
    halves = [Evaluation(THINGS), Evaluation(THINGS)]
    for half in halves:
        half.update(draw("aarr"), draw("aarr"), "a")
    with pytest.raises(ValueError, match="sequence a is in both"):
        halves[0].merge(halves[1])
    for one, other in [
        (PQ(THINGS), PQ((PERSON,))),
        (STQ(THINGS), STQ((CAR,))),
        (VPQ(THINGS), VPQ((CAR,))),
        (VPQ(THINGS), VPQ(THINGS, windows=(1, 2))),
        (MeanIoU(19), MeanIoU(8)),
    ]:
        with pytest.raises(ValueError, match="of the same"):
            one.merge(other)


def test_stq_of_a_sequence_in_two_shards():
    # STQ alone keeps no window: even one sequence may be shared out.
    frames = [("aabb", "aaab"), ("aabb", "abab"), ("aarr", "bbrr")]
    whole, *parts = (STQ(THINGS) for _ in range(4))
    for part, (truth, prediction) in zip(parts, frames, strict=True):
        whole.update(draw(truth), draw(prediction), "a")
        part.update(draw(truth), draw(prediction), "a")
    parts[2].merge(parts[0])
    parts[2].merge(parts[1])
    assert parts[2].result() == whole.result()


def test_state_does_not_grow_with_frames():
    rng = np.random.default_rng(2)
    frames = [(rng.choice([0, 11, 12, 13, VOID], (12, 20)), rng.integers(0, 4, (12, 20))) for _ in range(8)]
    evaluation = Evaluation(THINGS)
    sizes = []
    for i in range(400):
        evaluation.update(frames[i % 8], frames[(i * 3 + 1) % 8], "a")
        if i in (99, 399):
            sizes.append(len(pickle.dumps(evaluation)))
    assert sizes[1] < sizes[0] * 1.1  # larger numbers, no more of them


def test_needs_numpy_alone(tmp_path):
    """The folder metrics/, copied elsewhere, works without torch, Pillow and the rest of the repository."""
    (tmp_path / "metrics").symlink_to(Path(__file__).resolve().parents[1] / "metrics")
    code = f"""
import sys
sys.path += [".", {str(Path(np.__file__).parents[1])!r}]
before = set(sys.modules)
import metrics
new = {{name.split(".")[0] for name in set(sys.modules) - before}} - set(sys.stdlib_module_names)
print(sorted(name for name in new if not name.startswith("_")))
"""
    command = [sys.executable, "-S", "-c", code]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "['metrics', 'numpy']"
