"""One step of the stream: the next frame of each video, from its state.

Pix2Seq-D on video (arXiv 2210.06366, "Extension to Videos"): each frame's mask is denoised, conditioned on its image
and on the masks predicted before it. A step has two halves: `see` is the network; `follow` says which segment is which
track. Where the network does not look at the history, frames can be seen side by side, before they are followed in
their order: so a CPU sees several at once (ahead.py). The state is explicit, so several videos can be
batched, and a half-done video can be resumed.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.diffusion.bits import history_to_bits
from model.diffusion.draws import seeded
from model.diffusion.samplers import sample, sampling_times
from model.network.config import ModelConfig
from model.network.pix2seq_d import Pix2SeqD
from model.stream.answer import candidates, full_size, merged, slot_masses, split, to_host
from model.stream.config import StreamConfig
from model.stream.history import past_masks
from model.stream.state import Moment, StreamState
from model.stream.tracks import advance


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
    history = history_to_bits(past_masks(states, c, mask_size, device), c.code_bits, c.scale) if with_history else None

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
    track_of = np.zeros(c.slots, np.int32)
    for track in after.tracks:
        if track.frame == state.frame:
            track_of[track.slot] = track.id
    if semantic.shape == tuple(frame_size):
        return (semantic - np.uint8(1), track_of[slot]), after
    labels, codes, slots = full_size(c, seen.output, seen.maps[2], semantic, slot, frame_size)
    return ((codes - np.uint8(1)).take(labels), track_of[slots].take(labels)), after
