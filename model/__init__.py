"""The network and its training: takes tensors, knows no data set and no file layout."""

from model.checkpoint import CheckpointError
from model.pix2seq_d import PRESETS, ConfigError, ModelConfig, Pix2SeqD
from model.streaming import Panoptic, StreamConfig, StreamState, VideoPredictor

__all__ = [
    "PRESETS",
    "CheckpointError",
    "ConfigError",
    "ModelConfig",
    "Panoptic",
    "Pix2SeqD",
    "StreamConfig",
    "StreamState",
    "VideoPredictor",
]
