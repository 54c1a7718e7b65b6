"""Drawing: classes in the Cityscapes palette, tracks in stable distinct colours, outlines, overlays, strips.

All functions take and return uint8 RGB arrays (H, W, 3); semantic is uint8 (H, W) with 255 = void, track int32 (H, W).
"""

import colorsys

import numpy as np

from data.labels import PALETTE, VOID


def track_colors(count: int) -> np.ndarray:
    """Colours of the track ids 0..count-1: uint8 (count, 3). The same id has the same colour in every frame and run.

    Hues are golden-ratio steps apart, so that ids that follow one another differ most; 0, no track, is white.
    """
    colors = np.full((count, 3), 255, np.uint8)
    for i in range(1, count):
        hue = (i * 0.618_033_988_75) % 1.0
        saturation, value = (0.65, 1.0) if i % 2 else (0.9, 0.8)
        colors[i] = [round(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, value)]
    return colors


def draw_semantic(semantic: np.ndarray) -> np.ndarray:
    return PALETTE[semantic]


def draw_instances(track: np.ndarray) -> np.ndarray:
    """Tracks on black."""
    ids, inverse = np.unique(track, return_inverse=True)
    colors = _colors_of(ids)
    colors[ids == 0] = 0
    return colors[inverse.reshape(track.shape)]


def draw_panoptic(semantic: np.ndarray, track: np.ndarray) -> np.ndarray:
    """Classes in their colours, tracks in theirs, with outlines between segments."""
    picture = draw_semantic(semantic)
    tracked = track > 0
    picture[tracked] = draw_instances(track)[tracked]
    picture[outlines(semantic, track)] = 255
    return picture


def outlines(semantic: np.ndarray, track: np.ndarray) -> np.ndarray:
    """Where a tracked segment ends: bool (H, W), the pixels inside it at its border."""
    key = track.astype(np.int64) * 256 + semantic
    border = np.zeros(key.shape, bool)
    border[:, 1:] |= key[:, 1:] != key[:, :-1]
    border[:, :-1] |= key[:, 1:] != key[:, :-1]
    border[1:] |= key[1:] != key[:-1]
    border[:-1] |= key[1:] != key[:-1]
    return border & (track > 0)


def overlay(image: np.ndarray, semantic: np.ndarray, track: np.ndarray, opacity: float = 0.5) -> np.ndarray:
    """The panoptic drawing over the image; void stays as it is."""
    mixed = image * (1 - opacity) + draw_panoptic(semantic, track) * opacity
    mixed[semantic == VOID] = image[semantic == VOID]
    mixed[outlines(semantic, track)] = 255
    return mixed.round().astype(np.uint8)


def strip(rows: list[list[np.ndarray]], gap: int = 4) -> np.ndarray:
    """Pictures of one size in rows and columns on white."""
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    canvas = np.full((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            top, left = y * (height + gap), x * (width + gap)
            canvas[top : top + height, left : left + width] = picture
    return canvas


def _colors_of(ids: np.ndarray) -> np.ndarray:
    return track_colors(int(ids.max(initial=0)) + 1)[ids]
