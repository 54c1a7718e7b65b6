"""Samplers: functions (denoise, x, times, noise) -> the network's last output.

  denoise(x, t, x0_previous) -> (output, x0), the network's output for x at time t and the estimate that follows;
  x: noise (B, bits, h, w); times: [(now, next), ...] of `schedule.sampling_times`; noise() -> fresh noise like x.
The answer is read from the last output, so that no step is spent on moving to time 0 (Pix2Seq-D, algorithm 2).
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from model.diffusion.schedule import gamma
from model.network.config import ModelConfig
from model.network.pix2seq_d import Pix2SeqD

Denoise = Callable[[Tensor, float, Tensor | None], tuple[Tensor, Tensor]]
Times = Sequence[tuple[float, float]]


def ddim_step(x: Tensor, x0: Tensor, now: float, then: float) -> Tensor:
    """Keep the noise that the estimate implies (DDIM, arXiv 2010.02502, equation 12 with sigma = 0):
    sqrt(g') x0 + sqrt(1 - g') eps, where eps = (x - sqrt(g) x0) / sqrt(1 - g). In one pass each over x and x0."""
    g, g_next = gamma(now), gamma(then)
    kept = math.sqrt((1 - g_next) / max(1 - g, 1e-12))  # of x, and so of its noise
    return torch.add(kept * x, x0, alpha=math.sqrt(g_next) - kept * math.sqrt(g))


def ddpm_step(x: Tensor, x0: Tensor, now: float, then: float, noise: Tensor) -> Tensor:
    """Draw from a normal distribution about the mean of q(x_then | x_now, x0) (DDPM, arXiv 2006.11239, equation 7).

    Its variance is beta, the larger of the two choices of section 3.2, as in the released code of Pix2Seq-D.
    """
    g, g_next = gamma(now), gamma(then)
    alpha = min(g / g_next, 1.0)
    mean = math.sqrt(g_next) * (1 - alpha) / max(1 - g, 1e-12) * x0
    mean = mean + math.sqrt(alpha) * (1 - g_next) / max(1 - g, 1e-12) * x
    return mean + math.sqrt(1 - alpha) * noise


def ddim(denoise: Denoise, x: Tensor, times: Times, noise: Callable[[], Tensor]) -> Tensor:
    """Deterministic sampling; `noise` is not used."""
    output, x0 = None, None
    for k, (now, then) in enumerate(times):
        output, x0 = denoise(x, now, x0)
        if k < len(times) - 1:
            x = ddim_step(x, x0, now, then)
    return output


def ddpm(denoise: Denoise, x: Tensor, times: Times, noise: Callable[[], Tensor]) -> Tensor:
    """Ancestral sampling."""
    output, x0 = None, None
    for k, (now, then) in enumerate(times):
        output, x0 = denoise(x, now, x0)
        if k < len(times) - 1:
            x = ddpm_step(x, x0, now, then, noise())
    return output


SAMPLERS = {"ddim": ddim, "ddpm": ddpm}


def class_logits(config: ModelConfig, output: Tensor) -> Tensor:
    """The part (B, codes, h, w) of the network's output that says the classes: a view; empty for squared error."""
    return output[:, : config.code_sizes[0] if config.loss == "softmax" else 0]


class MeanClasses:
    """Of one frame's outputs, step by step: gives each the mean of the class logits so far in place of its own.

    Each step estimates the classes from the image and, more and more, from its own last estimate, so that the errors of
    a step stay; of the ids, which the noise has to decide, the last step's are the ones.
    """

    def __init__(self, config: ModelConfig):
        self.config, self.total, self.count = config, None, 0

    def __call__(self, output: Tensor, read: bool = True) -> Tensor:
        """The output with the mean, in float32; where nobody will read it, as it came."""
        classes = class_logits(self.config, output).clone()  # dense: 2 times faster to add on a CPU than a slice
        self.total = classes.float() if self.total is None else self.total.add_(classes)
        self.count += 1
        if read and self.count > 1:
            output = output.float()
            torch.div(self.total, self.count, out=class_logits(self.config, output))
        return output


def denoiser_of(model: Pix2SeqD, condition, average_classes: bool = False) -> Denoise:
    """The `denoise` of one frame: the network under its conditions, computed once.

    average_classes: the class logits of each output are the mean of those so far; the estimates stay what they are.
    """
    averaged = MeanClasses(model.config) if average_classes else None

    def denoise(x: Tensor, t: float, x0_previous: Tensor | None) -> tuple[Tensor, Tensor]:
        time = torch.full((x.shape[0],), t, device=x.device)
        if not model.config.self_conditioning:
            x0_previous = None
        output = model.predict(x, time, condition, x0_previous)
        x0 = model.estimate(output)
        return averaged(output) if averaged else output, x0

    return denoise
