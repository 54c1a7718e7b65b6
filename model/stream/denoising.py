"""Every denoising step of one frame, to look into the diffusion."""

from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from model.stream.predictor import Panoptic, VideoPredictor
from model.stream.state import StreamState


@dataclass(frozen=True)
class DenoisingStep:
    """One step of a sampler. Arrays of the mask's size (h, w)."""

    time: float  # 1 = noise, 0 = clean
    noisy_bits: np.ndarray  # float32 (bits, h, w), the network's input
    semantic: np.ndarray  # uint8 (h, w) trainIds, the estimate that followed
    slot: np.ndarray  # int32 (h, w) instance slots, 0 = none
    fresh: bool = False  # of a later frame's look without history


def denoising_steps(
    predictor: VideoPredictor, frame: np.ndarray | Image.Image, state: StreamState | None = None
) -> tuple[list[DenoisingStep], Panoptic, StreamState]:
    """Predict one frame and record each step of the sampler.

    state: of the video before this frame; None for a first frame. Returns the steps (those with history first), the
    answer and the next state. The predictor's own state stays as it is. Raises ValueError for a frame that is none.
    """
    steps = []

    def record(now: float, x: Tensor, output: Tensor, fresh: bool) -> None:
        classes, slots = (part[0].max(dim=0).indices for part in output.split(predictor.model.config.code_sizes, dim=1))
        semantic = (classes - 1).cpu().numpy().astype(np.uint8)  # void, code 0, becomes 255
        bits = x[0].float().cpu().numpy()
        steps.append(DenoisingStep(now, bits, semantic, slots.cpu().numpy().astype(np.int32), fresh))

    (answer,), (after,) = predictor.step([frame], [state or StreamState(predictor.state.video)], record)
    return sorted(steps, key=lambda step: step.fresh), answer, after
