"""One step of the stream: the next frame of each video, from its state.

Pix2Seq-D on video (arXiv 2210.06366, section 3.4): each frame's mask is denoised, conditioned on its image and on the
masks predicted before it. The state is explicit: `stream_step` takes the state of each video and returns the next one.
So several videos can be batched, and a half-done video can be resumed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.diffusion.bits import history_to_bits
from model.diffusion.draws import seeded
from model.diffusion.samplers import SAMPLERS, sample
from model.diffusion.schedule import sampling_times
from model.network.config import ConfigError, ModelConfig
from model.network.pix2seq_d import Pix2SeqD
from model.network.unet import Condition
from model.stream.answer import candidates, full_size, slot_masses, to_host
from model.stream.tracks import StreamState, advance, merged


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
    merge: float = 0.5  # a slot is part of one that is this likely for its pixels, relative to it; 0: never
    history_steps: int = 0  # of `steps`, how many see the history; the others look without it; published: all
    average_classes: bool = True  # classes by the mean of all steps' answers, not by the last alone, as published

    def __post_init__(self):
        if self.max_gap < 0:
            raise ConfigError(f"max_gap must be 0 or more, not {self.max_gap}")
        if self.first_steps < 1 or self.steps < 1:
            raise ConfigError(f"steps must be 1 or more, not {self.first_steps} and {self.steps}")
        if self.sampler not in SAMPLERS:
            raise ConfigError(f"sampler must be one of {', '.join(SAMPLERS)}, not {self.sampler!r}")
        if self.history_steps < 0:
            raise ConfigError(f"history_steps must be 0 or more, not {self.history_steps}")
        if not 0 <= self.merge <= 1:
            raise ConfigError(f"merge is a share, 0..1, not {self.merge}")
        if not 0 <= self.time_difference <= 1:
            raise ConfigError(f"time_difference is a fraction of the time range, 0..1, not {self.time_difference}")

    @property
    def fresh_steps(self) -> int:
        """How many of `steps` do not see the history."""
        return max(self.steps - self.history_steps, 0)


@torch.inference_mode()
def stream_step(
    model: Pix2SeqD,
    images: Tensor,
    states: Sequence[StreamState],
    config: StreamConfig,
    mask_size: tuple[int, int] | None = None,
    frame_sizes: Sequence[tuple[int, int]] | None = None,
    sampling: Callable[..., Tensor] = sample,
    callback: Callable[[float, Tensor, Tensor, bool], None] | None = None,
) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[StreamState]]:
    """Predict the next frame of B videos. All are at their first frame (no history), or all are past it.

    images: uint8 or float in [0, 1], (B, 3, H, W), on the model's device; mask_size: None for the configuration's;
    frame_sizes: (height, width) of each answer, None for the mask's; sampling: `sample` or a replacement;
    callback(now, noisy bits, output, fresh): called after each denoising step of each look. Returns for each video a
    pair (semantic trainIds uint8, track ids int32), and the next states. The given states are not changed.
    """
    c, device = model.config, images.device
    mask_size = tuple(mask_size or c.mask_size)
    first = states[0].semantic is None
    if any((s.semantic is None) != first for s in states):
        raise ValueError("a batch holds videos at their first frame, or past it, not both")
    if images.dtype == torch.uint8:
        images = images.float() / 255

    features = model.encode(images, mask_size)
    followed = 0 if first else config.steps - config.fresh_steps  # steps that see the history
    history = history_to_bits(_history(states, c, mask_size, device), c.code_bits, c.scale) if followed else None

    def look(steps: int, *looks: tuple[Tensor | None, tuple[int, ...]]) -> Sequence[Tensor]:
        """One answer for each (history, key), computed side by side; noise is seeded by (seed, video, frame, key)."""
        generators = [seeded(device, config.seed, s.video, s.frame, *key) for _, key in looks for s in states]

        def noise() -> Tensor:
            drawn = torch.stack([torch.randn(c.bits, *mask_size, generator=g, device=device) for g in generators])
            return drawn.contiguous(memory_format=torch.channels_last)  # as the estimates are: a DDIM step 4 x as fast

        condition = Condition.batch([model.condition(features, past) for past, _ in looks])
        times = sampling_times(steps, config.time_difference)
        given = (model, config.sampler, condition, noise(), times, noise, config.average_classes)

        def record(now: float, x: Tensor, output: Tensor) -> None:
            for (_, key), *part in zip(looks, x.chunk(len(looks)), output.chunk(len(looks)), strict=True):
                callback(now, *part, bool(key))

        return (sample(*given, record) if callback else sampling(*given)).chunk(len(looks))

    # What is decided without the history cannot copy its errors; then the history tells only which track is which
    past, anew, told = (history, ()), (None, (1,)), None
    if first:
        (output,) = look(config.first_steps, past)
    elif not followed:
        (output,) = look(config.steps, anew)
    elif not config.fresh_steps:
        (output,) = look(config.steps, past)
    else:
        beside = followed == config.fresh_steps
        looks = look(followed, past, anew) if beside else (*look(followed, past), *look(config.fresh_steps, anew))
        told, output = to_host(candidates(c, looks[0])[2:])[:, 0], looks[1]

    return _tracked(c, output, told, states, config, frame_sizes or [mask_size] * len(states))


def _tracked(
    c: ModelConfig,
    output: Tensor,
    told: np.ndarray | None,
    states: Sequence[StreamState],
    config: StreamConfig,
    frame_sizes: Sequence[tuple[int, int]],
) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[StreamState]]:
    """From the network's last output to segments and tracks, as `stream_step` returns them. told: slots (B, h, w) of
    the answer with history, where `output` was made without."""
    maps = candidates(c, output)
    masses = slot_masses(c, output, maps[2]) if config.merge else None
    answers = to_host(maps)
    results, following = [], []
    for n, (answer, state, size) in enumerate(zip(answers, states, frame_sizes, strict=True)):
        raw_slot = answer[2].copy()
        if masses is not None:
            held = () if config.fresh_steps else state.held(c.history_length)
            answer[2] = merged(masses[n], config.merge, held, config.min_area)[answer[2]]
        with_history = told[n] if told is not None else None if config.fresh_steps else answer[2]
        semantic, slot, after = advance(answer, with_history, state, c, config.min_area, config.max_gap)
        if semantic.shape != tuple(size):
            semantic, slot = full_size(c, output[n], raw_slot, semantic, slot, size)
        lookup = np.zeros(c.slots, np.int32)
        for track in after.tracks:
            if track.frame == state.frame:
                lookup[track.slot] = track.id
        results.append(((semantic.astype(np.int16) - 1).astype(np.uint8), lookup[slot]))
        following.append(after)
    return results, following


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
