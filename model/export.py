"""Weights to ship or share: a training checkpoint without what training goes on from, in half precision.

    python -m model.export results/train/model-latest.pt weights.pt

The file can be an --init and can be inferred with; it is never resumed from.
"""

import sys
from pathlib import Path
from typing import Any

import torch

import cli
from model import checkpoint as checkpoints


def shareable(stored: dict[str, Any]) -> dict[str, Any]:
    """The averaged weights in float16, with configuration and label space; `trained` says for how many steps."""
    steps = (stored.get("training") or {}).get("step", stored.get("trained"))
    kept = {k: v for k, v in stored.items() if k not in ("training", "weights")}
    weights = {k: v.half() if v.dtype == torch.float32 else v for k, v in stored["weights"].items()}
    return {**kept, "weights": weights, "trained": steps}


def main() -> None:
    if len(sys.argv) != 3 or "-h" in sys.argv:
        print(__doc__)
        raise cli.UsageError("two paths are needed: the checkpoint, and the file to write")
    source, target = map(Path, sys.argv[1:])
    checkpoints.save(target, shareable(checkpoints.load(source)))
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    cli.run(main)
