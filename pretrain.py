"""Pre-train Pix2Seq-D on single images: Cityscapes panoptic.

    python pretrain.py                                                       as published
    python pretrain.py --preset tiny --data_root PATH                        on a CPU
    python pretrain.py --dataset cityscapes streets --dataset_weights 1 1    with the built-in world
    torchrun --nproc_per_node 8 pretrain.py                                  eight GPUs, the same training

`python train.py --init results/pretrain/model-latest.pt` goes on from it with video; no weights change shape between
the two, an image's history is all zeros. The same command again goes on from the newest checkpoint in
--results_folder, to the bit. --dry_run prints the resolved configuration.
"""

import cli

with cli.imports():
    import recipe

OPTIONS = recipe.options(
    dataset=("cityscapes",),
    data_root_help="of each; none: data/Cityscapes, of bash setup.sh cityscapes",
    results_folder="results/pretrain",
)

# Where a preset's training differs from the defaults of its dataclasses; steps and warmup in optimizer steps,
# batch_size in samples. small and base: the published image training (arXiv 2210.06366, appendix).
# tiny: from scratch, on a CPU.
RECIPES = {
    "tiny": {
        "steps": 6_000, "batch_size": 8, "optimizer": "muon", "lr": 5e-3, "backbone_lr": 0.06, "warmup": 50,
        "ema_decay": 0.998, "time_power": 3.0, "loss_stride": 3, "stuff_by_class": True, "instance_weight": 0.3,
        "slot_order": "position", "scale_range": (0.7, 2.2), "focus": 0.5, "paste": 0.5,
        "synthetic_history": 0.5, "history_corruption": 0.5, "corruption_shift": 4, "corruption_coarse": 12,
        "corruption_split": 0.1, "corruption_merge": 0.1,
    },
    "small": {"steps": 30_000, "batch_size": 16, "lr": 1e-4, "warmup": 500, "ema_decay": 0.999},
    "base": {"steps": 30_000, "batch_size": 16, "lr": 1e-4, "warmup": 500, "ema_decay": 0.999, "recompute": True},
}  # fmt: skip


def main() -> None:
    recipe.run(recipe.parse(__doc__, OPTIONS, RECIPES))


if __name__ == "__main__":
    cli.run(main)
