"""A very small model and batches for it, shared by the tests."""

import dataclasses
import os

import numpy as np
import torch

from model import PRESETS, ModelConfig, Pix2SeqD
from model.diffusion.samplers import sample
from model.stream.step import follow, see

CONFIG = ModelConfig(
    image_size=(32, 64), mask_size=(16, 32), code_bits=(5, 5), scale=0.5, backbone="resnet10",
    encoder_dim=32, encoder_depth=1, encoder_heads=2, map_channels=16,
    dim=16, multipliers=(1, 2), denoiser_depth=1, transformer_dim=32, transformer_heads=2,
)  # fmt: skip

DEVICE = torch.device(os.environ.get("TEST_DEVICE", "cpu"))  # of the tests that a GPU can run, for benchmarks/gpu.sh
SMALLER = {"encoder_dim": 64, "encoder_depth": 1, "encoder_heads": 4, "map_channels": 32, "dim": 32,
           "denoiser_depth": 1, "transformer_dim": 64, "transformer_heads": 4}  # fmt: skip


def reduced(preset: str, image_size: tuple[int, int] = (64, 128), **changes) -> ModelConfig:
    """A preset at a size that a CPU trains in no time: its choices are its own."""
    config = dataclasses.replace(PRESETS[preset], **SMALLER | changes)
    return dataclasses.replace(config, image_size=image_size, mask_size=config.mask_for(image_size))


# The same as flags of train.py and pretrain.py.
FLAGS = tuple(
    "--preset tiny --image_size 32 64 --mask_size 16 32 --code_bits 5 5 --backbone resnet10 "  # noqa: SIM905
    "--encoder_dim 32 --encoder_depth 1 --encoder_heads 2 --map_channels 16 --patch 1 --pixel_dim 32 --loss_stride 1 "
    "--dim 16 --multipliers 1 2 --denoiser_depth 1 --transformer_dim 32 --transformer_heads 2 --batch_size 4 "
    "--num_workers 0 --device cpu --mixed_precision no --quiet --cache none".split()
)


def lively_model(seed: int = 0, config: ModelConfig = CONFIG) -> Pix2SeqD:
    """An untrained model whose answers vary over the pixels and depend on all that it is given."""
    torch.manual_seed(seed + 1)  # with 0 no answer is a thing
    model = Pix2SeqD(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # layers that start at zero would hide what comes before them
            if parameter.ndim >= 2:
                parameter.add_(torch.randn_like(parameter), alpha=parameter[0].numel() ** -0.5)
        if not config.published:
            model.denoiser.conv_out.weight.mul_(4)  # classes and slots that differ from pixel to pixel
    return model


def scene(seed: int, config: ModelConfig = CONFIG, frames: int = 3) -> dict[str, torch.Tensor]:
    """A clip of two rectangles (a car, a person) on road and sky, that move to the right; slots 5 and 9."""
    rng = np.random.default_rng(seed)
    h, w = config.mask_size
    semantic = np.full((frames, h, w), 1, np.uint8)
    semantic[:, : h // 3] = 11
    slot = np.zeros((frames, h, w), np.uint8)
    for code, s, height, width in ((14, 5, h // 3, w // 4), (12, 9, h // 2, w // 8)):
        y, x = int(rng.integers(h // 4, h - height)), int(rng.integers(0, w // 2))
        for t in range(frames):
            semantic[t, y : y + height, x + t : x + t + width] = code
            slot[t, y : y + height, x + t : x + t + width] = s
    ratio = config.image_size[0] // h
    colors = rng.integers(0, 256, (32, 3)).astype(np.uint8)
    image = colors[(semantic[-1] + slot[-1]) % 32].repeat(ratio, 0).repeat(ratio, 1).transpose(2, 0, 1)
    known = np.ones_like(semantic, bool)
    maps = {"semantic": semantic, "instance": slot, "semantic_known": known, "instance_known": known.copy()}
    return {"image": torch.from_numpy(image.copy()), **{k: torch.from_numpy(v) for k, v in maps.items()}}


class Scenes(torch.utils.data.Dataset):
    """Sample n is scene n modulo `count`."""

    def __init__(self, count: int = 1000):
        self.count = count

    def __len__(self) -> int:
        return 2**30

    def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
        return scene(n % self.count)


def stream_step(model, images, states, config, sampling=sample, callback=None):
    """A step of the stream without a predictor: answers of the mask's size, and the next states."""
    seen = see(model, images, [s.moment for s in states], config, None, states, sampling, callback)
    done = [follow(model.config, *each, model.config.mask_size, config) for each in zip(seen, states, strict=True)]
    return [answer for answer, _ in done], [state for _, state in done]
