"""The denoiser: noisy bits + conditions -> logits over the codes of each pixel.

TransUNet of Pix2Seq-D (arXiv 2210.06366, "Architecture"): a U-Net whose lowest level holds transformer layers with
self-attention over the mask's positions and cross-attention to the image's tokens. What depends on the conditions
alone - their part of the first convolution, the keys and values of cross-attention - is computed once a frame, and what
depends on the time alone for all steps together.
"""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from model.network.config import ModelConfig
from model.network.encoder import Features
from model.network.layers import (
    COORDINATES,
    ResidualBlock,
    TimeEmbedding,
    TransformerLayer,
    conv3x3,
    coordinates,
    group_norm,
    position_encoding,
    zero_init,
)
from model.network.operations import apply, conv_from_patches, resized, to_patches


class Condition(NamedTuple):
    """What one frame's denoising steps share: `first` (B, C, h, w), the conditions' part of the first convolution,
    for each transformer layer the keys and values (B, heads, N, d) of cross-attention, and the image's `detail` at mask
    size (B, pixel_dim, h, w), None as published."""

    first: Tensor
    cross: list[tuple[Tensor, Tensor]]
    detail: Tensor | None


class Modulation(NamedTuple):
    """What the network makes of N times: for each residual block scale and shift (N, 2 width), on the way down and then
    up, and for the transformer a `token` (N, D). One row serves any batch."""

    blocks: list[Tensor]
    token: Tensor

    def at(self, step: int) -> "Modulation":
        """That of one of the times."""
        return Modulation([m[step : step + 1] for m in self.blocks], self.token[step : step + 1])


Grid = tuple[int, int, int]  # (n, top, left): every n-th row and column of a mask, from row `top` and column `left` on


