"""List the files of a folder: follow links, skip system files, report what is left out."""

import os
from collections.abc import Iterator
from pathlib import Path

SYSTEM = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__pycache__"}
LeftOut = dict[str, list[Path]]  # reason -> files and folders


def is_hidden(name: str) -> bool:
    """Whether a name is never data: hidden files, AppleDouble's `._name`, and folders made by the system."""
    return name.startswith(".") or name in SYSTEM


def walk(folder: Path, left_out: LeftOut | None = None) -> Iterator[Path]:
    """All files beneath a folder, in order. Follows links (data sets are often linked in), but reads no folder twice.

    Without `left_out`, raises OSError for a folder that cannot be read.
    """
    seen, strict = set(), left_out is None
    left_out = {} if left_out is None else left_out

    def unreadable(error: OSError) -> None:
        if strict:
            raise error
        left_out.setdefault("unreadable", []).append(Path(os.fsdecode(error.filename)))

    for parent, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            left_out.setdefault("linked twice", []).append(Path(parent))
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for path in (Path(parent, name) for name in sorted(names) if not is_hidden(name)):
            if path.is_file():
                yield path
            else:
                left_out.setdefault("broken links" if path.is_symlink() else "pipes or devices", []).append(path)


def in_words(left_out: LeftOut) -> str:
    """The files that were left out: the number for each reason, and the first name."""
    parts = ((reason, len(paths), paths[0], ", ..." * (len(paths) > 1)) for reason, paths in left_out.items())
    return "; ".join(f"{count} {reason} ({first}{more})" for reason, count, first, more in parts)
