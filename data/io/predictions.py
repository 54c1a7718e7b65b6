"""What inference writes: panoptic PNGs, a line a frame in tracks.jsonl, an overlay, and a small state to go on from.

Each prediction is complete or absent. The state of a half-done video lies in `<output>/.inference/`; it names the run
(checkpoint by hash, and flags) and the inputs, and is used only where none of these has changed.
"""

import hashlib
import json
import os
import queue
import threading
import warnings
import zipfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from data.draw import render
from data.io.inputs import InputFrame, Sequence
from data.io.video import VideoWriter
from data.labels import MAX_PIXELS, DataError, open_image, read_panoptic, write_panoptic

STATE_FOLDER = ".inference"
TRACKS = "tracks.jsonl"
STATE_EVERY = 20  # frames between two saved states: what a kill costs at most


def fingerprint(checkpoint: Path, flags: dict[str, Any]) -> str:
    """A hash of the checkpoint's content and of all that changes the predictions."""
    digest = hashlib.sha256(json.dumps(flags, sort_keys=True, default=str).encode())
    with checkpoint.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_files(sequences: list[Sequence]) -> list[str]:
    """What is wrong with the image files, without decoding sound ones: no image, too large, or cut off at the end."""
    problems = []
    for frame in (f for s in sequences if s.frames is not None for f in s.frames):
        try:
            size = frame.image.stat().st_size
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below
                with Image.open(frame.image) as image:
                    kind, pixels = image.format, image.width * image.height
            with frame.image.open("rb") as file:
                file.seek(-min(size, 64), os.SEEK_END)
                end = file.read()
        except Exception as error:  # Pillow raises many types for damaged files
            problems.append(f"{frame.image} cannot be read as an image ({error})")
            continue
        mark = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}.get(kind)
        if pixels > MAX_PIXELS:
            problems.append(f"{frame.image} claims {pixels:,} pixels; more than {MAX_PIXELS:,} are refused")
        elif mark and mark not in end:
            try:
                open_image(frame.image)  # some cameras add to the end of a whole image
            except DataError:
                problems.append(f"{frame.image} is cut off: its end is missing")
    return problems


