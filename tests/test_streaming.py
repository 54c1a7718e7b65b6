"""Streaming: segments and tracks on hand-drawn masks, the explicit state, the one rule for sizes, the predictor."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image
from small import CONFIG, lively_model, stream_step

from data.clips import transforms
from data.io.pixels import nearest
from evaluate import through_mask
from model import ConfigError, ModelConfig, StreamConfig, VideoPredictor
from model.checks import checked_size
from model.stream import step
from model.stream.answer import candidates, decide, merged, slot_masses, split
from model.stream.history import adopt, past_masks
from model.stream.predictor import fit_frame
from model.stream.state import StreamState
from model.stream.tracks import advance

ROAD, SKY, PERSON, CAR = 1, 11, 12, 14  # semantic codes, trainId + 1
H, W = CONFIG.mask_size


def answer(*objects, background=ROAD, other=SKY):
    """The raw answer of `candidates`, (3, h, w), with rectangles (code, slot, top, left, height, width)."""
    semantic, slot = np.full((H, W), background, np.uint8), np.zeros((H, W), np.uint8)
    for code, s, y, x, height, width in objects:
        semantic[y : y + height, x : x + width], slot[y : y + height, x : x + width] = code, s
    return np.stack([semantic, np.full_like(semantic, other), np.where(slot > 0, slot, 1)])


def follow(raw, state, min_area=4, config=CONFIG, max_gap=0):
    """`advance` of an answer whose slots are those of the history, as published."""
    told = np.where(np.isin(raw[0], (PERSON, CAR)), raw[2], 0)
    return advance(raw, told, state, config, min_area, max_gap)


def now(state):
    """{slot: track id} of the last frame."""
    return {t.slot: t.id for t in state.tracks if t.frame == state.frame - 1}


def tracks(*frames, state=None, min_area=4, config=CONFIG, max_gap=0):
    """{slot in the answer: track} of each frame, and the last state."""
    state, result = state or StreamState(0), []
    for frame in frames:
        _, slot, state = follow(answer(*frame), state, min_area, config, max_gap)
        seen = now(state)
        result.append({s: seen[int(slot[y, x])] for _, s, y, x, _, _ in frame if slot[y, x]})
    return result, state


CAR_5, PERSON_9 = (CAR, 5, 2, 2, 4, 6), (PERSON, 9, 4, 20, 6, 3)


# ---------------------------------------------------------------------------------------------------------------------
# Segments and tracks
# ---------------------------------------------------------------------------------------------------------------------


def test_instances_keep_their_ids_and_new_ones_get_new_ids():
    seen, _ = tracks([CAR_5], [CAR_5, PERSON_9], [PERSON_9, CAR_5])
    assert seen == [{5: 1}, {5: 1, 9: 2}, {5: 1, 9: 2}]


@pytest.mark.parametrize("offsets", [(-1,), (-2, -1), (-4, -1)])
def test_a_slot_that_the_history_still_holds_keeps_its_track_and_an_older_one_starts_anew(offsets):
    config = dataclasses.replace(CONFIG, history_offsets=offsets)
    length = -offsets[0]
    kept, state = tracks([CAR_5], *[[]] * (length - 1), [CAR_5], config=config)
    assert kept[-1] == {5: 1} and state.next_track == 2
    lost, state = tracks([CAR_5], *[[]] * length, [CAR_5], config=config)
    assert lost[-1] == {5: 2} and state.next_track == 3


def test_a_track_that_was_lost_goes_on_where_it_was():
    moved, elsewhere, a_person = (CAR, 7, 3, 3, 4, 6), (CAR, 7, 2, 12, 4, 6), (PERSON, 7, 2, 2, 4, 6)
    for gap in (0, 1, 3):
        frames = ([CAR_5, PERSON_9], *([PERSON_9] for _ in range(gap)))
        assert tracks(*frames, [moved, PERSON_9], max_gap=3)[0][-1] == {7: 1, 9: 2}  # in another slot
        assert tracks(*frames, [moved, PERSON_9])[0][-1] == {7: 3, 9: 2}  # not without being asked to
        assert tracks(*frames, [elsewhere, PERSON_9], max_gap=3)[0][-1] == {7: 3, 9: 2}
        assert tracks(*frames, [a_person, PERSON_9], max_gap=3)[0][-1] == {7: 3, 9: 2}  # of another class
    frames = ([CAR_5], *([PERSON_9] for _ in range(4)))
    assert tracks(*frames, [CAR_5], max_gap=4)[0][-1] == {5: 1}  # its own slot, after longer than the history
    assert tracks(*frames, [CAR_5], max_gap=3)[0][-1] == {5: 3}  # too long
    assert tracks([CAR_5], [CAR_5, moved], max_gap=4)[0][-1] == {5: 1, 7: 2}  # the track is there: this is another


def test_a_track_is_found_behind_another_that_hid_it():
    hidden, larger = (CAR, 5, 4, 4, 4, 6), [(CAR, 8, 3, x, 6, 10) for x in (14, 8, 3, 2, 10, 20)]
    frames = [[hidden, larger[0]], *([car] for car in larger[1:-1]), [larger[-1], (CAR, 7, 4, 4, 4, 6)]]
    assert tracks(*frames, max_gap=10)[0][-1] == {7: 1, 8: 2}
    # A corner of a lost track's place does not give its id away.
    beside = (CAR, 7, 4, 9, 6, 14)
    assert tracks([hidden], [PERSON_9], [beside], max_gap=10)[0][-1] == {7: 3}


def test_a_found_track_keeps_its_slot_and_is_found_once():
    here, split = (CAR, 7, 2, 2, 4, 6), (CAR, 8, 2, 8, 4, 2)
    result, state = tracks([(CAR, 5, 2, 2, 4, 8)], [here, split], [CAR_5, split], max_gap=4)
    assert result[1] == {7: 1, 8: 2}  # the larger part
    assert result[2] == {5: 1, 8: 2} and state.next_track == 3
    assert now(state) == {5: 1, 8: 2}  # the history has it in one slot, whichever the answers had
    copy = StreamState.from_dict(state.to_dict())
    assert np.array_equal(copy.masks, state.masks) and copy.tracks == state.tracks and state.masks.shape[0] == 2


def test_ids_stay_unique_over_thousands_of_frames_in_which_slots_are_used_again():
    """Objects come with a slot and go, for the same object always the same id and no two objects with one."""
    rng = np.random.default_rng(0)
    places = [(y, x) for y in (0, 6) for x in (0, 8, 16)]
    alive, free_at, owner, state, born = {}, {}, {}, StreamState(0), 0
    for t in range(1500):
        for place in [p for p, (_, end, _) in alive.items() if end <= t]:
            _, _, s = alive.pop(place)
            free_at[s] = t + CONFIG.history_length  # as the model: a slot is free when the history lacks it
        for place in places:
            if place not in alive and rng.random() < 0.2:
                used = {s for _, _, s in alive.values()}
                slots = [s for s in range(1, CONFIG.slots) if s not in used and free_at.get(s, 0) <= t]
                alive[place] = (born, t + int(rng.integers(1, 12)), int(rng.choice(slots)))
                born += 1
        drawn = [(CAR, s, *place, 4, 6) for place, (_, _, s) in alive.items()]
        _, slot, state = follow(answer(*drawn), state, 4)
        for (y, x), (name, _, s) in alive.items():
            assert slot[y, x] == s
            assert owner.setdefault(now(state)[s], name) == name
    assert born > 500 and len(owner) == born and len(set(owner.values())) == born == state.next_track - 1


def test_a_segment_has_one_class_by_majority_and_its_past_votes_too():
    mixed = [(CAR, 5, 2, 2, 4, 6), (PERSON, 5, 2, 2, 4, 2)]  # 16 pixels of car, 8 of person
    semantic, _, state = follow(answer(*mixed), StreamState(0), 4)
    assert (semantic[2:6, 2:8] == CAR).all()
    # A frame that says 13 of 24 person after two of certain car is outvoted; twelve of them are not.
    _, state = tracks([CAR_5], [CAR_5])
    doubtful = [(CAR, 5, 2, 2, 4, 6), (PERSON, 5, 2, 2, 4, 3), (PERSON, 5, 2, 5, 1, 1)]
    semantic, _, state = follow(answer(*doubtful), state, 4)
    assert (semantic[2:6, 2:8] == CAR).all()
    for _ in range(12):
        semantic, _, state = follow(answer(*doubtful), state, 4)
    assert (semantic[2:6, 2:8] == PERSON).all() and now(state) == {5: 1}


def test_a_slot_that_is_used_again_does_not_inherit_votes():
    _, state = tracks([CAR_5], [CAR_5], [CAR_5], [], [], [])
    semantic, _, _ = follow(answer((PERSON, 5, 2, 2, 4, 6)), state, 4)
    assert (semantic[2:6, 2:8] == PERSON).all()


def test_small_segments_become_the_second_best_class():
    speck = (CAR, 7, 10, 28, 1, 3)
    semantic, slot, state = follow(answer(CAR_5, speck, other=SKY), StreamState(0), 4)
    assert (semantic[10, 28:31] == SKY).all() and not slot[10, 28:31].any() and now(state) == {5: 1}
    semantic, slot, state = follow(answer(CAR_5, speck), StreamState(0), 3)
    assert (semantic[10, 28:31] == CAR).all() and (slot[10, 28:31] == 7).all() and len(now(state)) == 2


def test_slots_of_stuff_are_ignored():
    raw = answer(CAR_5)
    raw[2][0, :] = 3  # a slot on road
    _, slot, state = follow(raw, StreamState(0), 4)
    assert not slot[0].any() and (slot[2:6, 2:8] == 5).all() and now(state) == {5: 1}


def test_a_tracked_pixel_takes_the_likeliest_slot_but_none_and_knows_what_else_it_could_be():
    model = lively_model()  # codes of 5 bits, persons and cars have tracks
    logits = torch.full((1, 20 + 32, 1, 3), -9.0)
    logits[0, [ROAD, CAR, PERSON], 0, :] = torch.tensor([[3.0, 1, 1], [1, 3, 2], [1, 2, 3]])  # road, a car, a person
    logits[0, 0, 0, :] = 8.0  # void: never an answer
    logits[0, [20, 20 + 5, 20 + 9], 0, :] = torch.tensor([[7.0, 7, 7], [6, 6, 1], [1, 1, 6]])  # none, 5, 9
    maps = candidates(model.config, logits)
    semantic, other, slot = (m[0, 0].tolist() for m in maps)
    assert semantic == [ROAD, CAR, PERSON] and other == [ROAD, ROAD, ROAD] and slot == [0, 5, 9]
    (mass,) = slot_masses(model.config, logits, maps[2])
    first, second = torch.tensor([6.0, 1]).softmax(0).tolist()  # of two slots; the others are next to nothing
    assert mass[[5, 5, 9, 9], [5, 9, 5, 9]] == pytest.approx([first, second, second, first], abs=1e-3)
    assert mass.sum() == pytest.approx(2, abs=1e-3) and mass[:, 0].sum() == 0


def test_the_history_holds_the_last_masks_newest_last_and_the_given_state_stays():
    before = StreamState(3)
    _, first, one = follow(answer(CAR_5), before, 4)
    assert before == StreamState(3) and one.frame == 1 and one.video == 3
    kept = {k: v.copy() for k, v in vars(one).items() if isinstance(v, np.ndarray)}
    _, second, two = follow(answer(PERSON_9), one, 4)
    assert np.array_equal(two.slot[0], first) and np.array_equal(two.slot[1], second) and two.slot.shape[0] == 2
    assert all(np.array_equal(getattr(one, k), v) for k, v in kept.items()) and now(one) == {5: 1}


def test_forget_starts_new_tracks_with_ids_of_their_own():
    _, state = tracks([CAR_5, PERSON_9])
    after = state.forget()
    assert after.semantic is None and (after.video, after.frame) == (0, 1)
    seen, _ = tracks([CAR_5], state=after)
    assert seen == [{5: 3}]


def test_a_state_survives_a_file_without_code():
    _, state = tracks([CAR_5, PERSON_9], [CAR_5])
    file = io.BytesIO()
    torch.save(state.to_dict(), file)
    file.seek(0)
    back = StreamState.from_dict(torch.load(file, weights_only=True))
    for name, value in vars(state).items():
        other = getattr(back, name)
        assert np.array_equal(other, value) if isinstance(value, np.ndarray) else other == value
    for frame in ([CAR_5], [PERSON_9]):
        a, b = (follow(answer(*frame), s, 4) for s in (state, back))
        assert np.array_equal(a[1], b[1]) and now(a[2]) == now(b[2])
    empty = StreamState.from_dict(StreamState(7).to_dict())
    assert empty == StreamState(7)


# ---------------------------------------------------------------------------------------------------------------------
# Masks that are given
# ---------------------------------------------------------------------------------------------------------------------


def given(*objects, size=(H, W)):
    """semantic trainIds and track ids with rectangles (trainId, id, top, left, height, width)."""
    semantic, track = np.zeros(size, np.uint8), np.zeros(size, np.int32)
    for train_id, t, y, x, height, width in objects:
        semantic[y : y + height, x : x + width], track[y : y + height, x : x + width] = train_id, t
    return semantic, track


def test_given_masks_become_history_with_a_slot_for_each_track():
    semantic, track = given((13, 700, 2, 2, 4, 6), (11, 41, 4, 20, 6, 3))
    semantic[:2] = 255
    state = adopt(StreamState(0), semantic, track, CONFIG)
    slot_of = {t: s for s, t in now(state).items()}
    assert sorted(slot_of) == [41, 700] and state.next_track == 701 and state.frame == 1
    assert (state.slot[-1][2:6, 2:8] == slot_of[700]).all() and (state.semantic[-1][2:6, 2:8] == CAR).all()
    assert not state.known[-1][:2].any() and state.known[-1][2:].all()
    again = adopt(state, *given((13, 700, 3, 3, 4, 6), (13, 5, 8, 8, 4, 4)), CONFIG)
    assert now(again)[slot_of[700]] == 700 and 5 in now(again).values() and again.next_track == 701
    # What the model then copies keeps the given ids; what is new gets an id above all given ones.
    free = next(s for s in range(1, CONFIG.slots) if s not in now(again))
    _, _, after = follow(answer((CAR, slot_of[700], 3, 3, 4, 6), (CAR, free, 9, 20, 4, 4)), again, 4)
    assert now(after)[slot_of[700]] == 700 and now(after)[free] == 701


def test_with_more_given_tracks_than_slots_the_smallest_have_none():
    many = CONFIG.slots + 3
    semantic, track = np.full((H, W), 13, np.uint8), np.zeros((H, W), np.int32)
    for t in range(many):  # a column a track; the last ones are the smallest
        track[: 16 if t < CONFIG.slots - 1 else 4, t % W] = 100 + t if t < W else 0
    state = adopt(StreamState(0), semantic, track, CONFIG)
    assert len(now(state)) == min(CONFIG.slots - 1, W) == len(set(now(state).values()))
    assert 100 + W - 1 not in now(state).values()


def test_given_masks_of_a_larger_frame_are_fitted_as_the_image_is():
    semantic, track = given((13, 3, 0, 0, 40, 80), size=(80, 160))
    state = adopt(StreamState(0), semantic, track, CONFIG)
    assert state.known[-1].shape == (16, 32) and state.known[-1].all()
    assert (state.slot[-1][:8, :16] > 0).all() and (state.slot[-1] > 0).sum() == 8 * 16


# ---------------------------------------------------------------------------------------------------------------------
# Geometry
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", [(375, 1242), (1024, 2048), (2048, 1024), (60, 60), (7, 700), (1, 1)])
def test_a_frame_has_the_area_of_the_model_and_its_own_aspect(frame):
    config = ModelConfig(image_size=(256, 512), mask_size=(192, 384), patch=6)  # a position is 8 pixels
    image, mask = config.sizes_for(frame)
    scale = (256 * 512 / (frame[0] * frame[1])) ** 0.5
    for n, m, f in zip(image, mask, frame, strict=True):
        assert n % 8 == 0 and m == n * 3 // 4
        assert n == 8 or abs(n - f * scale) <= 4
    assert config.sizes_for((256, 512)) == ((256, 512), (192, 384))
    assert config.sizes_for((256, 512), (128, 256)) == ((128, 256), (96, 192))


def test_training_sees_the_same_scale():
    for frame in ((375, 1242), (1024, 2048), (240, 320)):
        image, _ = CONFIG.sizes_for(frame, (320, 640))
        seen = transforms.content_size(frame, (320, 640), zoom=0.5)
        assert all(abs(n / 2 - m) <= 1 for n, m in zip(image, seen, strict=True))


def test_labels_are_resized_by_the_nearest_centre():
    labels = np.arange(6).reshape(2, 3)
    assert nearest(labels, (4, 6)).tolist() == np.kron(labels, np.ones((2, 2), int)).tolist()
    assert nearest(labels, (1, 3)).tolist() == [[3, 4, 5]]


def test_a_frame_is_resized_alike_whatever_its_order_in_memory():
    frame = np.random.default_rng(0).integers(0, 256, (5, 1, 3), dtype=np.uint8)
    channels_first = np.ascontiguousarray(frame.transpose(2, 0, 1)).transpose(1, 2, 0)
    assert torch.equal(fit_frame(frame, (8, 8)), fit_frame(channels_first, (8, 8)))
    assert fit_frame(np.zeros((3, 64, 1), np.uint8).transpose(1, 2, 0), (64, 64)).max() == 0


def test_scores_are_interpolated_before_the_decision():
    """Two labels on four pixels in a row, twice as large: the border lies where their scores cross."""
    labels = torch.tensor([[0, 0, 1, 1]])
    sure = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])
    assert decide(labels, lambda n: sure.view(-1, 2)[n], (1, 8)).tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]
    leaning = torch.tensor([[[1.0, 0.0], [0.6, 0.4], [0.0, 1.0], [0.0, 1.0]]])
    # new centres lie at 3/4 and 1/4 of the way: 0.75 * 0.6 < 0.75 * 0.4 + 0.25 * 1
    assert decide(labels, lambda n: leaning.view(-1, 2)[n], (1, 8)).tolist() == [[0, 0, 0, 1, 1, 1, 1, 1]]
    assert decide(labels, lambda n: sure.view(-1, 2)[n], (1, 4)).tolist() == labels.tolist()


def test_a_full_size_answer_is_that_of_interpolating_every_score():
    torch.manual_seed(0)
    scores = torch.rand(6, 10, 2)
    labels = scores.argmax(dim=-1)
    planes = torch.nn.functional.interpolate(scores.permute(2, 0, 1)[None], (15, 23), mode="bilinear")[0]
    decided = decide(labels, lambda n: scores.view(-1, 2)[n], (15, 23))
    neighbours = torch.nn.functional.interpolate(labels[None, None].float(), (15, 23), mode="bilinear")[0, 0]
    mixed = (neighbours > 0) & (neighbours < 1)
    assert torch.equal(decided[mixed], planes.argmax(dim=0)[mixed])
    assert torch.equal(decided[~mixed].float(), neighbours[~mixed])


def test_the_truth_through_a_mask_loses_what_the_mask_cannot_show():
    semantic, track = np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.int32)
    semantic[:, 4:], track[:, 4:] = 13, 700_000  # an edge between mask pixels
    semantic[0, 0] = 255  # smaller than one
    back = through_mask(semantic, track, (4, 4))
    semantic[0, 0] = 0
    assert np.array_equal(back[0], semantic) and np.array_equal(back[1], track)
    assert [m.dtype for m in back] == [np.uint8, np.int32]


def test_an_image_size_that_is_none_is_refused():
    assert checked_size([48, 80]) == (48, 80)
    for wrong in ((0, 0), (-4, 32), (64,), (32, 10**6)):
        with pytest.raises(ConfigError, match="image_size"):
            checked_size(wrong)


# ---------------------------------------------------------------------------------------------------------------------
# The stream and the predictor
# ---------------------------------------------------------------------------------------------------------------------

FEW = StreamConfig(first_steps=3, steps=2, history_steps=1, min_area=1)


@pytest.fixture(scope="module")
def model():
    return lively_model()


def video(seed, frames=4, size=(30, 50)):
    return list(np.random.default_rng(seed).integers(0, 256, (frames, *size, 3), dtype=np.uint8))


def alone(predictor, frames, number):
    state, result = StreamState(number), []
    for frame in frames:
        (panoptic,), (state,) = predictor.step([frame], [state])
        result.append(panoptic)
    return result, state


def equal(a, b):
    return np.array_equal(a.semantic, b.semantic) and np.array_equal(a.track, b.track) and a.segments == b.segments


def test_videos_side_by_side_are_as_alone(model):
    """Of several sizes and at several places in their streams; noise is that of (seed, video, frame)."""
    predictor = VideoPredictor(model, FEW, device="cpu", mixed_precision="no")
    videos = [video(0), video(1, size=(64, 40)), video(2, size=(33, 65))]
    single = [alone(predictor, frames, number)[0] for number, frames in enumerate(videos)]
    states = [StreamState(number) for number in range(3)]
    states[1:2] = [alone(predictor, videos[1][:1], 1)[1]]  # one video is a frame ahead
    for t in range(3):
        answers, states = predictor.step([videos[0][t], videos[1][t + 1], videos[2][t]], states)
        for k, panoptic in enumerate(answers):
            assert equal(panoptic, single[k][t + (k == 1)])
            assert len(panoptic.segments) >= 3  # an answer that could differ


def test_a_half_done_video_goes_on_as_if_it_had_not_stopped(model):
    predictor = VideoPredictor(model, FEW, device="cpu", mixed_precision="no")
    whole, _ = alone(predictor, video(3, frames=6), 5)
    _, half = alone(predictor, video(3, frames=6)[:3], 5)
    file = io.BytesIO()
    torch.save(half.to_dict(), file)
    file.seek(0)
    state = StreamState.from_dict(torch.load(file, weights_only=True))
    for t, frame in enumerate(video(3, frames=6)[3:]):
        (panoptic,), (state,) = predictor.step([frame], [state])
        assert equal(panoptic, whole[3 + t])


def test_noise_depends_on_seed_video_and_frame(model):
    frames = video(4, frames=1) * 3
    predictor = VideoPredictor(model, FEW, device="cpu", mixed_precision="no")
    base, _ = alone(predictor, frames, 0)
    assert all(equal(a, b) for a, b in zip(base, alone(predictor, frames, 0)[0], strict=True))
    assert not equal(base[0], alone(predictor, frames, 1)[0][0])
    other = VideoPredictor(model, dataclasses.replace(FEW, seed=1), device="cpu", mixed_precision="no")
    assert not equal(base[0], alone(other, frames, 0)[0][0])


def test_the_history_reaches_the_model(model):
    """The third frame's answer depends on the masks of the first two, in both of their places."""
    predictor = VideoPredictor(model, FEW, device="cpu", mixed_precision="no")
    _, state = alone(predictor, video(5, size=(32, 64)), 0)
    frame = torch.from_numpy(video(6, 1, (32, 64))[0].transpose(2, 0, 1).copy())[None]
    published = dataclasses.replace(FEW, history_steps=FEW.steps)
    base, _ = stream_step(model, frame, [state], published)
    for place in (0, 1):
        changed = dataclasses.replace(state, known=state.known.copy())
        changed.known[place] = False
        other, _ = stream_step(model, frame, [changed], published)
        assert not all(np.array_equal(a, b) for a, b in zip(base[0], other[0], strict=True))


