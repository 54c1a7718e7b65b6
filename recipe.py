"""What pretrain.py and train.py share: from a command line to a run, data and model put together in one place.

`run` reads as the run does: configuration; data; resume, init or scratch; samples; validation; fit.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    InitProcessGroupKwargs,
    gather_object,
    is_tensorboard_available,
    is_wandb_available,
    set_seed,
)

import cli
from data.backbones import backbone_file, default_weights
from data.cache import Cached
from data.clips import Augmentation, ClipFormat, Clips, HistoryConfig
from data.frames import FrameSource, count_gaps
from data.labels import CLASS_NAMES, DataError
from data.mixture import TrainingStream
from data.registry import DATASETS
from folders import sole_writer
from heldout import HeldOut
from model import PRESETS, CheckpointError, ConfigError, ModelConfig, Pix2SeqD
from model import checkpoint as checkpoints
from model.backbones import load_backbone
from model.diffusion import LossConfig
from model.streaming import checked_size, config_of, model_for, precision
from model.training import TrainingConfig, fit
from rollout import predicted_history

TRACKERS = ("tensorboard", "wandb")
TRACKING = "pix2seq_d"  # folder of TensorBoard's files in the results folder, and project at Weights & Biases
PRECISIONS = ("auto", "no", "bf16", "fp16")
CONFIGS = (ModelConfig, TrainingConfig, LossConfig, HistoryConfig, Augmentation)


def options(dataset: tuple[str, ...], data_root_help: str, results_folder: str) -> dict[str, list[cli.Option]]:
    """The flags of both scripts beside those of the configuration dataclasses, with a script's own defaults."""
    return {
        "run": [
            cli.Option("preset", "small", "size of the model, with the defaults that suit it", choices=tuple(PRESETS)),
            cli.Option("results_folder", Path(results_folder), "checkpoints, log.jsonl and pictures", kind=Path),
            cli.Option("init", None, "checkpoint to take weights from, where there is nothing to resume", kind=Path),
            cli.Option(
                "backbone_weights", "auto", "auto, coco, imagenet, none or a file; auto: those that are at hand"
            ),
            cli.Option("dry_run", False, "print the resolved configuration and stop"),
            cli.Option("quiet", False, "no progress bar"),
            cli.Option(
                "log_with", None, "also log to these, where installed", nargs="+", choices=("tensorboard", "wandb")
            ),
        ],
        "data": [
            cli.Option("dataset", dataset, "one or several data sets", choices=tuple(DATASETS)),
            cli.Option("data_root", None, data_root_help, nargs="+", metavar="PATH"),
            cli.Option("dataset_weights", None, "share of each data set; none: by length", kind=float, nargs="+"),
            cli.Option("history_from", None, "checkpoint whose predictions of the videos are history, too", kind=Path),
            cli.Option("cache", None, "folder that keeps frames at training size, decoded once", kind=Path),
            cli.Option("skip_bad_files", False, "go on without files that cannot be read, instead of stopping"),
            cli.Option("streets_videos", 400, "videos of 24 frames of the built-in world"),
            cli.Option("validate_videos", 4, "held-out videos for validation; 0: no validation"),
            cli.Option("validate_frames", 12, "frames of each"),
        ],
        "machine": [
            cli.Option("device", "auto", "where to compute", choices=("auto", "cuda", "cpu")),
            cli.Option("mixed_precision", "auto", "autocast type; auto: bf16 where it pays", choices=PRECISIONS),
        ],
    }


def parse(doc: str, groups: dict[str, list[cli.Option]], recipes: dict[str, dict[str, Any]]) -> argparse.Namespace:
    """Read the command line. The help shows the defaults of the preset and the data sets that the command line names.

    recipes: for each preset the fields of the other configurations that differ from their defaults.
    """
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--preset", default="small")
    chooser.add_argument("--dataset", nargs="+")
    named, _ = chooser.parse_known_args()
    preset = named.preset
    defaults = preset_configs(preset if preset in PRESETS else "small", recipes, named.dataset or ())
    parser = cli.Parser(doc)
    cli.add_options(parser, groups)
    for config in defaults:
        cli.add_dataclass(parser, config, skip=("backbone_norm", "tracked"))
    args = parser.parse_args()
    args.configs = [dataclasses.replace(config, **cli.given(args, type(config))) for config in defaults]
    if args.backbone_weights == "auto":
        args.backbone_weights = default_weights(args.configs[0].backbone)
    return args


