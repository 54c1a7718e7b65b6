"""Encoder and denoiser of Pix2Seq-D as released (google-research/pix2seq, architectures/transunet.py), layer for layer.

How this denoiser differs from unet.py: the first convolution has a norm. Skips are taken after each block and each
downsampling, so a level on the way up has two. Upsampling ends with a convolution. A sum of two is divided by sqrt 2.
The lowest level is the transformer's output, not added to its input, and the time is one more token there. Norms have
up to 32 groups of four channels or more. The answer is a 1x1 convolution. The time input is gamma(t), not t.
"""

import math
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from model.diffusion.schedule import gamma
from model.network.backbones import STRIDES
from model.network.config import ModelConfig
from model.network.encoder import Features, ImageEncoder
from model.network.layers import (
    Attention,
    ResidualBlock,
    TimeEmbedding,
    TransformerLayer,
    conv3x3,
    group_norm,
    on_grid,
    sinusoid,
    zero_init,
)
from model.network.operations import apply, resized
from model.network.unet import Condition, Grid, Modulation, TransUNet

SMALLEST_GROUP = 4  # channels
TIME_FACTOR = 1e4  # of gamma before its sinusoid


def relative_encoding(height: int, width: int, dim: int, device: torch.device) -> Tensor:
    """As `position_encoding`, of positions from 0 to 2 pi over the map (architectures/transformers.py)."""
    places = (torch.arange(n, device=device) * (2 * math.pi / max(n - 1, 1)) for n in (height, width))
    y, x = (sinusoid(place, dim // 2, max_period=10_000.0) for place in places)
    return on_grid(y, x).flatten(0, 1)


class ScaledBlock(ResidualBlock):
    """With norms of smaller groups, and a sum that is divided by sqrt 2."""

    def __init__(self, in_channels: int, out_channels: int, time_dim: int):
        super().__init__(in_channels, out_channels, time_dim)
        self.norm1, self.norm2 = (group_norm(n, SMALLEST_GROUP) for n in (in_channels, out_channels))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        return super().forward(x, modulation) * math.sqrt(0.5)


class Pyramid(nn.Module):
    """The merge of the levels in the released code of Pix2Seq-D (architectures/convnet_blocks.py, FeaturePyramidMerge).

    A step takes what is merged so far through a 1x1 convolution and up to the next level, adds that, and ends with a
    3x3 convolution; a last one goes to the map's size. Levels that are finer than the map are left out.
    """

    def __init__(self, channels: tuple[int, ...], out_channels: int, map_stride: float):
        """channels: of the levels at strides 4, 8, 16; out_channels, map_stride: of the merged map."""
        super().__init__()
        finest = min(sum(stride < map_stride for stride in STRIDES[1:]), len(channels) - 1)
        self.levels = list(range(len(channels) - 2, finest - 1, -1))  # those that are added, from coarse to fine
        widths = [channels[-1], *(channels[n] for n in self.levels), out_channels]
        self.steps = nn.ModuleList(
            nn.ModuleList(
                [nn.Conv2d(into, out, 1), group_norm(out, 4), conv3x3(out, out), group_norm(out, 4)],
            )
            for into, out in pairwise(widths)
        )

    def forward(self, levels: list[Tensor], map_size: tuple[int, int]) -> Tensor:
        """levels: (B, C, h, w) each, at strides 4, 8, 16. Returns (B, out_channels, *map_size)."""
        merged = levels[-1]
        for (conv1, norm1, conv2, norm2), n in zip(self.steps, [*self.levels, None], strict=True):
            merged = F.silu(norm1(conv1(merged)))
            size = map_size if n is None else levels[n].shape[-2:]
            merged = resized(merged, size)
            if n is not None:
                merged = merged + levels[n]
            merged = F.silu(norm2(conv2(merged)))
        return merged


class PublishedEncoder(ImageEncoder):
    """With the released code's pyramid, a norm of the tokens before the transformer, and relative places of them."""

    place = staticmethod(relative_encoding)

    def build_pyramid(self, channels: tuple[int, ...], c: ModelConfig) -> None:
        self.stem_norm = nn.LayerNorm(channels[-1])
        self.pyramid = Pyramid(channels[1:], c.map_channels, c.map_stride)

    def merged(self, levels: list[Tensor], mask_size: tuple[int, int]) -> tuple[Tensor, None]:
        return self.pyramid(levels[1:], mask_size), None


class PublishedUNet(TransUNet):
    """With the inputs and outputs of a TransUNet."""

    def __init__(self, c: ModelConfig):
        nn.Module.__init__(self)
        bits, history_bits, dim, inner = c.bits, c.bits * len(c.history_offsets), c.dim, c.transformer_dim
        time_dim, widths = 4 * dim, [dim * m for m in c.multipliers]
        self.time = TimeEmbedding(time_dim, waves=dim, factor=TIME_FACTOR)
        self.conv_in = nn.Conv2d(bits, dim, 1)
        self.conv_image = nn.Conv2d(c.map_channels, dim, 1, bias=False)
        self.conv_history = nn.Conv2d(history_bits, dim, 1, bias=False) if history_bits else None
        self.norm_in = group_norm(dim, SMALLEST_GROUP)

        # Down: a block, then a convolution of stride 2 but on the lowest level
        self.down, self.downsample = nn.ModuleList(), nn.ModuleList()
        channels, skips = dim, [dim]
        for i, width in enumerate(widths):
            self.down.append(ScaledBlock(channels, width, time_dim))
            skips.append(width)
            if i < len(widths) - 1:
                self.downsample.append(nn.Conv2d(width, width, 3, stride=2))
                skips.append(width)
            channels = width

        self.norm_tokens = group_norm(channels, SMALLEST_GROUP)
        self.to_tokens = nn.Conv2d(channels, inner, 1)
        self.time_token = nn.Linear(time_dim, inner)
        layers = (TransformerLayer(inner, c.transformer_heads, c.encoder_dim) for _ in range(c.denoiser_depth))
        self.transformer = nn.ModuleList(layers)
        self.norm_map = group_norm(inner, SMALLEST_GROUP)
        self.from_tokens = nn.Conv2d(inner, inner, 1)

        # Up: two blocks, each with a skip, then upsampling and a convolution but on the highest level
        self.up, self.upsample = nn.ModuleList(), nn.ModuleList()
        channels = inner
        for i, width in reversed(list(enumerate(widths))):
            inputs = channels + skips.pop(), width + skips.pop()
            self.up.append(nn.ModuleList(ScaledBlock(into, width, time_dim) for into in inputs))
            if i > 0:
                self.upsample.append(conv3x3(width, width))
            channels = width
        self.norm_out = group_norm(dim, SMALLEST_GROUP)
        self.conv_out = zero_init(nn.Conv2d(dim, sum(c.code_sizes), 1))

    def condition(self, features: Features, history: Tensor | None) -> Condition:
        first = self.conv_image(features.map)
        if history is not None and self.conv_history is not None:
            first = first + self.conv_history(history.to(first.dtype))
        return Condition(first, [layer.cross.keys_values(features.tokens) for layer in self.transformer], None)

    def modulation(self, t: Tensor) -> Modulation:
        return super().modulation(gamma(t))

    def forward(self, x: Tensor, t: Tensor | Modulation, condition: Condition, grid: Grid | None = None) -> Tensor:
        """As TransUNet.forward."""
        scales, token = t if isinstance(t, Modulation) else self.modulation(t)
        scales = iter(scales)
        # fmt: off
        x = self.norm_in(self.conv_in(x) + condition.first)                   # (B, dim, h, w)

        # Down
        skips = [x]
        for i, block in enumerate(self.down):
            x = apply(block, x, next(scales), recompute=self.recompute)
            skips.append(x)
            if i < len(self.downsample):
                x = self.downsample[i](padded(x))                             # (B, width, h/2, w/2)
                skips.append(x)

        # Transformer on the lowest level, with the time as its last token
        h, w = x.shape[-2:]
        tokens = rearrange(self.to_tokens(self.norm_tokens(x)), "b c h w -> b (h w) c")
        tokens = tokens + relative_encoding(h, w, tokens.shape[-1], x.device)
        token = token[:, None].expand(len(tokens), -1, -1).to(tokens.dtype)
        tokens = torch.cat([tokens, token], dim=1)                            # (B, N + 1, D)
        for layer, keys_values in zip(self.transformer, condition.cross, strict=True):
            tokens = apply(layer, tokens, keys_values, recompute=self.recompute)
        x = rearrange(tokens[:, :-1], "b (h w) c -> b c h w", h=h).to(x.dtype)
        x = self.from_tokens(self.norm_map(x))                                # (B, D, h, w)

        # Up
        for i, blocks in enumerate(self.up):
            for block in blocks:
                x = apply(block, torch.cat([x, skips.pop()], dim=1), next(scales), recompute=self.recompute)
            if i < len(self.upsample):
                x = self.upsample[i](resized(x, skips[-1].shape[-2:]))
        x = F.silu(self.norm_out(x))
        stride, top, left = grid or (1, 0, 0)
        return self.conv_out(x[..., top::stride, left::stride])               # (B, out_channels, h, w)
        # fmt: on


def padded(x: Tensor) -> Tensor:
    """For a kernel of 3 and a stride of 2, as TensorFlow's "SAME": a side that is even at its end alone."""
    return F.pad(x, (x.shape[-1] % 2, 1, x.shape[-2] % 2, 1))


def initialize(model: nn.Module) -> None:
    """As the released code begins: convolutions and linear layers but the backbone's from a uniform distribution of
    variance 2 / (inputs + outputs) (Glorot and Bengio, 2010), biases zero; the last layers of branches and network
    zero. The history's kernels are zero until a history has been seen."""
    backbone = {*model.encoder.stem.modules(), *model.encoder.stages.modules()}
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module not in backbone:
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, Attention):  # of kernels (inputs, heads, width of a head) Keras counts more of both
            dim, heads = module.out.in_features, module.heads
            for layer in (module.to_q, module.to_kv):
                _uniform(layer.weight, layer.in_features * (heads + dim // heads))
            _uniform(module.out.weight, dim + dim * heads)
    denoiser = model.denoiser
    parts = denoiser.conv_in, denoiser.conv_image
    for part in parts:  # one convolution there, of images without a history
        _uniform(part.weight, sum(p.in_channels for p in parts) + part.out_channels)
    zero = [m.conv2 for m in model.modules() if isinstance(m, ResidualBlock)]
    for module in (*zero, denoiser.conv_out):
        zero_init(module)
    if denoiser.conv_history is not None:
        nn.init.zeros_(denoiser.conv_history.weight)


def _uniform(weight: Tensor, inputs_and_outputs: int) -> None:
    bound = math.sqrt(6 / inputs_and_outputs)
    nn.init.uniform_(weight, -bound, bound)
