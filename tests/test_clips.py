"""Clips: sizes, unknown pixels, slots, augmentation, synthetic history."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from painted import FORMAT, NO_COLOR, STILL, Painted, clips_of, has_history, same
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from data.clips.clips import Clips, drop_masks
from data.clips.motion import Motion, draw_motion, view_moved
from data.clips.paste import paste
from data.clips.settings import Augmentation, ClipFormat, HistoryConfig
from data.clips.slots import SIZES, assign_slots, in_order, slot_places
from data.clips.transforms import (
    View,
    class_by_class,
    content_size,
    draw_focus,
    draw_view,
    view_image,
    view_labels,
)
from data.labels import CAR, PERSON, VOID, DataError


def test_missing_history_is_zero_and_unknown():
    clips = clips_of(Painted([0, 1, 2, 7, 8, 9]), FORMAT)
    assert [has_history(clips[i]).tolist() for i in range(6)] == [
        [False, False], [False, True], [True, True], [False, False], [False, True], [True, True]
    ]  # fmt: skip
    sample = clips[4]
    for name in ("semantic", "instance", "semantic_known", "instance_known"):
        assert not sample[name][0].any()
        assert sample[name][1].any()


# --- sizes ------------------------------------------------------------------------------------------------------------


def test_a_frame_takes_the_area_of_the_image_and_a_crop_cuts_what_is_larger():
    assert content_size((375, 1242), (96, 320)) == (96, 319)
    assert content_size((1024, 2048), (128, 256)) == (128, 256)
    assert content_size((1024, 2048), (96, 320)) == (96, 248)
    assert content_size((2048, 1024), (128, 256)) == (128, 128)
    assert content_size((100, 10000), (48, 96)) == (7, 96)
    assert content_size((48, 96), (48, 96)) == (48, 96)
    assert content_size((60, 128), (48, 96), zoom=0.5) == (23, 50)
    assert content_size((60, 128), (48, 96), zoom=3.0) == (48, 96)


def test_without_augmentation_the_middle_of_the_frame_is_seen():
    plain = Augmentation(scale_range=(1.0, 1.0), crop=False, flip=0.0)
    view = draw_view(plain, (50, 200), (50, 100), np.random.default_rng(0))  # scaled by 1 / sqrt(2): 35.4 x 141.4
    assert (view.top, view.height) == (0.0, 1.0)
    assert view.width == pytest.approx(0.5**0.5) and view.left == pytest.approx((1 - view.width) / 2)


def test_a_crop_with_a_focus_shows_it():
    augment, rng = Augmentation(scale_range=(1.0, 3.0)), np.random.default_rng(0)
    for _ in range(200):
        focus = tuple(rng.random(2))
        view = draw_view(augment, (60, 128), (48, 96), rng, focus)
        for at, start, part in zip(focus, (view.top, view.left), (view.height, view.width), strict=True):
            assert -1e-9 <= start <= at <= start + part <= 1 + 1e-9


def street_of_two():
    """A person and a car with the same id, as Cityscapes counts them, and a crowd: image, semantic, instance."""
    semantic, instance = np.zeros((48, 96), np.uint8), np.zeros((48, 96), np.int32)
    for label, number, rows, columns in (
        (PERSON, 1, (10, 30), (5, 15)),
        (CAR, 1, (20, 40), (50, 80)),
        (CAR, 0, (0, 8), (40, 90)),
    ):
        place = slice(*rows), slice(*columns)
        semantic[place], instance[place] = label, number
    return np.repeat(semantic[..., None] * 10, 3, axis=2), semantic, instance


def test_things_of_two_classes_with_one_id_are_two():
    _, semantic, instance = street_of_two()
    centres = {draw_focus(semantic, instance, np.random.default_rng(n)) for n in range(20)}
    assert sorted(centres) == [pytest.approx((20 / 48, 10 / 96)), pytest.approx((30 / 48, 65 / 96))]
    assert draw_focus(np.zeros_like(semantic), instance, np.random.default_rng(0)) is None


def test_a_small_thing_overlaps_its_synthetic_history():
    """As in KITTI-STEP, where things of 30 to 100 mask pixels have an IoU of 0.74 with themselves a frame ago."""
    size, ious = (156, 480), []
    semantic, instance = np.zeros(size, np.uint8), np.zeros(size, np.int32)
    semantic[70:78, 120:128], instance[70:78, 120:128] = CAR, 1
    for n in range(200):
        motion = draw_motion(np.random.default_rng(n))
        _, past = view_moved(semantic, instance, size, View(), motion, 1)
        ious.append(((past > 0) & (instance > 0)).sum() / ((past > 0) | (instance > 0)).sum())
    assert 0.3 < np.mean(ious) < 0.8 and np.mean(np.array(ious) == 0) < 0.05


def test_each_class_has_its_turn():
    keys = np.array([256 * n + CAR for n in range(1, 60)] + [256 * n + PERSON for n in range(1, 5)])
    first = []
    for n in range(200):
        order = class_by_class(keys, np.random.default_rng(n)) % 256
        assert sorted(order[:2]) == [PERSON, CAR] and sorted(order[6:8]) == [PERSON, CAR] and (order[8:] == CAR).all()
        first.append(order[0])
    assert 70 < first.count(PERSON) < 130


def test_pasted_things_are_whole_instances_of_one_class():
    empty = np.zeros((48, 96, 3), np.uint8), np.zeros((48, 96), np.uint8), np.zeros((48, 96), np.int32)
    seen = set()
    for n in range(100):
        image, semantic, instance = paste(empty, street_of_two(), np.random.default_rng(n))
        assert not empty[1].any() and (image == semantic[..., None] * 10).all()
        assert ((instance > 0) == (semantic > 0)).all()  # the crowd is not pasted
        for number in np.unique(instance[instance > 0]):
            mine = instance == number
            (label,) = np.unique(semantic[mine])
            assert mine.sum() <= {PERSON: 200, CAR: 600}[label]
            seen.add((int(label), int(mine.sum())))
    assert {(PERSON, 200), (CAR, 600)} <= seen


def test_a_pasted_thing_is_hidden_by_nearer_ones_and_hides_those_behind():
    """Nearer is what stands lower. The person stands on row 29, the car on row 39."""
    street, other = street_of_two(), street_of_two()
    other[1][:, 40:] = 0  # the person alone
    for n in range(50):
        _, semantic, instance = paste(street, other, np.random.default_rng(n))
        assert (semantic[20:40, 50:80] == CAR).all() and (instance[20:40, 50:80] == 1).all()
    street, other = street_of_two(), street_of_two()
    street[1][:, 40:], other[1][:, :40] = 0, 0  # a person, and the car to be pasted
    covered = [paste(street, other, np.random.default_rng(n)) for n in range(50)]
    assert any((semantic[20:30, 5:15] == CAR).any() for _, semantic, _ in covered)


def test_resizing_agrees_with_torchvision():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 255, (188, 621)).astype(np.uint8)
    size = content_size(labels.shape, (96, 320))
    exact = tv.resize(torch.from_numpy(labels)[None], list(size), interpolation=InterpolationMode.NEAREST_EXACT)[0]
    np.testing.assert_array_equal(view_labels(labels, size, View()), exact.numpy())
    image = rng.integers(0, 255, (188, 621, 3)).astype(np.uint8)
    reference = tv.resize(torch.from_numpy(image).permute(2, 0, 1), list(size), antialias=True).permute(1, 2, 0)
    difference = view_image(image, size, View()).astype(int) - reference.numpy()
    assert np.abs(difference).max() <= 1


def test_a_narrow_frame_is_padded_right_and_below_with_unknown():
    sample = clips_of(Painted(size=(60, 90)), FORMAT)[5]
    width = content_size((60, 90), FORMAT.image_size)[1]
    assert width == 83
    assert not sample["image"][..., width:].any()
    assert sample["image"][2, :44, :width].min() > 0
    assert not sample["semantic_known"][..., 42:].any()
    assert not sample["instance_known"][..., 42:].any()
    assert not sample["semantic"][..., 42:].any()
    assert sample["semantic_known"][:, :24, :42].all()
    assert sample["semantic"].shape == (3, 24, 48)
    assert sample["semantic"].dtype == sample["instance"].dtype == torch.uint8


# --- slots and unknown ------------------------------------------------------------------------------------------------


def test_slots_are_one_to_one_with_instances_through_the_clip():
    source = Painted(objects=5)
    clips = clips_of(source, ClipFormat((60, 128), (60, 128), 16, (-2, -1)))
    seen = set()
    for seed in range(20):
        sample = clips.sample(6, np.random.default_rng(seed))
        mapping = {}
        for frame, i in enumerate((4, 5, 6)):
            semantic, instance = source.read_labels(i)
            slot = sample["instance"][frame].numpy()
            assert (slot[instance == 0] == 0).all()
            for pair in zip(instance[instance > 0].tolist(), slot[instance > 0].tolist(), strict=True):
                assert mapping.setdefault(pair[0], pair[1]) == pair[1]
            np.testing.assert_array_equal(
                sample["semantic_known"][frame], semantic != VOID, err_msg="void is unknown, the rest is not"
            )
            crowd = (semantic == CAR) & (instance == 0)
            np.testing.assert_array_equal(sample["instance_known"][frame], (semantic != VOID) & ~crowd)
        assert len(set(mapping.values())) == 5
        seen |= set(mapping.values())
    assert seen == set(range(1, 16))  # all slots are used by some draw


def test_larger_instances_get_slots_when_there_are_too_few():
    instance = np.repeat([1, 2, 3, 4, 5], [5, 9, 2, 8, 1])[None, None].astype(np.int32)
    semantic = np.full(instance.shape, CAR, np.uint8)
    for seed in range(5):
        slot, no_slot = assign_slots(semantic, instance, 4, np.random.default_rng(seed))
        np.testing.assert_array_equal(no_slot, np.isin(instance, [3, 5]))
        np.testing.assert_array_equal(slot == 0, no_slot)
        assert sorted({int(slot[instance == k][0]) for k in (1, 2, 4)}) == [1, 2, 3]


def test_same_id_in_two_classes_is_two_instances_and_stuff_has_none():
    semantic = np.array([[[CAR, PERSON, 0, VOID]]], np.uint8)
    slot, no_slot = assign_slots(semantic, np.array([[[7, 7, 7, 7]]], np.int32), 3, np.random.default_rng(0))
    assert slot.dtype == np.uint8
    assert sorted(slot[0, 0, :2]) == [1, 2] and not slot[0, 0, 2:].any()
    assert not no_slot.any()


def test_augmentation_refuses_nonsense():
    with pytest.raises(ValueError, match="scale_range"):
        Augmentation(scale_range=(1.5, 0.5))
    with pytest.raises(ValueError, match="flip"):
        Augmentation(flip=2.0)


# --- augmentation -----------------------------------------------------------------------------------------------------


def test_flipped_clip_is_flipped_in_every_frame_and_map():
    still = dict(scale_range=(1.0, 1.0), **NO_COLOR)
    for source in (Painted(size=(48, 96)), Painted(size=(60, 100))):
        plain = clips_of(source, FORMAT, Augmentation(flip=0.0, **still))[5]
        flipped = clips_of(source, FORMAT, Augmentation(flip=1.0, **still))[5]
        width = content_size(source.size, FORMAT.image_size)[1]
        assert (plain["image"][..., :width].flip(-1).int() - flipped["image"][..., :width].int()).abs().max() <= 1
        assert not flipped["image"][..., width:].any()
        width = content_size(source.size, FORMAT.mask_size)[1]
        assert not torch.equal(plain["instance"], flipped["instance"])
        for name in ("semantic", "instance", "semantic_known", "instance_known"):
            assert torch.equal(plain[name][..., :width].flip(-1), flipped[name][..., :width]), name
            assert not flipped[name][..., width:].any()


def inside(labels):
    """Where a 5x5 neighbourhood has one label only: a resized image mixes its colours at edges."""
    pad = torch.nn.functional.pad(labels[None, None].float(), (2, 2, 2, 2), value=-1)
    largest = torch.nn.functional.max_pool2d(pad, 5, 1)
    return (largest == -torch.nn.functional.max_pool2d(-pad, 5, 1))[0, 0]


def test_augmented_labels_stay_on_the_image():
    """The image is painted from the labels, so class and id can be read off it wherever no edge is near."""
    fmt = ClipFormat((96, 192), (96, 192), 16, (-2, -1))
    clips = clips_of(Painted(), fmt, Augmentation(scale_range=(0.5, 2.0), **NO_COLOR))
    zooms = []
    for seed in range(30):
        sample = clips.sample(6, np.random.default_rng(seed))
        red, green, blue = sample["image"].int()
        known, code = sample["semantic_known"][-1], sample["semantic"][-1].int()
        zooms.append(known.float().mean().item())
        inner = inside(code) & inside(sample["instance"][-1].int())
        off = (red - (code - 1) * 10).abs()[inner & known]
        assert (off <= 2).float().mean() > 0.99, f"seed {seed}: class and image disagree"
        objects = inner & (sample["instance"][-1] > 0)
        assert ((green[objects] - 102).abs() <= 4).float().mean() > 0.99 if objects.any() else True
        assert ((blue > 20) == known)[inner].float().mean() > 0.99
    assert min(zooms) < 0.4
    assert max(zooms) > 0.9


def test_history_moves_with_the_frame_it_belongs_to():
    """With frame 6 shown at a random view, the history's maps are those of frames 4 and 5 under the same view."""
    fmt = ClipFormat((60, 128), (60, 128), 16, (-2, -1))
    source = Painted()
    source.read_labels = lambda i: Painted.read_labels(source, 6)  # a standing camera
    clips = clips_of(source, fmt, Augmentation(scale_range=(0.6, 1.8)))
    for seed in range(5):
        sample = clips.sample(6, np.random.default_rng(seed))
        for name in ("semantic", "instance", "semantic_known", "instance_known"):
            assert torch.equal(sample[name][0], sample[name][2])
            assert torch.equal(sample[name][1], sample[name][2])


