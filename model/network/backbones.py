"""The convolutional backbones of the image encoder, each cut after its stage of stride 16, and their weights.

A backbone is a stem of stride 2, a pooling of stride 2, and three stages: feature maps at strides 2, 4, 8 and 16.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from model.checkpoint import CheckpointError, check_sums
from model.network.layers import group_norm

STRIDES = (2, 4, 8, 16)


class Backbone(NamedTuple):
    """channels: of the maps at STRIDES."""

    stem: nn.Module
    pool: nn.Module
    stages: nn.ModuleList
    channels: tuple[int, ...]


# ---------------------------------------------------------------------------------------------------------------------
# ResNet (He et al., arXiv 1512.03385) of torchvision
# ---------------------------------------------------------------------------------------------------------------------

# name -> (block, blocks in the first three stages, channels of stem and stages)
RESNETS = {
    "resnet10": (torchvision.models.resnet.BasicBlock, (1, 1, 1), (64, 64, 128, 256)),
    "resnet14": (torchvision.models.resnet.BasicBlock, (2, 2, 1), (64, 64, 128, 256)),
    "resnet18": (torchvision.models.resnet.BasicBlock, (2, 2, 2), (64, 64, 128, 256)),
    "resnet50": (torchvision.models.resnet.Bottleneck, (3, 4, 6), (64, 256, 512, 1024)),
}


class FrozenBatchNorm(FrozenBatchNorm2d):
    """torchvision's, but in its input's type: that one gives float32 for bfloat16, and all that follows is as large."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None].to(x.dtype) + shift[:, None, None].to(x.dtype)


def resnet(name: str, norm: str) -> Backbone:
    """norm: "frozen_batch" for pre-trained weights, "group" from scratch."""
    block, blocks, channels = RESNETS[name]
    norm_layer = FrozenBatchNorm if norm == "frozen_batch" else group_norm
    net = torchvision.models.ResNet(block, [*blocks, 1], norm_layer=norm_layer)
    stem = nn.Sequential(net.conv1, net.bn1, net.relu)
    return Backbone(stem, net.maxpool, nn.ModuleList([net.layer1, net.layer2, net.layer3]), channels)


def _of_resnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A ResNet's or a torchvision detector's state dict by the names that the encoder has."""
    for prefix in ("backbone.body.", "module.", ""):  # a detector's file, a DataParallel file, a plain ResNet's
        if f"{prefix}conv1.weight" in state:
            state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            break
    target = {"conv1": "stem.0", "bn1": "stem.1", "layer1": "stages.0", "layer2": "stages.1", "layer3": "stages.2"}
    parts = ((key.partition("."), value) for key, value in state.items())
    return {
        f"{target[head]}.{tail}": value
        for (head, _, tail), value in parts
        if head in target and not tail.endswith("num_batches_tracked")
    }


# ---------------------------------------------------------------------------------------------------------------------
# CspNet: the backbone of NanoDet-g (RangiLyu/nanodet), plain 3x3 convolutions in cross-stage partial blocks
# (arXiv 1911.11929), with its batch norms folded. Fast on a CPU, and pre-trained on COCO.
# ---------------------------------------------------------------------------------------------------------------------


class ConvAct(nn.Module):
    """A 3x3 convolution and LeakyReLU(0.1)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.conv(x), 0.1)


class CspResidual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.a = ConvAct(channels, channels // 2)
        self.b = ConvAct(channels // 2, channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        return torch.cat([self.b(a), a], dim=1)


class CspStage(nn.Module):
    """(B, C, h, w) -> (B, 2 C, h / stride, w / stride)."""

    def __init__(self, channels: int, repeats: int, stride: int):
        super().__init__()
        self.inp = ConvAct(channels, channels, stride)
        self.res = nn.Sequential(*(CspResidual(channels) for _ in range(repeats)))
        self.out = ConvAct(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        return torch.cat([self.out(self.res(x)), x], dim=1)


def cspnet() -> Backbone:
    stages = [CspStage(32, 1, stride=1), CspStage(64, 2, stride=2), CspStage(128, 2, stride=2)]
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    return Backbone(ConvAct(3, 32, stride=2), pool, nn.ModuleList(stages), (32, 64, 128, 256))


# ---------------------------------------------------------------------------------------------------------------------

BACKBONES = (*RESNETS, "cspnet")


def build_backbone(name: str, norm: str) -> Backbone:
    return cspnet() if name == "cspnet" else resnet(name, norm)


def load_backbone(encoder: nn.Module, name: str, path: Path) -> None:
    """Initialise an encoder's backbone from a file: a ResNet's, a torchvision detector's, or a CspNet's state dict.

    Raises CheckpointError where the file cannot be read or does not fit.
    """
    state = _read(path)
    state = state if name == "cspnet" else _of_resnet(state)
    wanted = {k: v for k, v in encoder.state_dict().items() if k.startswith(("stem.", "stages."))}
    if missing := [k for k, v in wanted.items() if k not in state or state[k].shape != v.shape]:
        raise CheckpointError(f"weights {str(path)!r} do not fit a {name}: {missing[0]} is missing or another size")
    encoder.load_state_dict({k: state[k].to(v.dtype) for k, v in wanted.items()}, strict=False)


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, or of the one under "model"."""
    try:
        if zipfile.is_zipfile(path):
            check_sums(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(
            f"backbone weights {str(path)!r}: there is no such file; --backbone_weights none starts from scratch"
        ) from None
    except Exception as error:  # torch.load raises many types for damaged or refused files
        raise CheckpointError(f"backbone weights {str(path)!r} cannot be read ({type(error).__name__})") from None
    state = state.get("model", state) if isinstance(state, dict) else state
    if not isinstance(state, dict):
        raise CheckpointError(f"backbone weights {str(path)!r} hold a {type(state).__name__}, and no state dict")
    return {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor)}
