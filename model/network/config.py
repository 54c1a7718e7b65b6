"""The configuration of a Pix2SeqD."""

import dataclasses
import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from data.io.pixels import area_scale
from model.network.backbones import BACKBONES

# What a configuration may ask for where no weight's size bears it out, so that a file cannot ask for any memory
MAX_PIXELS = 2**23  # of an image or a mask; a 4K frame has 8.3 million
MAX_HISTORY = 100  # frames back
MAX_LEVELS = 8


class ConfigError(ValueError):
    """A configuration that cannot be built; the message says which value is wrong and what would be right."""


@dataclass(frozen=True)
class ModelConfig:
    """All that is needed to build a Pix2SeqD and to read its answers; stored in each checkpoint.

    Raises ConfigError where the values do not fit together.
    """

    # sizes, in pixels
    image_size: Annotated[tuple[int, ...], "height, width of training crops; frames have its area"] = (
        384,
        1248,
    )
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
    map_channels: Annotated[int, "channels of the feature map at mask size"] = 256
    published: Annotated[bool, "pyramid and denoiser as in the released code: docs/departures.md"] = False
    # denoiser
    dim: Annotated[int, "channels at mask size"] = 128
    patch: Annotated[int, "side in mask pixels of one position of the denoiser"] = 1
    pixel_dim: Annotated[int, "channels of a mask pixel before its answer, where patch > 1"] = 32
    detail: Annotated[bool, "image features at mask size reach the answer, where patch > 1"] = False
    located: Annotated[bool, "positions and mask pixels know where they are in the picture"] = False
    multipliers: Annotated[tuple[int, ...], "channels of each level, in units of dim"] = (1, 1, 2, 2)
    denoiser_depth: Annotated[int, "transformer layers at the lowest level"] = 6
    transformer_dim: Annotated[int, "their width"] = 512
    transformer_heads: Annotated[int, "their heads"] = 8

    def __post_init__(self):
        for name in ("image_size", "mask_size"):
            size = getattr(self, name)
            if len(size) != 2 or min(size) < 8 or max(size) > 16_384 or math.prod(size) > MAX_PIXELS:
                raise ConfigError(
                    f"{name} {size} must be height and width, 8 to 16384 each, {MAX_PIXELS:,} pixels at most"
                )
        two = len(self.code_bits) == 2 and all(1 <= n <= 8 for n in self.code_bits)
        if not 1 <= self.classes <= 254:
            raise ConfigError(f"classes must be 1 to 254, not {self.classes}")
        if not two or 2 ** self.code_bits[0] <= self.classes:
            least = self.classes.bit_length()
            raise ConfigError(f"code_bits {self.code_bits}: two codes of 1 to 8 bits, the first of {least} or more")
        if self.history_length > MAX_HISTORY:
            raise ConfigError(f"history_offsets {self.history_offsets} must not reach back over {MAX_HISTORY} frames")
        if any(o >= 0 for o in self.history_offsets) or list(self.history_offsets) != sorted(set(self.history_offsets)):
            raise ConfigError(f"history_offsets {self.history_offsets} must be negative and ascending, as in -2 -1")
        if self.patch < 1 or any(n % self.patch for n in self.mask_size):
            raise ConfigError(f"mask_size {self.mask_size} must be a multiple of patch {self.patch}")
        if self.published and (self.patch > 1 or self.located or not self.denoiser_depth):
            raise ConfigError("published is for patch 1, not located, denoiser_depth above 0: else give --no-published")
        if self.detail and self.patch == 1:
            raise ConfigError("detail is for a patch above 1: there give --no-detail")
        if not 0 < self.scale < math.inf:
            raise ConfigError(f"scale {self.scale} must be above 0")
        widths = ("encoder_dim", "map_channels", "dim", "pixel_dim", "transformer_dim")
        for name in (*widths, "encoder_heads", "transformer_heads"):
            if not 1 <= getattr(self, name) <= 8192:
                raise ConfigError(f"{name} must be 1 to 8192, not {getattr(self, name)}")
        for name in ("encoder_depth", "denoiser_depth"):
            if not 0 <= getattr(self, name) <= 100:
                raise ConfigError(f"{name} must be 0 to 100, not {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be 0 or more and below 1, not {self.dropout}")
        if self.dim % 2:
            raise ConfigError(f"dim {self.dim} must be even: half of the time's encoding is sines, half cosines")
        levels = self.multipliers
        if not 1 <= len(levels) <= MAX_LEVELS or levels[0] != 1 or min(levels) < 1 or max(levels) > 64:
            raise ConfigError(f"multipliers {levels} must be at most {MAX_LEVELS}, start with 1 and be 1 to 64 each")
        for name, width, heads in (
            ("encoder", self.encoder_dim, self.encoder_heads),
            ("transformer", self.transformer_dim, self.transformer_heads),
        ):
            if width % (4 * heads):
                raise ConfigError(f"{name}_dim {width} must be a multiple of 4 times its {heads} heads")
        for name in ("things", "tracked"):
            if any(not 0 <= c < self.classes for c in getattr(self, name)):
                raise ConfigError(f"{name} {getattr(self, name)} must be classes, 0..{self.classes - 1}")

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
        unknown = set(values) - {f.name for f in dataclasses.fields(cls)}
        if unknown:
            raise ConfigError(f"unknown model settings {sorted(unknown)}: written by another version?")
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        for name, kind in typing.get_type_hints(cls).items():
            value, several = values.get(name), typing.get_origin(kind) is tuple
            kinds = {int, float} if kind is float else {int} if several else {kind}
            parts = value if several and isinstance(value, tuple) else [value]
            if name in values and (isinstance(value, tuple) != several or not {type(v) for v in parts} <= kinds):
                raise ConfigError(f"{name} cannot be {value!r}"[:200])
        return cls(**values)


def checked_size(image_size: Sequence[int]) -> tuple[int, int]:
    """A height and width. Raises ConfigError for what is none."""
    if len(image_size) != 2 or not 8 <= min(image_size) <= max(image_size) <= 16_384:
        raise ConfigError(f"image_size {tuple(image_size)} must be height and width, 8 to 16384 each")
    return tuple(image_size)
