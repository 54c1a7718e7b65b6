"""COCO panoptic: a JSON and a folder of PNGs whose colours are segment ids, R + 256 G + 65536 B, 0 = void.

Layout of COCO and of the exports of CVAT and others, found by names:
  <root>/**/panoptic_<split>*.json (or *panoptic*.json in a folder of the split, or the only one)
  <root>/**/<the JSON's name>/<file_name>.png or beside the JSON, and the images anywhere beneath the root
Frames are a video if segments keep their ids from frame to frame: a `track_id` or `instance_id`, or an `id` that has
the same class in all frames of a video. Kirillov et al., "Panoptic Segmentation", arXiv 1801.00868.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.io.images import open_image
from data.io.listing import walk
from data.labels import CLASS_NAMES, DEFAULT_SPACE, MAX_ID, THINGS, VOID, DataError, LabelSpace
from data.sets.frames import FileSource, FrameRef, ordered

DEFAULT_ROOT = Path(__file__).resolve().parents[1] / "COCO"
ID_STEP = MAX_ID + 1  # in our own exports the id of a thing is labelId * ID_STEP + track
_CLASS = {name: number for number, name in enumerate(CLASS_NAMES)}
CITYSCAPES = "_gtFine_panoptic.png"  # its own panoptic PNGs: single images
NOT_IMAGES = {"annotations", "labels", "masks", "panoptic", "semantic"}  # folders


@dataclass(frozen=True)
class Segment:
    id: int  # in the PNG
    semantic: int  # trainId; VOID for classes that we do not have
    crowd: bool
    track: int  # 1..; the position in the frame if the JSON has no tracks


@dataclass(frozen=True)
class CocoFrame:
    name: str  # <video>_<number> for a frame of a video
    png: Path
    segments: tuple[Segment, ...]
    image: str = ""  # file name of its image
    has_tracks: bool = False
    names_tracks: bool = False  # by a track_id; an instance_id may hold for one frame


class CocoPanoptic(FileSource):
    """One split of a data set in COCO's panoptic form as a FrameSource. root: None for data/COCO. Raises DataError."""

    name = "coco_panoptic"
    tracked = THINGS

    def __init__(self, root: str | Path | None = None, split: str = "train"):
        self.root, self.split = DEFAULT_ROOT if root is None else Path(root), split
        if not self.root.is_dir():
            raise DataError(f"the folder {self.root} is missing: COCO panoptic is a panoptic_<split>.json and its PNGs")
        files = list(walk(self.root))
        self.take_label_space(self.root, tracks=False)
        self.label_indexes = jsons = panoptic_jsons(files, split)
        frames = [frame for path in jsons for frame in read_json(path, self.own_space) or ()]
        if not frames:
            raise DataError(f"{self.root} holds no panoptic_{split}*.json with annotations")
        self.is_video = all(frame.has_tracks for frame in frames)
        pngs = {frame.png for frame in frames}
        # The PNGs of any split
        maps = {path.with_suffix("") for path in files if path.suffix == ".json" and "panoptic" in path.name.lower()}
        images: dict[str, list[Path]] = {}
        for path in files:
            is_image = path.suffix.lower() in (".jpg", ".jpeg", ".png") and path not in pngs
            if is_image and not maps & set(path.parents):
                relative = path.relative_to(self.root).parts
                for n in range(1, min(3, len(relative)) + 1):
                    images.setdefault("/".join(relative[-n:]), []).append(path)
        self.of_label = {frame.png: frame for frame in frames}
        self.frames = ordered(self._ref(frame, images, n) for n, frame in enumerate(frames))

    def _ref(self, frame: CocoFrame, images: dict[str, list[Path]], place: int) -> FrameRef:
        parts = Path(frame.image).parts
        found = next((images[k] for n in (3, 2, 1) if (k := "/".join(parts[-n:])) in images), [])
        inside = {p: p.relative_to(self.root).parent for p in found}
        found = [p for p in found if not NOT_IMAGES & {part.lower() for part in inside[p].parts}] or found
        of_split = [p for p in found if self.split in re.split(r"[_\W\d]+", str(inside[p]))]
        image, *others = of_split or found or [None]
        if image is None:
            raise DataError(f"the image {frame.image} of {frame.png} is nowhere beneath {self.root}")
        if others:
            raise DataError(f"{image} and {others[0]} could both be the image of {frame.png}: take one away")
        video = video_of(frame.name)
        return (
            FrameRef(*video, image, frame.png)
            if video and self.is_video
            else FrameRef(frame.name, place, image, frame.png)
        )

    def read_target(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        return read_segments(path, self.of_label[path].segments, self.space)


def video_of(name: str) -> tuple[str, int] | None:
    """(sequence, frame number) if the name is `<sequence>_<number>` or only a number, else None."""
    match = re.fullmatch(r"(?:(.+)_)?(\d+)", name)
    return (match[1] or "0", int(match[2])) if match else None


def panoptic_jsons(files: Iterable[Path], split: str) -> list[Path]:
    """The panoptic JSONs with the split in their own or a folder's name; for train else the only one."""
    found = [path for path in files if path.suffix.lower() == ".json" and "panoptic" in path.name.lower()]
    of_split = [p for p in found if any(split in re.split(r"[_\W\d]+", part) for part in (p.stem, *p.parts[-4:-1]))]
    named = [p for p in found if any({"train", "val", "test"} & set(re.split(r"[_\W\d]+", p_)) for p_ in (p.stem,))]
    return of_split or (found if len(found) == 1 and not named and split == "train" else [])


def read_json(path: Path, own: LabelSpace | None = None) -> list[CocoFrame] | None:
    """The frames of a panoptic JSON, with or without categories (a submission has none). None for other files.

    Raises DataError.
    """
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict) or "annotations" not in content:
            return None
        categories = {int(c["id"]): str(c["name"]) for c in content.get("categories", [])}
        info = {str(image["id"]): image for image in content.get("images", [])}
        folder = path.with_suffix("") if path.with_suffix("").is_dir() else path.parent
        frames = [
            _frame(entry, info.get(str(entry["image_id"]), {}), categories, folder, own)
            for entry in content["annotations"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as a panoptic JSON ({type(error).__name__}: {error})") from None
    tracks = _hold_tracks(frames, (own or DEFAULT_SPACE).things)
    return [_numbered(frame) if not tracks else replace(frame, has_tracks=True) for frame in frames]


def _frame(
    entry: dict[str, Any], image: dict[str, Any], categories: dict[int, str], folder: Path, own: LabelSpace | None
) -> CocoFrame:
    segments, names_tracks = [], False
    for s in entry["segments_info"]:
        number, category = int(s["id"]), int(s["category_id"])
        track = s.get("track_id", s.get("instance_id"))
        names_tracks |= "track_id" in s
        if track is not None:
            track = int(track) + 1  # they may count from 0
        else:
            track = number % ID_STEP if number // ID_STEP == category else number
        segments.append(Segment(number, _class_of(category, categories, own), bool(s.get("iscrowd", 0)), track))
    name, file = str(entry["image_id"]), str(image.get("file_name", entry["file_name"]))
    if "video_id" in image and "frame_id" in image:
        name = f"{image['video_id']}_{int(image['frame_id'])}"
    elif name.isdecimal():  # COCO's image number says less than the file name
        stem = Path(file).stem.removesuffix("_leftImg8bit")
        name = f"{Path(file).parent.name}_{stem}" if stem.isdecimal() and Path(file).parent.name else stem
    return CocoFrame(name, folder / entry["file_name"], tuple(segments), file, names_tracks=names_tracks)


def _class_of(category: int, categories: dict[int, str], own: LabelSpace | None) -> int:
    """The class by the ids of a classes.json; else by name if the JSON has names; else by Cityscapes' labelId. -1 for
    an unknown category."""
    if own is not None:
        return int(own.index[category]) if 0 <= category < 2**16 else VOID
    if categories:
        name = re.sub(r"(-other|-stuff)?(-merged)?$", "", categories.get(category, "").lower()).replace("_", " ")
        return _CLASS.get(name, VOID if category in categories else -1)
    return int(DEFAULT_SPACE.index[category]) if 0 <= category < 34 else -1


def _hold_tracks(frames: list[CocoFrame], things: tuple[int, ...]) -> bool:
    """Whether things keep their ids from frame to frame: the JSON names tracks, or each id of a video has one class and
    some ids recur."""
    if any(frame.names_tracks for frame in frames):
        return all(video_of(frame.name) and not frame.png.name.endswith(CITYSCAPES) for frame in frames)
    classes: dict[tuple[str, int], int] = {}
    again = False
    for frame in frames:
        video = video_of(frame.name)
        if video is None or frame.png.name.endswith(CITYSCAPES):
            return False
        for s in frame.segments:
            if s.semantic in things and not s.crowd and s.track:
                again |= (video[0], s.track) in classes
                if classes.setdefault((video[0], s.track), s.semantic) != s.semantic:
                    return False
    return again


def _numbered(frame: CocoFrame) -> CocoFrame:
    """Number the instances by their position in the frame, for a JSON without tracks."""
    return replace(frame, segments=tuple(replace(s, track=n) for n, s in enumerate(frame.segments, 1)))


def read_segments(
    path: Path, segments: Iterable[Segment], space: LabelSpace = DEFAULT_SPACE
) -> tuple[np.ndarray, np.ndarray]:
    """A PNG as semantic uint8 (H, W) and instance int32 (H, W), 0 in stuff and crowd. Raises DataError."""
    image = open_image(path)
    if image.mode != "RGB":
        raise DataError(f"{path} is no panoptic PNG: its mode is {image.mode}, not RGB")
    ids, index = np.unique(np.asarray(image).astype(np.int32) @ (1, 256, 65536), return_inverse=True)
    semantic, instance = np.full(ids.size, VOID, np.uint8), np.zeros(ids.size, np.int32)
    known = {segment.id: segment for segment in segments}
    for row, number in enumerate(ids.tolist()):
        if number == 0 and number not in known:
            continue
        if number not in known:
            raise DataError(f"{path} holds segment {number}, which its JSON does not list")
        segment = known[number]
        if not (0 <= segment.semantic < len(space.classes) or segment.semantic == VOID):
            raise DataError(f"{path} holds segment {number} of an unknown class")
        semantic[row] = segment.semantic
        if segment.semantic in space.things and not segment.crowd:
            instance[row] = segment.track
    shape = (image.height, image.width)
    return semantic[index].reshape(shape), instance[index].reshape(shape)
