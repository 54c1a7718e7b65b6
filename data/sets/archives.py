"""Unpack archives so that nothing is written outside their folder.

An archive is checked as a whole, unpacked beside its folder and renamed, so that the folder is complete or absent.
"""

import contextlib
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from tqdm import tqdm

CHUNK = 1 << 20
MAX_MEMBERS = 1_000_000
# Deflate reaches at most about 1032:1, and images hardly compress. A higher ratio than this is a bomb.
MAX_RATIO = 200
SMALL = 64 << 20  # bytes; below this any ratio is harmless


class DownloadError(ValueError):
    """A download or an archive that cannot be used; the message is one line that says why and what to do."""


@dataclass(frozen=True)
class _Member:
    name: PurePosixPath
    size: int
    is_folder: bool
    handle: zipfile.ZipInfo | tarfile.TarInfo


def unpack(
    archive: str | Path,
    folder: str | Path,
    *,
    inner: str | None = None,
    max_bytes: int = 200 * 10**9,
    quiet: bool = False,
) -> Path:
    """Unpack a zip or (uncompressed) tar archive so that `folder` is complete or absent. An existing one is kept.

    inner: unpack only this top folder of the archive, as `folder`. Nothing is ever written outside: an archive with an
    absolute path, `..`, a link, a device, a name twice, more than max_bytes, or far more than its own size is refused
    as a whole. Raises DownloadError.
    """
    archive, folder = Path(archive), Path(folder)
    temporary = folder.with_name(f".{folder.name}.unpack")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(temporary):
        if folder.exists():
            return folder
        if temporary.exists():  # from a killed run
            shutil.rmtree(temporary)
        try:
            _unpack(archive, temporary, inner, max_bytes, quiet)
            os.sync()  # the files must reach the disk before the name
            os.replace(temporary / inner if inner else temporary, folder)
        except DownloadError:
            raise
        except OSError as error:
            raise DownloadError(f"{archive} cannot be unpacked to {folder} ({error.strerror or error})") from None
        except Exception as error:  # zipfile, tarfile, zlib and struct raise many types for a damaged archive
            raise DownloadError(f"{archive} cannot be unpacked ({error}); remove it and fetch it again") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _unpack(archive: Path, target: Path, inner: str | None, max_bytes: int, quiet: bool) -> None:
    with contextlib.ExitStack() as stack:
        if zipfile.is_zipfile(archive):
            file = stack.enter_context(zipfile.ZipFile(archive))
            members, opener = _zip_members(file), file.open
        elif tarfile.is_tarfile(archive):
            # "r:" refuses compressed tar files: their headers alone can inflate to any size before they are checked.
            file = stack.enter_context(tarfile.open(archive, "r:"))
            members, opener = _tar_members(file), file.extractfile
        else:
            raise DownloadError(f"{archive} is no zip or tar archive; remove it and fetch it again")
        members = _checked(archive, members, max_bytes)
        members = [m for m in members if inner is None or m.name.parts[:1] == (inner,)]
        if inner is not None and not any(len(m.name.parts) > 1 for m in members):
            raise DownloadError(f"{archive} holds no folder {inner}")
        total = sum(m.size for m in members)
        target.mkdir()
        free = shutil.disk_usage(target).free
        if free < total:
            raise DownloadError(f"{target.parent} has {gigabytes(free)} free, {archive} needs {gigabytes(total)}")
        with tqdm(total=total, unit="B", unit_scale=True, disable=quiet, desc=f"unpack {archive.name}") as bar:
            for member in members:
                path = target.joinpath(*member.name.parts)
                if member.is_folder:
                    path.mkdir(parents=True, exist_ok=True)
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                with opener(member.handle) as source, open(path, "xb") as destination:
                    _copy_member(archive, member, source, destination)
                bar.update(member.size)


def _zip_members(file: zipfile.ZipFile) -> Iterator[_Member]:
    for info in file.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DownloadError(f"{file.filename} holds a link or a device ({info.filename!r}); nothing was unpacked")
        if info.flag_bits & 1:
            raise DownloadError(f"{file.filename} is encrypted; nothing was unpacked")
        # ZipInfo.filename is cut at a NUL and has other separators; orig_filename is the name in the archive.
        yield _Member(_safe_name(file.filename, info.orig_filename), info.file_size, info.is_dir(), info)


def _tar_members(file: tarfile.TarFile) -> Iterator[_Member]:
    for info in file:
        if not (info.isreg() or info.isdir()) or info.issparse():
            raise DownloadError(f"{file.name} holds a link or a device ({info.name!r}); nothing was unpacked")
        yield _Member(_safe_name(file.name, info.name), info.size, info.isdir(), info)


def _safe_name(archive: str | None, name: str) -> PurePosixPath:
    """A member's name as a relative path that stays in its folder on any system. Raises DownloadError."""
    path = PurePosixPath(name)
    if (
        not name
        or path.is_absolute()
        or ".." in path.parts
        or any(c in name for c in "\\:")
        or any(ord(c) < 32 for c in name)
    ):
        raise DownloadError(f"{archive} holds the name {name!r}, which may lead outside; nothing was unpacked")
    return path


def _checked(archive: Path, members: Iterator[_Member], max_bytes: int) -> list[_Member]:
    """All members, after a check that they are few enough, small enough and unique. Raises DownloadError."""
    limit = min(max_bytes, max(SMALL, MAX_RATIO * archive.stat().st_size))
    checked, files, total = [], set(), 0
    for member in members:
        total += member.size
        if total > limit or len(checked) >= MAX_MEMBERS:
            raise DownloadError(
                f"{archive} claims to hold {len(checked) + 1} files of {gigabytes(total)} or more, which is refused; "
                "nothing was unpacked"
            )
        if not member.is_folder:
            if member.name in files:
                raise DownloadError(f"{archive} holds {str(member.name)!r} twice; nothing was unpacked")
            files.add(member.name)
        checked.append(member)
    for member in checked:
        if files.intersection(member.name.parents) or (member.is_folder and member.name in files):
            raise DownloadError(f"{archive} uses {str(member.name)!r} as file and as folder; nothing was unpacked")
    return checked


def _copy_member(archive: Path, member: _Member, source: BinaryIO, destination: BinaryIO) -> None:
    """Write a member, but no more bytes than its stated size."""
    left = member.size
    while chunk := source.read(min(CHUNK, left + 1)):
        left -= len(chunk)
        if left < 0:
            break
        destination.write(chunk)
    if left:
        raise DownloadError(f"{archive}: {str(member.name)!r} is not as large as it claims; nothing was unpacked")


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time work on `path` (others wait). No lock without fcntl."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    lock = path.with_name(f".{path.name}.lock")
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
