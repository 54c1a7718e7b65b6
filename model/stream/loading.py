"""From the values of a checkpoint to a model."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.labels import DEFAULT_SPACE, DataError, LabelSpace
from model import checkpoint as checkpoints
from model.network.config import ModelConfig
from model.network.pix2seq_d import Pix2SeqD
from model.stream.config import StreamConfig


def build(stored: dict[str, Any], source: str | Path) -> Pix2SeqD:
    """The model of a checkpoint with its averaged weights. Raises CheckpointError."""
    model = model_for(config_of(stored, source), stored["weights"], source)
    checkpoints.load_weights(model, stored["weights"], source)
    return model


def recommended(stored: dict[str, Any], source: str | Path) -> dict[str, Any]:
    """The sampling that a checkpoint recommends, as fields of StreamConfig. Raises CheckpointError."""
    sampling = stored.get("sampling") or {}
    try:
        StreamConfig(**sampling)
    except Exception as error:  # values that no program of ours wrote: any type of error
        raise checkpoints.CheckpointError(f"{source} recommends a sampling that cannot be used ({error})") from None
    return sampling


def model_for(config: ModelConfig, weights: dict[str, Tensor], source: str | Path) -> Pix2SeqD:
    """A model of a configuration that came with weights. Raises CheckpointError where the two do not fit.

    It is laid out without memory first, so that a file cannot ask for more than it holds.
    """
    try:
        with torch.device("meta"):
            own = Pix2SeqD(config).state_dict()
    except Exception as error:  # values that no program of ours wrote: any type of error
        raise checkpoints.CheckpointError(f"{source} holds a model that cannot be built ({error})") from None
    checkpoints.check_shapes(own, weights, source)
    return Pix2SeqD(config)


def config_of(stored: dict[str, Any], source: str | Path) -> ModelConfig:
    """The model's configuration in a checkpoint. Raises CheckpointError."""
    try:
        return ModelConfig.from_dict(stored["config"])
    except Exception as error:  # as above
        raise checkpoints.CheckpointError(f"{source} holds a configuration that cannot be used ({error})") from None


def label_space_in(stored: dict[str, Any], source: str | Path) -> LabelSpace:
    """The classes that a checkpoint was trained on; the default ones where it does not say. Raises CheckpointError."""
    if "label_space" not in stored:
        return DEFAULT_SPACE
    try:
        return LabelSpace.from_dict(stored["label_space"], source)
    except DataError as error:
        raise checkpoints.CheckpointError(str(error)) from None
