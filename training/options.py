"""The command line of pretrain.py and train.py, and the settings that it resolves to."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from accelerate.utils import is_tensorboard_available, is_wandb_available

import cli
from data.clips.settings import Augmentation, HistoryConfig
from model import PRESETS, ConfigError, ModelConfig
from model.backbone_weights import default_weights
from model.checks import checked_size
from model.diffusion.loss import LossConfig
from training.config import TrainingConfig

COMMON = ("image_size", "steps", "batch_size", "accumulate", "lr", "save_every", "seed", "num_workers", "compile")


class Settings(NamedTuple):
    """The configurations of a run; every field of each is a flag."""

    model: ModelConfig
    training: TrainingConfig
    loss: LossConfig
    history: HistoryConfig
    augmentation: Augmentation

    @property
    def stream(self) -> dict[str, Any]:
        """The sampling that the checkpoints recommend, as fields of StreamConfig: the published network predicts as
        published, without second looks."""
        first_steps, steps, time_difference = self.training.sampling
        stream = {"first_steps": int(first_steps), "steps": int(steps), "time_difference": float(time_difference)}
        published = {"history_steps": int(steps), "average_classes": False, "merge": 0.0, "class_split": 0.0}
        published |= {"max_gap": 0, "min_area": 1}
        return stream | (published if self.model.published else {})


def parse(
    doc: str, groups: Mapping[str, Sequence[cli.Option]], recipe: Mapping[str, Sequence[Any]]
) -> tuple[argparse.Namespace, Settings]:
    """Read the command line. The help shows the defaults of the preset that the command line names.

    recipe: field -> its value for each of PRESETS, where it differs from the default of its dataclass. Raises
    UsageError and ConfigError for values that cannot be used.
    """
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--preset", default="small")
    preset = chooser.parse_known_args()[0].preset
    defaults = preset_settings(preset if preset in PRESETS else "small", recipe)
    parser = cli.Parser(doc)
    cli.add_options(parser, groups)
    for title, config in zip(Settings._fields, defaults, strict=True):
        cli.add_dataclass(parser, config, title, COMMON, skip=("backbone_norm", "classes", "things", "tracked"))
    args = parser.parse_args()
    settings = Settings(*(dataclasses.replace(c, **cli.given(args, type(c))) for c in defaults))
    if args.backbone_weights == "auto":
        args.backbone_weights = default_weights(settings.model.backbone)
    _check(args)
    settings = settings._replace(model=_resolved_model(settings.model, args))
    if not settings.model.published and settings.model.patch % settings.loss.loss_stride:
        raise ConfigError(f"loss_stride {settings.loss.loss_stride} must divide the patch, {settings.model.patch}")
    return args, settings


def preset_settings(preset: str, recipe: Mapping[str, Sequence[Any]]) -> Settings:
    """The settings of a preset before any flag. Raises KeyError for a field of the recipe that no configuration has."""
    column = list(PRESETS).index(preset)
    values = {name: row[column] for name, row in recipe.items()}
    sizes = {name: values.pop(name) for name in ("image_size", "mask_size") if name in values}
    configs = [dataclasses.replace(PRESETS[preset], **sizes)]
    for cls in (TrainingConfig, LossConfig, HistoryConfig, Augmentation):
        configs.append(cls(**{f.name: values.pop(f.name) for f in dataclasses.fields(cls) if f.name in values}))
    if values:
        raise KeyError(f"no configuration has {sorted(values)}")
    return Settings(*configs)


def describe(args: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """The resolved configuration of a run, as config.json and --dry_run have it."""
    plain = {k: v for k, v in vars(args).items() if not any(hasattr(c, k) for c in settings)}
    configs = {type(c).__name__: dataclasses.asdict(c) for c in settings}
    return {"command": sys.argv, **json.loads(json.dumps(plain, default=str)), **configs}


def _check(args: argparse.Namespace) -> None:
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
    if args.device == "cuda" and not torch.cuda.is_available():
        raise cli.UsageError("--device cuda: there is no CUDA device; use --device cpu")
    if args.compile and (args.device == "cpu" or not torch.cuda.is_available()):
        raise cli.UsageError("--compile is for a CUDA device: on a CPU it takes minutes and gains nothing")


def _resolved_model(config: ModelConfig, args: argparse.Namespace) -> ModelConfig:
    """The model's configuration with what follows from other flags: norms, and the mask's size from the image's."""
    changes: dict[str, Any] = {"backbone_norm": "group" if args.backbone_weights == "none" else "frozen_batch"}
    if args.image_size and not args.mask_size:
        preset = dataclasses.replace(PRESETS[args.preset], patch=config.patch, published=False)
        changes["mask_size"] = preset.mask_for(checked_size(args.image_size))
    return dataclasses.replace(config, **changes)
