"""Blocks and attention that the encoder and the denoiser are built from."""

import contextlib
import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from model.network.dropout import dropped


class GroupNorm(nn.GroupNorm):
    """Group norm in its input's type, on a GPU too, where autocast would make float32 of each bfloat16 map, and of what
    follows it. The kernel sums in float32 in any case."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cuda":  # a CPU's autocast leaves it alone, and weights may be of another type
            return super().forward(x)
        with torch.autocast("cuda", enabled=False):
            y = F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
        return y.contiguous(memory_format=torch.channels_last)  # what it was, which older CUDA kernels lose


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


def resized(x: Tensor, size: Sequence[int], mode: str = "nearest") -> Tensor:
    """x (B, C, h, w) -> (B, C, *size) in its own type, of which a GPU's autocast would make float32."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    with torch.autocast("cuda", enabled=False) if x.device.type == "cuda" else contextlib.nullcontext():
        return F.interpolate(x, tuple(size), mode=mode, align_corners=False if mode == "bilinear" else None)


def to_patches(x: Tensor, patch: int) -> Tensor:
    """(B, C, h p, w p) -> (B, C p p, h, w), as `pixel_unshuffle`, but channels-last stays channels-last."""
    return rearrange(x, "b c (h p) (w q) -> b h w (c p q)", p=patch, q=patch).permute(0, 3, 1, 2)


def conv_from_patches(x: Tensor, weight: Tensor, bias: Tensor, patch: int) -> Tensor:
    """A 1x1 convolution, then `pixel_shuffle`: (B, D, h, w) -> (B, C, h p, w p), channels-last.

    weight: (C p p, D, 1, 1), bias: (C p p,). The outputs are computed pixel by pixel of the patch, so that the shuffle
    copies all channels of a row of the patch at once: 4 times as fast on a CPU.
    """
    weight, bias = (rearrange(n, "(c p) ... -> (p c) ...", p=patch**2) for n in (weight, bias))
    x = F.conv2d(x, weight, bias)
    return rearrange(x, "b (p q c) h w -> b (h p) (w q) c", p=patch, q=patch).permute(0, 3, 1, 2)


def apply(module: nn.Module, *inputs, recompute: bool):
    """module(*inputs); with `recompute`, in training, its activations are computed again for the gradient instead of
    kept (gradient checkpointing, arXiv 1604.06174)."""
    if recompute and module.training and torch.is_grad_enabled():
        return checkpoint(module, *inputs, use_reentrant=False)
    return module(*inputs)


def sinusoid(position: Tensor, dim: int, max_period: float) -> Tensor:
    """Sine and cosine encoding (Vaswani et al., arXiv 1706.03762, section 3.5): (N,) -> (N, dim)."""
    frequency = torch.exp(-math.log(max_period) * torch.arange(dim // 2, device=position.device) / (dim // 2))
    angle = position.float()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def position_encoding(height: int, width: int, dim: int, device: torch.device, relative: bool = False) -> Tensor:
    """2-D sine-cosine encoding, half of the channels for y and half for x: (height * width, dim).

    Computed, not learned, so that one set of weights runs at any size: from positions counted in tokens, or, where
    relative, from 0 to 2 pi over the map, as in the released code of Pix2Seq-D (architectures/transformers.py).
    """
    places = [
        torch.arange(n, device=device) * (2 * math.pi / max(n - 1, 1) if relative else 1) for n in (height, width)
    ]
    y, x = (sinusoid(place, dim // 2, max_period=10_000.0 if relative else 1000.0) for place in places)
    grid = torch.cat([y[:, None].expand(-1, width, -1), x[None].expand(height, -1, -1)], dim=-1)
    return grid.flatten(0, 1)


COORDINATES = 28  # channels of `coordinates`


def coordinates(height: int, width: int, device: torch.device) -> Tensor:
    """Where each position lies in the picture, as fractions of its size: (1, COORDINATES, height, width).

    Sine and cosine of both axes at 1/2, 1, 2 ... 32 periods across the picture. A convolution does not know where it is
    (CoordConv, arXiv 1807.03247); slots that are given out by place need it, as in SOLO (arXiv 1912.04488, 3.3).
    """
    frequency = torch.pi * 2.0 ** torch.arange(COORDINATES // 4, device=device)
    y, x = ((torch.arange(n, device=device) + 0.5)[:, None] / n * frequency for n in (height, width))
    y, x = (torch.cat([a.sin(), a.cos()], dim=-1) for a in (y, x))  # (n, 14)
    grid = torch.cat([y[:, None].expand(-1, width, -1), x[None].expand(height, -1, -1)], dim=-1)
    return grid[None].permute(0, 3, 1, 2)  # channels-last


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

    def __init__(self, in_channels: int, out_channels: int, time_dim: int, smallest: int = 16, factor: float = 1.0):
        """smallest: channels of a group of the norms, at least; factor: of the sum of branch and skip."""
        super().__init__()
        self.factor = factor
        self.norm1 = group_norm(in_channels, smallest)
        self.conv1 = conv3x3(in_channels, out_channels)
        self.time = nn.Linear(time_dim, 2 * out_channels)
        self.norm2 = group_norm(out_channels, smallest)
        self.conv2 = zero_init(conv3x3(out_channels, out_channels))
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """x: (B, in, h, w); modulation: scale and shift (B, 2 out), from `self.time`. Returns (B, out, h, w)."""
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = modulation[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        h = self.skip(x) + self.conv2(F.silu(h))
        return h if self.factor == 1 else h * self.factor


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


FUSED = torch.cpu.get_capabilities().get("amx_bf16", False)  # attention in bfloat16 on a CPU, where its kernel uses AMX


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for (B, heads, N, d). In bfloat16 inference on a CPU without AMX two plain products,
    in half the time of PyTorch's fused kernel at some hundreds of tokens. With AMX that kernel takes half of theirs."""
    if FUSED or q.device.type != "cpu" or q.dtype != torch.bfloat16 or torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v)
    scores = torch.bmm(q.flatten(0, 1) * q.shape[-1] ** -0.5, k.flatten(0, 1).transpose(1, 2))
    return torch.bmm(scores.softmax(dim=-1), v.flatten(0, 1)).unflatten(0, q.shape[:2])


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
        x = x + self._branch(self.attention(self.norm1(x)), key, 1)
        if context is not None:
            x = x + self._branch(self.cross(self.norm_cross(x), context), key, 2)
        hidden = self.mlp[1](self.mlp[0](self.norm2(x)))
        if key is not None:
            hidden = dropped(hidden, self.rate, key + 3)
        return x + self._branch(self.mlp[2](hidden), key, 4)

    def _branch(self, branch: Tensor, key: Tensor | None, number: int) -> Tensor:
        return branch if key is None else dropped(branch, self.rate, key + number, whole=True)
