"""Write the page: frames are packed and written as they come; the page gets its name when it is complete."""

import base64
import html
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.draw.render import class_colors, track_colors
from data.draw.viewer.coding import (
    CLASS_BITS,
    Labels,
    PictureCoder,
    areas_of,
    code_blank,
    code_map,
    fit_labels,
    fit_picture,
    pack_frame,
    shown_size,
)
from data.draw.viewer.errors import Comparison
from data.labels import DEFAULT_SPACE, MAX_ID, VOID, DataError, LabelSpace

SOURCE = Path(__file__).parent
SCRIPTS = ("store.js", "draw.js", "timeline.js", "panels.js", "page.js")


@dataclass(frozen=True)
class ShownClass:
    """A class as the page shows it; colours are RGB. track: its instances keep their ids over frames."""

    name: str
    color: tuple[int, int, int]
    colorblind: tuple[int, int, int]
    thing: bool
    track: bool


def shown_classes(space: LabelSpace = DEFAULT_SPACE, tracked: Sequence[int] | None = None) -> tuple[ShownClass, ...]:
    """The classes of a label space; tracked: those with tracks, by default the space's."""
    safe = class_colors(True, space).tolist()
    tracked = space.tracked if tracked is None else tracked
    return tuple(
        ShownClass(c.name, c.color, tuple(safe[i]), c.is_thing, i in tracked) for i, c in enumerate(space.classes)
    )


class Page:
    """The page of one video; frames are added as they are predicted.

    >>> with Page("street_view.html", fps=10) as page:
    ...     page.add(image, semantic, track)  # uint8 (H, W, 3), uint8 (H, W), int32 (H, W)

    path: of the page; title: the video's name, by default from the file's; runs: names of the one or two runs that are
    shown; width: of the pictures and masks in pixels, at most; quality: of the pictures, 1 to 100. Memory holds the
    list of segments and, with truth, some hundred bytes a frame. After an error no file is left.
    """

    def __init__(
        self,
        path: str | Path,
        classes: Sequence[ShownClass] | None = None,
        title: str | None = None,
        runs: Sequence[str] = ("prediction",),
        fps: float = 10.0,
        width: int = 640,
        quality: int = 75,
    ):
        if not 1 <= len(runs) <= 2:
            raise ValueError(f"a page shows one run or two, not {len(runs)}")
        self.path, self.runs, self.fps, self.width = Path(path), tuple(runs), fps, width
        self.pictures = PictureCoder(quality)
        self.keys: list[int] = []  # frames whose pictures are whole
        self.classes = shown_classes() if classes is None else tuple(classes)
        self.title = title or self.path.stem.removesuffix("_view")
        self.temporary = self.path.with_name(f".{self.path.name}.part")  # a fixed name, to overwrite a killed run's
        self.spool = self.path.with_name(f".{self.path.name}.frames.part")
        self.size: tuple[int, int] | None = None  # (height, width) as shown
        self.file = None
        self.numbers: list[int] = []
        self.sources = [_Segments() for _ in (*self.runs, "truth")]
        tracked = tuple(i for i, c in enumerate(self.classes) if c.track)
        self.against_truth = [Comparison(len(self.classes), tracked) for _ in self.runs]
        self.between = Comparison(len(self.classes), tracked)
        self.has_truth = False

    def __enter__(self) -> "Page":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = self.spool.open("wb")
        return self

    def __exit__(self, kind, *_) -> None:
        try:
            if self.file is not None:
                self.file.close()
            if kind is None and self.numbers:
                self._assemble()
        finally:
            self.spool.unlink(missing_ok=True)
            self.temporary.unlink(missing_ok=True)

    def add(
        self,
        image: np.ndarray,
        semantic: np.ndarray,
        track: np.ndarray,
        *,
        other: Labels | None = None,
        truth: Labels | None = None,
        number: int | None = None,
    ) -> None:
        """Add the next frame: image uint8 (H, W, 3), semantic uint8 (H, W) with 255 = void, track int32 (H, W).

        other: the second run's (semantic, track); truth: the true ones, None if the frame has none; number: the
        frame's own. Raises DataError if maps do not have the image's size or a class is not one of the page's.
        """
        self._check(image, semantic, track, other, truth)
        full = image.shape[:2]
        self.size = self.size or shown_size(*full, self.width)
        runs = [(semantic, track)] + ([] if other is None else [other])
        if len(runs) != len(self.runs):
            raise DataError(f"{self.path}: a frame has {len(runs)} masks, the page shows {len(self.runs)}")
        for comparison, labels in zip(self.against_truth, runs, strict=True):
            comparison.add(truth, labels)
        if other is not None:
            self.between.add(*runs)
        self.has_truth |= truth is not None
        frame = len(self.numbers)
        maps = [self._code(source, frame, labels) for source, labels in zip(self.sources, (*runs, truth), strict=True)]
        picture, whole = self.pictures.code(fit_picture(image, self.size))
        if whole:
            self.keys.append(frame)
        packed = pack_frame(maps, picture)
        self.file.write(b'<script type="text/plain" id="f%d">%s</script>\n' % (frame, base64.b64encode(packed)))
        self.numbers.append(frame if number is None else number)

    def _check(self, image, semantic, track, other, truth) -> None:
        for name, labels in (("prediction", (semantic, track)), ("second run", other), ("truth", truth)):
            if labels is None:
                continue
            if any(a.shape != image.shape[:2] for a in labels):
                raise DataError(f"{self.path}: the {name} of frame {len(self.numbers)} is not of its image's size")
            found = labels[0][(labels[0] >= len(self.classes)) & (labels[0] != VOID)]
            if found.size:
                raise DataError(f"{self.path}: the {name} holds class {found[0]}, of {len(self.classes)} classes")

    def _code(self, source: "_Segments", frame: int, labels: Labels | None) -> bytes:
        if labels is None:
            return code_blank(source.number(VOID), 0)
        areas = areas_of(*labels)
        shown = fit_labels(labels[0], self.size, VOID), fit_labels(labels[1], self.size, 0)
        source.note(frame, areas)
        source.number(VOID)  # for the margin of a frame of another shape
        return code_map(*shown, areas, source.numbers)

    def _assemble(self) -> None:
        """Write the page's source, then the data, then the frames, so that the page works while they still load."""
        data = json.dumps(self._data(), separators=(",", ":")).replace("<", "\\u003c")
        parts = {
            "title": html.escape(self.title),
            "style": (SOURCE / "page.css").read_text(encoding="utf-8"),
            "data": data,
            "script": "\n".join((SOURCE / name).read_text(encoding="utf-8") for name in SCRIPTS),
        }
        text, rest = (SOURCE / "page.html").read_text(encoding="utf-8").split("<!-- frames -->")
        for name, part in parts.items():
            before, after = text.split(f"/* {name} */")  # each occurs once in the template
            text = before + part + after
        with self.temporary.open("wb") as file, self.spool.open("rb") as frames:
            file.write(text.encode(errors="replace"))  # a name of a file that is not UTF-8
            shutil.copyfileobj(frames, file)
            file.write(rest.encode())
        os.replace(self.temporary, self.path)

    def _data(self) -> dict[str, Any]:
        """The data that the page needs before it has read a frame."""
        sources = [source.described() for source in self.sources]
        runs = []
        for name, source, comparison in zip(self.runs, sources, self.against_truth, strict=False):
            run = {"name": name, "segments": source, "errors": None, "quality": None}
            if self.has_truth:
                shares = comparison.shares()
                run["errors"] = [None if s is None else [round(v, 5) for v in s] for s in shares]
                run["quality"] = comparison.quality()
            runs.append(run)
        links = [(len(runs), i, comparison) for i, comparison in enumerate(self.against_truth) if self.has_truth]
        if len(runs) == 2:
            links.append((0, 1, self.between))
        return {
            "title": self.title,
            "fps": self.fps,
            "height": self.size[0],
            "width": self.size[1],
            "numbers": self.numbers,
            "keys": self.keys,
            "void": VOID,
            "classes": [
                {
                    "name": c.name,
                    "color": _hex(c.color),
                    "colorblind": _hex(c.colorblind),
                    "thing": c.thing,
                    "track": c.track,
                }
                for c in self.classes
            ],
            "runs": runs,
            "truth": {"segments": sources[-1]} if self.has_truth else None,
            "links": [self._link(*link) for link in links],
        }

    def _link(self, first: int, second: int, comparison: Comparison) -> dict[str, Any]:
        """The matching segments of two sources: pairs of their numbers."""
        pairs = []
        for (semantic, track), other in sorted(comparison.partners().items()):
            number = self.sources[first].numbers.get(track << CLASS_BITS | semantic)
            pairs += [[number, n] for key, n in self.sources[second].numbers.items() if key >> CLASS_BITS == other]
        return {"first": first, "second": second, "pairs": pairs}


