"""Frame after frame: history, instance slots -> track ids, and the predictor that users import.

Pix2Seq-D on video (arXiv 2210.06366, section 3.4): each frame's mask is denoised under its image and the masks that
were predicted before it. An instance keeps its slot by being copied from the history; here slots become track ids that
stay unique over a sequence of any length.

The stream is explicit: `stream_step` takes a state for each video and returns the next ones, so that several videos can
be batched and a half-done one can be resumed.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model import checkpoint as checkpoints
from model.answers import candidates, full_size, slot_masses, to_host
from model.diffusion import SAMPLERS, class_logits, seeded
from model.geometry import fit_frame
from model.hub import HubMixin
from model.loop import GraphedSampling, cast_weights, fold_norms, sample
from model.pix2seq_d import FIRST_THING, ConfigError, ModelConfig, Pix2SeqD
from model.schedule import sampling_times
from model.tracking import StreamState, advance, follow, merged
from model.unet import Condition


@dataclass(frozen=True)
class StreamConfig:
    """How a video is predicted. Raises ConfigError for values outside their range."""

    first_steps: int = 20  # denoising steps of a frame without history
    steps: int = 8  # of each frame after it
    sampler: str = "ddim"
    time_difference: float = 0.0  # as a fraction of the time range; model.schedule.sampling_times
    min_area: int = 4  # segments of fewer mask pixels are dropped
    seed: int = 42
    max_gap: int = 5  # frames for which a track may be out of sight and still go on where it was lost
    merge: float = 0.5  # a slot is part of one that is this likely for its pixels, relative to it; 0: never
    fresh: bool = True  # all but one of `steps` are a second look, without history; else all with it, as published
    average_classes: bool = True  # classes by the mean of all steps' answers, not by the last alone, as published

    def __post_init__(self):
        if self.max_gap < 0:
            raise ConfigError(f"max_gap must be 0 or more, not {self.max_gap}")
        if self.first_steps < 1 or self.steps < 1:
            raise ConfigError(f"steps must be 1 or more, not {self.first_steps} and {self.steps}")
        if self.sampler not in SAMPLERS:
            raise ConfigError(f"sampler must be one of {', '.join(SAMPLERS)}, not {self.sampler!r}")
        if not 0 <= self.merge <= 1:
            raise ConfigError(f"merge is a share, 0..1, not {self.merge}")
        if not 0 <= self.time_difference <= 1:
            raise ConfigError(f"time_difference is a fraction of the time range, 0..1, not {self.time_difference}")

    @property
    def fresh_steps(self) -> int:
        """How many of `steps` are made without history."""
        return self.steps - 1 if self.fresh else 0


@dataclass
class Panoptic:
    """One frame's answer: `semantic` uint8 (H, W), trainIds; `track` int32 (H, W), ids, 0 = none."""

    semantic: np.ndarray
    track: np.ndarray

    @cached_property
    def segments(self) -> list[dict[str, int]]:
        """[{"id", "class", "area" in pixels}] of the tracked instances and, with id 0, of the other classes; counted
        when they are asked for."""
        keys, areas = np.unique(self.track.astype(np.int64) * 256 + self.semantic, return_counts=True)
        return [
            {"id": int(key // 256), "class": int(key % 256), "area": int(area)}
            for key, area in zip(keys, areas, strict=True)
        ]


# ---------------------------------------------------------------------------------------------------------------------
# One step of the stream
# ---------------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def stream_step(
    model: Pix2SeqD,
    images: Tensor,
    states: Sequence[StreamState],
    config: StreamConfig,
    mask_size: tuple[int, int] | None = None,
    frame_sizes: Sequence[tuple[int, int]] | None = None,
    sampling: Callable[..., Tensor] = sample,
) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[StreamState]]:
    """Predict the next frame of B videos, all at their first frame (no history) or all past it.

    images: uint8 or float in [0, 1], (B, 3, H, W), on the model's device; mask_size: None for the configuration's;
    frame_sizes: (height, width) of each answer, None for the mask's; sampling: model.loop's `sample`, or what does the
    same. Returns a (semantic trainIds uint8, track ids int32) pair for each video, and the next states; the given ones
    stay.
    """
    c, device = model.config, images.device
    mask_size = tuple(mask_size or c.mask_size)
    first = states[0].semantic is None
    if any((s.semantic is None) != first for s in states):
        raise ValueError("a batch holds videos at their first frame, or past it, not both")
    if images.dtype == torch.uint8:
        images = images.float() / 255

    features = model.encode(images, mask_size)
    history = None if first else model.history_bits(*_history(states, c, mask_size, device))

    def look(steps: int, *looks: tuple[Tensor | None, tuple[int, ...]]) -> Sequence[Tensor]:
        """The answers under each (history, key), side by side, from noise of (seed, video, frame, key)."""
        generators = [seeded(device, config.seed, s.video, s.frame, *key) for _, key in looks for s in states]

        def noise() -> Tensor:
            drawn = torch.stack([torch.randn(c.bits, *mask_size, generator=g, device=device) for g in generators])
            return drawn.contiguous(memory_format=torch.channels_last)  # as the estimates are: a DDIM step 4 x as fast

        condition = Condition.batch([model.condition(features, past) for past, _ in looks])
        times = sampling_times(steps, config.time_difference)
        output = sampling(model, config.sampler, condition, noise(), times, noise, config.average_classes)
        return output.chunk(len(looks))

    # With the history; and anew, without, as what was merged or missed in the history would be copied for ever
    steps = config.first_steps if first else config.steps - config.fresh_steps
    followed, anew, told = (history, ()), (None, (1,)), None
    if first or not config.fresh_steps:
        (output,) = look(steps, followed)
    else:
        answers = look(steps, followed, anew) if steps == config.fresh_steps else look(steps, followed)
        told = to_host(c, candidates(model, answers[0])[2:])[:, 0]
        classes = class_logits(c, answers[0]).clone()
        output = answers[1] if len(answers) == 2 else look(config.fresh_steps, anew)[0]
        if config.average_classes:
            class_logits(c, output).add_(classes).mul_(0.5)

    return _tracked(model, output, told, states, config, frame_sizes or [mask_size] * len(states))


