"""One step of the stream: the next frame of each video, from its state.

Pix2Seq-D on video (arXiv 2210.06366, section 3.4): each frame's mask is denoised, conditioned on its image and on the
masks predicted before it. A step has two halves: `see` is the network; `follow` says which segment is which track.
Where the network does not look at the history, frames can be seen side by side, before they are followed in their
order: so a CPU sees several at once (inference.py, seeing_ahead). The state is explicit, so several videos can be
batched, and a half-done video can be resumed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.checks import ConfigError, in_range
from model.diffusion.bits import history_to_bits
from model.diffusion.draws import seeded
from model.diffusion.samplers import SAMPLERS, sample
from model.diffusion.schedule import sampling_times
from model.network.config import ModelConfig
from model.network.pix2seq_d import Pix2SeqD
from model.stream.answer import candidates, full_size, merged, slot_masses, split, to_host
from model.stream.state import Moment, StreamState
from model.stream.tracks import advance


@dataclass(frozen=True)
class StreamConfig:
    """How a video is predicted. Raises ConfigError for values outside their range."""

    first_steps: int = 20  # denoising steps of a frame without history
    steps: int = 8  # of each frame after it
    sampler: str = "ddim"
    time_difference: float = 0.0  # as a fraction of the time range; model/diffusion/schedule.py
    min_area: int = 24  # segments of fewer mask pixels are dropped
    seed: int = 42
    max_gap: int = 5  # frames for which a track may be out of sight and still go on where it was lost
    merge: float = 0.5  # a slot joins another that is this likely on its pixels, relative to itself; 0: never
    class_split: float = 0.2  # a class with this share of a slot's pixels is an instance of its own there; 0: never
    history_steps: int = 0  # of `steps`, how many see the history; published: all
    average_classes: bool = True  # classes by the mean of all steps' answers, not by the last alone, as published

    def __post_init__(self):
        in_range(self, 1, math.inf, "first_steps", "steps")
        in_range(self, 0, math.inf, "max_gap", "history_steps")
        in_range(self, 0, 1, "merge", "class_split", "time_difference")
        if self.sampler not in SAMPLERS:
            raise ConfigError(f"sampler must be one of {', '.join(SAMPLERS)}, not {self.sampler!r}")

    @property
    def fresh_steps(self) -> int:
        """How many of `steps` do not see the history."""
        return max(self.steps - self.history_steps, 0)


class Seen(NamedTuple):
    """What the network answers to one frame, before it is known which segment is which track."""

    output: Tensor  # (codes, h, w), on the model's device
    maps: np.ndarray  # uint8 (3, h, w), `answer.candidates`
    masses: np.ndarray | None  # (slots, slots), `answer.slot_masses`, where slots are merged
    history_slots: np.ndarray | None  # uint8 (h, w), the slots of an answer with history, where `output` has none


@torch.inference_mode()
def see(
    model: Pix2SeqD,
    images: Tensor,
    moments: Sequence[Moment],
    config: StreamConfig,
    mask_size: tuple[int, int] | None = None,
    states: Sequence[StreamState] = (),
    sampling: Callable[..., Tensor] = sample,
    callback: Callable[[float, Tensor, Tensor, bool], None] | None = None,
) -> list[Seen]:
    """What the network answers to a frame of each of B videos. All are first frames, without history, or none is.

    images: uint8 or float in [0, 1], (B, 3, H, W), on the model's device; mask_size: None for the configuration's;
    states: before the frames, for their history; not needed where `config.history_steps` is 0, so that a frame can be
    seen before the frame before it has been followed. sampling: `sample` or a replacement; callback(now, noisy bits,
    output, fresh): called after each denoising step of each look.
    """
    c, device = model.config, images.device
    mask_size = tuple(mask_size or c.mask_size)
    first = moments[0].first
    if any(m.first != first for m in moments):
        raise ValueError("a batch holds videos at their first frame, or past it, not both")
    if images.dtype == torch.uint8:
        images = images.float() / 255

    features = model.encode(images, mask_size)
    with_history = 0 if first else config.steps - config.fresh_steps  # steps
    history = history_to_bits(_history(states, c, mask_size, device), c.code_bits, c.scale) if with_history else None

    def look(steps: int, history: Tensor | None, fresh: bool = False) -> Tensor:
        """The network's last output after some steps. fresh: a later frame without its history, from other noise."""
        key = (1,) if fresh else ()
        generators = [seeded(device, config.seed, m.video, m.frame, *key) for m in moments]

        def noise() -> Tensor:
            drawn = torch.stack([torch.randn(c.bits, *mask_size, generator=g, device=device) for g in generators])
            return drawn.contiguous(memory_format=torch.channels_last)  # as the estimates are: a DDIM step 4 x as fast

        condition, times = model.denoiser.condition(features, history), sampling_times(steps, config.time_difference)
        given = (model, config.sampler, condition, noise(), times, noise, config.average_classes)
        if callback is None:
            return sampling(*given)
        return sample(*given, lambda now, x, output: callback(now, x, output, fresh))

    # A later frame has two looks where only some of its steps see the history. The look without it is the answer, since
    # it cannot copy errors of the history. The look with it tells only which segment is which track.
    #
    #     history_steps    0 (default)       some                                all (published)
    #     the answer       steps without     the steps left, without             steps with
    #     history_slots    -                 slots of history_steps with         -
    history_slots = none = [None] * len(moments)
    if first:
        output = look(config.first_steps, None)
    elif not with_history:
        output = look(config.steps, None, fresh=True)
    elif not config.fresh_steps:
        output = look(config.steps, history)
    else:
        history_slots = to_host(candidates(c, look(with_history, history))[2:])[:, 0]
        output = look(config.fresh_steps, None, fresh=True)

    maps = candidates(c, output)
    masses = slot_masses(c, output, maps[2]) if config.merge else none
    return [Seen(*answer) for answer in zip(output, to_host(maps), masses, history_slots, strict=True)]


