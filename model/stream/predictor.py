"""VideoPredictor: panoptic video segmentation, a frame a call."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from data.io.pixels import to_rgb
from data.labels import DEFAULT_SPACE, LabelSpace
from model.checks import ConfigError, checked_size
from model.diffusion.samplers import sample
from model.hub import HubMixin
from model.network.pix2seq_d import Pix2SeqD
from model.network.precision import for_inference, make_fast, precision
from model.stream.answer import to_device
from model.stream.config import StreamConfig
from model.stream.cuda_graphs import GraphedSampling
from model.stream.state import Moment, StreamState
from model.stream.step import Seen, follow, see


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
        space: LabelSpace = DEFAULT_SPACE,
    ):
        """image_size: (H, W) whose area frames are brought to, in place of the model's; the mask's size follows in
        proportion. space: the model's classes."""
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        make_fast(self.device)
        self.model = model.eval().to(self.device, memory_format=torch.channels_last)
        self.config = config or StreamConfig()
        self.space = space
        self.dtype = precision(mixed_precision, self.device)
        self.image_size = checked_size(image_size or model.config.image_size)
        self.state = StreamState(video=0)
        self.sampling: Callable[..., Tensor] = sample
        self.only_infers = False

    def __call__(self, frame: np.ndarray | Image.Image) -> Panoptic:
        """The next frame of the video, of any size: uint8 (H, W, 3), a PIL image, or what else `to_rgb` takes, which
        raises ValueError."""
        (panoptic,), (self.state,) = self.step([frame], [self.state])
        return panoptic

    def stream(self, frames: Iterable[np.ndarray | Image.Image]) -> Iterator[Panoptic]:
        """The panoptics of one whole video, as they come."""
        if self.state.frame:
            self.reset()
        for frame in frames:
            yield self(frame)

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names, in the order of their numbers."""
        return self.space.names

    def reset(self, video: int | None = None) -> None:
        """Start the next video; its number seeds its noise."""
        self.state = StreamState(self.state.video + 1 if video is None else video)

    def step(
        self, frames: Sequence[np.ndarray | Image.Image], states: Sequence[StreamState], callback=None
    ) -> tuple[list[Panoptic], list[StreamState]]:
        """The next frame of several videos at once, each with its state; sizes may differ. callback: of
        `see` in step.py."""
        frames = [to_rgb(frame) for frame in frames]
        seen = self.see(frames, [state.moment for state in states], states, callback)
        done = [self.follow(*each) for each in zip(seen, states, frames, strict=True)]
        return [panoptic for panoptic, _ in done], [state for _, state in done]

    def see(
        self, frames: Sequence[np.ndarray], moments: Sequence[Moment], states: Sequence[StreamState] = (), callback=None
    ) -> list[Seen]:
        """The first half of a step: `see` in step.py, for frames (H, W, 3) of any sizes."""
        # Frames without and with history take different numbers of steps; a batch has one size
        groups: dict[tuple, list[int]] = {}
        for i, moment in enumerate(moments):
            groups.setdefault((moment.first, *self.sizes(frames[i])), []).append(i)
        seen: list[Seen] = [None] * len(frames)
        for (_, image_size, mask_size), group in groups.items():
            images = to_device(torch.stack([fit_frame(frames[i], image_size) for i in group]), self.device)
            images = (images.float() / 255).contiguous(memory_format=torch.channels_last)
            past = [states[i].at_size(mask_size) for i in group] if states else ()
            given = (images, [moments[i] for i in group], self.config, mask_size, past, self.sampling, callback)
            with self._autocast():
                for i, answer in zip(group, see(self.model, *given), strict=True):
                    seen[i] = answer
        return seen

    def follow(self, seen: Seen, state: StreamState, frame: np.ndarray) -> tuple[Panoptic, StreamState]:
        """The second half of a step: the answer to a frame (H, W, 3) that was seen, and the next state."""
        with self._autocast():
            answer, after = follow(self.model.config, seen, state, frame.shape[:2], self.config)
        return Panoptic(*answer), after

    def _autocast(self):
        return torch.autocast(self.device.type, self.dtype) if self.dtype else contextlib.nullcontext()

    @property
    def sees_ahead(self) -> bool:
        """Whether frames can be seen before the frames before them are followed. A model without history sees each as
        a first frame."""
        return not self.config.history_steps and self.model.config.history_length > 0

    def only_infer(self, cuda_graphs: bool = False, compile: bool = False) -> None:
        """Make the model ready for a long run; it can no longer be trained, saved or copied.

        Frozen norms are folded into its convolutions, which changes answers by rounding alone, and its weights are cast
        to the autocast type once. `cuda_graphs` runs the sampling loop as CUDA graphs; `compile` compiles the network,
        which has not been tried on a GPU yet.

        Raises ConfigError for these two elsewhere than on a CUDA device.
        """
        for name, wanted in (("cuda_graphs", cuda_graphs), ("compile", compile)):
            if wanted and self.device.type != "cuda":
                raise ConfigError(f"{name} is for a CUDA device, not {self.device.type}")
        self.only_infers = True
        for_inference(self.model, self.dtype, compile)
        self.sampling = GraphedSampling() if cuda_graphs else sample

    def sizes(self, frame: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
        """The (height, width) of image and mask for a frame (H, W, 3)."""
        return self.model.config.sizes_for(frame.shape[:2], self.image_size)


def fit_frame(frame: np.ndarray, size: tuple[int, int]) -> Tensor:
    """A frame uint8 (H, W, 3) -> uint8 (3, *size): bilinear with antialiasing."""
    image = torch.from_numpy(np.array(frame, order="C")).permute(2, 0, 1)
    if image.shape[1:] != tuple(size):
        image = F.interpolate(image[None], tuple(size), mode="bilinear", antialias=True)[0]
    return image.contiguous()
