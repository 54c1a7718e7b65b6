"""The output folder of inference as a whole: which videos and which run it is of, and what its files are called."""

import contextlib
import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import cli
from data.io.files import naming, whole
from data.labels import CLASSES_FILE, DEFAULT_SPACE, DataError, LabelSpace
from data.videos.overlays import remove_overlays
from data.videos.sequences import Sequence
from data.videos.video import is_stream

STATE_FOLDER = ".inference"
TRACKS = "tracks.jsonl"


def note_run(
    folder: Path,
    inputs: list[str],
    checkpoint: Path,
    names: list[str],
    restart: bool,
    space: LabelSpace = DEFAULT_SPACE,
    masks_given: int = 0,
) -> None:
    """Record where the frames and the weights are, and classes other than the default ones, for later readers of the
    output.

    Raises UsageError if the folder holds masks of videos that this run does not make (`restart` removes them), masks
    that were given to an earlier run and not to this one, or a classes.json with other classes that no run has written.
    """
    path, classes_path = folder / STATE_FOLDER / "run.json", folder / CLASSES_FILE
    before, stale = read_json(path), {}
    if (given := before.get("masks_given", 0)) > masks_given:
        raise cli.UsageError(
            f"the first {given} masks in {folder} were given to an earlier run and would be overwritten: repeat "
            f"--use_frames_before {given}, or name another --output_folder"
        )
    classes = ""
    if space != DEFAULT_SPACE:
        own = tuple(dataclasses.replace(c, ids=(i,)) for i, c in enumerate(space.classes))  # what the PNGs hold
        classes = json.dumps(LabelSpace(own).to_dict(), indent=1) + "\n"
    if classes_path.exists() and not before.get("classes") and classes_path.read_text() != classes:
        raise cli.UsageError(f"{classes_path} has other classes than the model: name another --output_folder")
    for name in set(before.get("sequences", [])) - set(names):
        part = tracks_part(folder, name)
        files = masks_of(part.read_text().splitlines()) if part.exists() else []
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
        remove_overlays(folder, name)
        tracks_part(folder, name).unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [os.path.abspath(path) for path in inputs if not is_stream(path)]
    source = os.path.commonpath(files) if files and len(inputs) > 1 else inputs[0]
    run = {"input_folder": source, "checkpoint": str(checkpoint), "sequences": names, "classes": bool(classes)}
    run["masks_given"] = masks_given
    write_whole(path, json.dumps(run).encode() + b"\n")
    if classes:
        write_whole(classes_path, classes.encode())
    else:
        classes_path.unlink(missing_ok=True)  # of an earlier run


def merge_tracks(folder: Path, names: list[str]) -> None:
    """Join the parts of all videos into one tracks.jsonl."""
    parts = (tracks_part(folder, name) for name in names)
    write_whole(folder / TRACKS, b"".join(part.read_bytes() for part in parts if part.exists()))


def fingerprint(checkpoint: Path, flags: dict[str, Any]) -> str:
    """A hash of the checkpoint's content and of all that changes the predictions."""
    digest = hashlib.sha256(json.dumps(flags, sort_keys=True, default=str).encode())
    with checkpoint.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_masks(sequences: list[Sequence], folder: Path, count: int, restart: bool = False) -> None:
    """Raise DataError where a mask that --use_frames_before names is not there, and UsageError where masks would be
    lost: those of an earlier recording of a stream, which cannot go on; and, where none is given, those that no
    inference made, as the labels of a data set."""
    for sequence in sequences if not restart else ():
        part = tracks_part(folder, sequence.name)
        if is_stream(sequence.video) and part.exists() and part.stat().st_size:
            raise cli.UsageError(
                f"{folder} holds an earlier recording of {sequence.name}, which cannot go on: name another "
                "--output_folder, or let --restart remove it"
            )
    for sequence in sequences if not count else ():
        outputs = sequence.outputs(1 if sequence.frames is None else len(sequence.frames))
        there = [path for path in outputs if (folder / path).exists()]
        if there and not tracks_part(folder, sequence.name).exists():
            raise cli.UsageError(
                f"{folder / there[0]} is not of an inference and would be overwritten: name another --output_folder"
            )
    for path in (folder / output for sequence in sequences for output in sequence.outputs(count)):
        if not path.is_file():
            raise DataError(f"--use_frames_before {count} needs {path}, which is missing")


def tracks_part(folder: Path, name: str) -> Path:
    return folder / STATE_FOLDER / f"{safe(name)}.jsonl"


def safe(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:16]


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def masks_of(lines: list[str]) -> list[Path]:
    """The masks named by lines of tracks.jsonl, without truncated lines and paths outside the folder."""
    names = []
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            names.append(Path(json.loads(line)["file"]))
    return [n for n in names if n.name.endswith("_panoptic.png") and not n.is_absolute() and ".." not in n.parts]


def write_whole(path: Path, content: bytes) -> None:
    with naming(path), whole(path) as temporary:
        temporary.write_bytes(content)
