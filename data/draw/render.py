"""Drawing: classes in the Cityscapes palette, tracks in stable distinct colours, outlines, names, overlays, strips.

All functions take and return uint8 RGB arrays (H, W, 3); semantic is uint8 (H, W) with 255 = void, track integer
(H, W), 0 = none. Colours depend only on the class and the id, so they are the same in every frame and run. With
`colorblind` both come from palettes that people with all common kinds of colour vision can distinguish.
"""

from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.labels import DEFAULT_SPACE, MAX_ID, VOID, LabelSpace

# Ids take these pairs of saturation and value in turn. Hues are golden-ratio steps apart, so they nearly repeat after a
# Fibonacci number of steps; of these numbers only 5 and 55 also repeat the pair.
SHADES = np.array([(0.65, 1.0), (0.95, 0.75), (0.45, 0.95), (0.85, 1.0), (0.75, 0.55)])
GOLDEN = 0.618_033_988_75

# Found by search. The smallest distance of two colours in CIELAB, for people with normal vision, protanopia,
# deuteranopia and tritanopia (Machado et al. 2009), is 21 among classes (Cityscapes: 3) and 21 among tracks.
COLORBLIND_CLASSES = (
    (93, 74, 71), (175, 190, 196), (158, 79, 44), (81, 13, 68), (191, 165, 96), (233, 250, 250), (240, 154, 9),
    (250, 239, 23), (25, 155, 116), (166, 250, 174), (112, 203, 250), (207, 88, 20), (190, 106, 180), (31, 68, 133),
    (25, 0, 100), (122, 83, 250), (92, 0, 167), (158, 99, 216), (106, 7, 12),
)  # fmt: skip
COLORBLIND_TRACKS = (
    (0, 119, 187), (255, 119, 0), (255, 221, 204), (102, 68, 51), (136, 34, 255), (0, 221, 255),
    (204, 136, 102), (153, 136, 153), (187, 238, 119), (68, 68, 102), (204, 17, 0), (187, 85, 255),
)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Colours
# ---------------------------------------------------------------------------------------------------------------------


def class_colors(colorblind: bool = False, space: LabelSpace = DEFAULT_SPACE) -> np.ndarray:
    """Colours of the classes: uint8 (256, 3); void is black. The colour-blind palette repeats after 19 classes."""
    colors = space.palette.copy()
    if colorblind:
        count = len(space.classes)
        colors[:count] = np.array(COLORBLIND_CLASSES, np.uint8)[np.arange(count) % len(COLORBLIND_CLASSES)]
    return colors


def track_colors(count: int, colorblind: bool = False) -> np.ndarray:
    """Colours of the track ids 0..count-1: uint8 (count, 3); 0, no track, is white.

    Successive ids differ most. The colour-blind palette repeats after twelve ids.
    """
    i = np.arange(count)
    if colorblind:
        colors = np.array(COLORBLIND_TRACKS, np.uint8)[(i - 1) % len(COLORBLIND_TRACKS)]
    else:
        saturation, value = SHADES[i % len(SHADES)].T
        # HSV to RGB, all ids at once: value (1 - saturation max(0, min(k, 4 - k, 1))), k = (n + 6 hue) mod 6
        k = (np.array([5, 3, 1]) + 6 * (i * GOLDEN % 1)[:, None]) % 6
        ramp = np.minimum(np.minimum(k, 4 - k), 1).clip(0)
        colors = np.round(255 * value[:, None] * (1 - saturation[:, None] * ramp)).astype(np.uint8)
    colors[:1] = 255
    return colors


@cache
def _packed(colorblind: bool, space: LabelSpace | None = None) -> np.ndarray:
    """A colour table as uint32, so that colouring takes one look-up a pixel: for the classes of a space (256,), or for
    tracks (65536,)."""
    colors = track_colors(MAX_ID + 1, colorblind) if space is None else class_colors(colorblind, space)
    return np.pad(colors, ((0, 0), (0, 1))).view(np.uint32)[:, 0]