def prefetched(
    sequence: Sequence, skip: int = 0, ahead: int = 4
) -> Iterator[tuple[InputFrame, np.ndarray | DataError]]:
    """The frames of a sequence but the first `skip`, read by a thread a few ahead of the computing."""
    items: queue.Queue = queue.Queue(ahead)
    gone = threading.Event()

    def put(item: Any) -> bool:
        while not gone.is_set():
            try:
                items.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def read() -> None:
        try:
            for item in sequence.read(skip):
                if not put(item):
                    return
            put(None)
        except BaseException as error:  # handed over to the thread that waits for the frame
            put(error)

    threading.Thread(target=read, daemon=True).start()
    try:
        while (item := items.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        gone.set()


class SequenceOutput:
    """The files of one video. `open`, then `write` and `checkpoint` for each frame, then `finish`; `close` always."""

    def __init__(
        self,
        sequence: Sequence,
        folder: Path,
        run: str,
        overlay: str = "none",
        fps: float = 10.0,
        restart: bool = False,
        given: int = 0,
        colorblind: bool = False,
    ):
        """given: how many of the first frames' masks lie in the folder already."""
        self.colorblind = colorblind
        self.sequence, self.folder, self.restart, self.from_given = sequence, folder, restart, given
        safe = hashlib.sha256(sequence.name.encode()).hexdigest()[:16]
        self.state_path = folder / STATE_FOLDER / f"{safe}.pt"
        self.tracks_path = tracks_part(folder, sequence.name)
        self.key = hashlib.sha256(f"{run} {self._inputs()} {self._given(given)}".encode()).hexdigest()
        self.writer = ThreadPoolExecutor(1)
        self.pending: list[Future] = []
        self.tracks = self.overlay = None
        if overlay != "none":
            name = sequence.name.strip(".") or "video"  # of a folder in the input: in that folder of the output
            self.overlay = VideoWriter(folder / f"{name}_overlay.{overlay}", fps)

    def _inputs(self) -> str:
        paths = [self.sequence.video] if self.sequence.frames is None else [f.image for f in self.sequence.frames]
        status = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]
        return hashlib.sha256(repr(status).encode()).hexdigest()

    def _given(self, count: int) -> list[str]:
        outputs = [Path(f.output) for f in (self.sequence.frames or [])[:count]]
        there = [self.folder / p for p in outputs if (self.folder / p).is_file()]
        return [hashlib.sha256(p.read_bytes()).hexdigest() for p in there]

    def open(self) -> dict[str, Any] | None:
        """Start writing. Returns {"done", "state", "failures"} of a half-done video where it can be gone on with."""
        before = self.state_path.exists()
        stored = None if self.restart else self._stored()
        if before and stored is None:  # no mask of another run may stand beside those of this one
            for frame in (self.sequence.frames or [])[self.from_given :]:
                (self.folder / frame.output).unlink(missing_ok=True)
        self.state_path.parent.mkdir(parents=True, exist_ok=True)
        lines = []
        if stored is not None:
            lines = self.tracks_path.read_text().splitlines()[: stored["lines"]]
        self.lines = len(lines)
        self.tracks_path.write_text("".join(f"{line}\n" for line in lines))
        self.tracks = self.tracks_path.open("a")
        if self.overlay is not None:
            self.overlay.__enter__()
        return stored

    def _stored(self) -> dict[str, Any] | None:
        try:
            with zipfile.ZipFile(self.state_path) as archive:  # torch itself does not compare the checksums
                if archive.testzip():
                    return None
            stored = torch.load(self.state_path, weights_only=True)
        except Exception:  # not there, or damaged: as if there were none
            return None
        if not isinstance(stored, dict) or stored.get("key") != self.key:
            print(f"{self.sequence.name}: checkpoint, flags or inputs have changed, starting over")
            return None
        if not self.tracks_path.exists() or len(self.tracks_path.read_text().splitlines()) < stored["lines"]:
            return None
        frames = self.sequence.frames
        if frames is not None:
            there = (self.folder / f.output for f in frames[: stored["done"]])
            if sum(path.exists() and path.stat().st_size > 0 for path in there) < stored["lines"]:
                return None  # predictions have been deleted since, or emptied as by a power cut
        return stored

    def given(self, frame: InputFrame, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A mask that lies in the output folder already. Raises DataError where there is none of the frame's size."""
        semantic, track = read_panoptic(self.folder / frame.output)
        if semantic.shape != image.shape[:2]:
            raise DataError(f"{self.folder / frame.output} has another size than its frame")
        return semantic, track

    def write(self, frame: InputFrame, image: np.ndarray, semantic, track, given: bool = False) -> None:
        """Write one prediction, in a thread of its own; `given` masks stay as they are."""
        while len(self.pending) > 8:
            self.pending.pop(0).result()
        self.pending.append(self.writer.submit(self._write, frame, image, semantic, track, given))

    def _write(self, frame: InputFrame, image: np.ndarray, semantic, track, given: bool) -> None:
        if not given:
            write_panoptic(self.folder / frame.output, semantic, track)
        entry = {"sequence": self.sequence.name, "frame": frame.number, "file": frame.output.as_posix()}
        self.tracks.write(json.dumps(entry | {"segments": describe_segments(semantic, track)}) + "\n")
        self.lines += 1
        self._draw(image, semantic, track)

    def redraw(self, frame: InputFrame, image: np.ndarray | DataError) -> None:
        """A frame of an earlier call: for the overlay alone."""
        if self.overlay is not None and not isinstance(image, DataError):
            self._draw(image, *read_panoptic(self.folder / frame.output))

    def _draw(self, image: np.ndarray, semantic, track) -> None:
        if self.overlay is None:
            return
        picture = render.overlay(image, semantic, track, colorblind=self.colorblind)
        if self.overlay.size not in (None, picture.shape[:2]):  # a film is of one size: the first frame's
            picture = render.fit(picture, *self.overlay.size, smooth=True)
        self.overlay.write(picture)

    def checkpoint(self, done: int, state: Any, failures: list[str], always: bool = False) -> None:
        """Save where the video stands, after all that was written before it."""
        if not always and done % STATE_EVERY:
            return
        self.wait()
        self.tracks.flush()
        temporary = self.state_path.with_suffix(".part")
        content = {"key": self.key, "done": done, "lines": self.lines, "failures": failures, "state": state.to_dict()}
        torch.save(content, temporary)
        os.replace(temporary, self.state_path)

    def wait(self) -> None:
        while self.pending:
            self.pending.pop(0).result()

    def finish(self, done: int, state: Any, failures: list[str]) -> None:
        """The video is complete: its overlay appears under its name."""
        self.checkpoint(done, state, failures, always=True)
        self.tracks.close()
        if self.overlay is not None:
            self.overlay.__exit__(None, None, None)
            self.overlay = None
        self.writer.shutdown()

    def close(self) -> None:
        """Give up what is open, after an error; a finished video is not changed."""
        self.writer.shutdown(cancel_futures=True)
        if self.tracks is not None:
            self.tracks.close()
        if self.overlay is not None and hasattr(self.overlay, "temporary"):
            self.overlay.__exit__(InterruptedError, None, None)
            self.overlay = None


def describe_segments(semantic: np.ndarray, track: np.ndarray) -> list[dict[str, Any]]:
    """id, class, area in pixels, and box [left, top, right, bottom) of each segment; id 0 is a class without tracks."""
    height, width = semantic.shape
    key = track.astype(np.int64) * 256 + semantic
    # Runs of equal pixels in a row: there are some hundred times fewer than pixels, and their ends give area and box.
    change = np.ones(key.shape, bool)
    change[:, 1:] = key[:, 1:] != key[:, :-1]
    start = np.flatnonzero(change)
    length = np.diff(start, append=key.size)
    keys, run = np.unique(key.ravel()[start], return_inverse=True)
    areas = np.bincount(run, length).astype(int)
    y, x = np.divmod(start, width)
    top, left = np.full(keys.size, height), np.full(keys.size, width)
    bottom, right = np.zeros(keys.size, int), np.zeros(keys.size, int)
    np.minimum.at(top, run, y)
    np.maximum.at(bottom, run, y + 1)
    np.minimum.at(left, run, x)
    np.maximum.at(right, run, x + length)
    return [
        {"id": int(k >> 8), "class": int(k & 255), "area": int(a), "box": [int(v) for v in box]}
        for k, a, *box in zip(keys, areas, left, top, right, bottom, strict=True)
    ]


def tracks_part(folder: Path, name: str) -> Path:
    return folder / STATE_FOLDER / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.jsonl"


def note_run(folder: Path, inputs: Path, checkpoint: Path) -> None:
    """Leave word of where the frames and the weights are, for those who look at the output later."""
    path = folder / STATE_FOLDER / "run.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"input_folder": str(inputs), "checkpoint": str(checkpoint)}) + "\n")


def merge_tracks(folder: Path, names: list[str]) -> None:
    """The parts of all videos as one tracks.jsonl."""
    temporary = folder / f".{TRACKS}.part"
    with temporary.open("w") as file:
        for name in names:
            part = tracks_part(folder, name)
            if part.exists():
                file.write(part.read_text())
    os.replace(temporary, folder / TRACKS)