@torch.inference_mode()
def follow(
    c: ModelConfig, seen: Seen, state: StreamState, frame_size: tuple[int, int], config: StreamConfig
) -> tuple[tuple[np.ndarray, np.ndarray], StreamState]:
    """From what was seen in a video's next frame to its segments and tracks.

    frame_size: (height, width) of the answer. Returns (semantic trainIds uint8, track ids int32) and the next state;
    the given one is not changed.
    """
    raw = seen.maps
    state = state.at_size(raw.shape[1:])
    if seen.masses is not None:
        held = () if config.fresh_steps else state.held(c.history_length)
        raw = np.stack([*raw[:2], merged(seen.masses, config.merge, held, config.min_area)[raw[2]].astype(raw.dtype)])
    history_slots = seen.history_slots
    if not config.fresh_steps:  # the answer itself saw the history, and its slots are the tracks'
        history_slots = raw[2]
    elif config.class_split:
        taken = {track.slot for track in state.tracks}
        raw = np.stack([*raw[:2], split(raw[0], raw[2], config.class_split, config.min_area, c.slots, taken)])
    semantic, slot, after = advance(raw, history_slots, state, c, config.min_area, config.max_gap)
    if semantic.shape != tuple(frame_size):
        semantic, slot = full_size(c, seen.output, seen.maps[2], semantic, slot, frame_size)
    track_of = np.zeros(c.slots, np.int32)
    for track in after.tracks:
        if track.frame == state.frame:
            track_of[track.slot] = track.id
    return ((semantic.astype(np.int16) - 1).astype(np.uint8), track_of[slot]), after


def _history(states: Sequence[StreamState], config: ModelConfig, mask_size: tuple[int, int], device) -> list[Tensor]:
    """The past masks that the model sees: semantic, slot, and where each is known, (B, T, h, w).

    As in training, the slot is unknown in things without a track: other classes, or a crowd.
    """
    offsets = config.history_offsets
    shape = (len(states), len(offsets), *mask_size)
    maps = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8), np.zeros(shape, bool)
    for b, state in enumerate(states):
        if state.semantic is not None:
            rows = [config.history_length + offset for offset in offsets]
            for target, source in zip(maps, (state.semantic, state.slot, state.known), strict=True):
                target[b] = source[rows]
    semantic, slot, known = (torch.from_numpy(m).to(device, non_blocking=True) for m in maps)
    things = torch.tensor([c + 1 for c in config.things], dtype=torch.uint8, device=device)
    nameless = torch.isin(semantic, things) & (slot == 0)
    return [semantic, slot, known, known & ~nameless]
