"""Find bad files of a data set before training starts, not hours later when one is drawn."""

import contextlib
import json
import os
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from data.io.cores import usable_cores
from data.io.files import whole
from data.io.images import MAX_PIXELS, open_image
from data.labels import VOID, DataError
from data.sets.frames import FrameRef, FrameSource, source_key

REMEMBERED = Path("results/cache")  # one file for each data set without bad files, named by a hash of its files


def check(source: FrameSource, skip_bad_files: bool = False, quiet: bool = False) -> None:
    """Check each file of a data set once: labels are read, images are not decoded.

    A good result is remembered until a name, size or time of a file changes. Raises DataError for bad files (with
    `skip_bad_files` they are listed instead), and if no pixel of any frame is known.
    """
    if any(frame.image is None for frame in source.frames) or int(os.environ.get("RANK", 0)):
        return  # no files; or not the first of several processes
    path = REMEMBERED / f"checked-{source.name}-{source_key(source, source.space)}.json"
    try:
        faults, unknown = json.loads(path.read_text())
    except (OSError, ValueError):
        faults, unknown = _look(source, quiet)
        if not faults and len(unknown) < len(source.frames):
            with contextlib.suppress(OSError), whole(path, shared=True) as temporary:  # else it is checked again
                temporary.write_text(json.dumps([faults, unknown]))
    if faults and not skip_bad_files:
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise DataError(f"{faults[0]}{more}; mend them, or --skip_bad_files does without")
    if len(unknown) + len(faults) == len(source.frames):
        raise DataError(f"{source.name} has no known pixel: all {len(source.frames)} frames are void, or bad files")
    for problem in faults:
        print(f"bad file: {problem}", file=sys.stderr)
    if unknown:
        print(
            f"{source.name}: {len(unknown)} frames without a known pixel ({unknown[0]}{', ...' * (len(unknown) > 1)})"
        )


def _look(source: FrameSource, quiet: bool) -> tuple[list[str], list[str]]:
    """The faults, one line each, and the label files without a known pixel."""

    def one(i: int) -> tuple[str, str]:
        frame: FrameRef = source.frames[i]
        fault, size = fault_of(frame.image)
        try:
            semantic, _ = source.read_labels(i)
        except DataError as error:
            return fault or str(error), ""
        height, width = semantic.shape
        if not fault and sorted(size) != sorted((width, height)):  # a photograph may be rotated
            fault = f"{frame.image} is {size[0]}x{size[1]}, but its label {frame.label} is {width}x{height}"
        return fault, "" if fault or np.any(semantic != VOID) else str(frame.label)

    with ThreadPoolExecutor(min(8, usable_cores())) as threads:
        frames = range(len(source.frames))
        results = tqdm(
            threads.map(one, frames), f"check {source.name}", len(frames), unit="frame", disable=quiet or None
        )
        faults, unknown = zip(*results, strict=True)
    return [f for f in faults if f], [u for u in unknown if u]


def fault_of(path: Path) -> tuple[str, tuple[int, int]]:
    """The fault of an image file (no image, too large, or truncated), "" if there is none, and its width and height. A
    good file is not decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # checked below
            with Image.open(path) as image:
                kind, size = image.format, image.size
        with path.open("rb") as file:
            file.seek(-min(path.stat().st_size, 64), os.SEEK_END)
            end = file.read()
    except Exception as error:  # Pillow raises many types for damaged files
        return f"{path} cannot be read as an image ({error})", (0, 0)
    mark = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}.get(kind)
    if size[0] * size[1] > MAX_PIXELS:
        return f"{path} claims {size[0] * size[1]:,} pixels; more than {MAX_PIXELS:,} are refused", size
    if mark and mark not in end:
        try:
            open_image(path)  # some cameras append data to a complete image
        except DataError:
            return f"{path} is cut off: its end is missing", size
    return "", size