def test_the_history_says_what_it_does_not_know_as_in_training():
    """A truck has no slot, as in training: unknown, not the slot of stuff."""
    state = StreamState(0)
    for _ in range(2):
        _, _, state = follow(answer(CAR_5, (15, 3, 8, 8, 4, 4)), state, 4)
    semantic, slot, known, slot_known = past_masks([state], CONFIG, (H, W), torch.device("cpu"))
    truck = semantic == 15
    assert truck.any() and not slot_known[truck].any() and known.all() and slot_known[~truck].all()
    assert (slot[semantic == CAR] == 5).all()


def test_first_frames_and_later_ones_do_not_mix_in_one_batch(model):
    _, state = alone(VideoPredictor(model, FEW, device="cpu", mixed_precision="no"), video(0), 0)
    images = torch.zeros(2, 3, 32, 64, dtype=torch.uint8)
    with pytest.raises(ValueError, match="not both"):
        stream_step(model, images, [StreamState(0), state], FEW)


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (300, 5), (31, 77), (32, 64), (200, 333)])
def test_answers_have_the_size_of_the_frame(model, size):
    predictor = VideoPredictor(model, FEW, device="cpu", mixed_precision="no")
    frame = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    panoptic = predictor(frame)
    assert panoptic.semantic.shape == panoptic.track.shape == size
    assert panoptic.semantic.dtype == np.uint8 and panoptic.track.dtype == np.int32
    assert panoptic.semantic.max() < 19 and sum(s["area"] for s in panoptic.segments) == size[0] * size[1]
    for segment in panoptic.segments:
        here = (panoptic.track == segment["id"]) & (panoptic.semantic == segment["class"])
        assert here.sum() == segment["area"] and (segment["id"] == 0 or segment["class"] in CONFIG.tracked)


