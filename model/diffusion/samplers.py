"""Sampling: from noise to the network's last output, step by step."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from model.diffusion.estimate import expected_bits
from model.diffusion.schedule import gamma
from model.network.pix2seq_d import Pix2SeqD
from model.network.unet import Condition

Times = Sequence[tuple[float, float]]
Callback = Callable[[float, Tensor, Tensor], None]


def sampling_times(steps: int, time_difference: float = 0.0) -> list[tuple[float, float]]:
    """The (now, next) times of a sampler: Bit Diffusion, algorithm 2, with its asymmetric time intervals.

    Step k denoises at 1 - k / steps and moves the state to 1 - (k + 1) / steps - time_difference, never below 0.
    time_difference is a fraction of the time range (the paper's `td` in steps, divided by their number).
    Raises ValueError where steps < 1 or time_difference lies outside [0, 1].
    """
    if steps < 1 or not 0 <= time_difference <= 1:
        raise ValueError(f"steps must be at least 1 and time_difference within 0..1, not {steps} and {time_difference}")
    return [(1 - k / steps, max(1 - (k + 1) / steps - time_difference, 0.0)) for k in range(steps)]


def ddim_step(x: Tensor, x0: Tensor, now: float, then: float, noise: Callable[[], Tensor] | None = None) -> Tensor:
    """Keep the noise that the estimate implies (DDIM, arXiv 2010.02502, equation 12 with sigma = 0):
    sqrt(g') x0 + sqrt(1 - g') eps, where eps = (x - sqrt(g) x0) / sqrt(1 - g). In one pass each over x and x0."""
    g, g_next = gamma(now), gamma(then)
    kept = math.sqrt((1 - g_next) / max(1 - g, 1e-12))  # of x, and so of its noise
    return torch.add(kept * x, x0, alpha=math.sqrt(g_next) - kept * math.sqrt(g))


def ddpm_step(x: Tensor, x0: Tensor, now: float, then: float, noise: Callable[[], Tensor]) -> Tensor:
    """Draw from a normal distribution about the mean of q(x_then | x_now, x0) (DDPM, arXiv 2006.11239, equation 7).

    Its variance is beta, the larger of the two choices of section 3.2, as in the released code of Pix2Seq-D.
    """
    g, g_next = gamma(now), gamma(then)
    alpha = min(g / g_next, 1.0)
    mean = math.sqrt(g_next) * (1 - alpha) / max(1 - g, 1e-12) * x0
    mean = mean + math.sqrt(alpha) * (1 - g_next) / max(1 - g, 1e-12) * x
    return mean + math.sqrt(1 - alpha) * noise()


SAMPLERS = {"ddim": ddim_step, "ddpm": ddpm_step}


def sample(
    model: Pix2SeqD,
    sampler: str,
    condition: Condition,
    x: Tensor,
    times: Times,
    noise: Callable[[], Tensor],
    average_classes: bool = False,
    callback: Callback | None = None,
) -> Tensor:
    """One frame's sampling (Pix2Seq-D, algorithm 2): the network's last output (B, codes, h, w), in its type.

    condition: of the image and the history; x: noise (B, bits, h, w); times: [(now, next), ...] of
    `sampling_times`; noise() -> fresh noise like x; average_classes: the class logits are the mean of all
    steps'; callback(now, x, output): called after each step. No step is spent on moving to time 0, and nothing waits
    for the device.
    """
    c = model.config
    modulation = model.denoiser.modulation(torch.cat([torch.full((1,), now, device=x.device) for now, _ in times]))
    total = None
    for k, (now, then) in enumerate(times):
        output = model.denoiser(x, modulation.at(k), condition)
        if callback is not None:
            callback(now, x, output)
        if average_classes and len(times) > 1:
            # Classes come from the image and, more and more, from the last estimate, so that one step's errors stay.
            # Ids are decided by the noise: for them the last step counts alone.
            classes = output[:, : c.code_sizes[0]].clone()  # dense: 2 times faster to add on a CPU than a slice
            kind = classes.dtype if len(times) == 2 else torch.float32  # a sum of two is rounded once in either type
            total = classes.to(kind) if total is None else total.add_(classes)
        if k < len(times) - 1:
            x0 = expected_bits(output, c.code_sizes, c.code_bits, c.scale)
            x = SAMPLERS[sampler](x, x0, now, then, noise)
    if total is not None:
        output[:, : c.code_sizes[0]] = total.div_(len(times))
    return output
