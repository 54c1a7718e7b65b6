"""Checkpoints: atomic to write, tensors and plain values only, verified when read.

A training checkpoint is a dict with `format`, `config` (of the model), `label_space`, `weights` (the averaged ones, for
inference), `training` (step, raw weights, optimizer, ...). A file that holds weights only (as shipped or shared) lacks
`training`: it can be an --init and can be inferred with, and is never resumed from.
"""

import contextlib
import os
import re
import zipfile
from collections.abc import Iterable, Sequence
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
    temporary = path.with_name(f".{path.name}.part")  # one name: what a killed run left is written over by the next
    try:
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, RuntimeError):  # torch's writer reports a full disk as a RuntimeError
            raise OSError(f"{path} cannot be written: {error}") from error
        raise
    with contextlib.suppress(OSError):  # the rename itself reaches the disk with the folder
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def weights_file(named: Path | None, usual: Sequence[Path]) -> Path:
    """The checkpoint that is named, a file or a results folder, else the first of the usual ones that is there. Raises
    CheckpointError."""
    if named is not None:
        path = named / LATEST if named.is_dir() else named
        if not path.exists():
            raise CheckpointError(f"there is no checkpoint {path}: train one, or leave --checkpoint out")
        return path
    found = next((path for path in usual if path.exists()), None)
    if found is None:
        raise CheckpointError(f"there are no weights: neither {usual[0]} nor {usual[1]}; name a file by --checkpoint")
    return found


def load(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. Checksums are verified, and nothing in it is executed. Raises CheckpointError."""
    path = Path(path)
    try:
        check_sums(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path} is damaged, or no checkpoint: {error}") from None
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path} is a folder, not a checkpoint") from None
    except PermissionError:
        raise CheckpointError(f"{path} cannot be read: permission denied") from None
    except Exception as error:  # damaged: pickle and torch raise UnpicklingError, EOFError, KeyError, RuntimeError, ...
        reason = f"it is no checkpoint of tensors and plain values ({type(error).__name__})"
        raise CheckpointError(f"{path} is damaged: {reason}") from None
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of this program (its format is not {FORMAT})")
    if not isinstance(checkpoint.get("config"), dict) or not _is_weights(checkpoint.get("weights")):
        raise CheckpointError(f"{path} lacks its configuration or its weights")
    training = checkpoint.get("training")
    if training is not None and not _is_training(training):
        raise CheckpointError(f"{path} is damaged: what training would go on from is not whole")
    return checkpoint


def check_sums(path: str | Path) -> None:
    """Raise BadZipFile where a byte of a file has changed since it was written: torch.load does not look."""
    with zipfile.ZipFile(path) as archive:
        if altered := archive.testzip():
            raise zipfile.BadZipFile(f"the checksum of {altered} does not fit")


def _is_weights(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, torch.Tensor) for v in value.values())


def _is_training(value: Any) -> bool:
    counts = [value.get(k) for k in ("step", "ema_step")] if isinstance(value, dict) else [None]
    if not all(type(n) is int and 0 <= n < 2**53 for n in counts):
        return False
    return _is_weights(value.get("weights")) and isinstance(value.get("optimizer"), dict)


def saved_numbers(folder: str | Path) -> list[int]:
    """The N of the model-<N>.pt in a folder, ascending, without the user's model-0.pt."""
    names = (re.fullmatch(r"model-([1-9]\d*)\.pt", p.name) for p in Path(folder).glob("model-*.pt"))
    return sorted(int(m[1]) for m in names if m)


def newest(folder: str | Path, report=print) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint with the highest stored step from which training can go on, or None where there is none.

    A damaged one is named through `report` and passed over; where no other is left, CheckpointError is raised, so that
    a training is not started over. Files that hold weights only do not count.
    """
    best: tuple[int, Path, dict[str, Any]] | None = None
    refused: list[CheckpointError] = []
    for name in (LATEST, *(f"model-{n}.pt" for n in reversed(saved_numbers(folder)))):
        path = Path(folder) / name
        if not path.is_file():
            continue
        try:
            checkpoint = load(path)
        except CheckpointError as error:
            refused.append(error)
            continue
        if training := checkpoint.get("training"):
            if best is None or training["step"] > best[0]:
                best = training["step"], path, checkpoint
            if best[1].name == LATEST and name != LATEST:
                break  # the usual case: latest is whole, and no older than the highest number
    if refused and best is None:
        raise CheckpointError(f"{refused[0]}; no other is left: move it away, or name another --results_folder")
    for error in refused:
        report(f"{error}; going on with {best[1].name}")
    return best and best[1:]


def load_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor], source: str | Path) -> None:
    """Load weights strictly; half-precision files are widened. Raises CheckpointError that says what does not fit."""
    own = model.state_dict()
    check_shapes(own, weights, source)
    model.load_state_dict({k: v.to(own[k].dtype) for k, v in weights.items()})


def check_shapes(own: dict[str, torch.Tensor], weights: dict[str, torch.Tensor], source: str | Path) -> None:
    """Raise CheckpointError where weights are not those of a model whose state dict is `own`."""
    missing, extra = sorted(own.keys() - weights.keys()), sorted(map(str, weights.keys() - own.keys()))
    wrong = [k for k in own.keys() & weights.keys() if own[k].shape != weights[k].shape]
    if missing or extra or wrong:
        example = (sorted(wrong) or missing or extra)[0]
        raise CheckpointError(
            f"{source} is of another configuration: {len(wrong)} tensors of another size, {len(missing)} missing, "
            f"{len(extra)} unknown (as {example}); is it of another preset?"
        )


def check_moments(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError where the state that was loaded into AdamW or Muon is not that of its parameters."""
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        shapes = {name: tuple(value.shape) for name, value in optimizer.state.get(parameter, {}).items()}
        size = tuple(parameter.shape)
        if shapes not in ({}, {"step": (), "exp_avg": size, "exp_avg_sq": size}, {"momentum_buffer": size}):
            raise ValueError(f"a parameter of size {size} has the state {shapes}"[:200])


def prune(folder: str | Path, keep: int, milestone: int) -> None:
    """Remove numbered checkpoints beyond the newest `keep`; each `milestone`-th is kept (0: none).

    Newest by their times: after a change of --save_every the numbers start lower again.
    """
    by_time = sorted(saved_numbers(folder), key=lambda n: ((Path(folder) / f"model-{n}.pt").stat().st_mtime_ns, n))
    numbers: Iterable[int] = by_time[:-keep] if keep > 0 else []
    for number in numbers:
        if not (milestone and number % milestone == 0):
            (Path(folder) / f"model-{number}.pt").unlink(missing_ok=True)
