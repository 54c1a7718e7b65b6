"""The processor cores of this process."""

import os


def usable_cores() -> int:
    """How many there are: a scheduler or a container may have given it some of the machine's alone."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
