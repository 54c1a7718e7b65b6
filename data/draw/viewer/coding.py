"""Pack a frame for the page: its picture as WebP or JPEG, its label maps without loss.

A label map is coded as a table of its segments, and the pixels that their neighbours do not predict. A pixel is
predicted to equal its left neighbour if the two pixels above the pair are equal, else the pixel above it. Masks have
smooth borders, so one pixel in a hundred is left.

A picture is either whole or shows only the blocks that have changed since the last whole one, its key; the rest is
transparent. It is drawn over its key, and needs no other frame. With a still camera this takes a third of the bytes.

    frame  = length of the packed maps (4 bytes, little endian), the packed maps (raw deflate), the picture
    maps   = one after the other: number of segments, then (segment, area) of each; number of exceptions, bytes of the
             skips, the skips, the values
    all numbers are varints: seven bits a byte, the lowest first, the highest bit set if another byte follows

`store.js` reads this.
"""

import io
import struct
import zlib
from collections.abc import Iterable

import numpy as np
from PIL import Image, features

Labels = tuple[np.ndarray, np.ndarray]  # semantic (H, W), track (H, W)
CLASS_BITS = 8  # a segment's key is track << 8 | class


# ---------------------------------------------------------------------------------------------------------------------
# Sizes
# ---------------------------------------------------------------------------------------------------------------------


def shown_size(height: int, width: int, most: int) -> tuple[int, int]:
    """(height, width) of a frame shown at most `most` pixels wide, with its aspect."""
    return (height, width) if width <= most else (max(1, round(height * most / width)), most)


def fit_labels(labels: np.ndarray, size: tuple[int, int], fill: int) -> np.ndarray:
    """A label map at another size, by nearest neighbour, with its aspect, centred on `fill`."""
    if labels.shape == size:
        return labels
    h, w = _inside(labels.shape, size)
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip((h, w), labels.shape, strict=True))
    canvas = np.full(size, fill, labels.dtype)
    top, left = (size[0] - h) // 2, (size[1] - w) // 2
    canvas[top : top + h, left : left + w] = labels[rows[:, None], columns]
    return canvas