def _tracked(
    model: Pix2SeqD,
    output: Tensor,
    told: np.ndarray | None,
    states: Sequence[StreamState],
    config: StreamConfig,
    frame_sizes: Sequence[tuple[int, int]],
) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[StreamState]]:
    """From the network's last output to segments and tracks, as `stream_step` returns them. told: slots (B, h, w) of
    the answer with history, where `output` is one without."""
    c = model.config
    maps = candidates(model, output)
    masses = slot_masses(model, output, maps[2]) if config.merge else None
    answers = to_host(c, maps)
    results, following = [], []
    for n, (answer, state, size) in enumerate(zip(answers, states, frame_sizes, strict=True)):
        raw_slot = answer[2].copy()
        if masses is not None:
            held = () if config.fresh_steps else state.held(c.history_length)
            answer[2] = merged(masses[n], config.merge, held, config.min_area)[answer[2]]
        if config.fresh_steps:
            seen = None if told is None else told[n]
            answer, state = follow(answer, seen, state, c, config.min_area, config.max_gap)
        semantic, slot, after = advance(answer, state, c, config.min_area, config.max_gap)
        if semantic.shape != tuple(size):
            semantic, slot = full_size(model, output[n], raw_slot, semantic, slot, size)
        lookup = np.zeros(c.slots, np.int32)
        for s, track in after.track.items():
            lookup[s] = track
        results.append(((semantic.astype(np.int16) - 1).astype(np.uint8), lookup[slot]))
        following.append(after)
    return results, following


