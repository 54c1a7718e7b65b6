"""Downloads that survive broken connections and restarts.

A download goes to `<path>.part`, and a later run continues it. It gets its name when its size and sha256 are right.
"""

import contextlib
import errno
import hashlib
import http.client
import os
import shutil
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from data.sets.archives import DownloadError, gigabytes, locked, unpack

__all__ = ["DownloadError", "download", "hub_url", "unpack"]

CHUNK = 1 << 20
PROGRESS_THAT_COUNTS = 1 << 20  # an attempt with this many new bytes resets the count of failures
SLOWEST = 256  # bytes/s over `timeout` seconds; a slower server counts as stalled
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_NETWORK_ERRORS = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ECONNREFUSED)


def hub_url(repository: str, filename: str, revision: str) -> str:
    """The address of a file in a model repository of the Hugging Face hub, at a fixed revision."""
    from huggingface_hub import hf_hub_url  # slow to import and rarely needed

    return hf_hub_url(repository, filename, revision=revision)


class _Retry(Exception):
    """This attempt failed; another one may succeed."""


class _Unreachable(_Retry):
    """There was no connection at all."""


@dataclass(frozen=True)
class _File:
    """The file to fetch, and the patience with its server."""

    url: str
    part: Path
    size: int
    timeout: float
    by_hand: str
    unpacked: int = 0

    def error(self, text: str) -> DownloadError:
        return DownloadError(f"{text}. By hand: {self.by_hand}" if self.by_hand else text)


def download(
    url: str,
    path: str | Path,
    size: int,
    sha256: str,
    *,
    unpacked: int = 0,
    by_hand: str = "",
    timeout: float = 30.0,
    attempts: int = 6,
    backoff: float = 1.0,
    quiet: bool = False,
) -> Path:
    """Fetch a file of known size (bytes) and sha256 to `path`; an existing `<path>.part` is continued.

    unpacked: extra bytes that its content will need, which must be free before the download starts; timeout: seconds
    with no or almost no data after which a connection is given up; attempts: in a row without progress; backoff:
    seconds before the second one, doubled each time, 30 at most; by_hand: for the error message, what a user can do
    instead. Returns the path. Raises DownloadError.
    """
    path = Path(path)
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError(f"only http and https addresses are fetched, not {url}")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    file = _File(url, part, size, timeout, by_hand or f"fetch {url} elsewhere and put it at {path}", unpacked)
    # A read-only folder needs no lock: the file is there or cannot be fetched.
    shared = os.access(path.parent, os.W_OK)
    with locked(part) if shared else contextlib.nullcontext():
        if path.exists():
            if path.stat().st_size == size and _sha256(path, quiet) == sha256:
                return path
            raise file.error(f"{path} is there, but it is not the {size:,} bytes expected; remove it to fetch it again")
        for last in (False, True):
            _fetch(file, attempts, backoff, quiet)
            if _sha256(part, quiet) == sha256:
                break
            part.unlink()  # which bytes are wrong is unknown
            if last:
                raise file.error(f"{url} serves other bytes than expected (sha256 differs, twice); nothing was kept")
        _flush(part)
        os.replace(part, path)
    return path


def _fetch(file: _File, attempts: int, backoff: float, quiet: bool) -> None:
    """Fetch the part file to its full size, over as many connections as needed."""
    start = _part_size(file)
    free = shutil.disk_usage(file.part.parent).free
    if free < file.size - start + file.unpacked:
        needed = gigabytes(file.size - start)
        if file.unpacked:
            needed += f" and {gigabytes(file.unpacked)} to be unpacked"
        raise file.error(f"{file.part.parent} has {gigabytes(free)} free, the download needs {needed}")
    if not quiet:
        rest = f", {gigabytes(start)} of it are there" if start else ""
        print(f"downloading {file.part.name.removesuffix('.part')}: {gigabytes(file.size)}{rest}", flush=True)
    failures = 0
    bar = tqdm(total=file.size, initial=start, unit="B", unit_scale=True, disable=quiet, desc="download")
    with bar:
        while (before := _part_size(file)) < file.size:
            try:
                _fetch_rest(file, before, bar)
            except _Retry as error:
                # Data of a cut connection is kept. A connection with enough new data resets the count of failures.
                failures = 1 if _part_size(file) - before >= PROGRESS_THAT_COUNTS else failures + 1
                # If nothing can be reached, the machine has no network: do not wait for long.
                hopeless = isinstance(error, _Unreachable) and before == start and failures >= 2
                if failures >= attempts or hopeless:
                    text = f"{file.url} cannot be fetched ({error}); what was fetched is kept, the same command goes on"
                    raise file.error(f"no network: {error}" if hopeless else text) from None
                time.sleep(min(30.0, backoff * 2 ** (failures - 1)))
            bar.n = _part_size(file)