def fit_picture(image: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """A photograph at another size, placed as in `fit_labels`, on black."""
    picture = Image.fromarray(image)
    if image.shape[:2] == size:
        return picture
    h, w = _inside(image.shape[:2], size)
    canvas = Image.new("RGB", size[::-1])
    canvas.paste(picture.resize((w, h), Image.Resampling.LANCZOS), ((size[1] - w) // 2, (size[0] - h) // 2))
    return canvas


def _inside(shape: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    scale = min(size[0] / shape[0], size[1] / shape[1])
    return tuple(max(1, min(m, round(n * scale))) for n, m in zip(shape, size, strict=True))


class PictureCoder:
    """The pictures of a film, all of one size, each as WebP: whole, or only the changes since the last whole one.

    If this Pillow has no WebP: JPEG, and always whole.
    """

    BLOCK = 16  # pixels, as WebP's own blocks
    CELL = 4  # pixels; means of cells are compared, so that sensor noise is no change
    CHANGE, DRIFT = 10, 3  # of a cell's and of a block's mean, in any colour: above it counts as changed
    MOST = 0.6  # share of changed blocks: above it a picture is whole

    def __init__(self, quality: int):
        self.quality = quality
        self.key: np.ndarray | None = None  # the cells of the last whole picture
        self.key_bytes = self.least = self.more = 0  # bytes: its own, the least change since, the others' excess

    def code(self, picture: Image.Image) -> tuple[bytes, bool]:
        """The picture's bytes, and whether it is whole."""
        if not features.check("webp"):
            return self._packed(picture, "JPEG"), True
        cells = self._cells(np.asarray(picture))
        if self.key is not None and self.more <= self.key_bytes:
            blocks = self._changed(cells - self.key)
            if blocks.mean() <= self.MOST:
                shown = blocks.repeat(self.BLOCK, 0).repeat(self.BLOCK, 1)[: picture.height, : picture.width]
                change = picture.copy()
                change.putalpha(Image.fromarray(shown.astype(np.uint8) * 255))
                data = self._packed(change, "WEBP")
                self.least = min(self.least or len(data), len(data))
                self.more += len(data) - self.least
                return data, False
        data = self._packed(picture, "WEBP")
        self.key, self.key_bytes, self.least, self.more = cells, len(data), 0, 0
        return data, True

    def _packed(self, picture: Image.Image, kind: str) -> bytes:
        buffer = io.BytesIO()
        picture.save(buffer, kind, quality=self.quality)
        return buffer.getvalue()

    def _cells(self, pixels: np.ndarray) -> np.ndarray:
        """Means of square cells, float32 (rows, columns, 3); the border is repeated to fill the last ones."""
        height, width = (-n % self.CELL for n in pixels.shape[:2])
        pixels = np.pad(pixels, ((0, height), (0, width), (0, 0)), "edge").astype(np.float32)
        rows, columns = (n // self.CELL for n in pixels.shape[:2])
        return pixels.reshape(rows, self.CELL, columns, self.CELL, 3).mean((1, 3))

    def _changed(self, difference: np.ndarray) -> np.ndarray:
        """The blocks that have changed, by the difference of their cells (rows, columns, 3)."""
        side = self.BLOCK // self.CELL
        rows, columns = (-n % side for n in difference.shape[:2])
        padded = np.pad(difference, ((0, rows), (0, columns), (0, 0)))
        blocks = padded.reshape(padded.shape[0] // side, side, padded.shape[1] // side, side, 3)
        drift = np.abs(blocks.mean((1, 3))).max(2) > self.DRIFT
        return drift | (np.abs(blocks).max((1, 3, 4)) > self.CHANGE)


# ---------------------------------------------------------------------------------------------------------------------
# Label maps
# ---------------------------------------------------------------------------------------------------------------------


def runs_of(semantic: np.ndarray, track: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys and lengths of the runs of equal pixels, in reading order; about a hundred times fewer than pixels."""
    key = (track.astype(np.int64) << CLASS_BITS | semantic).ravel()
    start = np.flatnonzero(np.append(True, key[1:] != key[:-1]))
    return key[start], np.diff(start, append=key.size)


def areas_of(semantic: np.ndarray, track: np.ndarray) -> dict[int, int]:
    """{key: number of pixels} of each segment."""
    keys, lengths = runs_of(semantic, track)
    found, run = np.unique(keys, return_inverse=True)
    return dict(zip(found.tolist(), np.bincount(run, lengths).astype(int).tolist(), strict=True))


def code_map(semantic: np.ndarray, track: np.ndarray, areas: dict[int, int], numbers: dict[int, int]) -> bytes:
    """Code a label map at its shown size. areas: of all segments in the full frame; numbers: by key, in the page."""
    keys, lengths = runs_of(semantic, track)
    table = np.unique(np.append(keys, np.fromiter(areas, np.int64, len(areas))))
    if table.size > 1 << 16:
        raise ValueError(f"a frame of {table.size} segments cannot be stored; 65536 is the most")
    index = np.repeat(np.searchsorted(table, keys).astype(np.uint16), lengths).reshape(semantic.shape)
    wrong = np.flatnonzero((index != predicted(index)).ravel())
    skips = varints(np.diff(wrong, prepend=-1) - 1)
    entries = [value for key in table.tolist() for value in (numbers[key], areas.get(key, 0))]
    head = varints([table.size, *entries, wrong.size, len(skips)])
    return head + skips + varints(index.ravel()[wrong])


def predicted(index: np.ndarray) -> np.ndarray:
    """Predict each pixel from its neighbours: the upper one if the row above has a border here, else the left one."""
    guess = np.empty_like(index)
    guess[0, 0] = 0
    guess[0, 1:] = index[0, :-1]
    guess[1:, 0] = index[:-1, 0]  # the first pixel of a row is like the one above
    up = index[:-1, 1:]
    guess[1:, 1:] = np.where(up == index[:-1, :-1], index[1:, :-1], up)
    return guess


def code_blank(number: int, area: int) -> bytes:
    """A label map of one segment."""
    return varints([1, number, area, 0, 0])


def pack_frame(maps: Iterable[bytes], picture: bytes) -> bytes:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = deflate.compress(b"".join(maps)) + deflate.flush()
    return struct.pack("<I", len(packed)) + packed + picture


def varints(values) -> bytes:
    """Numbers 0..2**35-1 as bytes."""
    values = np.asarray(values, np.int64)
    if not values.size:
        return b""
    places = 7 * np.arange(5)
    digits = values[:, None] >> places & 127  # (N, 5)
    used = (values[:, None] >> places > 0) | (places == 0)
    more = np.pad(used[:, 1:], ((0, 0), (0, 1)))
    return (digits | more << 7)[used].astype(np.uint8).tobytes()
