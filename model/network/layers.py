"""Blocks and attention that the encoder and the denoiser are built from."""

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from model.network.operations import GroupNorm, attend, dropped


def group_norm(channels: int, smallest: int = 16) -> GroupNorm:
    """Group norm with at most 32 groups of at least 16 channels (smaller groups are 3 times slower on a CPU), or of as
    many as `smallest` says."""
    groups = next(g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0 and (channels // g >= smallest or g == 1))
    return GroupNorm(groups, channels)


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)


def zero_init(module: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """The last layer of a residual branch starts at zero, so that the branch starts as the identity."""
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    return module


def sinusoid(position: Tensor, dim: int, max_period: float) -> Tensor:
    """Sine and cosine encoding (Vaswani et al., arXiv 1706.03762, section 3.5): (N,) -> (N, dim)."""
    frequency = torch.exp(-math.log(max_period) * torch.arange(dim // 2, device=position.device) / (dim // 2))
    angle = position.float()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def on_grid(y: Tensor, x: Tensor) -> Tensor:
    """What is known of rows (h, C) and of columns (w, C), at each position: (h, w, 2 C)."""
    return torch.cat([y[:, None].expand(-1, len(x), -1), x[None].expand(len(y), -1, -1)], dim=-1)


def position_encoding(height: int, width: int, dim: int, device: torch.device) -> Tensor:
    """2-D sine-cosine encoding, half of the channels for y and half for x: (height * width, dim). Computed and not
    learned, so that one set of weights runs at any size."""
    y, x = (sinusoid(torch.arange(n, device=device), dim // 2, max_period=1000.0) for n in (height, width))
    return on_grid(y, x).flatten(0, 1)


COORDINATES = 28  # channels of `coordinates`


def coordinates(height: int, width: int, device: torch.device) -> Tensor:
    """Where each position lies in the picture, as fractions of its size: (1, COORDINATES, height, width).

    Sine and cosine of both axes at 1/2, 1, 2 ... 32 periods across the picture. A convolution does not know where it is
    (CoordConv, arXiv 1807.03247); slots that are given out by place need it, as in SOLO (arXiv 1912.04488, 3.3).
    """
    frequency = torch.pi * 2.0 ** torch.arange(COORDINATES // 4, device=device)
    y, x = ((torch.arange(n, device=device) + 0.5)[:, None] / n * frequency for n in (height, width))
    y, x = (torch.cat([a.sin(), a.cos()], dim=-1) for a in (y, x))  # (n, 14)
    return on_grid(y, x)[None].permute(0, 3, 1, 2)  # channels-last


class TimeEmbedding(nn.Module):
    """A number in [0, 1] -> vector: sinusoid of it, then an MLP (DDPM, arXiv 2006.11239, appendix B)."""

    def __init__(self, dim: int, waves: int | None = None, factor: float = 1000.0):
        """dim: of the vector; waves: of the sinusoid, by default as many; factor: what the number is multiplied by."""
        super().__init__()
        self.waves, self.factor = waves or dim, factor
        self.mlp = nn.Sequential(nn.Linear(self.waves, dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU())

    def forward(self, t: Tensor) -> Tensor:  # (B,) -> (B, dim)
        return self.mlp(sinusoid(t * self.factor, self.waves, max_period=10_000.0))


class ResidualBlock(nn.Module):
    """GroupNorm - SiLU - conv, twice, the second norm scaled and shifted by the time (AdaGN, arXiv 2105.05233)."""

    def __init__(self, in_channels: int, out_channels: int, time_dim: int):
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels)
        self.time = nn.Linear(time_dim, 2 * out_channels)
        self.norm2 = group_norm(out_channels)
        self.conv2 = zero_init(conv3x3(out_channels, out_channels))
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """x: (B, in, h, w); modulation: scale and shift (B, 2 out), from `self.time`. Returns (B, out, h, w)."""
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = modulation[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        return self.skip(x) + self.conv2(F.silu(h))


class Attention(nn.Module):
    """Multi-head attention over tokens; `keys_values` is apart, so that those of a fixed context are computed once."""

    def __init__(self, dim: int, heads: int, context_dim: int | None = None):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim)
        self.to_kv = nn.Linear(context_dim or dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:  # (B, M, context_dim) -> 2 x (B, heads, M, d)
        return rearrange(self.to_kv(context), "b m (two h d) -> two b h m d", two=2, h=self.heads).unbind(0)

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor] | None = None) -> Tensor:  # (B, N, dim)
        q = rearrange(self.to_q(x), "b n (h d) -> b h n d", h=self.heads)
        k, v = keys_values if keys_values is not None else self.keys_values(x)
        out = attend(q, k, v)
        return self.out(rearrange(out, "b h n d -> b n (h d)"))


class TransformerLayer(nn.Module):
    """Pre-norm transformer layer: self-attention, cross-attention where a context is given, MLP of ratio 4."""

    def __init__(self, dim: int, heads: int, context_dim: int | None = None, dropout: float = 0.0):
        """dropout: of the MLP's hidden units, and of whole branches (stochastic depth, arXiv 1603.09382)."""
        super().__init__()
        self.rate = dropout
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        if context_dim is not None:
            self.norm_cross = nn.LayerNorm(dim)
            self.cross = Attention(dim, heads, context_dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, context: tuple[Tensor, Tensor] | None = None, key: Tensor | None = None) -> Tensor:
        """x: (B, N, dim); context: keys and values from `self.cross.keys_values`; key: int64 (B,), from which each
        sample's dropout is drawn, None for none. Returns (B, N, dim)."""
        x = x + dropped(self.attention(self.norm1(x)), self.rate, key, 1, whole=True)
        if context is not None:
            x = x + dropped(self.cross(self.norm_cross(x), context), self.rate, key, 2, whole=True)
        hidden = dropped(self.mlp[1](self.mlp[0](self.norm2(x))), self.rate, key, 3)
        return x + dropped(self.mlp[2](hidden), self.rate, key, 4, whole=True)
