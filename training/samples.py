"""From the data sets of a command line to training samples and to the validation data."""

import argparse
import dataclasses
import shutil
from pathlib import Path

from accelerate import Accelerator

from data.clips.cache import Cached
from data.clips.clips import Clips
from data.clips.mixture import TrainingStream
from data.clips.settings import ClipFormat
from data.labels import DataError, LabelSpace
from data.sets.check import check
from data.sets.frames import FrameSource, count_gaps
from data.sets.registry import DATASETS
from model import ModelConfig, Pix2SeqD
from training.options import Settings

FILL = 0.9  # of the free disk, at most: for the cache


def open_sources(args: argparse.Namespace, config: ModelConfig, split: str) -> list[FrameSource]:
    """The data sets of the command line, each with its root or its default root."""
    return [_open(n, args, config, split) for n in range(len(args.dataset))]


def validation_source(args: argparse.Namespace, config: ModelConfig) -> FrameSource:
    """The first data set of the command line that has a split `val`. Raises DataError where none has."""
    reasons = []
    for n in range(len(args.dataset)):
        try:
            return _open(n, args, config, "val")
        except DataError as error:
            reasons.append(str(error))
    raise DataError(f"there is nothing to validate on ({reasons[0]}); --validate_videos 0 trains without validation")


def for_classes(config: ModelConfig, sources: list[FrameSource]) -> tuple[ModelConfig, LabelSpace]:
    """The configuration for the classes of the data sets, and those classes. A model tracks what any of the data sets
    tracks. Raises DataError where they have other classes."""
    space = sources[0].space
    for source in sources[1:]:
        if source.space != space:
            names = ", ".join(sorted(set(space.names) ^ set(source.space.names))[:3]) or "ids, colours or things"
            raise DataError(
                f"{sources[0].name} and {source.name} have different classes ({names}): train on one of them"
            )
    tracked = tuple(sorted({c for source in sources for c in source.tracked}))
    return dataclasses.replace(config, classes=len(space.classes), things=space.things, tracked=tracked), space


def training_stream(
    args: argparse.Namespace, settings: Settings, sources: list[FrameSource], accelerator: Accelerator
) -> TrainingStream:
    """The samples of a run, of all data sets together."""
    config, training = settings.model, settings.training
    image_size = tuple(config.image_size)
    fmt = ClipFormat(image_size, tuple(config.mask_size), config.slots, config.history_offsets)
    if args.cache != Path("none"):
        margin = max(settings.augmentation.scale_range[1], 1.0)
        sources = cached(sources, image_size, args.cache, margin, accelerator.print)
    clips = [Clips(source, fmt, settings.augmentation, settings.history) for source in sources]
    total = training.steps * training.batch_size
    return TrainingStream(clips, args.dataset_weights, training.seed, total, args.skip_bad_files)


def cached(
    sources: list[FrameSource], image_size: tuple[int, int], folder: Path, margin: float, say=print
) -> list[FrameSource]:
    """Put a cache in front of each data set and announce its size. A data set stays as it is if it is not read from
    files, if the disk has no room for it beside those before it, or if the folder cannot be written."""
    instead = "so frames are decoded each time (slower); --cache PATH takes another folder, --cache none is silent"
    chosen, promised = [], 0
    for source in sources:
        chosen.append(source)
        if any(frame.image is None for frame in source.frames):
            continue
        try:
            through = Cached(source, image_size, folder, margin)
            wanted, free = through.missing_bytes(), shutil.disk_usage(folder).free - promised
        except OSError as error:
            say(f"cache: {folder} cannot be written ({error.strerror}), {instead}")
            continue
        if wanted > FILL * free:
            left = f"{max(free, 0) / 1e9:.1f} GB free"
            say(f"cache: {source.name} needs {wanted / 1e9:.1f} GB, and {folder} has {left}, {instead}")
            continue
        if wanted:
            say(f"cache: frames of {source.name} are decoded once, into {wanted / 1e9:.1f} GB in {through.folder}")
        chosen[-1], promised = through, promised + wanted
    return chosen


def in_words(model: Pix2SeqD, sources: list[FrameSource], accelerator: Accelerator) -> str:
    """How large the model is, how many frames each data set has, and how many gaps in their numbers: a gap ends the
    history, and no loss shows it."""
    parts = []
    for source in sources:
        gaps = count_gaps(source.frames) if source.is_video else 0
        cut = f" (history cut at {gaps} gap{'s' * (gaps > 1)} in their numbers)" if gaps else ""
        parts.append(f"{len(source.frames):,} of {source.name}{cut}")
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    precision, device = accelerator.mixed_precision, accelerator.device
    return f"{parameters:.1f} M parameters, {' + '.join(parts)} frames, {precision} on {device}"


def _open(n: int, args: argparse.Namespace, config: ModelConfig, split: str) -> FrameSource:
    name, root = args.dataset[n], args.data_root[n] if args.data_root else None
    options = {}
    if name == "streets":  # rendered, at the size that is asked for
        videos = args.streets_videos if split == "train" else args.validate_videos
        options = {"videos": videos, "image_size": tuple(config.image_size)}
    source = DATASETS[name](Path(root) if root not in (None, "none", "default") else None, split, **options)
    check(source, args.skip_bad_files, args.quiet)
    return source
