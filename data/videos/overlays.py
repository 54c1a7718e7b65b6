"""Overlays: films and pages that inference writes beside the masks, one writer for each kind of `--overlay`.

A writer is a class with `write(frame, image, semantic, track)` for each frame in order, then `finish`, which returns a
remark or "", or `discard`. It works in a thread of its own. A new kind is a line in WRITERS.
"""

import contextlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from data.draw import render
from data.draw.viewer.page import Page, shown_classes
from data.io.files import naming
from data.io.pixels import nearest
from data.labels import DEFAULT_SPACE, LabelSpace
from data.videos.sequences import InputFrame
from data.videos.video import VideoWriter

WIDTH = {"mp4": 1280, "gif": 640, "webp": 640}  # pixels, at most


class Film:
    """The frames under their masks, no wider than WIDTH, as mp4, gif or webp."""

    def __init__(self, path: Path, fps: float, colorblind: bool = False, space: LabelSpace = DEFAULT_SPACE):
        self.path, self.look = path, {"colorblind": colorblind, "space": space}
        self.widest = WIDTH[path.suffix[1:]]
        self.video = VideoWriter(path, fps)
        self.video.__enter__()

    def write(self, frame: InputFrame, image: np.ndarray, semantic: np.ndarray, track: np.ndarray) -> None:
        picture = render.overlay(*narrowed(self.widest, image, semantic, track), **self.look)
        if self.video.size not in (None, picture.shape[:2]):  # a film has one size, that of its first frame
            picture = render.fit(picture, *self.video.size, smooth=True)
        with naming(self.path):
            self.video.write(picture)

    def finish(self) -> str:
        with naming(self.path):
            self.video.__exit__(None, None, None)
        ended = self.video.ended
        return f"{self.path.name} ends after {ended} frames, where it is full; --overlay mp4 holds all" if ended else ""

    def discard(self) -> None:
        with contextlib.suppress(Exception):
            self.video.__exit__(InterruptedError, None, None)


class View:
    """The viewer's page, with the same frames and masks."""

    def __init__(self, path: Path, fps: float, _: bool = False, space: LabelSpace = DEFAULT_SPACE):
        self.path, self.page = path, Page(path, shown_classes(space), fps=fps)
        self.page.__enter__()

    def write(self, frame: InputFrame, image: np.ndarray, semantic: np.ndarray, track: np.ndarray) -> None:
        with naming(self.path):
            self.page.add(image, semantic, track, number=frame.number)

    def finish(self) -> str:
        with naming(self.path):
            self.page.__exit__(None, None, None)
        return ""

    def discard(self) -> None:
        with contextlib.suppress(Exception):
            self.page.__exit__(InterruptedError, None, None)


WRITERS = {"mp4": Film, "gif": Film, "webp": Film, "html": View}


def overlay_path(folder: Path, name: str, kind: str) -> Path:
    """name: of the video; a folder in the input is a folder in the output."""
    name = name.strip(".") or "video"
    return folder / (f"{name}_view.html" if kind == "html" else f"{name}_overlay.{kind}")


class Overlays:
    """The overlays of one video, drawn in a thread. The last error is raised by `write` and `finish`."""

    def __init__(self, folder: Path, name: str, kinds: list[str], fps: float, colorblind: bool, space: LabelSpace):
        paths = {kind: overlay_path(folder, name, kind) for kind in kinds if kind != "none"}
        self.writers = [WRITERS[kind](path, fps, colorblind, space) for kind, path in paths.items()]
        self.thread = ThreadPoolExecutor(1)
        self.pending: list[Future] = []

    def write(self, *frame) -> None:
        if self.writers:
            self._wait(8)
            self.pending.append(self.thread.submit(self._write, *frame))

    def _write(self, *frame) -> None:
        for writer in self.writers:
            writer.write(*frame)

    def finish(self) -> list[str]:
        """Give the overlays their final names. Returns remarks for the user."""
        self._wait(0)
        self.thread.shutdown()
        remarks = [writer.finish() for writer in self.writers]
        self.writers = []
        return [remark for remark in remarks if remark]

    def discard(self) -> None:
        self.thread.shutdown(cancel_futures=True)
        for writer in self.writers:
            writer.discard()
        self.writers = []

    def _wait(self, left: int) -> None:
        while len(self.pending) > left:
            self.pending.pop(0).result()


def remove_overlays(folder: Path, name: str) -> None:
    for kind in WRITERS:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(overlay_path(folder, name, kind))


def narrowed(width: int, image: np.ndarray, semantic: np.ndarray, track: np.ndarray) -> tuple[np.ndarray, ...]:
    """Image and label maps, at most `width` wide; labels by nearest neighbour."""
    height, wide = semantic.shape
    if wide <= width:
        return image, semantic, track
    size = width, max(1, round(height * width / wide))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, reducing_gap=1.1))
    return small, *(nearest(labels, size[::-1]) for labels in (semantic, track))
