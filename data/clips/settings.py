"""The settings of clips: their format, their augmentation, their history."""

from dataclasses import dataclass
from typing import Annotated

from data.labels import DataError

SLOT_ORDERS = ("random", "position", "shuffle", "segments")  # of slots.py


@dataclass(frozen=True)
class ClipFormat:
    """The clips that a model takes: fields of its configuration, which has checked them."""

    image_size: tuple[int, int]  # height, width
    mask_size: tuple[int, int]
    slots: int  # slot values are 0..slots-1; 0 = none
    history_offsets: tuple[int, ...] = ()  # in frames, oldest first: (-2, -1)


@dataclass(frozen=True)
class Augmentation:
    """How clips are varied in training. Raises ValueError for values outside their range."""

    scale_range: Annotated[tuple[float, float], "scale jitter, as factors of the size by area"] = (0.8, 1.5)
    crop: Annotated[bool, "cut a frame that is scaled too large at random, not in the middle"] = True
    focus: Annotated[float, "share of crops around a thing that is drawn at random, all of them alike"] = 0.0
    paste: Annotated[float, "share of stills and of moved clips with things of another frame pasted in"] = 0.0
    flip: Annotated[float, "probability of mirroring the clip left to right"] = 0.5
    brightness: Annotated[float, "brightness factor drawn from 1 +- this"] = 0.2
    contrast: Annotated[float, "contrast factor drawn from 1 +- this"] = 0.2
    saturation: Annotated[float, "saturation factor drawn from 1 +- this"] = 0.2
    hue: Annotated[float, "hue shift drawn from +- this, as a fraction of the colour circle"] = 0.02
    synthetic_history: Annotated[float, "share of clips whose history, if any, is their own mask, moved"] = 0.0

    def __post_init__(self):
        if len(self.scale_range) != 2 or not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise DataError(f"scale_range must be two positive factors, the smaller one first, not {self.scale_range}")
        for name in ("focus", "paste", "flip", "synthetic_history", "brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"{name} must be 0..1, not {getattr(self, name)}")
        if not 0 <= self.hue <= 0.5:
            raise DataError(f"hue must be 0..0.5, not {self.hue}")


@dataclass(frozen=True)
class HistoryConfig:
    """The history in training. Raises DataError for values outside their range."""

    history_dropout: Annotated[float, "probability that a history mask is dropped"] = 0.2
    history_absent: Annotated[float, "probability that a clip has no history at all, as a first frame"] = 0.0
    slot_order: Annotated[str, "new instances' slots; the last two as published", SLOT_ORDERS] = "random"

    def __post_init__(self):
        for name in ("history_dropout", "history_absent"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"{name} is a share, 0..1, not {getattr(self, name)}")
