"""The image encoder: image -> (map to concatenate at mask size, tokens to attend to), once a frame.

Pix2Seq-D (arXiv 2210.06366, section 3.2 and figure 4): a ResNet followed by transformer encoder layers, whose feature
maps of several resolutions are merged to the size of the mask as in a feature pyramid network (arXiv 1612.03144).
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from model.network.backbones import STRIDES, build_backbone
from model.network.layers import (
    TransformerLayer,
    apply,
    conv3x3,
    dropped,
    group_norm,
    position_encoding,
    resized,
    zero_init,
)

IMAGE_MEAN = (0.485, 0.456, 0.406)  # of ImageNet, RGB in [0, 1]: what the pre-trained weights expect
IMAGE_STD = (0.229, 0.224, 0.225)


class Features(NamedTuple):
    """What the denoiser needs of an image: `map` (B, C, h, w) at the size of its positions, `tokens` (B, N, D), and
    where it is wanted `detail` (B, D, h, w) at mask size."""

    map: Tensor
    tokens: Tensor
    detail: Tensor | None = None


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


class ImageEncoder(nn.Module):
    """Backbone without its last stage, transformer layers on its stride-16 map, pyramid merged to the mask's size."""

    recompute = False  # gradient checkpointing

    def __init__(
        self,
        backbone: str,
        norm: str,
        dim: int,
        depth: int,
        heads: int,
        map_channels: int,
        map_stride: float,
        detail: int = 0,
        dropout: float = 0.0,
        published: bool = False,
    ):
        """map_channels, map_stride: channels of the map for the denoiser, and image pixels from one position of it to
        the next; detail: channels of the features at mask size, 0 for none; published: the pyramid of the released
        code, its norm of the tokens and its places of them."""
        super().__init__()
        self.dropout, self.detail = dropout, None
        self.register_buffer("mean", torch.tensor(IMAGE_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGE_STD)[:, None, None], persistent=False)
        self.stem, self.pool, self.stages, channels = build_backbone(backbone, norm)
        self.to_tokens = nn.Conv2d(channels[-1], dim, 1)
        self.transformer = nn.ModuleList(TransformerLayer(dim, heads, dropout=dropout) for _ in range(depth))
        self.token_norm = nn.LayerNorm(dim)
        self.published = Pyramid((*channels[1:-1], dim), map_channels, map_stride) if published else None
        if published:
            self.stem_norm = nn.LayerNorm(dim)
            return
        # The pyramid goes down to the finest level that is not coarser than the map, and with a detail to the stem.
        self.map_level = max((n for n, stride in enumerate(STRIDES) if stride <= map_stride), default=0)
        finest = min(1, self.map_level) if detail else self.map_level
        self.lateral = nn.ModuleDict(
            {str(n): nn.Conv2d(c, map_channels, 1) for n, c in enumerate((*channels[:-1], dim)) if n >= finest}
        )
        self.merge = nn.Sequential(conv3x3(map_channels, map_channels), group_norm(map_channels), nn.SiLU())
        if detail:
            self.detail_stem = nn.Conv2d(channels[0], detail, 1)
            self.detail_map = nn.Conv2d(map_channels, detail, 1)
            self.detail = nn.Sequential(group_norm(detail), nn.SiLU(), zero_init(conv3x3(detail, detail)))

    def forward(
        self,
        image: Tensor,
        map_size: tuple[int, int],
        mask_size: tuple[int, int] | None = None,
        key: Tensor | None = None,
    ) -> Features:
        """image: float (B, 3, H, W) in [0, 1]; map_size, mask_size: (h, w) of the map and of the detail returned;
        key: int64 (B,), what each sample's dropout is drawn from, None for none."""
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
        if key is not None:
            x = dropped(x, self.dropout, key)
        tokens = rearrange(self.to_tokens(x), "b c h w -> b (h w) c")        # (B, N, D)
        if self.published:
            tokens = self.stem_norm(tokens)
        tokens = tokens + position_encoding(h, w, tokens.shape[-1], x.device, relative=self.published is not None)
        for n, layer in enumerate(self.transformer):
            layer_key = None if key is None else key + 8 * (n + 1)
            tokens = apply(layer, tokens, None, layer_key, recompute=self.recompute)
        tokens = self.token_norm(tokens)

        # Pyramid: from coarse to fine until the map's level is reached
        levels[-1] = rearrange(tokens, "b (h w) c -> b c h w", h=h).to(x.dtype)
        if self.published:
            return Features(self.published(levels[1:], map_size), tokens)
        merged = self.lateral[str(len(levels) - 1)](levels[-1])
        for n in reversed(range(self.map_level, len(levels) - 1)):
            merged = self._finer(merged, levels, n)
        merged = resized(merged, map_size, "bilinear")
        merged = self.merge(merged)                                          # (B, C, h, w)

        # Detail: on to the stem's level, then to the mask's size
        detail = None
        if self.detail is not None:
            y = merged
            for n in reversed(range(1, self.map_level)):
                y = self._finer(y, levels, n)                                # (B, C, H/4, W/4)
            y = resized(self.detail_map(y), levels[0].shape[-2:])
            detail = self.detail(self.detail_stem(levels[0]) + y)            # (B, D, H/2, W/2)
            detail = resized(detail, mask_size, "bilinear")
        return Features(merged, tokens, detail)                              # (B, D, h, w)
        # fmt: on

    def _finer(self, merged: Tensor, levels: list[Tensor], n: int) -> Tensor:
        """The pyramid's next level: level n and what is merged of the coarser ones."""
        y = self.lateral[str(n)](levels[n])
        return y + resized(merged, y.shape[-2:])
