"""Label spaces: classes, things and stuff, tracks, colours.

A frame's labels are two arrays of the frame's size: `semantic` uint8 (H, W), the class 0.. or 255 = void; and
`instance` int32 (H, W), the track or instance id, 0 = none. A thing pixel with id 0 is crowd. This is the encoding of
STEP (Weber et al., "STEP: Segmenting and Tracking Every Pixel", arXiv 2102.11859, section 3).
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

VOID = 255
MAX_CLASSES = 254
MAX_ID = 65_535  # ids are stored as G * 256 + B


class DataError(ValueError):
    """A file or folder that cannot be used; the message is one line that says which one, why, and what to do."""


@dataclass(frozen=True)
class SemanticClass:
    name: str
    ids: tuple[int, ...]  # values of this class in the label files; in the default space: Cityscapes' labelIds
    color: tuple[int, int, int]
    is_thing: bool = False
    has_tracks: bool = False


@dataclass(frozen=True)
class LabelSpace:
    """The classes of a data set and of the models trained on it; a class is identified by its position, 0..253."""

    classes: tuple[SemanticClass, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.classes)

    @property
    def things(self) -> tuple[int, ...]:
        return tuple(i for i, c in enumerate(self.classes) if c.is_thing)

    @property
    def tracked(self) -> tuple[int, ...]:
        return tuple(i for i, c in enumerate(self.classes) if c.has_tracks)

    @cached_property
    def is_thing(self) -> np.ndarray:
        """bool (256,): whether the class at this position is a thing."""
        return np.isin(np.arange(256), self.things)

    @cached_property
    def index(self) -> np.ndarray:
        """uint8 (65536,): value in a label file -> class; VOID where no class lists it."""
        index = np.full(2**16, VOID, np.uint8)
        for position, c in enumerate(self.classes):
            index[list(c.ids)] = position
        return index

    @cached_property
    def palette(self) -> np.ndarray:
        """uint8 (256, 3): class -> RGB; void is black."""
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(self.classes)] = [c.color for c in self.classes]
        return palette

    def to_dict(self) -> dict[str, Any]:
        """The content of classes.json."""
        return {
            "classes": [
                {"name": c.name, "ids": list(c.ids), "thing": c.is_thing, "track": c.has_tracks, "color": list(c.color)}
                for c in self.classes
            ]
        }

    @classmethod
    def from_dict(cls, values: Any, source: str | Path) -> "LabelSpace":
        """Inverse of `to_dict`. Raises DataError that names the source and what is wrong."""

        def refuse(what: str) -> DataError:
            return DataError(f"{source}: {what}; docs/data.md shows a {CLASSES_FILE}")

        entries = values.get("classes") if isinstance(values, dict) else None
        if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_CLASSES:
            raise refuse(f'it must hold {{"classes": [...]}}, 1 to {MAX_CLASSES} of them')
        classes, claimed = [], {}
        for entry in entries:
            if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"].strip():
                raise refuse(f"the class {str(entry)[:60]} has no name")
            name, ids, color = entry["name"], entry.get("ids"), entry.get("color")
            if name in (c.name for c in classes):
                raise refuse(f"two classes are named {name!r}")
            if not _numbers(ids, 2**16) or not ids:
                raise refuse(f"the ids of {name!r} must be values of the label files, as [7], 0..65535")
            if twice := [n for n in ids if claimed.setdefault(n, name) != name]:
                raise refuse(f"the id {twice[0]} is {claimed[twice[0]]!r} and {name!r}")
            if not _numbers(color, 256) or len(color) != 3:
                raise refuse(f"the color of {name!r} must be three numbers, 0..255")
            flags = [entry.get(flag, False) for flag in ("thing", "track")]
            if not all(isinstance(flag, bool) for flag in flags) or flags == [False, True]:
                raise refuse(f"{name!r}: thing and track are true or false, and only a thing has tracks")
            classes.append(SemanticClass(name, tuple(ids), tuple(color), *flags))
        return cls(tuple(classes))


def _numbers(values: Any, end: int) -> bool:
    return isinstance(values, list) and all(type(n) is int and 0 <= n < end for n in values)


def read_label_space(path: str | Path) -> LabelSpace:
    """A classes.json. Raises DataError."""
    try:
        values = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error})") from None
    return LabelSpace.from_dict(values, path)


def label_space_of(folder: str | Path) -> LabelSpace | None:
    """The label space of the classes.json in a folder, None where there is none. Raises DataError."""
    path = Path(folder) / CLASSES_FILE
    return read_label_space(path) if path.is_file() else None


CLASSES_FILE = "classes.json"
DEFAULT_SPACE = LabelSpace((
    SemanticClass("road", (7,), (128, 64, 128)),
    SemanticClass("sidewalk", (8,), (244, 35, 232)),
    SemanticClass("building", (11,), (70, 70, 70)),
    SemanticClass("wall", (12,), (102, 102, 156)),
    SemanticClass("fence", (13,), (190, 153, 153)),
    SemanticClass("pole", (17,), (153, 153, 153)),
    SemanticClass("traffic light", (19,), (250, 170, 30)),
    SemanticClass("traffic sign", (20,), (220, 220, 0)),
    SemanticClass("vegetation", (21,), (107, 142, 35)),
    SemanticClass("terrain", (22,), (152, 251, 152)),
    SemanticClass("sky", (23,), (70, 130, 180)),
    SemanticClass("person", (24,), (220, 20, 60), True, True),
    SemanticClass("rider", (25,), (255, 0, 0), True),
    SemanticClass("car", (26,), (0, 0, 142), True, True),
    SemanticClass("truck", (27,), (0, 0, 70), True),
    SemanticClass("bus", (28,), (0, 60, 100), True),
    SemanticClass("train", (31,), (0, 80, 100), True),
    SemanticClass("motorcycle", (32,), (0, 0, 230), True),
    SemanticClass("bicycle", (33,), (119, 11, 32), True),
))  # fmt: skip
NUM_CLASSES, CLASS_NAMES, THINGS = len(DEFAULT_SPACE.classes), DEFAULT_SPACE.names, DEFAULT_SPACE.things
STUFF = tuple(i for i in range(NUM_CLASSES) if i not in THINGS)
PERSON, CAR = 11, 13
TRAIN_TO_LABEL = np.zeros(256, np.uint8)  # class -> Cityscapes labelId; void -> 0, "unlabeled"
TRAIN_TO_LABEL[:NUM_CLASSES] = [c.ids[0] for c in DEFAULT_SPACE.classes]
