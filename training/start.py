"""How a run starts: its processes, and its model - resumed, from other weights, or from scratch."""

import argparse
import contextlib
import dataclasses
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object
from torch import Tensor

from data.labels import LabelSpace
from model import CheckpointError, ConfigError, ModelConfig, Pix2SeqD
from model import checkpoint as checkpoints
from model.backbone_weights import backbone_file
from model.network.backbones import load_backbone
from model.network.precision import make_fast, precision
from model.stream.loading import config_of, label_space_in, model_for

TRACKING = "pix2seq_d"  # folder of TensorBoard's files in the results folder, and project at Weights & Biases
# What may differ between a checkpoint and the run that takes its weights
FREE_FIELDS = ("image_size", "mask_size", "classes", "things", "tracked", "dropout", "backbone_norm")


def start_accelerator(args: argparse.Namespace) -> Accelerator:
    """Set up the processes of a run, with the device and the precision of the command line."""
    cpu = args.device == "cpu" or (args.device == "auto" and not torch.cuda.is_available())
    device = torch.device("cpu" if cpu else "cuda")
    dtype = precision(args.mixed_precision, device)
    mixed = {torch.bfloat16: "bf16", torch.float16: "fp16", None: "no"}[dtype]
    make_fast(device, bool(args.deterministic))
    patience = InitProcessGroupKwargs(timeout=timedelta(days=1))  # while one process downloads or validates
    return Accelerator(
        cpu=cpu, mixed_precision=mixed, log_with=args.log_with, project_dir=args.results_folder,
        kwargs_handlers=[patience],
    )  # fmt: skip


@contextlib.contextmanager
def tracked(accelerator: Accelerator, args: argparse.Namespace, *configs: Any):
    """`with tracked(...):` runs a training, logged to TensorBoard or wandb where --log_with says so, and ends it."""
    if args.log_with:
        flat = {f"{type(c).__name__}.{k}": v for c in configs for k, v in dataclasses.asdict(c).items()}
        plain = {k: v if isinstance(v, int | float) else str(v) for k, v in flat.items()}
        accelerator.init_trackers(TRACKING, plain, {"wandb": {"dir": str(args.results_folder)}})
    try:
        yield
    finally:
        if accelerator.num_processes > 1 or args.log_with:
            accelerator.end_training()


def initial_model(
    config: ModelConfig, space: LabelSpace, args: argparse.Namespace, accelerator: Accelerator
) -> tuple[Pix2SeqD, dict[str, Any] | None]:
    """Resume, init or scratch, in this order: the model, and the checkpoint to go on from where it is a resume.

    Resume: the newest training checkpoint of the results folder. Init: --init, else model-0.pt of the results folder;
    weights alone. Scratch: the backbone's pre-trained weights, or none. Raises CheckpointError and ConfigError.
    """
    folder, say = Path(args.results_folder), accelerator.print

    # Resume
    found = checkpoints.newest(folder, report=say)
    _check_same_start(accelerator, found)
    if found:
        path, stored = found
        if (theirs := label_space_in(stored, path)) != space:
            raise CheckpointError(
                f"{path} was trained on other classes ({', '.join(theirs.names[:3])}, ...): name another "
                "--results_folder, and this checkpoint as --init"
            )
        model = model_for(_fitted(stored, config, args.preset, path), stored["training"]["weights"], path)
        say(f"resuming from {path}, step {stored['training']['step']}")
        return model, stored

    # Init
    init = args.init or (folder / "model-0.pt" if (folder / "model-0.pt").exists() else None)
    if init:
        stored = checkpoints.load(init)
        fitted = _fitted(stored, config, args.preset, init)
        weights = stored["weights"]
        if label_space_in(stored, init).names != space.names:
            weights = _without_classes(weights, config_of(stored, init), _built(fitted))
            say(f"{init} has other classes: its weights are kept, but the class scores of the last layer start anew")
        model = model_for(fitted, weights, init)
        checkpoints.load_weights(model, weights, init)
        say(f"weights of {init}")
        return model, None

    # Scratch
    model = _built(config)
    if args.backbone_weights != "none":
        path = backbone_file(args.backbone_weights, config.backbone, args.quiet)
        load_backbone(model.encoder, config.backbone, path)
        say(f"backbone weights: {args.backbone_weights}")
    return model, None


def _without_classes(weights: dict[str, Tensor], theirs: ModelConfig, fresh: Pix2SeqD) -> dict[str, Tensor]:
    """Weights of a model with other classes, the classes' rows of the last layer as in a fresh model."""
    rows = {}
    for name in ("denoiser.conv_out.weight", "denoiser.conv_out.bias"):
        own = fresh.state_dict()[name]
        classes = own[: fresh.config.classes + 1]
        rows[name] = torch.cat([classes, weights[name][theirs.classes + 1 :].to(own.dtype)])
    return weights | rows


def _check_same_start(accelerator: Accelerator, found: tuple[Path, dict[str, Any]] | None) -> None:
    """Raise CheckpointError where the processes would go on from different steps: each looks for itself."""
    if accelerator.num_processes > 1:
        steps = gather_object([found[1]["training"]["step"] if found else 0])
        if len(set(steps)) > 1:
            raise CheckpointError(
                f"the processes found checkpoints of different steps {sorted(set(steps))}: --results_folder must be "
                "one folder that all machines share"
            )


def _built(config: ModelConfig) -> Pix2SeqD:
    """Raises ConfigError where widths, depths and heads do not make a network."""
    try:
        return Pix2SeqD(config)
    except ConfigError:
        raise
    except (ValueError, RuntimeError, ZeroDivisionError, AssertionError) as error:
        raise ConfigError(f"this model cannot be built: {error}") from None


def _fitted(stored: dict[str, Any], config: ModelConfig, preset: str, path: Path | str) -> ModelConfig:
    """A checkpoint's configuration with this run's sizes. Raises CheckpointError where the networks differ."""
    theirs = config_of(stored, path)
    fitting = dataclasses.replace(theirs, **{n: getattr(config, n) for n in FREE_FIELDS if n != "backbone_norm"})
    differing = [
        f.name
        for f in dataclasses.fields(config)
        if f.name not in FREE_FIELDS and getattr(fitting, f.name) != getattr(config, f.name)
    ]
    if differing:
        name = differing[0]
        raise CheckpointError(
            f"{path} is of another configuration than --preset {preset}: {name} is {getattr(theirs, name)}, not "
            f"{getattr(config, name)}" + (f", and {len(differing) - 1} more differ" if len(differing) > 1 else "")
        )
    return fitting
