"""The settings of the loss."""

import math
from dataclasses import dataclass
from typing import Annotated

from model.checks import in_range


@dataclass(frozen=True)
class LossConfig:
    """How the diffusion is trained. The defaults are the published values, but for learn_void.

    Raises ConfigError for values outside their range.
    """

    instance_weight: Annotated[float, "p of the pixel weight (1 / (area + 1))^p; 0 weights all alike"] = 0.2
    stuff_by_class: Annotated[bool, "the area of a stuff pixel is its class's, not all stuff's"] = False
    learn_void: Annotated[
        bool, "every pixel has a loss, as published: void is a class, crowd has an id, 0 in video"
    ] = False
    loss_stride: Annotated[int, "loss on every n-th row and column, with another offset each step"] = 1

    def __post_init__(self):
        in_range(self, 0, math.inf, "instance_weight")
        in_range(self, 1, math.inf, "loss_stride")