def test_photometric_changes_the_image_only_and_each_setting_has_an_effect():
    source, still = Painted(), {"scale_range": (1.0, 1.0), "flip": 0.0}
    plain = clips_of(source, FORMAT, Augmentation(**still, **NO_COLOR)).sample(5, np.random.default_rng(1))
    for name in NO_COLOR:
        value = 0.5 if name != "hue" else 0.2
        clips = clips_of(source, FORMAT, Augmentation(**still, **(NO_COLOR | {name: value})))
        sample = clips.sample(5, np.random.default_rng(1))
        assert not torch.equal(sample.pop("image"), plain["image"]), name
        assert all((sample[k] > 0).eq(plain[k] > 0).all() for k in sample)
    gray = np.full((4, 4, 3), 77, np.uint8)  # gray has neither hue nor saturation
    color = np.vstack([np.eye(3), np.ones((1, 3))])
    np.testing.assert_array_equal(view_image(gray, (4, 4), View(), color), gray)


def test_a_draw_depends_on_the_generator_alone():
    clips = clips_of(Painted(), FORMAT, Augmentation(synthetic_history=0.5))
    for seed in range(4):
        torch.manual_seed(seed)
        a = clips.sample(5, np.random.default_rng(seed))
        torch.manual_seed(99)
        np.random.seed(99)  # noqa: NPY002 - the global state is what must not matter
        assert same(a, clips.sample(5, np.random.default_rng(seed)))
        assert not same(a, clips.sample(5, np.random.default_rng(seed + 100)))


