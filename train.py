"""Train Pix2Seq-D on video: KITTI-STEP, from pre-trained weights, or the built-in world from scratch.

    python train.py --init results/pretrain/model-latest.pt                    KITTI-STEP, as published
    python train.py --preset tiny --dataset streets --backbone_weights none    the built-in world, on a CPU
    python train.py --dataset kitti_step streets --dataset_weights 0.8 0.2     a mixture
    torchrun --nproc_per_node 8 train.py                                       eight GPUs, the same training

The same command again goes on from the newest checkpoint in --results_folder, to the bit. --dry_run prints the
resolved configuration. The defaults below are those of the preset that the command names.
"""

import cli

with cli.imports():
    import recipe

OPTIONS = recipe.options(
    dataset=("kitti_step",),
    data_root_help="of each data set; none: data/KittiSTEP, downloaded if missing, 15.6 GB",
    results_folder="results/train",
)

# Where a preset's training differs from the defaults of its dataclasses; steps and warmup in optimizer steps,
# batch_size in samples. small and base: the published fine-tuning (arXiv 2210.06366, appendix).
# tiny: from scratch, on a CPU.
RECIPES = {
    "tiny": {
        "steps": 1_600, "batch_size": 8, "optimizer": "muon", "lr": 5e-3, "warmup": 30, "ema_decay": 0.998,
        "time_power": 3.0, "loss_stride": 2, "stuff_by_class": True, "instance_weight": 0.3, "slot_order": "position",
        "history_absent": 0.4, "history_corruption": 0.5, "corruption_drop": 0.2, "corruption_shift": 4,
        "corruption_coarse": 12, "corruption_split": 0.1, "corruption_merge": 0.1,
    },
    "small": {"steps": 50_000, "batch_size": 32, "lr": 3e-5, "warmup": 1_000, "ema_decay": 0.99},
    "base": {"steps": 50_000, "batch_size": 32, "lr": 1e-5, "warmup": 1_000, "ema_decay": 0.99, "recompute": True},
}  # fmt: skip


def main() -> None:
    recipe.run(recipe.parse(__doc__, OPTIONS, RECIPES))


if __name__ == "__main__":
    cli.run(main)
