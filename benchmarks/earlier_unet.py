"""The earlier repository's U-Net, rebuilt from its structure, as what benchmarks/speed.py compares with.

What a step of it computes, on all of the mask's positions: a 7x7 convolution of everything (noisy bits, last estimate,
history, 24 channels of image features); at each level two residual blocks and linear attention (arXiv 1812.01243), on
the way down twice, once with the image's features as context and once with itself; attention at the bottom; and
on the way up the skips of both blocks. 9.6 M parameters at dim 32, as the original has. Nothing is computed once a
frame but the image's features.
"""

import itertools
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.earlier_design import EarlierDesign
from model import ModelConfig
from model.network.encoder import Features
from model.network.layers import TimeEmbedding

HEADS, HEAD_DIM = 4, 32
EMBEDDING = 24  # channels of the image's features that join the input


class ChannelNorm(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, h, w)
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class ContextAttention(nn.Module):
    """x + attention(norm(x), norm(context)); linear: softmax of queries over channels and of keys over positions."""

    def __init__(self, channels: int, linear: bool):
        super().__init__()
        self.linear, inner = linear, HEADS * HEAD_DIM
        self.norm = ChannelNorm(channels)
        self.to_q = nn.Conv2d(channels, inner, 1, bias=False)
        self.to_kv = nn.Conv2d(channels, 2 * inner, 1, bias=False)
        out = nn.Conv2d(inner, channels, 1)
        self.out = nn.Sequential(out, ChannelNorm(channels)) if linear else out

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        normed = self.norm(x)
        q = self.to_q(normed)
        k, v = self.to_kv(normed if context is None else self.norm(context)).chunk(2, dim=1)
        q, k, v = (rearrange(m, "b (n d) h w -> b n d (h w)", n=HEADS) for m in (q, k, v))
        if self.linear:
            summary = k.softmax(dim=-1) @ (v / v.shape[-1]).transpose(-1, -2)  # (B, heads, d, d)
            answer = summary.transpose(-1, -2) @ (q.softmax(dim=-2) * HEAD_DIM**-0.5)
        else:
            weights = ((q * HEAD_DIM**-0.5).transpose(-1, -2) @ k).softmax(dim=-1)
            answer = v @ weights.transpose(-1, -2)
        return x + self.out(rearrange(answer, "b n d (h w) -> b (n d) h w", h=x.shape[-2]))


class Block(nn.Module):
    """conv - GroupNorm - SiLU, twice, the first norm scaled and shifted by the time."""

    def __init__(self, in_channels: int, out_channels: int, time_dim: int):
        super().__init__()
        self.time = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, 2 * out_channels))
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm1, self.norm2 = nn.GroupNorm(8, out_channels), nn.GroupNorm(8, out_channels)
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.time(time)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(self.norm1(self.conv1(x)) * (scale + 1) + shift)
        return F.silu(self.norm2(self.conv2(h))) + self.skip(x)


class EarlierUNet(nn.Module):
    def __init__(self, bits: int, history_masks: int, dim: int, multipliers: Sequence[int]):
        super().__init__()
        time_dim = 4 * dim
        widths = [dim, *(dim * m for m in multipliers)]
        self.contexts = widths  # channels of the image's features at each level, and at the bottom
        self.time = TimeEmbedding(time_dim)
        self.conv_in = nn.Conv2d(bits * (2 + history_masks) + EMBEDDING, dim, 7, padding=3)

        def level(first: int, second: int, width: int, resize: nn.Module) -> nn.ModuleList:
            blocks = Block(first, width, time_dim), Block(second, width, time_dim)
            return nn.ModuleList([*blocks, ContextAttention(width, linear=True), resize])

        pairs = list(itertools.pairwise(widths))
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for i, (here, below) in enumerate(pairs):
            last = i == len(pairs) - 1
            resize = nn.Conv2d(here, below, 3, padding=1) if last else nn.Conv2d(here, below, 4, 2, 1)
            self.down.append(level(here, here, here, resize))
        self.middle = nn.ModuleList(
            [Block(below, below, time_dim), ContextAttention(below, linear=False), Block(below, below, time_dim)]
        )
        for i, (here, below) in enumerate(reversed(pairs)):
            resize = nn.Conv2d(below, here, 3, padding=1)
            last = i == len(pairs) - 1
            resize = resize if last else nn.Sequential(nn.Upsample(scale_factor=2), resize)
            self.up.append(level(below + here, below + here, below, resize))
        self.last = Block(2 * dim, dim, time_dim)
        self.conv_out = nn.Conv2d(dim, bits, 1)

    def forward(self, x: Tensor, t: Tensor, pyramid: list[Tensor]) -> Tensor:
        """x: all inputs (B, C, h, w); pyramid: the image's features of each level and of the bottom."""
        x = self.conv_in(x)
        first, time, skips = x, self.time(t), []
        for (block1, block2, attention, resize), context in zip(self.down, pyramid[:-1], strict=True):
            x = block1(x, time)
            skips.append(x)
            x = attention(attention(block2(x, time), context))
            skips.append(x)
            x = resize(x)
        block1, attention, block2 = self.middle
        x = block2(attention(block1(x, time), pyramid[-1]), time)
        for block1, block2, attention, resize in self.up:
            x = block1(torch.cat([x, skips.pop()], dim=1), time)
            x = resize(attention(block2(torch.cat([x, skips.pop()], dim=1), time)))
        return self.conv_out(self.last(torch.cat([x, first], dim=1), time))


class EarlierReference(EarlierDesign):
    """The earlier design with its own U-Net: what it cost, and not what it learnt. The mask's sides are multiples of
    2 for each level but the last."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        c = config
        self.denoiser = EarlierUNet(c.bits, len(c.history_offsets), c.dim, c.multipliers)
        self.neck = nn.ModuleList(nn.Conv2d(c.map_channels, n, 1) for n in (EMBEDDING, *self.denoiser.contexts))

    def condition(self, features: Features, history: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        embed, *levels = self.neck
        depth = len(levels) - 2  # the bottom is as large as the last level
        maps = [F.avg_pool2d(features.map, 2 ** min(i, depth)) for i in range(len(levels))]
        return embed(features.map), [level(m) for level, m in zip(levels, maps, strict=True)], history

    def predict(self, x: Tensor, t: Tensor, condition, x0_previous: Tensor | None = None, grid=None) -> Tensor:
        embedding, pyramid, history = condition
        x0_previous = torch.zeros_like(x) if x0_previous is None else x0_previous
        return self.denoiser(torch.cat([history, x0_previous, embedding, x], dim=1), t, pyramid).float()
