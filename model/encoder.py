"""The image encoder: image -> (map to concatenate at mask size, tokens to attend to), once a frame.

Pix2Seq-D (arXiv 2210.06366, section 3.2 and figure 4): a ResNet followed by transformer encoder layers, whose feature
maps of several resolutions are merged to the size of the mask as in a feature pyramid network (arXiv 1612.03144).
"""

import zipfile
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from model.checkpoint import CheckpointError
from model.layers import TransformerLayer, apply, conv3x3, group_norm, position_encoding, zero_init
from model.verify import Refused, verify

IMAGE_MEAN = (0.485, 0.456, 0.406)  # of ImageNet, RGB in [0, 1]: what the pre-trained weights expect
IMAGE_STD = (0.229, 0.224, 0.225)

# name -> (block, blocks in the first three stages, channels of stem and stages)
BACKBONES = {
    "resnet10": (torchvision.models.resnet.BasicBlock, (1, 1, 1), (64, 64, 128, 256)),
    "resnet14": (torchvision.models.resnet.BasicBlock, (2, 2, 1), (64, 64, 128, 256)),
    "resnet18": (torchvision.models.resnet.BasicBlock, (2, 2, 2), (64, 64, 128, 256)),
    "resnet50": (torchvision.models.resnet.Bottleneck, (3, 4, 6), (64, 256, 512, 1024)),
}


class Features(NamedTuple):
    """What the denoiser needs of an image: `map` (B, C, h, w) at the size of its positions, `tokens` (B, N, D), and
    where it is wanted `detail` (B, D, h, w) at mask size."""

    map: Tensor
    tokens: Tensor
    detail: Tensor | None = None


class ImageEncoder(nn.Module):
    """ResNet without its last stage, transformer layers on its stride-16 map, pyramid merged to the mask's size."""

    recompute = False  # gradient checkpointing

    def __init__(self, backbone: str, norm: str, dim: int, depth: int, heads: int, map_channels: int, detail: int = 0):
        """map_channels, detail: channels of the features at the denoiser's positions and at mask size."""
        super().__init__()
        block, blocks, channels = BACKBONES[backbone]
        norm_layer = FrozenBatchNorm2d if norm == "frozen_batch" else group_norm
        resnet = torchvision.models.ResNet(block, [*blocks, 1], norm_layer=norm_layer)
        self.stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu)  # stride 2
        self.pool = resnet.maxpool
        self.stages = nn.ModuleList([resnet.layer1, resnet.layer2, resnet.layer3])  # strides 4, 8, 16
        self.to_tokens = nn.Conv2d(channels[-1], dim, 1)
        self.transformer = nn.ModuleList(TransformerLayer(dim, heads) for _ in range(depth))
        self.token_norm = nn.LayerNorm(dim)
        self.lateral = nn.ModuleList(nn.Conv2d(c, map_channels, 1) for c in (*channels[:-1], dim))
        self.merge = nn.Sequential(conv3x3(map_channels, map_channels), group_norm(map_channels), nn.SiLU())
        self.detail = None
        if detail:
            norm_act = group_norm(detail), nn.SiLU()
            self.detail = nn.Sequential(
                conv3x3(map_channels, detail), *norm_act, zero_init(nn.Conv2d(detail, 4 * detail, 1))
            )
        self.register_buffer("mean", torch.tensor(IMAGE_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGE_STD)[:, None, None], persistent=False)

    def forward(self, image: Tensor, map_size: tuple[int, int], mask_size: tuple[int, int] | None = None) -> Features:
        """image: float (B, 3, H, W) in [0, 1]; map_size, mask_size: (h, w) of the map and of the detail returned."""
        # fmt: off
        # Backbone
        x = (image - self.mean) / self.std                                   # (B, 3, H, W)
        levels = [self.stem(x)]                                              # (B, 64, H/2, W/2)
        x = self.pool(levels[0])
        for stage in self.stages:
            x = apply(stage, x, recompute=self.recompute)
            levels.append(x)                                                 # (B, C, H/4 ... H/16, ...)

        # Transformer encoder on the coarsest level
        h, w = x.shape[-2:]
        tokens = rearrange(self.to_tokens(x), "b c h w -> b (h w) c")        # (B, N, D)
        tokens = tokens + position_encoding(h, w, tokens.shape[-1], x.device)
        for layer in self.transformer:
            tokens = apply(layer, tokens, recompute=self.recompute)
        tokens = self.token_norm(tokens)

        # Pyramid: from coarse to fine until the mask's size is reached
        levels[-1] = rearrange(tokens, "b (h w) c -> b c h w", h=h).to(x.dtype)
        merged = None
        for level, lateral in zip(reversed(levels), reversed(self.lateral), strict=True):
            if merged is not None and merged.shape[-2] >= map_size[0]:
                break
            y = lateral(level)
            merged = y if merged is None else y + F.interpolate(merged, y.shape[-2:], mode="nearest")
        if merged.shape[-2:] != tuple(map_size):
            merged = F.interpolate(merged, map_size, mode="bilinear", align_corners=False)
        merged = self.merge(merged)                                          # (B, C, h, w)

        # Detail: one more level of the pyramid, then four pixels of the image from each position of the stem
        detail = None
        if self.detail is not None:
            y = self.lateral[0](levels[0])                                   # (B, C, H/2, W/2)
            detail = self.detail(y + F.interpolate(merged, y.shape[-2:], mode="nearest"))
            detail = F.pixel_shuffle(detail, 2)                              # (B, D, H, W)
            if detail.shape[-2:] != tuple(mask_size):
                detail = F.interpolate(detail, mask_size, mode="bilinear", align_corners=False)
        return Features(merged, tokens, detail)
        # fmt: on


def load_backbone(encoder: ImageEncoder, backbone: str, path: Path) -> None:
    """Initialise the ResNet of an encoder from a file with a ResNet's or a torchvision detector's state dict.

    Raises CheckpointError where the file cannot be read or does not fit.
    """
    state = _backbone_state(path)
    for prefix in ("backbone.body.", "module.", ""):  # a detector's file, a DataParallel file, a plain ResNet's
        if f"{prefix}conv1.weight" in state:
            state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            break
    renamed = {}
    for key, value in state.items():
        head, _, tail = key.partition(".")
        target = {"conv1": "stem.0", "bn1": "stem.1", "layer1": "stages.0", "layer2": "stages.1", "layer3": "stages.2"}
        if head in target and not tail.endswith("num_batches_tracked"):
            renamed[f"{target[head]}.{tail}"] = value
    wanted = {k: v for k, v in encoder.state_dict().items() if k.startswith(("stem.", "stages."))}
    if missing := [k for k, v in wanted.items() if k not in renamed or renamed[k].shape != v.shape]:
        raise CheckpointError(f"weights {str(path)!r} do not fit a {backbone}: {missing[0]} is missing or another size")
    encoder.load_state_dict({k: renamed[k] for k in wanted}, strict=False)


def _backbone_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, or of the one under "model"."""
    try:
        if zipfile.is_zipfile(path):
            verify(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(
            f"backbone weights {str(path)!r}: there is no such file; --backbone_weights none starts from scratch"
        ) from None
    except Exception as error:  # torch.load raises many types for damaged or refused files
        reason = str(error) if isinstance(error, Refused) else type(error).__name__
        raise CheckpointError(f"backbone weights {str(path)!r} cannot be read ({reason})") from None
    state = state.get("model", state) if isinstance(state, dict) else state
    if not isinstance(state, dict):
        raise CheckpointError(f"backbone weights {str(path)!r} hold a {type(state).__name__}, and no state dict")
    return {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor)}
