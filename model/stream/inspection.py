"""Looking into the diffusion: what inference estimates after each of its denoising steps."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.diffusion.samplers import Times
from model.network.pix2seq_d import Pix2SeqD
from model.network.unet import Condition
from model.stream.fast import sample
from model.stream.predictor import Panoptic, StreamState, VideoPredictor


@dataclass(frozen=True)
class DenoisingStep:
    """One step of a sampler. Arrays of the mask's size (h, w)."""

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
    looks: list[list[DenoisingStep]] = []
    plain = predictor.sampling

    def recording(model: Pix2SeqD, sampler: str, condition: Condition, x: Tensor, times: Times, *rest: Any) -> Tensor:
        """`sample`, and a record of each of its steps: of one look, or of two side by side."""
        left, before = iter(times), len(looks)
        looks.extend([] for _ in x)

        def record(_module: torch.nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            now, _ = next(left)
            codes, slots = model.answer(output.float())
            for n, (noisy, *maps) in enumerate(zip(inputs[0], codes, slots, strict=True)):
                semantic, slot = (m.cpu().numpy() for m in maps)
                semantic = (semantic.astype(np.int16) - 1).astype(np.uint8)
                bits = noisy.float().cpu().numpy()
                step = DenoisingStep(now, bits, semantic, slot.astype(np.int32), fresh=before + n > 0)
                looks[before + n].append(step)

        handle = model.denoiser.register_forward_hook(record)
        try:
            return sample(model, sampler, condition, x, times, *rest)
        finally:
            handle.remove()

    predictor.sampling = recording
    try:
        (answer,), (after,) = predictor.step([frame], [state or StreamState(predictor.state.video)])
    finally:
        predictor.sampling = plain
    return [step for look in looks for step in look], answer, after