# --- synthetic history ------------------------------------------------------------------------------------------------


def test_moved_mask_is_the_mask_shifted(monkeypatch):
    monkeypatch.setattr("data.clips.motion.OBJECT_SHIFT", 0.0)
    monkeypatch.setattr("data.clips.motion.OBJECT_GROWTH", 0.0)
    semantic, instance = Painted(size=(60, 128)).read_labels(0)
    motion = Motion(shift=(0.1, 0.25), zoom=1.0, rotation=0.0, seed=0)
    moved, ids = view_moved(semantic, instance, semantic.shape, View(), motion, 2)
    down, right = 12, 64  # twice the shift of one frame
    np.testing.assert_array_equal(moved[down:, right:], semantic[:-down, :-right])
    np.testing.assert_array_equal(ids[down:, right:], instance[:-down, :-right])
    assert (moved[:down] == VOID).all()
    assert (moved[:, :right] == VOID).all()


def test_still_images_get_a_history_with_the_same_instances():
    source = Painted(size=(96, 192))
    source.is_video = False
    fmt = ClipFormat((96, 192), (96, 192), 16, (-2, -1))
    assert not has_history(clips_of(source, fmt, Augmentation())[3]).any()
    clips = clips_of(source, fmt, Augmentation(synthetic_history=1.0, scale_range=(1.0, 1.0)))
    overlaps = []
    for seed in range(10):
        sample = clips.sample(0, np.random.default_rng(seed))
        assert has_history(sample).all()
        slots = [set(sample["instance"][t].unique().tolist()) for t in range(3)]
        assert len(slots[2] & slots[1]) >= 4  # the same slots, and not slots of their own
        for slot in slots[2] - {0}:
            a, b = sample["instance"][1] == slot, sample["instance"][2] == slot
            overlaps.append(((a & b).sum() / (a | b).sum()).item())
            assert set(sample["semantic"][1][a].tolist()) <= set(sample["semantic"][2][b].tolist())
    assert 0.3 < np.mean(overlaps) < 0.98  # moved, and not far


