"""Segments of a fresh answer and the tracks that they are, on hand-drawn masks."""

import numpy as np
import pytest
import torch
from small import CONFIG, lively_model, stream_step

from model import ConfigError, StreamConfig, VideoPredictor
from model.stream.history import adopt
from model.stream.state import StreamState, Track
from model.stream.tracks import _moved, advance, updated_track

pytestmark = pytest.mark.quick

ROAD, SKY, PERSON, CAR = 1, 11, 12, 14  # semantic codes, trainId + 1
H, W = CONFIG.mask_size


def answer(*objects):
    """The raw answer of `candidates`, (3, h, w), with rectangles (code, slot, top, left, height, width)."""
    semantic, slot = np.full((H, W), ROAD, np.uint8), np.ones((H, W), np.uint8)
    for code, s, y, x, height, width in objects:
        semantic[y : y + height, x : x + width], slot[y : y + height, x : x + width] = code, s
    return np.stack([semantic, np.full_like(semantic, SKY), slot])


def stream(*frames, gap=0, told=None):
    """{(top, left) of an object: its track} of each frame, of answers that know nothing of tracks; and the state."""
    state, result = StreamState(0), []
    for n, objects in enumerate(frames):
        seen = told if n == len(frames) - 1 else None
        _, slot, state = advance(answer(*objects), seen, state, CONFIG, 4, gap)
        result.append({(y, x): now(state).get(slot[y, x], 0) for _, _, y, x, _, _ in objects})
    return result, state


def now(state):
    """{slot: track id} of the last frame."""
    return {t.slot: t.id for t in state.tracks if t.frame == state.frame - 1}


def car(slot, x, y=2, width=6):
    return (CAR, slot, y, x, 4, width)


def test_tracks_go_on_whatever_slots_their_segments_have():
    seen, state = stream([car(5, 2), car(6, 20)], [car(6, 3), car(5, 21)], [car(9, 4), car(2, 22), car(6, 12)])
    assert seen == [{(2, 2): 1, (2, 20): 2}, {(2, 3): 1, (2, 21): 2}, {(2, 4): 1, (2, 22): 2, (2, 12): 3}]
    # The history has each track in one slot, whichever the fresh answers had.
    assert {state.slot[0][3, 6], state.slot[1][3, 6]} == {5} and {state.slot[0][3, 23], state.slot[1][3, 23]} == {6}
    assert state.slot[1][3, 14] not in (0, 5, 6)


def test_a_segment_of_another_class_is_another_track():
    seen, _ = stream([car(5, 2)], [(PERSON, 5, 2, 2, 4, 6)])
    assert seen[1] == {(2, 2): 2}


def test_a_merged_segment_is_the_track_that_it_has_most_of_and_split_again_it_is_two():
    two, one = [car(5, 2, width=8), car(6, 10, width=4)], [car(7, 2, width=12)]
    seen, _ = stream(two, one, two)
    assert seen == [{(2, 2): 1, (2, 10): 2}, {(2, 2): 1}, {(2, 2): 1, (2, 10): 3}]
    seen, _ = stream(two, one, two, gap=1)
    assert seen[2] == {(2, 2): 1, (2, 10): 2}


def test_a_track_out_of_sight_is_found_where_its_motion_leads():
    frames = [[car(5, 0)], [car(5, 3)], [car(5, 6)], [car(5, 9)]]
    assert stream(*frames, [], [], [car(9, 18)], gap=2)[0][-1] == {(2, 18): 1}
    assert stream(*frames, [], [], [car(9, 18)], gap=1)[0][-1] == {(2, 18): 2}
    assert stream(*frames, [], [], [car(9, 0)], gap=2)[0][-1] == {(2, 0): 2}


def test_what_the_history_tells_finds_a_track_that_jumped():
    told = np.zeros((H, W), np.uint8)
    told[2:6, 20:26] = 5
    assert stream([car(5, 2)], [car(9, 20)], told=told)[0][-1] == {(2, 20): 1}
    assert stream([car(5, 2)], [car(9, 20)])[0][-1] == {(2, 20): 2}


def test_a_track_of_a_given_mask_goes_on_in_a_fresh_answer():
    semantic, track = np.zeros((H, W), np.uint8), np.zeros((H, W), np.int32)
    semantic[2:6, 2:8], track[2:6, 2:8] = CAR - 1, 300
    state = adopt(adopt(StreamState(0), semantic, track, CONFIG), semantic, track, CONFIG)
    _, slot, state = advance(answer(car(9, 3), car(5, 20)), None, state, CONFIG, 4, 0)
    assert (now(state)[slot[3, 5]], now(state)[slot[3, 22]]) == (300, 301)


def test_small_segments_have_no_track():
    seen, state = stream([car(5, 2), (CAR, 6, 10, 20, 1, 3)])
    assert seen[0] == {(2, 2): 1, (10, 20): 0} and state.next_track == 2


@pytest.mark.parametrize("gap", [0, 3])
def test_ids_stay_unique_over_many_frames_of_slots_drawn_anew(gap):
    """Objects come and go, each frame in other slots: one id an object, and no two objects with one."""
    rng, state, owner, born = np.random.default_rng(0), StreamState(0), {}, 0
    places, alive, free_at = [(y, x) for y in (0, 6) for x in (0, 8, 16, 24)], {}, {}
    for t in range(600):
        for place in [p for p, (_, end) in alive.items() if end <= t]:
            del alive[place]
            free_at[place] = t + gap + 1  # so that the next one there is no track that came back
        for place in places:
            if place not in alive and free_at.get(place, 0) <= t and rng.random() < 0.3:
                alive[place] = (born, t + int(rng.integers(1, 12)))
                born += 1
        slots = rng.permutation(np.arange(1, CONFIG.slots))[: len(alive)]
        drawn = [(CAR, int(s), *place, 4, 6) for s, place in zip(slots, alive, strict=True)]
        _, slot, state = advance(answer(*drawn), None, state, CONFIG, 4, gap)
        for (y, x), (name, _) in alive.items():
            assert owner.setdefault(now(state)[slot[y, x]], name) == name
    assert born > 200 and len(owner) == born == state.next_track - 1