def test_pil_images_and_videos_in_a_row(model):
    predictor = VideoPredictor(model, FEW, device="cpu", mixed_precision="no")
    frames = video(7, frames=2)
    first = [predictor(frame) for frame in frames]
    predictor.reset(0)
    assert all(equal(predictor(Image.fromarray(f)), p) for f, p in zip(frames, first, strict=True))
    predictor.reset()
    assert predictor.state.video == 1 and predictor.state.frame == 0
    assert not equal(predictor(frames[0]), first[0])
    predictor.reset(0)
    assert all(equal(a, b) for a, b in zip(predictor.stream(frames), first, strict=True))
    palette = Image.fromarray(frames[0]).convert("P")
    assert predictor(palette).semantic.shape == (30, 50)


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
        None,
    ],
)
def test_what_is_no_frame_is_refused(model, frame):
    with pytest.raises(ValueError, match="a frame is a uint8 array"):
        VideoPredictor(model, FEW, device="cpu")(frame)


@pytest.mark.parametrize("values", [{"steps": 0}, {"first_steps": -1}, {"sampler": "euler"}, {"time_difference": 1.5}])
def test_impossible_settings_are_refused(values):
    with pytest.raises(ConfigError):
        StreamConfig(**values)


def masses(**pixels):
    """(8, 8) of pixels whose likeliest slot is the first digit of a name, with probabilities of slots: a_b = share."""
    mass = np.zeros((8, 8))
    for name, (count, others) in pixels.items():
        s = int(name[1:])
        mass[s, s] = count * (1 - sum(others.values()))
        for other, share in others.items():
            mass[s, other] = count * share
    return mass


