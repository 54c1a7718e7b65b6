"""How a frame becomes the pixels that a model sees. Pure functions; imports nothing of this repository."""

import math
from collections.abc import Sequence


def area_scale(frame_size: Sequence[int], image_size: Sequence[int]) -> float:
    """The factor that brings a frame to the area of the model's image size: the one rule for sizes.

    A frame keeps its aspect, so that a portrait film, a panorama and a Cityscapes frame are seen at the same sharpness.
    frame_size, image_size: (height, width) in pixels.
    """
    return math.sqrt(math.prod(image_size) / math.prod(frame_size))
