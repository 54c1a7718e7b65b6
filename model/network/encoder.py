"""The image encoder: image -> (map to concatenate at mask size, tokens to attend to), once a frame.

Pix2Seq-D (arXiv 2210.06366, "Architecture"): a ResNet followed by transformer encoder layers, whose feature
maps of several resolutions are merged to the size of the mask as in a feature pyramid network (arXiv 1612.03144).
"""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from model.network.backbones import STRIDES, build_backbone
from model.network.config import ModelConfig
from model.network.layers import TransformerLayer, conv3x3, group_norm, position_encoding, zero_init
from model.network.operations import apply, dropped, resized

IMAGE_MEAN = (0.485, 0.456, 0.406)  # of ImageNet, RGB in [0, 1]: what the pre-trained weights expect
IMAGE_STD = (0.229, 0.224, 0.225)


class Features(NamedTuple):
    """What the denoiser needs of an image: `map` (B, C, h, w) at the size of its positions, `detail` (B, D, h, w) at
    mask size (None as published), and `tokens` (B, N, D)."""

    map: Tensor
    detail: Tensor | None
    tokens: Tensor


class ImageEncoder(nn.Module):
    """Backbone without its last stage, transformer layers on its stride-16 map, pyramid merged to the mask's size."""

    recompute = False  # gradient checkpointing
    place = staticmethod(position_encoding)  # of the tokens

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.dropout, self.patch = c.dropout, c.patch
        self.register_buffer("mean", torch.tensor(IMAGE_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGE_STD)[:, None, None], persistent=False)
        self.stem, self.pool, self.stages, channels = build_backbone(c.backbone, c.backbone_norm)
        self.to_tokens = nn.Conv2d(channels[-1], c.encoder_dim, 1)
        self.stem_norm = nn.Identity()
        layers = (TransformerLayer(c.encoder_dim, c.encoder_heads, dropout=c.dropout) for _ in range(c.encoder_depth))
        self.transformer = nn.ModuleList(layers)
        self.token_norm = nn.LayerNorm(c.encoder_dim)
        self.build_pyramid((*channels[:-1], c.encoder_dim), c)

    def build_pyramid(self, channels: tuple[int, ...], c: ModelConfig) -> None:
        """Down to the finest level that is not coarser than the map, and for the detail to the stem. channels: of the
        levels at STRIDES."""
        self.map_level = max((n for n, stride in enumerate(STRIDES) if stride <= c.map_stride), default=0)
        finest, out, dim = min(1, self.map_level), c.map_channels, c.pixel_dim
        laterals = {str(n): nn.Conv2d(width, out, 1) for n, width in enumerate(channels) if n >= finest}
        self.lateral = nn.ModuleDict(laterals)
        self.merge = nn.Sequential(conv3x3(out, out), group_norm(out), nn.SiLU())
        self.detail_stem = nn.Conv2d(channels[0], dim, 1)
        self.detail_map = nn.Conv2d(out, dim, 1)
        self.detail = nn.Sequential(group_norm(dim), nn.SiLU(), zero_init(conv3x3(dim, dim)))

    def forward(self, image: Tensor, mask_size: tuple[int, int], key: Tensor | None = None) -> Features:
        """image: float (B, 3, H, W) in [0, 1]; mask_size: (h, w) of the mask, and so of the detail; key: int64 (B,),
        what each sample's dropout is drawn from, None for none."""
        # fmt: off
        # Backbone
        x = (image - self.mean) / self.std                                   # (B, 3, H, W)
        levels = [self.stem(x)]                                              # (B, C, H/2, W/2)
        x = self.pool(levels[0])
        for stage in self.stages:
            x = apply(stage, x, recompute=self.recompute)
            levels.append(x)                                                 # (B, C, H/4 ... H/16, ...)

        # Transformer encoder on the coarsest level
        h, w = x.shape[-2:]
        x = dropped(x, self.dropout, key)
        tokens = self.stem_norm(rearrange(self.to_tokens(x), "b c h w -> b (h w) c"))
        tokens = tokens + self.place(h, w, tokens.shape[-1], x.device)
        for n, layer in enumerate(self.transformer):
            layer_key = None if key is None else key + 8 * (n + 1)
            tokens = apply(layer, tokens, None, layer_key, recompute=self.recompute)
        tokens = self.token_norm(tokens)                                     # (B, N, D)
        levels[-1] = rearrange(tokens, "b (h w) c -> b c h w", h=h).to(x.dtype)
        # fmt: on
        return Features(*self.merged(levels, mask_size), tokens)

    def merged(self, levels: list[Tensor], mask_size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """levels: (B, C, h, w) each, at STRIDES. Returns the map and the detail of `Features`."""
        # fmt: off
        # From coarse to fine until the map's level is reached
        merged = self.lateral[str(len(levels) - 1)](levels[-1])
        for n in reversed(range(self.map_level, len(levels) - 1)):
            merged = self._finer(merged, levels, n)
        merged = resized(merged, [n // self.patch for n in mask_size], "bilinear")
        merged = self.merge(merged)                                          # (B, C, h, w)

        # Detail: on to the stem's level, then to the mask's size
        y = merged
        for n in reversed(range(1, self.map_level)):
            y = self._finer(y, levels, n)                                    # (B, C, H/4, W/4)
        y = resized(self.detail_map(y), levels[0].shape[-2:])
        detail = self.detail(self.detail_stem(levels[0]) + y)                # (B, D, H/2, W/2)
        return merged, resized(detail, mask_size, "bilinear")                # (B, C, h, w), (B, D, *mask_size)
        # fmt: on

    def _finer(self, merged: Tensor, levels: list[Tensor], n: int) -> Tensor:
        """The pyramid's next level: level n and what is merged of the coarser ones."""
        y = self.lateral[str(n)](levels[n])
        return y + resized(merged, y.shape[-2:])