def test_a_class_with_a_share_of_a_slot_has_a_slot_of_its_own():
    semantic, slot = np.full((6, 10), PERSON, np.uint8), np.zeros((6, 10), np.uint8)
    slot[:, :5], slot[:2, 5:8] = 3, 2
    semantic[:2, :5] = CAR  # 10 of the 30 pixels of slot 3
    semantic[0, 5] = CAR  # 1 of the 6 of slot 2
    after = split(semantic, slot, 0.2, 4, 8, taken=[1, 4])
    assert (after[:2, :5] == 5).all() and (after[2:, :5] == 3).all() and (slot[:, :5] == 3).all()  # the first free one
    assert (after[:, 5:] == slot[:, 5:]).all()
    for share, least, taken in ((0.5, 4, []), (0.2, 11, []), (0.2, 4, range(8))):  # too few, too small, no slot left
        assert (split(semantic, slot, share, least, 8, taken) == slot).all()


def test_parts_of_a_slot_are_told_apart_by_their_class_at_full_size():
    """As a rider on a bicycle, in one slot: each is a track, and between them their classes decide."""
    output = torch.full((sum(CONFIG.code_sizes), 4, 8), -9.0)
    output[PERSON, :, :4], output[CAR, :, 4:] = 9.0, 9.0
    output[CONFIG.code_sizes[0] + 5] = 9.0
    maps = np.stack([m[0].numpy() for m in candidates(CONFIG, output[None])]).astype(np.uint8)
    given = CONFIG, step.Seen(output, maps, None, None), StreamState(0), (8, 16)
    (semantic, track), _ = step.follow(*given, StreamConfig(min_area=1))
    assert (semantic[:, :8] == PERSON - 1).all() and (semantic[:, 8:] == CAR - 1).all()
    assert len(np.unique(track[:, :8])) == len(np.unique(track[:, 8:])) == 1
    assert track.all() and track[0, 0] != track[0, 15]
    (semantic, track), _ = step.follow(*given, StreamConfig(min_area=1, class_split=0))
    assert len(np.unique(semantic)) == len(np.unique(track)) == 1


