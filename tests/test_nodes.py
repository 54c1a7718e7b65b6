"""Several machines: two torchrun commands as on two nodes, one of which dies, and `accelerate launch` that goes on."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
from small import FLAGS

from model import checkpoint as checkpoints

ROOT = Path(__file__).resolve().parents[1]
QUIET = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def steps_of(folder):
    path = folder / "log.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def worker_of(node):
    """The training process that a torchrun started, and its rank."""
    script = str(ROOT / "train.py")
    (worker,) = (p for p in psutil.Process(node.pid).children() if script in p.cmdline())
    return worker, int(worker.environ()["RANK"])


def test_two_nodes_of_which_one_dies_and_accelerate_goes_on(tmp_path):
    """The commands of the README, on a CPU. A dead process ends the run on both nodes, with a message."""
    folder = tmp_path / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = ["--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d", "--rdzv_endpoint", f"localhost:{port}"]
    options = [*FLAGS, "--dataset", "streets", "--streets_videos", "2", "--validate_videos", "0"]
    script = [str(ROOT / "train.py"), *options, "--results_folder", str(folder), "--steps"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *nodes, *script, "400"]
    pipes = {"env": os.environ | QUIET, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    running = [subprocess.Popen(torchrun, **pipes) for _ in range(2)]
    while len(steps_of(folder)) < 2 and all(node.poll() is None for node in running):
        time.sleep(0.05)
    workers = [worker_of(node) for node in running]
    assert sorted(rank for _, rank in workers) == [0, 1]
    died = next(n for n, (_, rank) in enumerate(workers) if rank == 1)
    workers[died][0].kill()
    said = [node.communicate(timeout=300)[1] for node in running]
    assert [node.returncode for node in running] == [1, 1] and b"SIGKILL" in said[died]
    assert not any(worker.is_running() for worker, _ in workers)
    saved = checkpoints.load(folder / "model-latest.pt")["training"]["step"]
    assert saved >= 2 and steps_of(folder) == list(range(1, saved + 1))

    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    accelerate += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    done = subprocess.run([*accelerate, *script, str(saved + 1)], capture_output=True, env=os.environ | QUIET)
    assert done.returncode == 0 and f"resuming from {folder}".encode() in done.stdout
    assert done.stdout.count(b"M parameters") == 1  # two processes of one run, and not two runs
    assert steps_of(folder) == list(range(1, saved + 2))