# Where the training on one data set alone differs, in all presets. The built-in world has more videos than a training
# sees, all drawn as those it is tested on: views and colours of other kinds only take its time (benchmarks/quality.md).
DATASET_RECIPES: dict[str, dict[str, Any]] = {
    "streets": {
        "scale_range": (1.0, 1.0), "crop": False, "flip": 0.0,
        "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0,
    },
}  # fmt: skip


def preset_configs(preset: str, recipes: dict[str, dict[str, Any]], datasets: Sequence[str] = ()) -> list[Any]:
    """The configurations of a preset, for a training on these data sets, one of each of CONFIGS."""
    values = recipes[preset] | (DATASET_RECIPES.get(datasets[0], {}) if len(datasets) == 1 else {})
    known = {f.name for cls in CONFIGS[1:] for f in dataclasses.fields(cls)}
    assert set(values) <= known, set(values) - known
    rest = [cls(**{f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values}) for cls in CONFIGS[1:]]
    return [PRESETS[preset], *rest]


def run(args: argparse.Namespace) -> None:
    """One training run, from the parsed command line."""
    check(args)
    loss = args.configs[2]
    model_config = resolve_model(args.configs[0], args)
    if model_config.patch > 1 and model_config.patch % loss.loss_stride:
        raise ConfigError(f"loss_stride {loss.loss_stride} must divide the patch, {model_config.patch}")
    if args.dry_run:
        print(json.dumps(describe(args, model_config, *args.configs[1:]), indent=2))
        return
    folder = Path(args.results_folder)
    with cli.writable(folder):
        folder.mkdir(parents=True, exist_ok=True)

    accelerator = start_accelerator(args, folder)
    with sole_writer(folder, "--results_folder", accelerator):
        _run(args, model_config, accelerator)


def _run(args: argparse.Namespace, model_config: ModelConfig, accelerator: Accelerator) -> None:
    """The run itself, in a folder that is its own."""
    _, training, loss, history, augmentation = args.configs
    folder, say = Path(args.results_folder), accelerator.print
    set_seed(training.seed)

    # Data, before any weights are fetched
    sources = open_sources(args, model_config, "train")
    tracked = {cls for source in sources for cls in source.tracked}
    model_config = dataclasses.replace(model_config, tracked=tuple(sorted(tracked)))

    # Resume, init, scratch
    model, resume = initial_model(model_config, args, folder, say)
    check_same_start(accelerator, resume)

    # Training samples
    fmt = ClipFormat(
        tuple(model.config.image_size), tuple(model.config.mask_size), model.config.slots, model.config.history_offsets
    )
    own = [None] * len(sources)
    if args.history_from:
        own = [
            predicted_history(s, args.history_from, folder / "own_history", fmt.image_size, accelerator, args.quiet)
            for s in sources
        ]
    if args.cache:
        sources = [Cached(source, fmt.image_size, args.cache) for source in sources]
    stream = TrainingStream(
        [
            Clips(source, fmt, augmentation, history_config=history, own_history=predicted)
            for source, predicted in zip(sources, own, strict=True)
        ],
        args.dataset_weights,
        training.seed,
        training.steps * training.batch_size,
        args.skip_bad_files,
    )
    frames = " + ".join(f"{len(s.frames):,} of {s.name}{gaps_of(s)}" for s in sources)
    count = sum(p.numel() for p in model.parameters())
    where = f"{accelerator.mixed_precision} on {accelerator.device}"
    say(f"{count / 1e6:.1f} M parameters, {frames} frames, {where}; results in {folder}")

    # Validation and pictures
    validate, picture = None, None
    if args.validate_videos:
        held_out = HeldOut(validation_source(args, model.config), args, folder, accelerator)
        validate, picture = held_out.validate, held_out.picture

    # Fit
    if accelerator.is_main_process:
        write_json(folder / "config.json", describe(args, model.config, *args.configs[1:]))
    start_trackers(accelerator, args)
    extra = {"classes": list(CLASS_NAMES), "tracked": list(model.config.tracked), "data": args.dataset}
    try:
        fit(model, loss, training, stream, folder, accelerator, resume, validate, extra, args.quiet, picture)
    except FloatingPointError as error:
        cli.fail(str(error), status=1)
    finally:
        if accelerator.num_processes > 1 or args.log_with:
            accelerator.end_training()