class _Segments:
    """The segments of one source: a number for each, and the frames in which it is visible."""

    def __init__(self):
        self.numbers: dict[int, int] = {}  # track << 8 | class -> number
        self.seen: list[list[int]] = []  # first, last, first, last, ... of each run of frames

    def number(self, key: int) -> int:
        if key not in self.numbers:
            self.numbers[key] = len(self.seen)
            self.seen.append([])
        return self.numbers[key]

    def note(self, frame: int, keys) -> None:
        for key in keys:
            runs = self.seen[self.number(key)]
            if runs and runs[-1] == frame - 1:
                runs[-1] = frame
            else:
                runs += [frame, frame]

    def described(self) -> list[list]:
        """[class, track, colour, colour-blind colour, runs] of each segment, by number."""
        tracks = [key >> CLASS_BITS for key in self.numbers]
        wrapped = np.array(tracks, np.int64) & MAX_ID
        count = int(wrapped.max(initial=0)) + 1
        plain, safe = (track_colors(count, colorblind)[wrapped].tolist() for colorblind in (False, True))
        return [
            [key & ((1 << CLASS_BITS) - 1), track, _hex(plain[i]), _hex(safe[i]), self.seen[i]]
            for i, (key, track) in enumerate(zip(self.numbers, tracks, strict=True))
        ]


def _hex(color: Sequence[int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def inline(path: str | Path, height: int = 760) -> str:
    """HTML that embeds a whole page in another one, as in a notebook."""
    return (
        f'<iframe title="Viewer" style="width:100%;height:{height}px;border:0" '
        f'srcdoc="{html.escape(Path(path).read_text(encoding="utf-8"))}"></iframe>'
    )
