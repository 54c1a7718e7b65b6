"""Resizing: a frame to the size that the model sees it at, and a label map by nearest neighbour."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def fit_frame(frame: np.ndarray, size: Sequence[int]) -> Tensor:
    """A frame uint8 (H, W, 3) -> uint8 (3, *size): bilinear with antialiasing."""
    image = torch.from_numpy(np.array(frame)).permute(2, 0, 1)
    if image.shape[1:] != tuple(size):
        image = F.interpolate(image[None], tuple(size), mode="bilinear", antialias=True)[0]
    return image.contiguous()


def nearest(labels: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """A label map (h, w) -> (H, W), each pixel that of the nearest centre."""
    y, x = (
        np.minimum(((np.arange(n) + 0.5) * (m / n) + 1e-6).astype(np.intp), m - 1)
        for n, m in zip(size, labels.shape, strict=True)
    )
    return labels.take(y, axis=0).take(x, axis=1)
