"""Frames seen ahead of their turn, each on one core of a CPU."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import torch

from model.stream.predictor import VideoPredictor

WORKERS = 4  # threads, at most


@contextlib.contextmanager
def seeing_ahead(predictor: VideoPredictor) -> Iterator[Executor | None]:
    """Threads in which a CPU sees several frames at once: a network this small keeps one core busy, and not several.
    None where a frame needs the history, on a GPU and on one core."""
    threads = torch.get_num_threads()
    workers = min(threads, WORKERS)
    if predictor.device.type != "cpu" or not predictor.sees_ahead or workers == 1:
        yield None
        return
    torch.set_num_threads(threads // workers)  # of this thread, too: OpenMP's threads take a core while they wait
    pool = ThreadPoolExecutor(workers)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
