"""The output of inference: panoptic PNGs, one line a frame in tracks.jsonl, overlays, and a small state to resume from.

Each prediction is complete or absent. The state of a half-done video lies in `<output>/.inference/`. It records the run
(hash of the checkpoint, and flags) and the content of the frames so far, and is used only if none of these has changed.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

import cli
from data.io.files import naming
from data.io.inputs import InputFrame, Sequence
from data.io.overlays import Overlays, remove_overlays
from data.io.video import is_stream
from data.labels import CLASSES_FILE, DEFAULT_SPACE, DataError, LabelSpace, read_panoptic, write_panoptic
from data.sets.check import fault_of

STATE_FOLDER = ".inference"
TRACKS = "tracks.jsonl"
STATE_EVERY = 20  # frames between two saved states, the most that a kill costs
KEPT_EVERY = 100  # a multiple: frames between two kept states, so that a late change does not restart a video


def fingerprint(checkpoint: Path, flags: dict[str, Any]) -> str:
    """A hash of the checkpoint's content and of all that changes the predictions."""
    digest = hashlib.sha256(json.dumps(flags, sort_keys=True, default=str).encode())
    with checkpoint.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_files(sequences: list[Sequence]) -> dict[Path, str]:
    """Bad files and what is wrong with them: no image, too large, truncated, or a video without a first frame. Good
    images are not decoded."""
    faults = {}
    for sequence in sequences:
        if sequence.frames is not None:
            faults |= {f.image: fault for f in sequence.frames if (fault := fault_of(f.image)[0])}
        elif not is_stream(sequence.video):
            try:
                if next(sequence.read(), None) is None:
                    faults[sequence.video] = f"{sequence.video} holds no frames"
            except DataError as error:
                faults[sequence.video] = str(error)
    return faults


def check_given(sequences: list[Sequence], folder: Path, count: int) -> None:
    """Raise DataError where a mask that --use_frames_before names is not there."""
    for path in (folder / output for sequence in sequences for output in sequence.outputs(count)):
        if not path.is_file():
            raise DataError(f"--use_frames_before {count} needs {path}, which is missing")


