"""The one rule for sizes: a frame is resized with its aspect kept to fit the model's image size and padded at the right
and the bottom; a predicted mask is cropped of the padding and brought back to the frame's size by nearest neighbour.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def content_size(frame_size: Sequence[int], target_size: Sequence[int]) -> tuple[int, int]:
    """The (height, width) that a frame takes in a target, at its top left; the rest is padding."""
    scale = min(t / f for f, t in zip(frame_size, target_size, strict=True))
    height, width = (min(t, max(1, round(f * scale))) for f, t in zip(frame_size, target_size, strict=True))
    return height, width


def fit_frame(frame: np.ndarray, image_size: Sequence[int]) -> Tensor:
    """A frame uint8 (H, W, 3) -> uint8 (3, *image_size): bilinear with antialiasing, padded with 0."""
    height, width = content_size(frame.shape[:2], image_size)
    if frame.shape[:2] != (height, width):
        frame = np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))
    image = torch.zeros(3, *image_size, dtype=torch.uint8)
    image[:, :height, :width] = torch.from_numpy(np.ascontiguousarray(frame.transpose(2, 0, 1)))
    return image


def restore(mask: np.ndarray, frame_size: Sequence[int]) -> np.ndarray:
    """A mask (h, w) with its padding -> (H, W) at the frame's size, nearest neighbour at pixel centres."""
    height, width = content_size(frame_size, mask.shape)
    y, x = (
        np.minimum(((np.arange(f) + 0.5) * (c / f) + 1e-6).astype(np.intp), c - 1)
        for f, c in zip(frame_size, (height, width), strict=True)
    )
    return mask.take(y, axis=0).take(x, axis=1)
