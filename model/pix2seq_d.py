"""Pix2Seq-D: its configuration, the presets, and the assembled model (arXiv 2210.06366)."""

import dataclasses
import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from data.io.pixels import area_scale
from model.backbones import BACKBONES
from model.bits import bits_to_codes, codes_to_labels, expected_bits, labels_to_bits, number_of_slots
from model.encoder import Features, ImageEncoder
from model.schedule import add_noise
from model.unet import PIXEL_DIM, Condition, Grid, Modulation, TransUNet

NUM_CLASSES = 19  # of Cityscapes and KITTI-STEP; the semantic code is trainId + 1, 0 = void
FIRST_THING = 11  # trainIds from here on are things

# What a configuration may ask for where no weight's size bears it out, so that a file cannot ask for any memory
MAX_PIXELS = 2**23  # of an image or a mask; a 4K frame has 8.3 million
MAX_HISTORY = 100  # frames back
MAX_SLOT_BITS = 16  # ids are stored in as many
MAX_LEVELS = 8


class ConfigError(ValueError):
    """A configuration that cannot be built; the message says which value is wrong and what would be right."""


def _field(default: Any, group: str, text: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"group": group, "help": text, **metadata})


@dataclass(frozen=True)
class ModelConfig:
    """All that is needed to build a Pix2SeqD and to read its answers; stored in each checkpoint.

    Raises ConfigError where the values do not fit together.
    """

    # sizes, in pixels
    image_size: tuple[int, ...] = _field(
        (384, 1248), "model", "height and width of training crops; at inference frames have its area"
    )
    mask_size: tuple[int, ...] = _field((96, 312), "model", "height and width of the mask that is denoised")
    # codes
    code_bits: tuple[int, ...] = _field((8, 8), "model", "bits of the semantic code and of the instance slot")
    scale: float = _field(0.1, "model", "b: analog bits are -b and +b")
    normalize_input: bool = _field(False, "model", "divide the noisy bits by their standard deviation")
    tracked: tuple[int, ...] = _field((11, 13), "model", "trainIds of the classes with tracks")
    # history
    history_offsets: tuple[int, ...] = _field((-2, -1), "model", "past frames whose masks are input")
    # encoder
    backbone: str = _field("resnet50", "model: encoder", "ResNet or CspNet, without the last stage", choices=BACKBONES)
    backbone_norm: str = _field(
        "group", "model: encoder", "set from --backbone_weights", choices=("group", "frozen_batch")
    )
    encoder_dim: int = _field(512, "model: encoder", "width of the transformer on the stride-16 map")
    encoder_depth: int = _field(12, "model: encoder", "its layers")
    encoder_heads: int = _field(8, "model: encoder", "its heads")
    map_channels: int = _field(256, "model: encoder", "channels of the feature map at mask size")
    # denoiser
    dim: int = _field(128, "model: denoiser", "channels at mask size")
    patch: int = _field(1, "model: denoiser", "side in mask pixels of one position of the denoiser")
    detail: bool = _field(False, "model: denoiser", "image features at mask size reach the answer, where patch > 1")
    multipliers: tuple[int, ...] = _field((1, 1, 2, 2), "model: denoiser", "channels of each level, in units of dim")
    denoiser_depth: int = _field(6, "model: denoiser", "transformer layers at the lowest level")
    transformer_dim: int = _field(512, "model: denoiser", "their width")
    transformer_heads: int = _field(8, "model: denoiser", "their heads")
    dropout: float = _field(0.0, "model: denoiser", "dropout in its blocks, in training")
    self_conditioning: bool = _field(False, "model: denoiser", "the last estimate is input of the next step")
    loss: str = _field(
        "softmax",
        "model: denoiser",
        "cross-entropy of codes, or squared error of bits",
        choices=("softmax", "mse"),
    )

    def __post_init__(self):
        for name in ("image_size", "mask_size"):
            size = getattr(self, name)
            if len(size) != 2 or min(size) < 8 or max(size) > 16_384 or math.prod(size) > MAX_PIXELS:
                raise ConfigError(
                    f"{name} {size} must be height and width, 8 to 16384 each, {MAX_PIXELS:,} pixels at most"
                )
        several = len(self.code_bits) >= 2 and all(1 <= n <= 8 for n in self.code_bits)
        if not several or 2 ** self.code_bits[0] <= NUM_CLASSES:
            raise ConfigError(f"code_bits {self.code_bits}: two or more codes of 1 to 8 bits, the first of 5 or more")
        if sum(self.code_bits[1:]) > MAX_SLOT_BITS:
            raise ConfigError(f"code_bits {self.code_bits}: the slot's codes may have {MAX_SLOT_BITS} bits together")
        if self.history_length > MAX_HISTORY:
            raise ConfigError(f"history_offsets {self.history_offsets} must not reach back over {MAX_HISTORY} frames")
        if any(o >= 0 for o in self.history_offsets) or list(self.history_offsets) != sorted(set(self.history_offsets)):
            raise ConfigError(f"history_offsets {self.history_offsets} must be negative and ascending, as in -2 -1")
        if self.patch < 1 or any(n % self.patch for n in self.mask_size):
            raise ConfigError(f"mask_size {self.mask_size} must be a multiple of patch {self.patch}")
        if self.detail and self.patch == 1:
            raise ConfigError("detail is for a patch above 1: there give --no-detail")
        if not 0 < self.scale < math.inf:
            raise ConfigError(f"scale {self.scale} must be above 0")
        for name in ("encoder_dim", "map_channels", "dim", "transformer_dim", "encoder_heads", "transformer_heads"):
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
        if any(not 0 <= c < NUM_CLASSES for c in self.tracked):
            raise ConfigError(f"tracked {self.tracked} must be trainIds, 0..{NUM_CLASSES - 1}")

    @property
    def bits(self) -> int:
        return sum(self.code_bits)

    @property
    def slots(self) -> int:
        return number_of_slots(self.code_bits)

    @property
    def history_length(self) -> int:
        """How many frames back the oldest history mask lies."""
        return -min(self.history_offsets, default=0)

    @property
    def code_sizes(self) -> list[int]:
        """How many values each code has: the semantic one those that exist, void and the classes."""
        return [NUM_CLASSES + 1, *(2**n for n in self.code_bits[1:])]

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


