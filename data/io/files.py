"""Write files whole."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add this file's name to an OSError that names no file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextlib.contextmanager
def whole(path: Path, shared: bool = False) -> Iterator[Path]:
    """A path to write to, renamed to `path` at the end, so that a reader never sees half a file. Nothing is left of it
    after an error.

    A killed process leaves one file, which the next one overwrites. shared: several processes, on several machines, may
    write this file at once, so each call has one of its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}{f'.{secrets.token_hex(4)}' * shared}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
