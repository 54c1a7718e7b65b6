"""A folder that one run writes at a time.

The lock is the kernel's (POSIX, by fcntl). It ends with its process, so a killed run never blocks the next one. Loader
processes, which may outlive a kill by seconds, do not inherit it. It works between machines if their shared file system
supports such locks.
"""

import contextlib
import errno
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from accelerate.utils import gather_object

import cli

NAME = ".lock"
PATIENCE = 2.0  # seconds: a process that was just killed may need a moment to end
_TAKEN = (errno.EACCES, errno.EAGAIN)  # all other errors come from file systems without locks


@contextlib.contextmanager
def sole_writer(folder: Path, flag: str, processes: Any) -> Iterator[None]:
    """Lock a folder against other runs. The main process of a run does it for all its processes.

    flag: the option that names the folder, for the message; processes: an Accelerator or PartialState. Raises
    UsageError if another run holds the lock or the folder cannot be written; the other processes exit with status 2.
    """
    file, trouble = None, None
    if processes.is_main_process:
        try:
            file = _lock(folder, flag)
        except cli.UsageError as error:
            trouble = error
    if processes.num_processes > 1:
        (refused, *_) = gather_object([trouble is not None])
        if refused and trouble is None:
            sys.exit(2)  # the main process says why
    if trouble is not None:
        raise trouble
    try:
        yield
    finally:
        if file is not None:
            with contextlib.suppress(OSError):
                (folder / NAME).unlink()  # still locked: a waiting run sees that the file is gone
            file.close()


def _lock(folder: Path, flag: str) -> BinaryIO | None:
    """The open and locked file, or None if locks are not supported."""
    try:
        import fcntl
    except ImportError:
        return None
    end = time.monotonic() + PATIENCE
    while True:
        with cli.writable(folder):
            file = (folder / NAME).open("a+b")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _read(file)
            file.close()
            if error.errno not in _TAKEN:
                return None
            if time.monotonic() > end:
                who = f" ({holder})" if holder else ""
                raise cli.UsageError(
                    f"{folder} is in use by another run{who}: wait until it ends, or name another folder by {flag}"
                ) from None
            time.sleep(0.1)
            continue
        with contextlib.suppress(OSError):
            if os.fstat(file.fileno()).st_ino == (folder / NAME).stat().st_ino:
                _write(file)
                return file
        file.close()  # removed by the last run that held it: open the new one


def _read(file: BinaryIO) -> str:
    file.seek(0)
    text = file.read(200).decode(errors="replace").strip()
    return text if text.isprintable() else ""


def _write(file: BinaryIO) -> None:
    """Note which process holds the folder; a full disk is no error."""
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        file.flush()