def _history(states: Sequence[StreamState], config: ModelConfig, mask_size: tuple[int, int], device) -> list[Tensor]:
    """semantic, slot, where each is known (B, T, h, w), of the offsets that the model looks back to.

    As in training the slot is unknown in things without a track: of other classes, or a crowd.
    """
    offsets = config.history_offsets
    shape = (len(states), len(offsets), *mask_size)
    slot_type = np.uint8 if config.slots <= 256 else np.int32
    maps = np.zeros(shape, np.uint8), np.zeros(shape, slot_type), np.zeros(shape, bool)
    for b, state in enumerate(states):
        if state.semantic is not None:
            rows = [config.history_length + offset for offset in offsets]
            for target, source in zip(maps, (state.semantic, state.slot, state.known), strict=True):
                target[b] = source[rows]
    semantic, slot, known = (torch.from_numpy(m).to(device, non_blocking=True) for m in maps)
    nameless = (semantic > FIRST_THING) & (slot == 0)
    return [semantic, slot, known, known & ~nameless]


# ---------------------------------------------------------------------------------------------------------------------
# The predictor
# ---------------------------------------------------------------------------------------------------------------------


def precision(mixed_precision: str, device: torch.device) -> torch.dtype | None:
    """The autocast type of `auto`, `no`, `bf16` or `fp16` on a device; None for plain float32.

    `auto` takes bf16 where the device multiplies matrices faster in it: CUDA GPUs of compute capability 8.0 and
    higher, CPUs with AMX or AVX512-BF16.
    """
    if mixed_precision == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
        flags = torch.cpu.get_capabilities() if device.type == "cpu" else {}
        return torch.bfloat16 if flags.get("amx_bf16") or flags.get("avx512_bf16") else None
    return {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[mixed_precision]


class VideoPredictor(HubMixin):
    """Panoptic video segmentation, a frame a call.

    >>> predictor = VideoPredictor.from_checkpoint("results/train/model-latest.pt")
    >>> for frame in frames:  # uint8 array (H, W, 3) or PIL image
    ...     panoptic = predictor(frame)
    >>> predictor.reset()  # before the next video
    """

    def __init__(
        self,
        model: Pix2SeqD,
        config: StreamConfig | None = None,
        device: str | torch.device | None = None,
        mixed_precision: str = "auto",
        image_size: tuple[int, int] | None = None,
    ):
        """image_size: (H, W) whose area frames are brought to, in place of the model's; the mask's size follows in
        proportion."""
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.eval().to(self.device, memory_format=torch.channels_last)
        self.config = config or StreamConfig()
        self.dtype = precision(mixed_precision, self.device)
        self.image_size = checked_size(image_size or model.config.image_size)
        self.state = StreamState(video=0)
        self.sampling: Callable[..., Tensor] = sample

    @classmethod
    def from_checkpoint(cls, path: str | Path, **options: Any) -> "VideoPredictor":
        """The averaged weights of a checkpoint file, or of the newest in a results folder. Raises CheckpointError."""
        path = Path(path)
        if path.is_dir():
            path = path / checkpoints.LATEST
        stored = checkpoints.load(path)
        model = build(stored, path)
        return cls(model, **options)

    def __call__(self, frame: np.ndarray | Image.Image) -> Panoptic:
        """The next frame of the video, uint8 (H, W, 3) or a PIL image, of any size. Raises ValueError otherwise."""
        (panoptic,), (self.state,) = self.step([frame], [self.state])
        return panoptic

    def stream(self, frames: Iterable[np.ndarray | Image.Image]) -> Iterator[Panoptic]:
        """The panoptics of one whole video, as they come."""
        if self.state.frame:
            self.reset()
        for frame in frames:
            yield self(frame)

    def reset(self, video: int | None = None) -> None:
        """Start the next video; its number seeds its noise."""
        self.state = StreamState(self.state.video + 1 if video is None else video)

    def step(
        self, frames: Sequence[np.ndarray | Image.Image], states: Sequence[StreamState]
    ) -> tuple[list[Panoptic], list[StreamState]]:
        """The next frame of several videos at once, each with its state; sizes may differ."""
        arrays = [_as_array(frame) for frame in frames]
        results, following = [None] * len(arrays), list(states)
        # Frames without and with history take different numbers of steps; a batch has one size
        groups: dict[tuple, list[int]] = {}
        for i, state in enumerate(states):
            groups.setdefault((state.semantic is None, *self.sizes(arrays[i])), []).append(i)
        for (_, image_size, mask_size), group in groups.items():
            images = torch.stack([fit_frame(arrays[i], image_size) for i in group])
            sizes = [arrays[i].shape[:2] for i in group]
            answers, after = self.predict(images, [states[i] for i in group], mask_size, sizes)
            for i, answer, state in zip(group, answers, after, strict=True):
                results[i], following[i] = Panoptic(*answer), state
        return results, following

    def only_infer(self, cuda_graphs: bool = False, compile: bool = False) -> None:
        """Ready the model for a long run, after which it is not to be trained or saved: frozen norms
        folded into its convolutions, which changes answers by rounding alone, and its weights in the autocast type,
        once for all; with `compile` the network compiled, with `cuda_graphs` the sampling loop as CUDA graphs (neither
        yet run on a GPU).

        Raises ConfigError for these two elsewhere than on a CUDA device: on a CPU compiling does not pay
        (benchmarks/speed.md).
        """
        for name, wanted in (("cuda_graphs", cuda_graphs), ("compile", compile)):
            if wanted and self.device.type != "cuda":
                raise ConfigError(f"{name} is for a CUDA device, not {self.device.type}")
        fold_norms(self.model)
        cast_weights(self.model, self.dtype)
        if compile:
            self.model.compile_parts()
        self.sampling = GraphedSampling() if cuda_graphs else sample

    def sizes(self, frame: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
        """The (height, width) of image and mask for a frame (H, W, 3)."""
        return self.model.config.sizes_for(frame.shape[:2], self.image_size)

    def predict(self, images: Tensor, states, mask_size=None, frame_sizes=None):
        """`stream_step` on this predictor's device and precision; images: uint8 (B, 3, H, W)."""
        images = images.to(self.device, non_blocking=True)
        images = (images.float() / 255).contiguous(memory_format=torch.channels_last)
        autocast = torch.autocast(self.device.type, self.dtype) if self.dtype else contextlib.nullcontext()
        with autocast:
            return stream_step(self.model, images, states, self.config, mask_size, frame_sizes, self.sampling)


def build(stored: dict[str, Any], source: str | Path) -> Pix2SeqD:
    """The model of a checkpoint with its averaged weights. Raises CheckpointError."""
    model = model_for(config_of(stored, source), stored["weights"], source)
    checkpoints.load_weights(model, stored["weights"], source)
    return model


def model_for(config: ModelConfig, weights: dict[str, Tensor], source: str | Path) -> Pix2SeqD:
    """A model of a configuration that came with weights. Raises CheckpointError where the two do not fit.

    It is laid out without memory first, so that a file cannot ask for more than it holds.
    """
    try:
        with torch.device("meta"):
            own = Pix2SeqD(config).state_dict()
    except Exception as error:  # values that no program of ours wrote: any type of error
        raise checkpoints.CheckpointError(f"{source} holds a model that cannot be built ({error})") from None
    checkpoints.check_shapes(own, weights, source)
    return Pix2SeqD(config)


def config_of(stored: dict[str, Any], source: str | Path) -> ModelConfig:
    """The model's configuration in a checkpoint. Raises CheckpointError."""
    try:
        return ModelConfig.from_dict(stored["config"])
    except Exception as error:  # as above
        raise checkpoints.CheckpointError(f"{source} holds a configuration that cannot be used ({error})") from None


def checked_size(image_size: Sequence[int]) -> tuple[int, int]:
    """A height and width. Raises ConfigError for what is none."""
    if len(image_size) != 2 or not 8 <= min(image_size) <= max(image_size) <= 16_384:
        raise ConfigError(f"image_size {tuple(image_size)} must be height and width, 8 to 16384 each")
    return tuple(image_size)


def _as_array(frame: np.ndarray | Image.Image) -> np.ndarray:
    array = np.asarray(frame.convert("RGB") if isinstance(frame, Image.Image) else frame)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise ValueError(f"a frame is a uint8 array (H, W, 3) or a PIL image, not {array.dtype} {array.shape}")
    return array