# For a CPU: the mask at three quarters of the image, in patches.
TINY = ModelConfig(
    image_size=(256, 512), mask_size=(192, 384), code_bits=(5, 6), scale=0.125, backbone="cspnet",
    encoder_dim=192, encoder_depth=1, encoder_heads=4, map_channels=64,
    patch=6, detail=True, dim=64, multipliers=(1, 2), denoiser_depth=2, transformer_dim=192, transformer_heads=4,
)  # fmt: skip
# For one ordinary GPU: the mask at a quarter of the image, in patches.
SMALL = ModelConfig(
    image_size=(384, 1248), mask_size=(96, 312), scale=0.2, encoder_dim=256, encoder_depth=4, map_channels=128,
    patch=2, detail=True, dim=128, multipliers=(1, 2, 2), denoiser_depth=4, transformer_dim=256,
)  # fmt: skip
# As published.
BASE = ModelConfig(image_size=(384, 1248), mask_size=(192, 624), scale=0.1)
PRESETS = {"tiny": TINY, "small": SMALL, "base": BASE}


class Pix2SeqD(nn.Module):
    """Encoder and denoiser. The network predicts; noise, scaling of time and loss are in model/diffusion.py."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = c = config
        self.encoder = ImageEncoder(
            c.backbone, c.backbone_norm, c.encoder_dim, c.encoder_depth, c.encoder_heads, c.map_channels,
            c.map_stride, detail=PIXEL_DIM if c.detail else 0,
        )  # fmt: skip
        self.denoiser = TransUNet(
            bits=c.bits,
            out_channels=sum(c.code_sizes) if c.loss == "softmax" else c.bits,
            history_masks=len(c.history_offsets),
            map_channels=c.map_channels,
            context_dim=c.encoder_dim,
            dim=c.dim,
            multipliers=c.multipliers,
            depth=c.denoiser_depth,
            transformer_dim=c.transformer_dim,
            heads=c.transformer_heads,
            self_conditioning=c.self_conditioning,
            patch=c.patch,
            dropout=c.dropout,
        )

    def compile_parts(self) -> None:
        """Compile encoder and denoiser in place: the keys of the state dict stay as they are."""
        self.encoder.compile()
        self.denoiser.compile()

    def encode(self, image: Tensor, mask_size: tuple[int, int] | None = None) -> Features:
        """image: float (B, 3, H, W) in [0, 1] -> features for a mask of mask_size, by default the configuration's."""
        height, width = mask_size or self.config.mask_size
        return self.encoder(image, (height // self.config.patch, width // self.config.patch), (height, width))

    def condition(self, features: Features, history: Tensor | None) -> Condition:
        """history: analog bits (B, T * bits, h, w), oldest first, zeros where unknown; None: none at all."""
        return self.denoiser.condition(features, history)

    def modulation(self, t: Tensor) -> Modulation:
        """What the denoiser makes of times t (N,), to be given to `predict` step by step."""
        return self.denoiser.modulation(t)

    def predict(
        self,
        x: Tensor,
        t: Tensor | Modulation,
        condition: Condition,
        x0_previous: Tensor | None = None,
        grid: Grid | None = None,
    ) -> Tensor:
        """The network's output for noisy bits x (B, bits, h, w) at times t (B,): (B, codes or bits, h, w) in the type
        that the network computes in, or only the part of it on a grid of rows and columns."""
        if self.config.normalize_input:
            x = x / x.float().std(dim=(1, 2, 3), keepdim=True).clamp_min(1e-3).to(x.dtype)
        if self.config.self_conditioning and x0_previous is None:
            x0_previous = torch.zeros_like(x)
        return self.denoiser(x, t, condition, x0_previous, grid)

    def forward(
        self,
        image: Tensor,
        x: Tensor,
        t: Tensor,
        history: Tensor,
        self_condition: Tensor | None = None,
        realign: tuple[Tensor, Tensor, Tensor] | None = None,
        grid: Grid | None = None,
    ) -> Tensor:
        """The training path, whole: encode, condition, predict. Returns float32.

        self_condition: bool (B,), which samples are given their own first estimate (Bit Diffusion, section 2.3).
        realign: bool (B,), times (B,), noise (B, bits, h, w): which samples are denoised from their own estimate,
        noised again to an earlier time (self-aligned denoising; DDP, arXiv 2303.17559, section 3.3).
        grid: answer only for these rows and columns.
        """
        condition = self.condition(self.encode(image, x.shape[-2:]), history)
        if realign is not None:
            chosen, t_next, noise = realign
            with torch.no_grad():
                x0 = self.estimate(self.predict(x, t, condition))
            x = torch.where(chosen[:, None, None, None], add_noise(x0, noise, t_next), x)
            t = torch.where(chosen, t_next, t)
        x0_previous = None
        if self_condition is not None:
            with torch.no_grad():
                x0_previous = self.estimate(self.predict(x, t, condition))
            x0_previous = x0_previous * self_condition[:, None, None, None]
        return self.predict(x, t, condition, x0_previous, grid).float()

    def estimate(self, output: Tensor) -> Tensor:
        """The network's output -> the estimate of x0, analog bits, float32 (B, bits, h, w) in [-b, +b]."""
        c = self.config
        if c.loss == "softmax":
            return expected_bits(output, c.code_sizes, c.code_bits, c.scale)
        return output.float().clamp(-c.scale, c.scale)

    def answer(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """The network's output -> label maps: semantic code 0..19 and slot 0..K-1, int64 (B, h, w).

        The likeliest code among those that exist: void is never an answer where it carried no loss.
        """
        c = self.config
        if c.loss == "mse":
            semantic, slot = codes_to_labels(bits_to_codes(output, c.code_bits), c.code_bits)
            return semantic.clamp(max=NUM_CLASSES), slot
        parts = output.split(c.code_sizes, dim=1)
        semantic = likeliest(parts[0][:, 1:]) + 1
        return codes_to_labels([semantic, *(likeliest(p) for p in parts[1:])], c.code_bits)

    def history_bits(self, semantic: Tensor, slot: Tensor, semantic_known: Tensor, slot_known: Tensor) -> Tensor:
        """History label maps (B, T, h, w) -> analog bits (B, T * bits, h, w), 0.0 where unknown or absent."""
        maps = (m.flatten(0, 1) for m in (semantic, slot, semantic_known, slot_known))
        bits = labels_to_bits(*maps, self.config.code_bits, self.config.scale)  # (B T, bits, h, w)
        return bits.unflatten(0, semantic.shape[:2]).flatten(1, 2)


def likeliest(logits: Tensor) -> Tensor:
    """Code of the largest logit: (B, N, h, w) -> int64 (B, h, w). argmax itself is 3 times slower on channels-last."""
    return logits.max(dim=1).indices
