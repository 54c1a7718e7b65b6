"""Looking into the diffusion: what inference estimates after each of its denoising steps."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from model.geometry import content_size
from model.streaming import Panoptic, StreamState, VideoPredictor


@dataclass(frozen=True)
class DenoisingStep:
    """One step of a sampler. Arrays of the mask's size (h, w), without padding."""

    time: float  # 1 = noise, 0 = clean
    noisy_bits: np.ndarray  # float32 (bits, h, w), what the network was given
    semantic: np.ndarray  # uint8 (h, w) trainIds, the estimate that followed
    slot: np.ndarray  # int32 (h, w) instance slots, 0 = none
    fresh: bool = False  # of the second look, without history


@torch.inference_mode()
def denoising_steps(
    predictor: VideoPredictor, frame: np.ndarray | Image.Image, state: StreamState | None = None
) -> tuple[list[DenoisingStep], Panoptic, StreamState]:
    """Predict one frame and record each step of the sampler on the way, by a hook on the denoiser.

    state: of the video before this frame; None for a first frame. Returns the steps, the answer and the next state,
    both the same as `predictor.step` gives; the predictor's own state stays as it is. Raises ValueError for a frame
    that is none.
    """
    model, steps = predictor.model, []
    height, width = content_size(np.asarray(frame).shape[:2], predictor.mask_size)

    def record(_module: torch.nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        noisy, time = inputs[:2]
        semantic, slot = (m[0, :height, :width].cpu().numpy() for m in model.answer(output.float()))
        bits = noisy[0, :, :height, :width].float().cpu().numpy()
        semantic = (semantic.astype(np.int16) - 1).astype(np.uint8)
        fresh = bool(steps) and (steps[-1].fresh or float(time[0]) == 1)  # each look begins at time 1
        steps.append(DenoisingStep(float(time[0]), bits, semantic, slot.astype(np.int32), fresh))

    handle = model.denoiser.register_forward_hook(record)
    try:
        (answer,), (after,) = predictor.step([frame], [state or StreamState(predictor.state.video)])
    finally:
        handle.remove()
    return steps, answer, after