@pytest.mark.parametrize(
    ("mass", "table"),
    [
        (masses(s1=(60, {2: 0.3}), s2=(20, {1: 0.4})), [0, 1, 1, 3, 4, 5, 6, 7]),  # 0.4 of 0.6: hardly told apart
        (masses(s1=(60, {2: 0.45}), s2=(20, {1: 0.1})), [0, 1, 2, 3, 4, 5, 6, 7]),  # the smaller one is sure
        (masses(s1=(60, {2: 0.4}), s2=(20, {1: 0.3})), [0, 1, 2, 3, 4, 5, 6, 7]),  # 0.3 of 0.7
        (masses(s1=(60, {}), s2=(20, {1: 0.4}), s3=(5, {2: 0.4})), [0, 1, 1, 1, 4, 5, 6, 7]),  # a part of a part
        (masses(s1=(30, {}), s3=(20, {}), s2=(15, {1: 0.3, 3: 0.4})), [0, 1, 3, 3, 4, 5, 6, 7]),  # the likelier one
        (masses(s4=(9, {5: 0.45}), s5=(9, {4: 0.45})), [0, 1, 2, 3, 5, 5, 6, 7]),  # alike in all: one of them
        (np.zeros((8, 8)), list(range(8))),
    ],
)
def test_a_slot_that_is_hardly_told_from_a_larger_one_is_part_of_it(mass, table):
    before = mass.copy()
    assert merged(mass, 0.5).tolist() == table
    assert np.array_equal(mass, before)
    assert merged(np.diag(mass.diagonal()), 0.01).tolist() == list(range(8))


