"""What a run does beside learning: it keeps a log, and it listens to signals."""

import json
import os
import signal
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


class Stop:
    """SIGTERM and Ctrl-C end the run after the current step; a second Ctrl-C ends it at once."""

    def __init__(self):
        self.asked = False
        self.before = {}

    def __enter__(self) -> "Stop":
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self.before[number] = signal.signal(number, self._ask)
            except ValueError:  # not the main thread
                break
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True


def outlive_signals() -> None:
    """For loader processes: the training process ends the run, and them with it.

    A scheduler (torchrun, Slurm, a shell) signals the whole group at once; a loader that obeyed would take away the
    batch that the last step needs. The second SIGTERM ends it, so that it can be ended at all.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))
