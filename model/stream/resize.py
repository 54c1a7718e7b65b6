"""Resizing: a frame to the size that the model sees it at, and a label map by nearest neighbour."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def fit_frame(frame: np.ndarray, size: Sequence[int]) -> Tensor:
    """A frame uint8 (H, W, 3) -> uint8 (3, *size): bilinear with antialiasing."""
    if frame.shape[:2] != tuple(size):
        frame = np.asarray(Image.fromarray(frame).resize(tuple(size)[::-1], Image.Resampling.BILINEAR))
    return torch.from_numpy(np.ascontiguousarray(frame.transpose(2, 0, 1)))


def nearest(labels: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """A label map (h, w) -> (H, W), each pixel that of the nearest centre."""
    y, x = (
        np.minimum(((np.arange(n) + 0.5) * (m / n) + 1e-6).astype(np.intp), m - 1)
        for n, m in zip(size, labels.shape, strict=True)
    )
    return labels.take(y, axis=0).take(x, axis=1)
