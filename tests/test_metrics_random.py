"""Metrics on random maps: equal to slow definitions of their own, and unmoved by ids' names and by sharding."""

import pickle
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics import PQ, STQ, VOID, VPQ, Evaluation

ROAD, PERSON, RIDER, CAR = 0, 11, 12, 13
THINGS = (PERSON, CAR)
CLASSES = (ROAD, PERSON, RIDER, CAR, VOID)


@st.composite
def videos(draw_):
    """[(sequence, truth, prediction)]: a few tiny frames of one or two sequences, the prediction partly the truth."""
    rng = np.random.default_rng(draw_(st.integers(0, 2**32 - 1)))
    shape = (draw_(st.integers(1, 4)), draw_(st.integers(1, 6)))
    frames = []
    for i in range(draw_(st.integers(1, 7))):
        truth, noise = ((rng.choice(CLASSES, shape), rng.integers(0, 4, shape)) for _ in range(2))
        use = rng.random(shape) < rng.choice([0.3, 0.8])
        prediction = tuple(np.where(use, t, n) for t, n in zip(truth, noise, strict=True))
        frames.append((("one", "two")[i % draw_(st.integers(1, 2))], truth, prediction))
    return frames


def pixels_of(frames):
    """[(sequence, pixel number, true class, true id, predicted class, predicted id)], a list that hides nothing."""
    result = []
    for number, (sequence, truth, prediction) in enumerate(frames):
        cells = zip(*(a.ravel().tolist() for a in (*truth, *prediction)), strict=True)
        result += [(sequence, (number, k), *cell) for k, cell in enumerate(cells)]
    return result


def slow_stq(frames):
    """(AQ, SQ) from sets of pixels, as the paper writes them."""
    pixels = pixels_of(frames)
    ious = []
    for c in (*range(19), VOID):
        true = {(n) for _, n, tc, _, _, _ in pixels if tc == c != VOID}
        predicted = {(n) for _, n, tc, _, pc, _ in pixels if pc == c and tc != VOID}
        if true | predicted:
            ious.append(len(true & predicted) / len(true | predicted))
    kept = [p for p in pixels if not (p[2] in THINGS and p[3] == 0)]
    qualities = []
    for sequence, tc, ti in {(s, tc, ti) for s, _, tc, ti, _, _ in kept if tc in THINGS}:
        track = {n for s, n, c, i, _, _ in kept if (s, c, i) == (sequence, tc, ti)}
        inner = 0.0
        for pc, pi in {(c, i) for s, n, _, _, c, i in kept if c in THINGS and n in track}:
            other = {n for s, n, _, _, c, i in kept if (s, c, i) == (sequence, pc, pi)}
            inner += len(track & other) ** 2 / len(track | other)
        qualities.append(inner / len(track))
    return (sum(qualities) / len(qualities) if qualities else None), (sum(ious) / len(ious) if ious else None)


def slow_counts(pixels):
    """{class: [tp, fp, fn, sum of IoU]} of one frame or one window, from sets of pixels."""
    counts = {c: [0, 0, 0, 0.0] for c in range(19)}
    true, predicted, crowd, void = {}, {}, {}, set()
    for _, n, tc, ti, pc, pi in pixels:
        if tc == VOID:
            void.add(n)
        elif tc in THINGS and ti == 0:
            crowd.setdefault(tc, set()).add(n)
        else:
            true.setdefault((tc, ti if tc in THINGS else 0), set()).add(n)
        if pc != VOID:
            predicted.setdefault((pc, pi if pc in THINGS else 0), set()).add(n)
    pairs = {}
    for t, a in true.items():
        for p, b in predicted.items():
            iou = len(a & b) / len((a | b) - void)
            if t[0] == p[0] and iou > 0.5:
                pairs[t] = p
                counts[t[0]][0] += 1
                counts[t[0]][3] += iou
    for t in true.keys() - pairs.keys():
        counts[t[0]][2] += 1
    for p in predicted.keys() - set(pairs.values()):
        ignored = void | crowd.get(p[0], set())
        counts[p[0]][1] += len(predicted[p] & ignored) <= len(predicted[p]) / 2
    return counts


def slow_pq(windows, classes=range(19)):
    """Mean PQ over the classes that occur, counts summed over windows of pixels; None where there is none."""
    total = {c: [0, 0, 0, 0.0] for c in range(19)}
    for pixels in windows:
        for c, counts in slow_counts(pixels).items():
            total[c] = [a + b for a, b in zip(total[c], counts, strict=True)]
    scores = [iou / (tp + fp / 2 + fn / 2) for c, (tp, fp, fn, iou) in total.items() if c in classes and tp + fp + fn]
    return sum(scores) / len(scores) if scores else None


def close(a, b):
    return (a is None and b is None) or a == pytest.approx(b, abs=1e-12)


@settings(max_examples=300, deadline=None)
@given(videos())
def test_equals_the_slow_definitions(frames):
    stq, vpq, pq = STQ(THINGS), VPQ(THINGS), PQ(THINGS)
    for sequence, truth, prediction in frames:
        for metric in (stq, vpq, pq):
            metric.update(truth, prediction, sequence)
    aq, sq = slow_stq(frames)
    assert close(stq.result()["AQ"], aq)
    assert close(stq.result()["SQ"], sq)

    by_sequence = [list(group) for _, group in groupby(sorted(frames, key=lambda f: f[0]), key=lambda f: f[0])]
    for k in (1, 2, 3, 4):
        windows = [pixels_of(s[i : i + k]) for s in by_sequence for i in range(len(s) - k + 1)]
        assert close(vpq.result()[str(k)]["all"], slow_pq(windows))
        assert close(vpq.result()[str(k)]["things"], slow_pq(windows, THINGS))
    assert close(pq.result()["All"]["PQ"], slow_pq([pixels_of([f]) for f in frames]))


@settings(max_examples=60, deadline=None)
@given(videos(), st.integers(0, 2**32 - 1))
def test_permuted_ids_change_no_figure(frames, seed):
    rng = np.random.default_rng(seed)
    orders = {(s, c): rng.permutation(10)[:4] * 7_000 for s in ("one", "two") for c in CLASSES}
    figures = []
    for permuted in (False, True):
        evaluation = Evaluation(THINGS)
        for sequence, truth, (semantic, instance) in frames:
            if permuted:
                cells = zip(semantic.ravel().tolist(), instance.ravel().tolist(), strict=True)
                instance = np.array([orders[sequence, c][i] for c, i in cells]).reshape(instance.shape)
            evaluation.update(truth, (semantic, instance), sequence)
        figures.append(evaluation.result())
    # Sums over a track's terms are rounded once (fsum), so that this too is the same to the bit.
    assert figures[0] == figures[1]


@settings(max_examples=40, deadline=None)
@given(videos(), st.integers(0, 1))
def test_shards_give_the_same_bits(frames, first):
    names = ("one", "two")
    shards = {name: Evaluation(THINGS) for name in names}
    whole = Evaluation(THINGS)
    for sequence, truth, prediction in frames:
        whole.update(truth, prediction, sequence)
        shards[sequence].update(truth, prediction, sequence)
    merged = pickle.loads(pickle.dumps(shards[names[first]]))
    merged.merge(pickle.loads(pickle.dumps(shards[names[1 - first]])))
    assert merged.result() == whole.result()
    assert merged.frames == whole.frames
