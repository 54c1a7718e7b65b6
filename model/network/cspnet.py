"""CspNet: the backbone of NanoDet-g (RangiLyu/nanodet), without its last stage.

Plain 3x3 convolutions in cross-stage partial blocks (arXiv 1911.11929), with the batch norms folded: fast on a CPU, and
pre-trained on COCO.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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


def cspnet() -> tuple:
    """As `build_backbone`."""
    stages = [CspStage(32, 1, stride=1), CspStage(64, 2, stride=2), CspStage(128, 2, stride=2)]
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    return ConvAct(3, 32, stride=2), pool, nn.ModuleList(stages), (32, 64, 128, 256)
