"""What configurations refuse, and how they are read from a file."""

import dataclasses
import math
import typing
from collections.abc import Sequence
from typing import Any

# What a configuration may ask for where no weight's size bears it out, so that a file cannot ask for any memory
MAX_PIXELS = 2**23  # of an image or a mask; a 4K frame has 8.3 million
MAX_HISTORY = 100  # frames back
MAX_LEVELS = 8


class ConfigError(ValueError):
    """A configuration that cannot be built; the message says which value is wrong and what would be right."""


def in_range(config, least: float, most: float, *names: str) -> None:
    """Raise ConfigError where one of these fields lies outside a range."""
    for name in names:
        value = getattr(config, name)
        if not least <= value <= most or value == math.inf:
            limits = f"{least} or more" if most == math.inf else f"{least} to {most}"
            raise ConfigError(f"{name} must be {limits}, not {value}")


def check(c) -> None:
    """Raise ConfigError where the values of a ModelConfig do not fit together."""
    for name in ("image_size", "mask_size"):
        size = getattr(c, name)
        if len(size) != 2 or min(size) < 8 or max(size) > 16_384 or math.prod(size) > MAX_PIXELS:
            raise ConfigError(f"{name} {size} must be height and width, 8 to 16384 each, {MAX_PIXELS:,} pixels at most")
    two = len(c.code_bits) == 2 and all(1 <= n <= 8 for n in c.code_bits)
    in_range(c, 1, 254, "classes")
    if not two or 2 ** c.code_bits[0] <= c.classes:
        least = c.classes.bit_length()
        raise ConfigError(f"code_bits {c.code_bits}: two codes of 1 to 8 bits, the first of {least} or more")
    if c.history_length > MAX_HISTORY:
        raise ConfigError(f"history_offsets {c.history_offsets} must not reach back over {MAX_HISTORY} frames")
    if any(o >= 0 for o in c.history_offsets) or list(c.history_offsets) != sorted(set(c.history_offsets)):
        raise ConfigError(f"history_offsets {c.history_offsets} must be negative and ascending, as in -2 -1")
    if c.patch < 1 or any(n % c.patch for n in c.mask_size):
        raise ConfigError(f"mask_size {c.mask_size} must be a multiple of patch {c.patch}")
    if c.published and (c.patch > 1 or not c.denoiser_depth):
        raise ConfigError("published is for patch 1 and denoiser_depth above 0: else give --no-published")
    if not 0 < c.scale < math.inf:
        raise ConfigError(f"scale {c.scale} must be above 0")
    widths = ("encoder_dim", "map_channels", "dim", "pixel_dim", "transformer_dim")
    in_range(c, 1, 8192, *widths, "encoder_heads", "transformer_heads")
    in_range(c, 0, 100, "encoder_depth", "denoiser_depth")
    if not 0 <= c.dropout < 1:
        raise ConfigError(f"dropout must be 0 or more and below 1, not {c.dropout}")
    if c.dim % 2:
        raise ConfigError(f"dim {c.dim} must be even: half of the time's encoding is sines, half cosines")
    levels = c.multipliers
    if not 1 <= len(levels) <= MAX_LEVELS or levels[0] != 1 or min(levels) < 1 or max(levels) > 64:
        raise ConfigError(f"multipliers {levels} must be at most {MAX_LEVELS}, start with 1 and be 1 to 64 each")
    for name, width, heads in (
        ("encoder", c.encoder_dim, c.encoder_heads),
        ("transformer", c.transformer_dim, c.transformer_heads),
    ):
        if width % (4 * heads):
            raise ConfigError(f"{name}_dim {width} must be a multiple of 4 times its {heads} heads")
    for name in ("things", "tracked"):
        if any(not 0 <= n < c.classes for n in getattr(c, name)):
            raise ConfigError(f"{name} {getattr(c, name)} must be classes, 0..{c.classes - 1}")


def checked_size(image_size: Sequence[int]) -> tuple[int, int]:
    """A height and width. Raises ConfigError for what is none."""
    if len(image_size) != 2 or not 8 <= min(image_size) <= max(image_size) <= 16_384:
        raise ConfigError(f"image_size {tuple(image_size)} must be height and width, 8 to 16384 each")
    return tuple(image_size)


def stored_values(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    """The fields of a configuration as a file holds them, with tuples in place of lists. Raises ConfigError for fields
    that this version does not know, and for other types."""
    for name in ("detail", "located"):  # of older files; now every network has them, but the published
        if values.get(name, True) is not True and not values.get("published"):
            raise ConfigError(f"a network without {name!r} is of an earlier version: train it anew")
    values = {k: v for k, v in values.items() if k not in ("detail", "located")}
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
    return values