def gaps_of(source: FrameSource) -> str:
    """Where frame numbers jump: that history breaks off there, which nobody sees in a loss."""
    gaps = count_gaps(source.frames) if source.is_video else 0
    return f" (history cut at {gaps} gap{'s' * (gaps > 1)} in their numbers)" if gaps else ""


def start_accelerator(args: argparse.Namespace, folder: Path) -> Accelerator:
    cpu = args.device == "cpu" or (args.device == "auto" and not torch.cuda.is_available())
    mixed = {torch.bfloat16: "bf16", torch.float16: "fp16", None: "no"}[
        precision(args.mixed_precision, torch.device("cpu" if cpu else "cuda"))
    ]
    patience = InitProcessGroupKwargs(timeout=timedelta(days=1))  # while one process downloads or validates
    return Accelerator(
        cpu=cpu, mixed_precision=mixed, log_with=args.log_with, project_dir=folder, kwargs_handlers=[patience]
    )


def check_same_start(accelerator: Accelerator, resume: dict[str, Any] | None) -> None:
    """Raise CheckpointError where the processes would go on from different steps: each looks for itself."""
    if accelerator.num_processes > 1:
        steps = gather_object([resume["training"]["step"] if resume else 0])
        if len(set(steps)) > 1:
            raise CheckpointError(
                f"the processes found checkpoints of different steps {sorted(set(steps))}: --results_folder must be "
                "one folder that all machines share"
            )


def start_trackers(accelerator: Accelerator, args: argparse.Namespace) -> None:
    if args.log_with:
        flat = {f"{type(c).__name__}.{k}": v for c in args.configs for k, v in dataclasses.asdict(c).items()}
        plain = {k: v if isinstance(v, int | float) else str(v) for k, v in flat.items()}
        accelerator.init_trackers(TRACKING, plain, {"wandb": {"dir": str(args.results_folder)}})


def check(args: argparse.Namespace) -> None:
    """Raise UsageError for values of the flags that no configuration checks."""
    weights = args.dataset_weights
    if weights and len(weights) != len(args.dataset):
        raise cli.UsageError(f"{len(args.dataset)} data sets need as many --dataset_weights, not {len(weights)}")
    if weights and not (min(weights) >= 0 and 0 < sum(weights) < float("inf")):
        raise cli.UsageError(f"--dataset_weights must be 0 or more and not all 0, not {weights}")
    if args.data_root and len(args.data_root) != len(args.dataset):
        raise cli.UsageError(f"{len(args.dataset)} data sets need as many --data_root, not {len(args.data_root)}")
    if args.validate_videos < 0 or args.validate_frames < 1 or args.streets_videos < 1:
        raise cli.UsageError("--validate_videos must be 0 or more, --validate_frames and --streets_videos 1 or more")
    installed = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}
    for name in args.log_with or ():
        if not installed[name]():
            raise cli.UsageError(f"--log_with {name}: it is not installed; pip install {name}")
    if args.history_from and Path(args.results_folder).resolve() in args.history_from.resolve().parents:
        raise cli.UsageError("--history_from must not be a checkpoint of --results_folder, which changes: copy it")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise cli.UsageError("--device cuda: there is no CUDA device; use --device cpu")
    if args.compile and (args.device == "cpu" or not torch.cuda.is_available()):
        raise cli.UsageError("--compile is for a CUDA device: on a CPU it takes minutes and gains nothing")


def resolve_model(config: ModelConfig, args: argparse.Namespace) -> ModelConfig:
    """The model's configuration, with what follows from other flags: norms, and the mask's size from the image's."""
    pretrained = args.backbone_weights != "none"
    changes: dict[str, Any] = {"backbone_norm": "frozen_batch" if pretrained else "group"}
    if args.image_size and not args.mask_size:
        preset = dataclasses.replace(PRESETS[args.preset], patch=config.patch)
        changes["mask_size"] = preset.mask_for(checked_size(args.image_size))
    return dataclasses.replace(config, **changes)


