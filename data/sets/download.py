"""Fetch files from the Hugging Face hub, and unpack them. A failure is one line that says what to do instead."""

import hashlib
import os
import shutil
from pathlib import Path

from filelock import FileLock


class DownloadError(ValueError):
    """A download or an archive that cannot be used; the message is one line that says why and what to do."""


def from_hub(repository: str, filename: str, revision: str, folder: Path, sha256: str, needed: int = 0) -> Path:
    """A file of a model repository on the Hugging Face hub, in `folder`. One that is there is kept.

    revision: a commit; needed: bytes that must be free for it and for what is made of it. Raises DownloadError.
    """
    path = folder / filename
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{filename}.lock"):  # of several processes one downloads
        return path if path.exists() else _fetched(repository, filename, revision, path, sha256, needed)


def _fetched(repository: str, filename: str, revision: str, path: Path, sha256: str, needed: int) -> Path:
    folder, partial = path.parent, path.with_name(".download")
    by_hand = f"By hand: fetch {filename} of {repository} on the Hugging Face hub elsewhere and put it at {path}"
    if (free := shutil.disk_usage(folder).free) < needed:
        raise DownloadError(f"{folder} has {free / 1e9:.1f} GB free, and {needed / 1e9:.1f} GB are needed")
    from huggingface_hub import hf_hub_download, logging  # slow to import and rarely needed

    logging.set_verbosity_error()  # not a line for each new attempt
    try:
        fetched = Path(hf_hub_download(repository, filename, revision=revision, local_dir=partial))
    except Exception as error:  # of several libraries: no network, a server's refusal, a full disk
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DownloadError(f"{filename} cannot be fetched ({reason[0]}). {by_hand}") from None
    with fetched.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            fetched.unlink()
            raise DownloadError(f"{filename} of {repository} is not the file expected; nothing was kept. {by_hand}")
    os.replace(fetched, path)
    shutil.rmtree(partial, ignore_errors=True)
    return path


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack the top folder of a zip archive that has the name of `folder`. It is complete or absent; what is there is
    kept. Raises DownloadError."""
    temporary = folder.with_name(f".{folder.name}.unpack")
    with FileLock(f"{temporary}.lock"):  # of several processes one unpacks
        if folder.exists():
            return folder
        shutil.rmtree(temporary, ignore_errors=True)  # of a killed run
        try:
            shutil.unpack_archive(archive, temporary, "zip")
            os.replace(temporary / folder.name, folder)
        except Exception as error:  # zipfile, zlib and struct raise many types for a damaged archive
            raise DownloadError(
                f"{archive} cannot be unpacked to {folder} ({error}); make room, or fetch it again"
            ) from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder
