"""Train Pix2Seq-D on video: KITTI-STEP, from pre-trained weights.

    python train.py --init results/pretrain/model-latest.pt                  KITTI-STEP
    python train.py --dataset kitti_step streets --dataset_weights 0.8 0.2   a mixture
    python train.py --preset tiny --dataset streets                          the built-in world
    torchrun --nproc_per_node 8 train.py --init ...                          eight GPUs

Run the same command again to continue. -h all shows every flag.
"""

import json
from pathlib import Path

import cli

with cli.imports():
    from accelerate.utils import set_seed

    from data.io.export import write_json
    from data.io.lock import sole_writer
    from data.sets.registry import DATASETS
    from model import PRESETS
    from training.fit import fit
    from training.options import describe, parse
    from training.samples import for_classes, in_words, open_sources, training_stream, validation_source
    from training.start import initial_model, start_accelerator, tracked
    from training.validation import HeldOut

OPTIONS = {
    "run": [
        cli.Option("preset", "small", "size of the model and its recipe", choices=tuple(PRESETS)),
        cli.Option("results_folder", Path("results/train"), "checkpoints, log.jsonl and pictures", kind=Path),
        cli.Option("init", None, "checkpoint whose weights a new run starts from", kind=Path),
        cli.Option("backbone_weights", "auto", "auto, coco, imagenet, none or a file"),
        cli.Option("dry_run", False, "print the resolved configuration and stop"),
        cli.Option("quiet", False, "no progress bar", rare=True),
        cli.Option("log_with", None, "also log to these", nargs="+", choices=("tensorboard", "wandb"), rare=True),
    ],
    "data": [
        cli.Option("dataset", ("kitti_step",), "one or several data sets", choices=tuple(DATASETS)),
        cli.Option("data_root", None, "folder of each; none: data/KittiSTEP", nargs="+", metavar="PATH"),
        cli.Option("dataset_weights", None, "share of each data set; none: by length", kind=float, nargs="+"),
        cli.Option("cache", Path("results/cache"), "where decoded frames are kept; none: nowhere", kind=Path),
        cli.Option("skip_bad_files", False, "go on without files that cannot be read", rare=True),
        cli.Option("streets_videos", 400, "videos of 24 frames of the built-in world", rare=True),
        cli.Option("validate_videos", 4, "held-out videos for validation; 0: no validation", rare=True),
        cli.Option("validate_frames", 12, "frames of each", rare=True),
    ],
    "machine": [
        cli.Option("device", "auto", "where to compute", choices=("auto", "cuda", "cpu")),
        cli.Option("mixed_precision", "auto", "autocast type", choices=("auto", "no", "bf16", "fp16")),
    ],
}

# Where a preset differs from the defaults of model/network/config.py, training/config.py, model/diffusion/config.py and
# data/clips/settings.py. tiny: what measured best (benchmarks/quality.md). small: it too, with a ResNet's share of the
# learning rate; not yet trained. base: the released code's training on KITTI-STEP (docs/departures.md).
RECIPE = {
    # field                 tiny         small        base
    "image_size":          ((208, 640),  (384, 1248), (384, 1248)),  # pixels: KITTI-STEP's aspect
    "mask_size":           ((156, 480),  (192, 624),  (192, 624)),
    "steps":               (1_800,       20_000,      50_000),       # optimizer steps
    "batch_size":          (16,          16,          32),           # samples of one step
    "optimizer":           ("muon",      "muon",      "adamw"),
    "lr":                  (2e-3,        1e-3,        1e-5),
    "backbone_lr":         (0.06,        0.03,        1.0),          # share of lr
    "warmup":              (50,          500,         0),            # steps
    "final_lr":            (0.1,         0.1,         1.0),          # share of lr
    "ema_decay":           (0.998,       0.999,       0.99),
    "sampling":            ((4, 2, 0.5), (8, 4, 0.5), (20, 8, 0.0)),  # first and later steps, time difference
    "learn_void":          (False,       False,       True),
    "loss_stride":         (3,           2,           1),            # mask pixels
    "stuff_by_class":      (True,        True,        False),
    "instance_weight":     (0.3,         0.3,         0.2),          # exponent of 1 / (area + 1)
    "slot_order":          ("position",  "position",  "shuffle"),
    "history_absent":      (0.8,         0.8,         0.0),          # share of clips
    "synthetic_history":   (0.2,         0.2,         0.0),          # share of clips: own mask, moved, if not absent
    "scale_range":         ((0.8, 1.8),  (0.8, 1.8),  (1.0, 1.0)),
    "brightness":          (0.2,         0.2,         0.0),
    "contrast":            (0.2,         0.2,         0.0),
    "saturation":          (0.2,         0.2,         0.0),
    "hue":                 (0.02,        0.02,        0.0),          # share of the colour circle
    "focus":               (0.5,         0.5,         0.0),          # share of crops around a thing
    "paste":               (0.5,         0.5,         0.0),          # share of stills and moved clips
}  # fmt: skip


def main() -> None:
    args, settings = parse(__doc__, OPTIONS, RECIPE)
    if args.dry_run:
        print(json.dumps(describe(args, settings), indent=2))
        return
    folder = args.results_folder
    with cli.writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
    accelerator = start_accelerator(args)
    with sole_writer(folder, "--results_folder", accelerator):
        set_seed(settings.training.seed)

        # Data, before any weights are fetched
        sources = open_sources(args, settings.model, "train")

        # Resume, init or scratch
        config, space = for_classes(settings.model, sources)
        model, resume = initial_model(config, space, args, accelerator)
        settings = settings._replace(model=model.config)

        # Samples
        samples = training_stream(args, settings, sources, accelerator)
        accelerator.print(f"{in_words(model, sources, accelerator)}; results in {folder}")

        # Validation
        validate = picture = None
        if args.validate_videos:
            held_out = HeldOut(validation_source(args, model.config), args, settings.stream, accelerator)
            validate, picture = held_out.validate, held_out.picture

        # Fit
        if accelerator.is_main_process:
            write_json(folder / "config.json", describe(args, settings))
        extra = {"label_space": space.to_dict(), "sampling": settings.stream, "data": args.dataset}
        with tracked(accelerator, args, *settings):
            fit(
                model, settings.loss, settings.training, samples, folder, accelerator,
                resume=resume, validate=validate, picture=picture, extra=extra, quiet=args.quiet,
            )  # fmt: skip


if __name__ == "__main__":
    cli.run(main)
