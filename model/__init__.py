"""The network, its diffusion and its stream: takes tensors, knows no data set and no file layout."""

from model.checkpoint import CheckpointError
from model.checks import ConfigError
from model.network.config import ModelConfig
from model.network.pix2seq_d import Pix2SeqD
from model.presets import PRESETS
from model.stream.config import StreamConfig
from model.stream.predictor import Panoptic, VideoPredictor
from model.stream.state import StreamState

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