@pytest.mark.parametrize(("is_video", "share"), [(False, 0.5 * 0.6), (True, 0.6)])
def test_how_many_clips_have_a_history(is_video, share):
    """Of stills those that are moved and not absent, of video those that are not absent."""
    source = Painted(size=(96, 192))
    source.is_video = is_video
    history = HistoryConfig(history_dropout=0.0, history_absent=0.4)
    clips = Clips(source, FORMAT, dataclasses.replace(STILL, synthetic_history=0.5), history)
    generator = np.random.default_rng(0)
    seen = [has_history(clips.sample(5, generator)).any().item() for _ in range(400)]
    assert np.mean(seen) == pytest.approx(share, abs=0.06)


# History and slots ---------------------------------------------------------------------------------------------------


def scene_with_cars():
    """Three masks of two cars and a person that move to the right."""
    semantic, instance = np.zeros((3, 24, 48), np.uint8), np.zeros((3, 24, 48), np.int32)
    for t in range(3):
        for cls, track, top, left, size in ((CAR, 7, 4, 3, 9), (CAR, 8, 10, 20, 5), (PERSON, 7, 12, 36, 4)):
            where = (t, slice(top, top + size), slice(left + t, left + t + size))
            semantic[where], instance[where] = cls, track
    return semantic, instance