def _unpacked(packed: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(packed.view(np.uint8).reshape(*packed.shape, 4)[..., :3])


def _packed_tracks(track: np.ndarray, colorblind: bool) -> np.ndarray:
    return _packed(colorblind)[track & MAX_ID]  # ids above MAX_ID start again from 0


# ---------------------------------------------------------------------------------------------------------------------
# Label maps -> pictures
# ---------------------------------------------------------------------------------------------------------------------


def draw_semantic(semantic: np.ndarray, colorblind: bool = False, space: LabelSpace = DEFAULT_SPACE) -> np.ndarray:
    """Classes in their colours; void is black."""
    return _unpacked(_packed(colorblind, space)[semantic])


def draw_instances(track: np.ndarray, colorblind: bool = False) -> np.ndarray:
    """Tracks on black."""
    return _unpacked(np.where(track > 0, _packed_tracks(track, colorblind), np.uint32(0)))


def draw_panoptic(
    semantic: np.ndarray,
    track: np.ndarray,
    colorblind: bool = False,
    labels: bool = False,
    space: LabelSpace = DEFAULT_SPACE,
) -> np.ndarray:
    """Classes and tracks in their colours, tracks with outlines; with `labels` also names."""
    packed = np.where(track > 0, _packed_tracks(track, colorblind), _packed(colorblind, space)[semantic])
    picture = _unpacked(packed)
    picture[outlines(semantic, track)] = 255
    return draw_labels(picture, semantic, track, space=space) if labels else picture


def outlines(semantic: np.ndarray, track: np.ndarray) -> np.ndarray:
    """The outlines of tracked segments: bool (H, W), the pixels inside a segment at its border."""
    key = track.astype(np.int64 if track.dtype.itemsize > 4 else np.int32) * 256 + semantic
    across, down = key[:, 1:] != key[:, :-1], key[1:] != key[:-1]
    border = np.zeros(key.shape, bool)
    border[:, 1:] = across
    border[:, :-1] |= across
    border[1:] |= down
    border[:-1] |= down
    return border & (track > 0)


def overlay(
    image: np.ndarray,
    semantic: np.ndarray,
    track: np.ndarray,
    opacity: float = 0.5,
    colorblind: bool = False,
    labels: bool = True,
    space: LabelSpace = DEFAULT_SPACE,
) -> np.ndarray:
    """The panoptic drawing over the image; void shows the image. With `labels` large segments get their names."""
    packed = np.where(track > 0, _packed_tracks(track, colorblind), _packed(colorblind, space)[semantic])
    share = round(256 * opacity)
    mixed = image.astype(np.uint16) * np.uint16(256 - share)  # 255 * 256 fits into 16 bits
    mixed += _unpacked(packed).astype(np.uint16) * np.uint16(share)
    mixed += 128
    mixed = (mixed >> 8).astype(np.uint8)
    void = semantic == VOID
    if void.any():
        mixed[void] = image[void]
    mixed[outlines(semantic, track)] = 255
    return draw_labels(mixed, semantic, track, space=space) if labels else mixed


# ---------------------------------------------------------------------------------------------------------------------
# Text
# ---------------------------------------------------------------------------------------------------------------------


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own typeface: the same on every machine."""
    return ImageFont.load_default(size)


def draw_labels(
    picture: np.ndarray,
    semantic: np.ndarray,
    track: np.ndarray,
    size: int | None = None,
    space: LabelSpace = DEFAULT_SPACE,
) -> np.ndarray:
    """Write `car 3` on tracked segments and `road` on others, where the text fits; small segments get none.

    size: of the text in pixels; by default in proportion to the picture.
    """
    size = size or int(np.clip(picture.shape[0] / 26, 10, 28))
    typeface = font(size)
    canvas = Image.fromarray(picture)
    pen = ImageDraw.Draw(canvas)
    stroke = max(1, size // 10)
    grid = 4  # pixels between the places that are tried
    coarse = track[::grid, ::grid].astype(np.int64) * 256 + semantic[::grid, ::grid]
    for key in _large_first(coarse, size * size // grid**2):
        name = label_of(int(key & 255), int(key >> 8), space)
        width, height = typeface.getlength(name) + 2 * stroke, size + 2 * stroke
        place = name and _place(coarse == key, max(1, round(height / grid)), max(1, round(width / grid)))
        if place:
            y, x = ((p + 0.5) * grid for p in place)  # the middle of the text
            ink = {"fill": (255, 255, 255), "stroke_fill": (0, 0, 0), "stroke_width": stroke}
            pen.text((x, y), name, font=typeface, anchor="mm", **ink)
    return np.asarray(canvas)


def label_of(semantic: int, track: int, space: LabelSpace = DEFAULT_SPACE) -> str:
    """`car 3`, `road`, and nothing for void."""
    name = space.names[semantic] if semantic < len(space.classes) else ""
    return f"{name} {track}".strip() if track else name


def _large_first(keys: np.ndarray, smallest: int) -> np.ndarray:
    values, counts = np.unique(keys, return_counts=True)
    chosen = counts >= max(smallest, 1)
    return values[chosen][np.argsort(-counts[chosen], kind="stable")]


def _place(inside: np.ndarray, height: int, width: int) -> tuple[float, float] | None:
    """The middle (y, x) of a text-sized window in a segment: of one with room around it if possible, else of the one
    that lies inside most; None if less than 0.8 of it would. Among equals, the nearest to the segment's middle.
    """
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    inside = inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    sums = np.pad(inside.cumsum(axis=0, dtype=np.int32).cumsum(axis=1), ((1, 0), (1, 0)))
    for room, share in ((2.5, 1.0), (1.5, 1.0), (1.0, 0.8)):
        h, w = round(height * room), round(width + height * (room - 1))
        if inside.shape[0] < h or inside.shape[1] < w:
            continue
        filled = sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w]
        if filled.max() < share * h * w:
            continue
        y, x = np.nonzero(filled == filled.max())
        middle = np.argwhere(inside).mean(axis=0)
        best = np.argmin((y + h / 2 - middle[0]) ** 2 + (x + w / 2 - middle[1]) ** 2)
        return float(rows[0] + y[best] + (h - 1) / 2), float(columns[0] + x[best] + (w - 1) / 2)
    return None


# ---------------------------------------------------------------------------------------------------------------------
# Arrangement
# ---------------------------------------------------------------------------------------------------------------------


def strip(rows: list[list[np.ndarray]], gap: int = 4, titles: Sequence[str] = ()) -> np.ndarray:
    """Pictures of one size in rows and columns on white, with `titles` above the columns."""
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    canvas = np.full((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            top, left = y * (height + gap), x * (width + gap)
            canvas[top : top + height, left : left + width] = picture
    if not titles:
        return canvas
    longest = max(font(10).getlength(title) for title in titles)
    size = int(np.clip(10 * (width - 8) / max(longest, 1), 8, 16))
    head = Image.new("RGB", (canvas.shape[1], size + 10), "white")
    pen = ImageDraw.Draw(head)
    for x, title in enumerate(titles):
        pen.text((x * (width + gap) + 4, size // 2 + 5), title, "black", font(size), "lm")
    return np.concatenate([np.asarray(head), canvas])


def fit(picture: np.ndarray, height: int, width: int, smooth: bool = False) -> np.ndarray:
    """Resize a picture, with its aspect, centred on black; `smooth` for photographs, not for label maps."""
    if picture.shape[:2] == (height, width):
        return picture
    scale = min(height / picture.shape[0], width / picture.shape[1])
    h, w = (max(1, round(n * scale)) for n in picture.shape[:2])
    filters = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    canvas = np.zeros((height, width, 3), np.uint8)
    top, left = (height - h) // 2, (width - w) // 2
    canvas[top : top + h, left : left + w] = Image.fromarray(picture).resize((w, h), filters)
    return canvas


def legend(
    classes: Iterable[int] = (),
    tracks: Sequence[tuple[int, int]] = (),
    width: int = 640,
    colorblind: bool = False,
    space: LabelSpace = DEFAULT_SPACE,
) -> np.ndarray:
    """Swatches with names on white, in as many rows as they need: classes, then tracks (class, id)."""
    colors = class_colors(colorblind, space)
    names = [(space.names[c], colors[c]) for c in sorted(classes) if c < len(space.classes)]
    table = _packed(colorblind)
    return swatches(names + [(label_of(c, t, space), _unpacked(table[[t & MAX_ID]])[0]) for c, t in tracks], width)


def swatches(entries: Sequence[tuple[str, Sequence[int]]], width: int = 640, size: int = 12) -> np.ndarray:
    """Names and their colours on white, in as many rows as they need; size: of the text in pixels."""
    gap = size // 2
    places, x, y = [], gap, gap
    for name, _ in entries:
        need = size + gap + int(font(size).getlength(name)) + 2 * gap
        if x > gap and x + need > width:
            x, y = gap, y + size + gap
        places.append((x, y))
        x += need
    canvas = Image.new("RGB", (width, y + size + gap), "white")
    pen = ImageDraw.Draw(canvas)
    for (name, color), (x, y) in zip(entries, places, strict=True):
        pen.rectangle((x, y, x + size, y + size), tuple(int(v) for v in color), (90, 90, 90))
        pen.text((x + size + gap, y + size / 2 + 1), name, "black", font(size), "lm")
    return np.asarray(canvas)