def _fetch_rest(file: _File, start: int, bar: tqdm) -> None:
    """One connection: append the data from byte `start` on to the part file. Raises _Retry."""
    headers = {"User-Agent": "pix2seq-d-video", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        with urllib.request.urlopen(
            urllib.request.Request(file.url, headers=headers), timeout=file.timeout
        ) as response:
            mode = _check_answer(file, start, response)
            with open(file.part, mode) as part:
                _copy(file, response, part, bar)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            raise file.error(f"{file.url} is shorter than the {file.size:,} bytes expected") from None
        if error.code in (408, 425, 429) or error.code >= 500:
            raise _Retry(f"the server answered {error.code}") from None
        raise file.error(f"{file.url} cannot be fetched: the server answered {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        if _is_unreachable(error.reason):
            raise _Unreachable(str(error.reason)) from None
        raise _Retry(str(error.reason)) from None
    except TimeoutError:
        raise _Retry(f"no data for {file.timeout:.0f} s") from None
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            raise file.error(f"{file.part} cannot be written ({error.strerror}); what was fetched is kept") from None
        raise _Retry(str(error) or type(error).__name__) from None
    except http.client.HTTPException as error:
        raise _Retry(f"the connection broke ({type(error).__name__})") from None


def _check_answer(file: _File, start: int, response: http.client.HTTPResponse) -> str:
    """Check that the answer is (the rest of) the expected file. Returns the mode to open the part file in."""
    if response.status == 206:
        # "bytes <first>-<last>/<total>", where total may be *
        unit, _, span = (response.headers.get("Content-Range") or "").partition(" ")
        first, total = span.partition("-")[0], span.rpartition("/")[2]
        if unit != "bytes" or first != str(start) or total not in ("*", str(file.size)):
            raise _Retry(f"the server sent the range {span!r} instead of {start}-{file.size - 1}/{file.size}")
        return "ab"
    length = response.headers.get("Content-Length")
    # An existing part may be replaced only if the answer is certainly the whole file.
    if length != str(file.size) and (length is not None or start):
        raise _Retry(f"the server has {length} bytes where {file.size} were expected")
    return "wb"  # a whole file; also from a server that does not support ranges


def _copy(file: _File, response: http.client.HTTPResponse, part: BinaryIO, bar: tqdm) -> None:
    """Append the body to the part file, never beyond the expected size. Raises _Retry if it ends early or crawls."""
    done = part.tell()
    window_start, window_done = time.monotonic(), done
    while done < file.size:
        chunk = response.read1(min(CHUNK, file.size - done))
        if not chunk:
            raise _Retry(f"the connection ended at byte {done} of {file.size}")
        part.write(chunk)
        done += len(chunk)
        bar.update(len(chunk))
        now = time.monotonic()
        if now - window_start > file.timeout:
            if done - window_done < SLOWEST * file.timeout:
                raise _Retry(f"only {done - window_done} bytes in {now - window_start:.0f} s")
            window_start, window_done = now, done


def _part_size(file: _File) -> int:
    """Bytes of the download so far; a part file that is too large is wrong and is removed."""
    size = file.part.stat().st_size if file.part.exists() else 0
    if size > file.size:
        file.part.unlink()
        return 0
    return size


def _is_unreachable(reason: object) -> bool:
    return isinstance(reason, socket.gaierror) or getattr(reason, "errno", None) in _NETWORK_ERRORS


def _sha256(path: Path, quiet: bool) -> str:
    digest = hashlib.sha256()
    with (
        open(path, "rb") as file,
        tqdm(total=path.stat().st_size, unit="B", unit_scale=True, disable=quiet, desc="check sha256") as bar,
    ):
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def _flush(path: Path) -> None:
    """Flush a file to the disk before it gets its final name."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