def test_history_masks_are_dropped_each_by_itself_and_all_at_once():
    def dropped(seed=0, dropout=0.0, absent=0.0):
        semantic, instance = scene_with_cars()
        drop_masks(semantic, instance, HistoryConfig(dropout, absent), np.random.default_rng(seed))
        return semantic, instance

    assert all(np.array_equal(a, b) for a, b in zip(dropped(), scene_with_cars(), strict=True))
    for values in ({"absent": 1.0}, {"dropout": 1.0}):
        nothing, ids = dropped(**values)
        assert (nothing == VOID).all() and not ids.any()
    kept = [(dropped(seed, dropout=0.5)[0] != VOID).any(axis=(1, 2)) for seed in range(200)]
    np.testing.assert_allclose(np.mean(kept, axis=0), 0.5, atol=0.12)
    assert {tuple(k) for k in kept} == {(a, b, c) for a in (True, False) for b in (True, False) for c in (True, False)}
    absent = [(dropped(seed, absent=0.4)[0] != VOID).any(axis=(1, 2)) for seed in range(200)]
    assert {tuple(k) for k in absent} == {(False,) * 3, (True,) * 3}
    np.testing.assert_allclose(np.mean(absent), 0.6, atol=0.1)


@pytest.mark.parametrize("values", [{"history_dropout": 5.0}, {"history_absent": -0.1}])
def test_histories_that_cannot_be_are_refused(values):
    with pytest.raises(DataError):
        HistoryConfig(**values)


def test_each_place_and_size_has_its_slots():
    for slots in (3, 32, 256):
        places = slot_places(slots)
        assert places.shape == (slots - 1, 2) and len(np.unique(places, axis=0)) == slots - 1
        assert ((places[:, 0] > 0) & (places[:, 0] < 1)).all()
    assert np.bincount(slot_places(64)[:, 1].astype(int)).tolist() == [40, 14, 9]


def test_points_take_places_in_order_at_the_least_distance():
    rng = np.random.default_rng(0)
    for _ in range(200):
        m = rng.integers(1, 7)
        n = rng.integers(0, m + 1)
        x, places = np.sort(rng.random(n)), np.sort(rng.random(m))
        chosen = in_order(x, places)
        least = min(((x - places[list(c)]) ** 2).sum() for c in itertools.combinations(range(m), n))
        assert (np.diff(chosen) > 0).all()
        assert ((x - places[chosen]) ** 2).sum() == pytest.approx(least)


