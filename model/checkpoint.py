"""Checkpoints: atomic to write, tensors and plain values only, verified when read.

A training checkpoint is a dict with `format`, `config` (of the model), `classes`, `weights` (the averaged ones, for
inference), `training` (step, raw weights, optimizer, ...). A file that holds weights only (as shipped or shared) lacks
`training`: it can be an --init and can be inferred with, and is never resumed from.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

FORMAT = "pix2seq-d/1"
LATEST = "model-latest.pt"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one line that names the file and says what to do."""


def check_plain(value: Any, where: str = "checkpoint") -> None:
    """Raise CheckpointError where a value is anything but tensors and plain values (which load without pickle)."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str | int):
                raise CheckpointError(f"{where} has a key that is no string or number: {key!r}")
            check_plain(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            check_plain(item, f"{where}[{i}]")
    elif not (value is None or isinstance(value, str | int | float | bool) or type(value) is torch.Tensor):
        raise CheckpointError(f"{where} is a {type(value).__name__}: only tensors and plain values are stored")


def save(path: str | Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint, complete or not at all: a temporary file, flushed to the disk, then renamed.

    Raises CheckpointError for values that are not plain, OSError where the disk is full or read-only; in both cases
    the file that was there stays as it was.
    """
    check_plain(checkpoint)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, RuntimeError):  # torch's writer reports a full disk as a RuntimeError
            raise OSError(f"{path} cannot be written: {error}") from error
        raise
    with contextlib.suppress(OSError):  # the rename itself reaches the disk with the folder
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def load(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, with nothing in it executed. Raises CheckpointError."""
    path = Path(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path} is a folder, not a checkpoint") from None
    except PermissionError:
        raise CheckpointError(f"{path} must not be read by you") from None
    except Exception as error:  # damaged or refused: torch raises RuntimeError, UnpicklingError, EOFError, KeyError...
        kind = "refused" if "weights_only" in str(error).lower() else "damaged"
        reason = f"it is no checkpoint of tensors and plain values ({type(error).__name__})"
        raise CheckpointError(f"{path} is {kind}: {reason}") from None
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of this program (its format is not {FORMAT})")
    if not isinstance(checkpoint.get("config"), dict) or not isinstance(checkpoint.get("weights"), dict):
        raise CheckpointError(f"{path} lacks its configuration or its weights")
    return checkpoint


def saved_numbers(folder: str | Path) -> list[int]:
    """The N of the model-<N>.pt in a folder, ascending, without the user's model-0.pt."""
    names = (re.fullmatch(r"model-([1-9]\d*)\.pt", p.name) for p in Path(folder).glob("model-*.pt"))
    return sorted(int(m[1]) for m in names if m)


def newest(folder: str | Path, report=print) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint with the highest stored step from which training can go on, or None where there is none.

    A damaged one is named through `report` and passed over. Files that hold weights only do not count.
    """
    folder = Path(folder)
    found: list[tuple[int, Path, dict]] = []
    # Newest files first; model-latest.pt is at least as new as the numbered ones unless it was damaged or removed.
    candidates = [folder / LATEST, *(folder / f"model-{n}.pt" for n in reversed(saved_numbers(folder)))]
    for path in candidates:
        if not path.is_file():
            continue
        try:
            checkpoint = load(path)
        except CheckpointError as error:
            report(f"{error}; going on with the one before")
            continue
        if isinstance(checkpoint.get("training"), dict) and isinstance(checkpoint["training"].get("step"), int):
            found.append((checkpoint["training"]["step"], path, checkpoint))
            if path.name != LATEST or len(found) > 1:
                break  # numbered files ascend with the step: the newest readable one decides
    if not found:
        return None
    _, path, checkpoint = max(found, key=lambda item: item[0])
    return path, checkpoint


def load_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor], source: str | Path) -> None:
    """Load weights strictly; half-precision files are widened. Raises CheckpointError that says what does not fit."""
    own = model.state_dict()
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    wrong = [k for k in own.keys() & weights.keys() if own[k].shape != weights[k].shape]
    if missing or extra or wrong:
        example = (sorted(wrong) or missing or extra)[0]
        raise CheckpointError(
            f"{source} is of another configuration: {len(wrong)} tensors of another size, {len(missing)} missing, "
            f"{len(extra)} unknown (as {example}); is it of another preset?"
        )
    model.load_state_dict({k: v.to(own[k].dtype) for k, v in weights.items()})


def prune(folder: str | Path, keep: int, milestone: int) -> None:
    """Remove numbered checkpoints beyond the newest `keep`; each `milestone`-th is kept (0: none)."""
    numbers: Iterable[int] = saved_numbers(folder)[:-keep] if keep > 0 else []
    for number in numbers:
        if not (milestone and number % milestone == 0):
            (Path(folder) / f"model-{number}.pt").unlink(missing_ok=True)
