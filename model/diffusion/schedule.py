"""Diffusion time -> gamma (pure functions). Time runs from 0 (clean) to 1 (noise)."""

import math

from torch import Tensor

# gamma(t) = cos^2(((t + ns) / (1 + ds)) * pi / 2): Bit Diffusion (arXiv 2208.04202), appendix, `gamma(t, ns, ds)`.
OFFSET = 0.0002
STRETCH = 1.00025


def gamma(t: Tensor | float) -> Tensor | float:
    """The share of signal power left at time t in [0, 1]: x_t = sqrt(gamma) x0 + sqrt(1 - gamma) eps."""
    angle = (t + OFFSET) / STRETCH * (math.pi / 2)
    return angle.cos() ** 2 if isinstance(angle, Tensor) else math.cos(angle) ** 2


def add_noise(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Forward diffusion q(x_t | x0): x0, noise (B, C, h, w), t (B,) -> x_t (B, C, h, w)."""
    g = gamma(t)[:, None, None, None]
    return g.sqrt() * x0 + (1 - g).sqrt() * noise
