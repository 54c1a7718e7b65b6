"""Write weights to ship or share: a training checkpoint without its training state, in half precision.

    python -m model.export results/train/model-latest.pt weights.pt

The file can be an --init and can be inferred with; it is never resumed from.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from model import checkpoint as checkpoints


def shareable(stored: dict[str, Any]) -> dict[str, Any]:
    """The averaged weights in float16, with configuration and label space; `trained` says for how many steps."""
    steps = (stored.get("training") or {}).get("step", stored.get("trained"))
    kept = {k: v for k, v in stored.items() if k not in ("training", "weights")}
    weights = {k: v.half() if v.dtype == torch.float32 else v for k, v in stored["weights"].items()}
    return {**kept, "weights": weights, "trained": steps}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m model.export", description="Write weights to ship or share.")
    parser.add_argument("checkpoint", type=Path, help="a training checkpoint")
    parser.add_argument("target", type=Path, help="file to write, in half precision")
    args = parser.parse_args()
    try:
        checkpoints.save(args.target, shareable(checkpoints.load(args.checkpoint)))
    except (checkpoints.CheckpointError, OSError) as error:
        parser.error(str(error))
    print(f"{args.target}: {args.target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
