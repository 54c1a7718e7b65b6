"""The convolutional backbones of the image encoder, and their pre-trained weights.

A backbone is a stem of stride 2, a pooling of stride 2, and three stages: feature maps at strides 2, 4, 8 and 16.
"""

import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from model.checkpoint import CheckpointError, check_sums
from model.network.cspnet import cspnet
from model.network.resnet import RESNETS, from_resnet, resnet

STRIDES = (2, 4, 8, 16)
BACKBONES = (*RESNETS, "cspnet")


def build_backbone(name: str, norm: str) -> tuple[nn.Module, nn.Module, nn.ModuleList, tuple[int, ...]]:
    """Stem, pooling, stages, and the channels of the maps at STRIDES."""
    return cspnet() if name == "cspnet" else resnet(name, norm)


def load_backbone(encoder: nn.Module, name: str, path: Path) -> None:
    """Initialise an encoder's backbone from a file: a ResNet's, a torchvision detector's, or a CspNet's state dict.

    Raises CheckpointError where the file cannot be read or does not fit.
    """
    state = _read(path)
    state = state if name == "cspnet" else from_resnet(state)
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