def test_a_track_is_part_of_nothing_and_takes_in_what_is_larger():
    mass = masses(s1=(60, {2: 0.4}), s2=(20, {1: 0.4}))
    assert merged(mass, 0.5).tolist() == [0, 1, 1, 3, 4, 5, 6, 7]
    assert merged(mass, 0.5, held=[2]).tolist() == [0, 2, 2, 3, 4, 5, 6, 7]
    assert merged(mass, 0.5, held=[1]).tolist() == [0, 1, 1, 3, 4, 5, 6, 7]
    assert merged(mass, 0.5, held=[1, 2, 7]).tolist() == list(range(8))


def test_a_stream_merges_what_its_model_does_not_tell_apart():
    """Noise of an untrained model: no slot is sure, so that with a low share one is left, and without merging many."""
    image = np.random.default_rng(0).integers(0, 256, (*CONFIG.image_size, 3), np.uint8)
    tracks = {}
    for share in (0.0, 0.01):
        predictor = VideoPredictor(lively_model(), StreamConfig(2, 1, merge=share, min_area=1), "cpu", "no")
        tracks[share] = len(np.unique(predictor(image).track)) - 1
    assert tracks[0.0] > 3 * tracks[0.01] > 0
    with pytest.raises(ConfigError, match="merge"):
        StreamConfig(merge=1.5)
