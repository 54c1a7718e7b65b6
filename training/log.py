"""log.jsonl: what each step gave."""

import json
import os
from pathlib import Path
from typing import Any


class Log:
    """log.jsonl: a line a step. On resume the lines after the checkpoint's step go, so that there is none twice.

    A line that cannot be written, as on a full disk, waits for the next one.
    """

    def __init__(self, path: Path, step: int):
        lines = []
        if path.exists():
            for line in path.read_text(errors="replace").splitlines():
                try:
                    entry = json.loads(line)
                except (ValueError, RecursionError):  # the half line of a run that was killed
                    continue
                if isinstance(entry, dict) and isinstance(entry.get("step"), int) and entry["step"] <= step:
                    lines.append(line)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.part")
        temporary.write_text("".join(f"{line}\n" for line in lines))
        os.replace(temporary, path)
        self.file = path.open("ab", buffering=0)
        self.waiting = b""

    def write(self, **entry: Any) -> None:
        self.waiting += (json.dumps(entry) + "\n").encode()
        try:
            while self.waiting:
                self.waiting = self.waiting[self.file.write(self.waiting) :]
        except OSError:
            pass

    def close(self) -> None:
        self.file.close()
