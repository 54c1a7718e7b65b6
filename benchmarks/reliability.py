"""Kill training at random moments, start it again by the same command, and compare with a run that was never killed.

    python -m benchmarks.reliability --kills 20 --kills_of_two 5

A very small model on Streets, float32 on the CPU. Every other kill is aimed at a moment of saving (a half-written file
is there), the rest fall at random. Each run is killed again and again until it is done; what counts is that weights,
optimizer and log are equal to the bit. Runs are forked from this process, so that a start costs little.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, PartialState

import train
from model import checkpoint as checkpoints

FLAGS = (
    "--preset tiny --image_size 32 64 --mask_size 16 32 --encoder_dim 32 --encoder_heads 2 --map_channels 16 --patch 1 "
    "--loss_stride 1 --dim 16 --multipliers 1 2 --denoiser_depth 1 --transformer_dim 32 --transformer_heads 2 "
    "--batch_size 4 --warmup 2 --device cpu --mixed_precision no --quiet --dataset streets --streets_videos 2 "
    "--validate_videos 0 --keep 3"
)


def start(folder: Path, steps: int, workers: int, processes: int) -> list[multiprocessing.Process]:
    """Start the same command in one process, or in several as torchrun does."""
    command = f"{FLAGS} --steps {steps} --save_every 4 --num_workers {workers} --results_folder {folder}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def target(rank: int) -> None:
        os.setpgrp()
        torch.set_num_threads(1)
        if processes > 1:
            shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
            sizes = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
            os.environ.update(shared | sizes | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        PartialState._reset_state()
        AcceleratorState._reset_state(True)
        sys.argv = ["train.py", *command.split()]
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            train.main()

    running = [multiprocessing.get_context("fork").Process(target=target, args=(rank,)) for rank in range(processes)]
    for process in running:
        process.start()
    return running


def finish(running: list[multiprocessing.Process]) -> None:
    for process in running:
        process.join()
    assert [p.exitcode for p in running] == [0] * len(running), [p.exitcode for p in running]


def kill(running: list[multiprocessing.Process]) -> None:
    for process in running:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            process.kill()
    for process in running:
        process.join()


def end_of(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """All tensors of the last checkpoint, and the log without its speeds."""
    stored = checkpoints.load(folder / "model-latest.pt")
    tensors = {f"averaged.{k}": v for k, v in stored["weights"].items()}
    tensors |= {f"raw.{k}": v for k, v in stored["training"]["weights"].items()}
    for name, part in stored["training"]["optimizer"].items():  # muon, adamw
        for i, state in part["state"].items():
            tensors |= {f"{name}.{i}.{k}": v for k, v in state.items()}
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return tensors, [{k: v for k, v in line.items() if k != "samples_per_s"} for line in lines]


def campaign(kills: int, steps: int, workers: int, processes: int, rng: random.Random) -> dict[str, int | bool]:
    with tempfile.TemporaryDirectory() as root:
        whole, killed = Path(root, "whole"), Path(root, "killed")
        begin = time.perf_counter()
        finish(start(whole, steps, workers, processes))
        duration = time.perf_counter() - begin

        done, saving = 0, 0
        while done < kills:
            running = start(killed, steps, workers, processes)
            until = time.perf_counter() + rng.uniform(0.1, 1.0) * duration * 0.6
            aimed = done % 2 == 0
            while all(p.is_alive() for p in running) and time.perf_counter() < until:
                if aimed and time.perf_counter() > until - duration * 0.4 and list(killed.glob(".model-*.part")):
                    break
                time.sleep(0.001)
            if not all(p.is_alive() for p in running):  # the run is complete: start again
                finish(running)
                assert equal(whole, killed)
                for path in killed.iterdir():
                    path.unlink()
                continue
            kill(running)
            done += 1
            saving += bool(list(killed.glob(".model-*.part")))
        finish(start(killed, steps, workers, processes))
        return {"kills": done, "while saving": saving, "workers": workers, "processes": processes, "steps": steps,
                "equal to the bit": equal(whole, killed)}  # fmt: skip


def equal(folder: Path, other: Path) -> bool:
    (a, log_a), (b, log_b) = end_of(folder), end_of(other)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) and log_a == log_b


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of one process, half of them with 2 workers")
    parser.add_argument("--kills_of_two", type=int, default=5, help="of two processes")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(args.seed)
    for kills, workers, processes in (
        (args.kills - args.kills // 2, 0, 1),
        (args.kills // 2, 2, 1),
        (args.kills_of_two, 1, 2),
    ):
        if kills:
            print(json.dumps(campaign(kills, args.steps, workers, processes, rng)), flush=True)


if __name__ == "__main__":
    main()
