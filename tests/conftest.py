"""Fixtures that several files of tests share."""

import os
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

if "PYTEST_XDIST_WORKER" in os.environ:  # several of them: a thread each, before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from serving import Server


def pytest_addoption(parser):
    parser.addoption("--renew", action="store_true", help="write the golden figures anew (tests/test_golden.py)")


@pytest.fixture
def serve(monkeypatch):
    """Start a server with a script."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = []

    def start(*script, **options):
        server = Server(script, **options)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        running.append(server)
        return server

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def elsewhere():
    """A process for what starts the threads of autograd, after which it refuses to run in the forks of other tests."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        yield process