def test_by_position_a_group_has_its_slots_from_left_to_right():
    for areas in ((2, 3, 4), (4, 3, 2), (3, 4, 2)):  # in pixels of width: which is larger makes no difference
        semantic, instance = np.zeros((2, 1, 48, 160), np.uint8)
        for k, width in enumerate(areas):
            semantic[0, 10:16, 60 + 4 * k : 60 + 4 * k + width] = PERSON
            instance[0, 10:16, 60 + 4 * k : 60 + 4 * k + width] = 9 - k
        slot, _ = assign_slots(semantic, instance.astype(np.int32), 32, np.random.default_rng(0), "position")
        assert [int(slot[0, 12, 60 + 4 * k]) for k in range(3)] == [8, 9, 10]


def test_by_position_there_may_be_more_of_a_size_than_places():
    semantic, instance = (
        np.full((1, 48, 160), PERSON, np.uint8),
        np.arange(160).repeat(48).reshape(160, 48).T[None] // 8,
    )
    semantic[:, 6:] = 0  # 20 persons side by side, for whom there are 7 places
    slot, no_slot = assign_slots(semantic, instance.astype(np.int32) + 1, 32, np.random.default_rng(0), "position")
    assert len(np.unique(slot[0, 0])) == 20 and not no_slot.any()


def test_by_position_new_instances_take_the_nearest_free_slot():
    semantic, instance = scene_with_cars()
    alone, _ = assign_slots(semantic[2:], instance[2:], 32, np.random.default_rng(0), "position")
    again, _ = assign_slots(semantic[2:], instance[2:], 32, np.random.default_rng(1), "position")
    np.testing.assert_array_equal(alone, again)  # nothing is drawn
    places = slot_places(32)
    for cls, track in ((CAR, 7), (CAR, 8), (PERSON, 7)):
        mine = (semantic[2] == cls) & (instance[2] == track)
        x, size = places[alone[0][mine][0] - 1]
        width = np.ptp(np.nonzero(mine)[1]) + 1
        assert abs(x - (np.nonzero(mine)[1].mean() + 0.5) / 48) < 0.11
        assert size == np.digitize(width / 48, SIZES)

    # Whom the history shows draws its slot; who is new keeps to its place, unless that is taken.
    hidden = (semantic[:2] == PERSON) & (instance[:2] == 7)
    semantic[:2][hidden], instance[:2][hidden] = 0, 0
    home = int(alone[0][(semantic[2] == PERSON) & (instance[2] == 7)][0])
    cars, persons = set(), []
    for seed in range(60):
        slot, _ = assign_slots(semantic, instance, 32, np.random.default_rng(seed), "position")
        cars |= {int(slot[0][(semantic[0] == CAR) & (instance[0] == 7)][0])}
        persons.append(int(slot[2][(semantic[2] == PERSON) & (instance[2] == 7)][0]))
    assert len(cars) > 20
    assert np.mean(np.array(persons) == home) > 0.8 and set(persons) <= {home - 1, home, home + 1}


def test_the_orders_of_the_released_code():
    """Ids within 1 .. the largest id of the clip; in images each segment, stuff and crowd too, one of 1 .. their
    number."""
    semantic = np.array([[[CAR, CAR, PERSON, 0, 0, 1, VOID, CAR]]], np.uint8)
    instance = np.array([[[5, 5, 9, 0, 0, 0, 0, 0]]], np.int32)  # two instances, and a crowd at the end
    shuffled, segments = set(), set()
    for seed in range(200):
        slot, no_slot = assign_slots(semantic, instance, 256, np.random.default_rng(seed), "shuffle")
        assert slot[0, 0, 0] == slot[0, 0, 1] != slot[0, 0, 2] and not slot[0, 0, 3:].any()
        assert np.flatnonzero(no_slot).tolist() == [7]
        shuffled |= set(slot[0, 0, :3].tolist())
        slot, no_slot = assign_slots(semantic, instance, 256, np.random.default_rng(seed), "segments")
        assert sorted(np.unique(slot).tolist()) == [0, 1, 2, 3, 4, 5] and slot[0, 0, 6] == 0 and not no_slot.any()
        assert slot[0, 0, 3] == slot[0, 0, 4]
        segments.add(int(slot[0, 0, 3]))
    assert shuffled == set(range(1, 10)) and segments == set(range(1, 6))
    many = np.arange(1, 301, dtype=np.int32)[None, None]
    slot, _ = assign_slots(np.full(many.shape, CAR, np.uint8), many, 256, np.random.default_rng(0), "shuffle")
    assert np.unique(slot[slot > 0]).size == 255
