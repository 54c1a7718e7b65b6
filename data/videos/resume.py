"""The saved states of a half-done video, from which inference goes on.

They lie in `<output>/.inference/`, compressed; a stream has none. A state records the run (hash of the checkpoint, and
flags) and the content of the frames before it, and is used only if none of these has changed. So a video goes on from
the last state before the first changed frame. A state is kept every KEPT_EVERY frames, and the newest one.
"""

import hashlib
import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from data.videos.folder import STATE_FOLDER, masks_of, read_json, safe, tracks_part, write_whole
from data.videos.overlays import remove_overlays
from data.videos.sequences import Sequence
from data.videos.video import is_stream

KEPT_EVERY = 100  # a multiple of output.STATE_EVERY, so that a late change does not restart a video


class States:
    """Of one video. `open` finds the one to go on from, `save` adds one."""

    def __init__(self, sequence: Sequence, folder: Path, run: str, masks_given: int):
        """run: a hash of all that changes the predictions; masks_given: number of first frames with given masks."""
        self.sequence, self.folder, self.masks_given = sequence, folder, masks_given
        self.newest = folder / STATE_FOLDER / f"{safe(sequence.name)}.pt"
        self.tracks = tracks_part(folder, sequence.name)
        there = [folder / p for p in sequence.outputs(masks_given) if (folder / p).is_file()]
        masks = [hashlib.sha256(p.read_bytes()).hexdigest() for p in there]
        self.key = hashlib.sha256(f"{run} {masks}".encode()).hexdigest()
        self.known = read_json(self.newest.with_suffix(".json"))  # output -> size, modification time, digest
        self.digests: list[str] = []

    def open(self, restart: bool) -> tuple[dict[str, Any] | None, list[str]]:
        """What to go on from, as `last`, and the lines of the tracks up to there. Masks after it, or of another run,
        are deleted, and the overlays that show them."""
        existed, stored, lines = self.newest.exists(), self.last(restart), self.written()
        kept = lines[: stored["lines"] if stored else 0]
        if len(lines) > len(kept):  # masks of another run must not mix with those of this one
            given = self.sequence.outputs(self.masks_given)
            for name in masks_of(lines[len(kept) :]):
                if name not in given:
                    (self.folder / name).unlink(missing_ok=True)
            remove_overlays(self.folder, self.sequence.name)
        if existed and stored is None:
            for frame in (self.sequence.frames or [])[self.masks_given :]:
                (self.folder / frame.output).unlink(missing_ok=True)
        return stored, kept

    def last(self, restart: bool = False) -> dict[str, Any] | None:
        """{"done", "lines" of the tracks, "state", "failures"} to go on from, None to start over. Later ones are
        deleted."""
        kept = sorted(self.newest.parent.glob(f"{self.newest.stem}-*.pt"), reverse=True)
        tried = [] if restart or is_stream(self.sequence.video) else [self.newest, *kept]
        found = ((path, self._read(path)) for path in tried)
        path, stored = next(((path, stored) for path, stored in found if stored is not None), (None, None))
        if self.newest.exists() and tried and path != self.newest:
            where = f"going on from frame {stored['done']}" if stored else "starting over"
            print(f"{self.sequence.name}: checkpoint, flags, inputs or predictions have changed, {where}")
        for state in kept:
            if stored is None or int(state.stem.rpartition("-")[2]) > stored["done"]:
                state.unlink()
        return stored

    def save(self, done: int, lines: int, state: dict[str, Any], failures: list[str]) -> None:
        """state: plain values and tensors, after `done` frames."""
        if is_stream(self.sequence.video):
            return
        content = {"key": self.key, "done": done, "lines": lines, "failures": failures, "state": state}
        buffer = io.BytesIO()
        torch.save(content | {"content": self._content(done)}, buffer)
        packed = zlib.compress(buffer.getvalue(), 1)
        write_whole(self.newest.with_suffix(".json"), json.dumps(self.known).encode())
        if done % KEPT_EVERY == 0:
            write_whole(self.newest.with_stem(f"{self.newest.stem}-{done:07d}"), packed)
        write_whole(self.newest, packed)

    def written(self) -> list[str]:
        """The video's lines of tracks.jsonl so far."""
        return self.tracks.read_text().splitlines() if self.tracks.exists() else []

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            data = path.read_bytes()
            if data[:2] != b"PK":
                data = zlib.decompress(data)  # with its checksum
            elif zipfile.ZipFile(io.BytesIO(data)).testzip():  # as an earlier version wrote it
                return None
            stored = torch.load(io.BytesIO(data), weights_only=True)
        except Exception:  # a missing or damaged state counts as none
            return None
        if (
            not isinstance(stored, dict)
            or stored.get("key") != self.key
            or stored["content"] != self._content(stored["done"])
        ):
            return None
        there = [self.folder / name for name in masks_of(self.written()[: stored["lines"]])]
        if sum(path.is_file() and path.stat().st_size > 0 for path in there) < stored["lines"]:
            return None  # predictions were deleted, or emptied by a power cut
        return stored

    def _content(self, done: int) -> str:
        """A hash of the first frames' names and content."""
        if self.sequence.frames is None:
            return self._digest(Path(self.sequence.video), str(self.sequence.stem))
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