def initial_model(config: ModelConfig, args: argparse.Namespace, folder: Path, say) -> tuple[Pix2SeqD, dict | None]:
    """Resume, init or scratch, in this order: the model, and the checkpoint to go on from where it is a resume.

    Resume: the newest training checkpoint of the results folder. Init: --init, else model-0.pt of the results folder;
    weights alone. Scratch: the backbone's pre-trained weights, or none.
    """
    # Resume
    if found := checkpoints.newest(folder, report=say):
        path, stored = found
        model = model_for(fitted(stored, config, args, path), stored["training"]["weights"], path)
        say(f"resuming from {path}, step {stored['training']['step']}")
        return model, stored

    # Init
    init = args.init or (folder / "model-0.pt" if (folder / "model-0.pt").exists() else None)
    if init:
        stored = checkpoints.load(init)
        model = model_for(fitted(stored, config, args, init), stored["weights"], init)
        checkpoints.load_weights(model, stored["weights"], init)
        say(f"weights of {init}")
        return model, None

    # Scratch
    model = build_model(config)
    if args.backbone_weights != "none":
        path = backbone_file(args.backbone_weights, config.backbone, args.quiet)
        load_backbone(model.encoder, config.backbone, path)
        say(f"backbone weights: {args.backbone_weights}")
    return model, None


def build_model(config: ModelConfig) -> Pix2SeqD:
    """Raises ConfigError where widths, depths and heads do not make a network."""
    try:
        return Pix2SeqD(config)
    except ConfigError:
        raise
    except (ValueError, RuntimeError, ZeroDivisionError, AssertionError) as error:
        raise ConfigError(f"this model cannot be built: {error}") from None


# What may differ between a checkpoint and the run that takes its weights.
FREE_FIELDS = ("image_size", "mask_size", "tracked", "dropout", "backbone_norm")


def fitted(stored: dict[str, Any], config: ModelConfig, args: argparse.Namespace, path: Path | str) -> ModelConfig:
    """A checkpoint's configuration with this run's sizes. Raises CheckpointError where the networks differ."""
    theirs = config_of(stored, path)
    free = {name: getattr(config, name) for name in FREE_FIELDS if name != "backbone_norm"}
    fitting = dataclasses.replace(theirs, **free)
    differing = [
        f.name
        for f in dataclasses.fields(config)
        if f.name not in FREE_FIELDS and getattr(fitting, f.name) != getattr(config, f.name)
    ]
    if differing:
        name = differing[0]
        raise CheckpointError(
            f"{path} is of another configuration than --preset {args.preset}: {name} is {getattr(theirs, name)}, not "
            f"{getattr(config, name)}" + (f", and {len(differing) - 1} more differ" if len(differing) > 1 else "")
        )
    return fitting


def open_sources(args: argparse.Namespace, config: ModelConfig, split: str) -> list[FrameSource]:
    """The data sets of the command line; each takes the root at its place, or its default one."""
    return [open_source(n, args, config, split) for n in range(len(args.dataset))]


def open_source(n: int, args: argparse.Namespace, config: ModelConfig, split: str) -> FrameSource:
    name, root = args.dataset[n], args.data_root[n] if args.data_root else None
    options: dict[str, Any] = {}
    if name == "streets":  # rendered, at the size that is asked for
        videos = args.streets_videos if split == "train" else args.validate_videos
        options = {"videos": videos, "image_size": tuple(config.image_size)}
    return DATASETS[name](Path(root) if root not in (None, "none", "default") else None, split, **options)


def validation_source(args: argparse.Namespace, config: ModelConfig) -> FrameSource:
    """The first data set of the command line that has a split `val`. Raises DataError where none has."""
    reasons = []
    for n in range(len(args.dataset)):
        try:
            return open_source(n, args, config, "val")
        except DataError as error:
            reasons.append(str(error))
    raise DataError(f"there is nothing to validate on ({reasons[0]}); --validate_videos 0 trains without validation")


def describe(args: argparse.Namespace, *configs: Any) -> dict[str, Any]:
    """The resolved configuration of a run, as config.json and --dry_run have it."""
    plain = {k: v for k, v in vars(args).items() if k != "configs" and not any(hasattr(c, k) for c in configs)}
    settings = {type(c).__name__: dataclasses.asdict(c) for c in configs}
    return {"command": sys.argv, **json.loads(json.dumps(plain, default=str)), **settings}


def write_json(path: Path, content: Any) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)