class SequenceOutput:
    """The files of one video. `open`, then `write` and `checkpoint` for each frame, then `finish`; `close` always.

    A state knows the content of the frames before it. So a video continues from the last state before the first changed
    frame. A state is kept every KEPT_EVERY frames, and the newest one.
    """

    def __init__(
        self,
        sequence: Sequence,
        folder: Path,
        run: str,
        overlays: tuple[str, ...] = (),
        fps: float = 10.0,
        restart: bool = False,
        given: int = 0,
        colorblind: bool = False,
        space: LabelSpace = DEFAULT_SPACE,
    ):
        """given: number of first frames whose masks are already in the folder."""
        self.sequence, self.folder, self.restart, self.from_given = sequence, folder, restart, given
        self.name = sequence.name.strip(".") or "video"  # a folder in the input is a folder in the output
        self.drawing, self.classes = (overlays, fps, colorblind, space), len(space.classes)
        self.states, self.safe = folder / STATE_FOLDER, _safe(sequence.name)
        self.tracks_path = tracks_part(folder, sequence.name)
        self.key = hashlib.sha256(f"{run} {self._given(given)}".encode()).hexdigest()
        self.writer = ThreadPoolExecutor(1)
        self.pending: list[Future] = []
        self.tracks = self.overlays = None
        self.known = _read_json(self.states / f"{self.safe}.json")  # output -> size, modification time, digest
        self.digests: list[str] = []

    def _given(self, count: int) -> list[str]:
        there = [self.folder / p for p in self.sequence.outputs(count) if (self.folder / p).is_file()]
        return [hashlib.sha256(p.read_bytes()).hexdigest() for p in there]

    def open(self) -> dict[str, Any] | None:
        """Start writing. Returns {"done", "state", "failures"} of a half-done video that can be resumed."""
        states = sorted(self.states.glob(f"{self.safe}-*.pt"), reverse=True)
        newest = self.states / f"{self.safe}.pt"
        before = newest.exists()
        tried = [] if self.restart or is_stream(self.sequence.video) else [newest, *states]
        found = ((path, self._stored(path)) for path in tried)
        path, stored = next(((path, stored) for path, stored in found if stored is not None), (None, None))
        if before and tried and path != newest:
            where = f"going on from frame {stored['done']}" if stored else "starting over"
            print(f"{self.sequence.name}: checkpoint, flags or inputs have changed, {where}")
        lines = self.tracks_path.read_text().splitlines() if self.tracks_path.exists() else []
        kept = lines[: stored["lines"] if stored else 0]
        if len(lines) > len(kept):  # masks of another run must not mix with those of this one
            self._remove(lines[len(kept) :])
        if before and stored is None:
            for frame in (self.sequence.frames or [])[self.from_given :]:
                (self.folder / frame.output).unlink(missing_ok=True)
        for state in states:
            if stored is None or int(state.stem.rpartition("-")[2]) > stored["done"]:
                state.unlink()
        self.states.mkdir(parents=True, exist_ok=True)
        self.lines = len(kept)
        self.tracks_path.write_text("".join(f"{line}\n" for line in kept))
        self.tracks = self.tracks_path.open("a")
        self.overlays = Overlays(self.folder, self.name, *self.drawing)
        return stored

    def _remove(self, lines: list[str]) -> None:
        """Delete the masks that lines of tracks.jsonl name, and the films that show them."""
        given = self.sequence.outputs(self.from_given)
        for name in _files_of(lines):
            if name not in given:
                (self.folder / name).unlink(missing_ok=True)
        remove_overlays(self.folder, self.name)

    def _stored(self, path: Path) -> dict[str, Any] | None:
        try:
            with zipfile.ZipFile(path) as archive:  # torch itself does not check the checksums
                if archive.testzip():
                    return None
            stored = torch.load(path, weights_only=True)
        except Exception:  # a missing or damaged state counts as none
            return None
        if (
            not isinstance(stored, dict)
            or stored.get("key") != self.key
            or stored["content"] != self._content(stored["done"])
        ):
            return None
        lines = self.tracks_path.read_text().splitlines() if self.tracks_path.exists() else []
        there = [self.folder / name for name in _files_of(lines[: stored["lines"]])]
        if sum(path.is_file() and path.stat().st_size > 0 for path in there) < stored["lines"]:
            return None  # predictions were deleted, or emptied by a power cut
        return stored

    def _content(self, done: int) -> str:
        """A hash of the first frames' names and content."""
        if self.sequence.frames is None:
            return (
                ""
                if is_stream(self.sequence.video)
                else self._digest(Path(self.sequence.video), str(self.sequence.stem))
            )
        for frame in self.sequence.frames[len(self.digests) : done]:
            digest = self._digest(frame.image, str(frame.output)) if frame.image.exists() else ""
            self.digests.append(f"{frame.output} {frame.after_gap} {digest}")
        if len(self.sequence.frames) < done:
            return ""
        return hashlib.sha256(repr(self.digests[:done]).encode()).hexdigest()

    def _digest(self, path: Path, name: str) -> str:
        """A hash of a file's content, which is read again only if its size or modification time has changed."""
        status = path.stat()
        entry = self.known.get(name)
        if entry is None or entry[:2] != [status.st_size, status.st_mtime_ns]:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "blake2b").hexdigest()[:32]
            self.known[name] = entry = [status.st_size, status.st_mtime_ns, digest]
        return entry[2]

    def given(self, frame: InputFrame, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A mask that is already in the output folder. Raises DataError if there is none of the frame's size."""
        semantic, track = read_panoptic(self.folder / frame.output, self.classes)
        if semantic.shape != image.shape[:2]:
            raise DataError(f"{self.folder / frame.output} has another size than its frame")
        return semantic, track

    def write(self, frame: InputFrame, image: np.ndarray, semantic, track, given: bool = False) -> None:
        """Write one prediction, in a separate thread; `given` masks are not changed."""
        while len(self.pending) > 8:
            self.pending.pop(0).result()
        self.pending.append(self.writer.submit(self._write, frame, semantic, track, given))
        self.overlays.write(frame, image, semantic, track)

    def _write(self, frame: InputFrame, semantic, track, given: bool) -> None:
        with naming(self.folder / frame.output):
            if not given:
                write_panoptic(self.folder / frame.output, semantic, track)
            entry = {"sequence": self.sequence.name, "frame": frame.number, "file": frame.output.as_posix()}
            self.tracks.write(json.dumps(entry | {"segments": describe_segments(semantic, track)}) + "\n")
            self.lines += 1

    def redraw(self, frame: InputFrame, image: np.ndarray | DataError) -> None:
        """Draw a frame of an earlier call; only for the overlays."""
        if not isinstance(image, DataError):
            self.overlays.write(frame, image, *read_panoptic(self.folder / frame.output, self.classes))

    def checkpoint(self, done: int, state: dict[str, Any], failures: list[str], always: bool = False) -> None:
        """Save the state of the video, after all earlier writes are done. state: plain values and tensors."""
        if not always and done % STATE_EVERY:
            return
        self.wait()
        content = {"key": self.key, "done": done, "lines": self.lines, "failures": failures, "state": state}
        buffer = io.BytesIO()
        torch.save(content | {"content": self._content(done)}, buffer)
        path = self.states / f"{self.safe}.pt"
        with naming(self.tracks_path):
            self.tracks.flush()
        _write_whole(path.with_suffix(".json"), json.dumps(self.known).encode())
        if done % KEPT_EVERY == 0:
            _write_whole(self.states / f"{self.safe}-{done:07d}.pt", buffer.getvalue())
        _write_whole(path, buffer.getvalue())

    def wait(self) -> None:
        while self.pending:
            self.pending.pop(0).result()

    def finish(self, done: int, state: dict[str, Any], failures: list[str]) -> list[str]:
        """Finish a complete video: its overlays get their final names. Returns remarks for the user."""
        self.checkpoint(done, state, failures, always=True)
        self.tracks.close()
        remarks, self.overlays = self.overlays.finish(), None
        self.writer.shutdown()
        return remarks

    def close(self) -> None:
        """Discard open files after an error; a finished video is not changed."""
        self.writer.shutdown(cancel_futures=True)
        if self.tracks is not None:
            with contextlib.suppress(OSError):
                self.tracks.close()
        if self.overlays is not None:
            self.overlays.discard()
            self.overlays = None


def describe_segments(semantic: np.ndarray, track: np.ndarray) -> list[dict[str, Any]]:
    """id, class, area in pixels, and box [left, top, right, bottom) of each segment; id 0 is a class without tracks."""
    height, width = semantic.shape
    key = track.astype(np.int64) * 256 + semantic
    # Work on runs of equal pixels in a row: there are about a hundred times fewer, and their ends give area and box.
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
    return folder / STATE_FOLDER / f"{_safe(name)}.jsonl"


def _safe(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:16]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _files_of(lines: list[str]) -> list[Path]:
    """The masks named by lines of tracks.jsonl, without truncated lines and paths outside the folder."""
    names = []
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            names.append(Path(json.loads(line)["file"]))
    return [n for n in names if n.name.endswith("_panoptic.png") and not n.is_absolute() and ".." not in n.parts]


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file through a temporary one and a rename."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        with naming(path):
            temporary.write_bytes(content)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def note_run(
    folder: Path,
    inputs: str,
    checkpoint: Path,
    names: list[str],
    restart: bool,
    space: LabelSpace = DEFAULT_SPACE,
) -> None:
    """Record where the frames and the weights are, and classes other than the default ones, for later readers of the
    output.

    Raises UsageError if the folder holds masks of videos that this run does not make (`restart` removes them), or a
    classes.json with other classes that no run has written.
    """
    path, classes_path = folder / STATE_FOLDER / "run.json", folder / CLASSES_FILE
    before, stale = _read_json(path), {}
    classes = ""
    if space != DEFAULT_SPACE:
        own = tuple(dataclasses.replace(c, ids=(i,)) for i, c in enumerate(space.classes))  # what the PNGs hold
        classes = json.dumps(LabelSpace(own).to_dict(), indent=1) + "\n"
    if classes_path.exists() and not before.get("classes") and classes_path.read_text() != classes:
        raise cli.UsageError(f"{classes_path} has other classes than the model: name another --output_folder")
    for name in set(before.get("sequences", [])) - set(names):
        part = tracks_part(folder, name)
        files = _files_of(part.read_text().splitlines()) if part.exists() else []
        if there := [file for file in files if (folder / file).exists()]:
            stale[name] = there
    if stale and not restart:
        shown = ", ".join(sorted(stale)[:3]) + ", ..." * (len(stale) > 3)
        raise cli.UsageError(
            f"{folder} holds predictions of other videos ({shown}): name another --output_folder, or let --restart "
            "remove them"
        )
    for name, files in stale.items():
        for file in files:
            (folder / file).unlink()
        remove_overlays(folder, name.strip(".") or "video")
        tracks_part(folder, name).unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    run = {"input_folder": inputs, "checkpoint": str(checkpoint), "sequences": names, "classes": bool(classes)}
    _write_whole(path, json.dumps(run).encode() + b"\n")
    if classes:
        _write_whole(classes_path, classes.encode())
    else:
        classes_path.unlink(missing_ok=True)  # of an earlier run


def merge_tracks(folder: Path, names: list[str]) -> None:
    """Join the parts of all videos into one tracks.jsonl."""
    parts = (tracks_part(folder, name) for name in names)
    _write_whole(folder / TRACKS, b"".join(part.read_bytes() for part in parts if part.exists()))
