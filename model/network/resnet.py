"""ResNet (He et al., arXiv 1512.03385) of torchvision, without its last stage."""

from collections.abc import Mapping

import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from model.network.layers import group_norm

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


def resnet(name: str, norm: str) -> tuple:
    """As `build_backbone`. norm: "frozen_batch" for pre-trained weights, else "group"."""
    block, blocks, channels = RESNETS[name]
    norm_layer = FrozenBatchNorm if norm == "frozen_batch" else group_norm
    net = torchvision.models.ResNet(block, [*blocks, 1], norm_layer=norm_layer)
    stem = nn.Sequential(net.conv1, net.bn1, net.relu)
    return stem, net.maxpool, nn.ModuleList([net.layer1, net.layer2, net.layer3]), channels


def from_resnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
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