class TransUNet(nn.Module):
    recompute = False  # gradient checkpointing

    def __init__(self, c: ModelConfig):
        super().__init__()
        dim, time_dim, widths = c.dim, 4 * c.dim, [c.dim * m for m in c.multipliers]
        self.patch = c.patch
        bits, history_bits = (masks * c.bits * c.patch**2 for masks in (1, len(c.history_offsets)))
        self.time = TimeEmbedding(time_dim)
        # The first convolution is 1x1 over bits, history, image and place together; its parts are added.
        self.conv_in = nn.Conv2d(bits, dim, 1)
        self.conv_image = nn.Conv2d(c.map_channels, dim, 1)
        self.conv_history = nn.Conv2d(history_bits, dim, 1, bias=False) if history_bits else None
        self.conv_place = nn.Conv2d(COORDINATES, dim, 1, bias=False)
        self.pixel_place = nn.Conv2d(COORDINATES, c.pixel_dim, 1, bias=False)

        # One residual block a level on the way down, two on the way up
        self.down, self.downsample = nn.ModuleList(), nn.ModuleList()
        channels = dim
        for i, width in enumerate(widths):
            self.down.append(ResidualBlock(channels, width, time_dim))
            last = i == len(widths) - 1
            self.downsample.append(nn.Identity() if last else conv3x3(width, width, stride=2))
            channels = width

        tokens = c.transformer_dim
        self.to_tokens = nn.Conv2d(channels, tokens, 1)
        self.time_token = nn.Linear(time_dim, tokens)
        layers = (TransformerLayer(tokens, c.transformer_heads, c.encoder_dim) for _ in range(c.denoiser_depth))
        self.transformer = nn.ModuleList(layers)
        self.from_tokens = zero_init(nn.Conv2d(tokens, channels, 1))

        self.up = nn.ModuleList()
        for width in reversed(widths):
            blocks = [ResidualBlock(channels + width, width, time_dim), ResidualBlock(width, width, time_dim)]
            self.up.append(nn.ModuleList(blocks))
            channels = width
        self.norm_out = group_norm(dim)
        # Features of each pixel of a patch, then one answer for all pixels alike
        self.conv_patch = nn.Conv2d(dim, c.pixel_dim * c.patch**2, 1)
        self.conv_out = nn.Conv2d(c.pixel_dim, sum(c.code_sizes), 1)

    def condition(self, features: Features, history: Tensor | None) -> Condition:
        """features: of the image; history: analog bits (B, T * bits, h, w), zeros where unknown; None: all zeros."""
        first = self.conv_image(features.map)
        if history is not None and self.conv_history is not None:
            first = first + self.conv_history(to_patches(history.to(features.map.dtype), self.patch))
        place, pixel_place = self.places(*first.shape[-2:], first.device)
        cross = [layer.cross.keys_values(features.tokens) for layer in self.transformer]
        return Condition(first + place, cross, features.detail + pixel_place)

    def places(self, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """What the coordinates give to height x width positions and to their mask pixels, whatever the frame:
        (1, dim, height, width) and (1, pixel_dim, height * patch, width * patch)."""
        of_pixels = coordinates(height * self.patch, width * self.patch, device)
        return self.conv_place(coordinates(height, width, device)), self.pixel_place(of_pixels)

    def modulation(self, t: Tensor) -> Modulation:
        """t: times (N,) in [0, 1]."""
        time = self.time(t)  # (N, 4 dim)
        blocks = [*self.down, *(block for blocks in self.up for block in blocks)]
        return Modulation([block.time(time) for block in blocks], self.time_token(time))

    def forward(self, x: Tensor, t: Tensor | Modulation, condition: Condition, grid: Grid | None = None) -> Tensor:
        """x: noisy bits (B, bits, h, w); t: times (B,) in [0, 1], or what `modulation` made of them or of one for all.
        Returns (B, out_channels, h, w), or its rows and columns on the grid."""
        scales, token = t if isinstance(t, Modulation) else self.modulation(t)
        scales = iter(scales)
        # fmt: off
        x = to_patches(x, self.patch)                                         # (B, C, h, w) in patches from here on
        x = self.conv_in(x) + condition.first                                 # (B, dim, h, w)

        # Down
        skips = []
        for block, downsample in zip(self.down, self.downsample, strict=True):
            x = apply(block, x, next(scales), recompute=self.recompute)
            skips.append(x)
            x = downsample(x)                                                 # (B, width, h/2, w/2)

        # Transformer on the lowest level
        h, w = x.shape[-2:]
        tokens = rearrange(self.to_tokens(x), "b c h w -> b (h w) c")         # (B, N, D)
        tokens = tokens + position_encoding(h, w, tokens.shape[-1], x.device) + token[:, None]
        for layer, keys_values in zip(self.transformer, condition.cross, strict=True):
            tokens = apply(layer, tokens, keys_values, recompute=self.recompute)
        x = x + self.from_tokens(rearrange(tokens, "b (h w) c -> b c h w", h=h))

        # Up
        for blocks in self.up:
            skip = skips.pop()
            x = torch.cat([resized(x, skip.shape[-2:]), skip], dim=1)
            x = apply(blocks[0], x, next(scales), recompute=self.recompute)
            x = apply(blocks[1], x, next(scales), recompute=self.recompute)
        return self._answer(F.silu(self.norm_out(x)), grid, condition.detail) # (B, out_channels, h, w) in mask pixels
        # fmt: on

    def _answer(self, x: Tensor, grid: Grid | None, detail: Tensor) -> Tensor:
        """The last convolutions, where their answer is wanted. Raises ValueError for a stride that does not fit."""
        stride, top, left = grid or (1, 0, 0)
        if self.patch % stride:
            raise ValueError(f"a stride of {stride} does not divide the patch {self.patch}")
        weight, bias = self.conv_patch.weight, self.conv_patch.bias
        if stride > 1:
            pixels = torch.arange(weight.shape[0], device=x.device).view(-1, self.patch, self.patch)
            pixels = pixels[:, top::stride, left::stride].flatten()
            weight, bias = weight[pixels], bias[pixels]
        x = conv_from_patches(x, weight, bias, self.patch // stride) + detail[..., top::stride, left::stride]
        return self.conv_out(F.silu(x))
