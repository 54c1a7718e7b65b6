"""The configuration of a Pix2SeqD."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from data.io.pixels import area_scale
from model.checks import MAX_PIXELS, ConfigError, check, stored_values
from model.network.backbones import BACKBONES


@dataclass(frozen=True)
class ModelConfig:
    """All that is needed to build a Pix2SeqD and to read its answers; stored in each checkpoint.

    Raises ConfigError where the values do not fit together.
    """

    # sizes, in pixels
    image_size: Annotated[tuple[int, ...], "height, width of training crops; frames have its area"] = (384, 1248)
    mask_size: Annotated[tuple[int, ...], "height and width of the mask that is denoised"] = (96, 312)
    # codes
    code_bits: Annotated[tuple[int, ...], "bits of the semantic code and of the instance slot"] = (8, 8)
    scale: Annotated[float, "b: analog bits are -b and +b"] = 0.1
    # classes, by default Cityscapes' 19; the semantic code is class + 1, 0 = void
    classes: Annotated[int, "how many classes"] = 19
    things: Annotated[tuple[int, ...], "the classes that are things"] = tuple(range(11, 19))
    tracked: Annotated[tuple[int, ...], "the things with tracks"] = (11, 13)
    # history
    history_offsets: Annotated[tuple[int, ...], "past frames whose masks are input"] = (-2, -1)
    # encoder
    backbone: Annotated[str, "ResNet or CspNet, without the last stage", BACKBONES] = "resnet50"
    backbone_norm: Annotated[str, "set from --backbone_weights", ("group", "frozen_batch")] = "group"
    encoder_dim: Annotated[int, "width of the transformer on the stride-16 map"] = 512
    encoder_depth: Annotated[int, "its layers"] = 12
    encoder_heads: Annotated[int, "its heads"] = 8
    dropout: Annotated[float, "dropout and stochastic depth of that transformer, in training"] = 0.0
    map_channels: Annotated[int, "channels of the image's feature map, at the denoiser's positions"] = 256
    published: Annotated[bool, "pyramid and denoiser as in the released code: docs/departures.md"] = False
    # denoiser
    dim: Annotated[int, "channels of a position, which is a patch of the mask"] = 128
    patch: Annotated[int, "side in mask pixels of one position of the denoiser"] = 1
    pixel_dim: Annotated[int, "channels of a mask pixel before its answer; the published network has none"] = 32
    multipliers: Annotated[tuple[int, ...], "channels of each level, in units of dim"] = (1, 1, 2, 2)
    denoiser_depth: Annotated[int, "transformer layers at the lowest level"] = 6
    transformer_dim: Annotated[int, "their width"] = 512
    transformer_heads: Annotated[int, "their heads"] = 8

    def __post_init__(self):
        check(self)

    @property
    def bits(self) -> int:
        return sum(self.code_bits)

    @property
    def slots(self) -> int:
        """How many values the instance slot can have, 0 = none among them."""
        return 2 ** self.code_bits[1]

    @property
    def history_length(self) -> int:
        """How many frames back the oldest history mask lies."""
        return -min(self.history_offsets, default=0)

    @property
    def code_sizes(self) -> list[int]:
        """How many values each code has: the semantic one those that exist, void and the classes."""
        return [self.classes + 1, self.slots]

    @property
    def map_stride(self) -> float:
        """Image pixels from one position of the denoiser to the next."""
        return self.patch * self.image_size[0] / self.mask_size[0]

    def sizes_for(
        self, frame_size: Sequence[int], image_size: Sequence[int] | None = None
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """The (height, width) of image and mask for a frame: its aspect, the area of the model's image size or of
        another, in whole positions of the denoiser. Raises ConfigError where they are too large."""
        scale = area_scale(frame_size, image_size or self.image_size)
        positions = [max(1, round(n * scale / self.map_stride)) for n in frame_size]
        image = tuple(round(n * self.map_stride) for n in positions)
        mask = tuple(n * self.patch for n in positions)
        if max(math.prod(image), math.prod(mask)) > MAX_PIXELS:
            raise ConfigError(f"an image of {image} and its mask of {mask} may have {MAX_PIXELS:,} pixels at most")
        return image, mask

    def mask_for(self, image_size: Sequence[int]) -> tuple[int, int]:
        """The mask's size for an image of this very size, as training crops are: in the model's proportion."""
        height, width = (max(1, round(n / self.map_stride)) * self.patch for n in image_size)
        return height, width

    def to_dict(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
        """Inverse of `to_dict`. Raises ConfigError for fields that this version does not know, and for other types."""
        return cls(**stored_values(cls, values))