def test_all_slots_in_use_beside_tracks_out_of_sight():
    everywhere = [(y, x) for y in range(0, H - 1, 2) for x in range(0, W - 1, 2)][: CONFIG.slots - 1]
    full = [(CAR, s, y, x, 2, 2) for s, (y, x) in enumerate(everywhere, 1)]
    assert len(full) == CONFIG.slots - 1
    people = [(PERSON, *rest) for _, *rest in full]
    seen, state = stream(full, people, gap=5)
    assert sorted(seen[0].values()) == list(range(1, len(full) + 1))
    assert sorted(seen[1].values()) == list(range(len(full) + 1, 2 * len(full) + 1))
    assert len(state.tracks) == len(full)  # a track whose slot another has is not looked for any more


def test_the_motion_of_a_track_is_smooth_and_its_mask_ends_at_the_border():
    mask, votes = np.zeros((H, W), bool), np.array([0.0, 1.0])
    mask[2:6, 2:6] = True
    first = updated_track(None, 7, 5, CAR, 0, mask, votes)
    assert first == Track(7, 5, CAR, 0, 3.5, 3.5, 0.0, 0.0, (0.0, 1.0))
    second = updated_track(first, 8, 5, CAR, 2, np.roll(mask, 4, axis=1), votes)
    assert (second.id, second.dx, second.dy, second.frame) == (7, 1.0, 0.0, 2)  # half of 4 pixels in 2 frames
    y, x = _moved(np.roll(mask, 4, axis=1), second._replace(dx=float(W - 8)), 3)
    assert x.max() == W - 1 and y.min() == 2 and len(x) == 8


def drawn_logits(model, raw):
    """The network's output that says these codes and slots, (1, codes, h, w)."""
    c = model.config
    output = torch.zeros(1, sum(c.code_sizes), H, W)
    semantic, slot = torch.from_numpy(raw[0]).long(), torch.from_numpy(raw[2]).long() + c.code_sizes[0]
    output[0].scatter_(0, semantic[None], 9.0).scatter_(0, slot[None], 9.0)
    return output


@pytest.mark.parametrize("steps", [2, 3])
def test_a_second_look_undoes_what_the_history_merged(steps):
    model = lively_model()
    two, one = answer(car(5, 2), car(6, 8)), answer(car(5, 2, width=12))
    given = []

    def sampling(model, sampler, condition, x, times, noise, average_classes):
        given.extend((len(times), noise) for noise in x)
        without = [torch.equal(first, blank.first[0]) for first in condition.first]
        return torch.cat([drawn_logits(model, two if w else one) for w in without])

    image = torch.zeros(1, 3, *CONFIG.image_size)
    with torch.inference_mode():
        nothing = torch.zeros(1, CONFIG.bits * len(CONFIG.history_offsets), H, W)
        blank = model.denoiser.condition(model.encode(image, (H, W)), nothing)
    ids = {}
    for history_steps, later in ((steps, [steps]), (1, [1, steps - 1]), (0, [steps])):
        given.clear()
        states, config = [StreamState(0)], StreamConfig(3, steps, history_steps=history_steps, min_area=1)
        for _ in range(3):
            ((_, track),), states = stream_step(model, image, states, config, sampling=sampling)
        ids[history_steps] = (track[3, 3], track[3, 12])
        assert [n for n, _ in given] == [3, *later, *later]
        assert len({float(x.sum()) for _, x in given}) == len(given)  # each look has noise of its own
    assert ids == {steps: (1, 1), 1: (1, 2), 0: (1, 2)}


def test_settings_out_of_range():
    with pytest.raises(ConfigError, match="must be 0 or more"):
        StreamConfig(max_gap=-1)
    with pytest.raises(ConfigError, match="must be 0 or more"):
        StreamConfig(history_steps=-1)
    assert [StreamConfig(steps=n, history_steps=1).fresh_steps for n in (1, 2, 8)] == [0, 1, 7]
    assert [StreamConfig(steps=8, history_steps=n).fresh_steps for n in (0, 8, 9)] == [8, 0, 0]


@pytest.mark.parametrize("steps", [2, 3])
def test_videos_side_by_side_are_predicted_as_alone_with_a_second_look(steps):
    predictor = VideoPredictor(lively_model(), StreamConfig(2, steps, history_steps=1, min_area=1), "cpu", "no")
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 4, *CONFIG.image_size, 3), dtype=np.uint8)
    together, states = [], [StreamState(0), StreamState(1)]
    for t in range(4):
        answers, states = predictor.step([frames[0, t], frames[1, t]], states)
        together.append(answers)
    state = StreamState(1)
    for t in range(4):
        (alone,), (state,) = predictor.step([frames[1, t]], [StreamState.from_dict(state.to_dict())])
        assert np.array_equal(alone.track, together[t][1].track)
        assert np.array_equal(alone.semantic, together[t][1].semantic)
    assert state.tracks == states[1].tracks
