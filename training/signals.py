"""SIGTERM and Ctrl-C end a run after its step; loader processes outlive them."""

import signal
from typing import Any


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
