"""Estimate what the presets need on a GPU, without one: on fake CUDA tensors, which compute nothing.

    python -m benchmarks.simulated                    memory of a training sample, batches that fit, casts of a frame

Types and shapes are exact, and autocast is CUDA's; layouts are exact unless a convolution chooses them. Memory is what
the forward pass keeps for the backward pass, without temporary memory of kernels and waste of the allocator.
"""

import contextlib
import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import pretrain
import train
from model import PRESETS, ModelConfig, Pix2SeqD
from model.diffusion.bits import history_to_bits
from model.diffusion.draws import Draws
from model.diffusion.loss import LossConfig, training_loss
from model.diffusion.samplers import sample, sampling_times
from model.network.precision import cast_weights, fold_norms
from training.options import Settings, preset_settings

COPIES = ("_to_copy", "copy_", "clone")  # casts, and copies to another layout
MARGIN = 1.25  # factor on the memory of a sample, for what is left out


def flash_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The kernel that `scaled_dot_product_attention` takes on a GPU in bfloat16; without one PyTorch takes the plain
    products, which keep a matrix of tokens by tokens for the backward pass."""
    return torch.ops.aten._scaled_dot_product_flash_attention(*(x.to(torch.bfloat16) for x in (q, k, v)))[0]


@contextlib.contextmanager
def cuda() -> Iterator[None]:
    """`with cuda():` makes each new tensor a fake CUDA tensor, under bfloat16 autocast."""
    fused = mock.patch.object(F, "scaled_dot_product_attention", flash_attention)
    with fused, FakeTensorMode(), torch.device("cuda"):
        torch.set_autocast_enabled("cuda", True)  # torch.autocast("cuda") is disabled without a device
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        try:
            yield
        finally:
            torch.set_autocast_enabled("cuda", False)
            torch.clear_autocast_cache()


def made(config: ModelConfig) -> Pix2SeqD:
    """A model with channels-last kernels; call it under `cuda`."""
    model = Pix2SeqD(config)
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


class Count(TorchDispatchMode):
    """`with Count() as count:` counts the operations that run on the device, by name; views do not count."""

    def __init__(self):
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if not getattr(func, "is_view", False):
            self.names[func.overloadpacket.__name__] += 1
        return output

    @property
    def calls(self) -> int:
        return sum(self.names.values())

    def named(self, *names: str) -> list[int]:
        return [self.names[name] for name in names]


def frame(model: Pix2SeqD, steps: int, ready: bool = False, batch: int = 1) -> Tensor:
    """A later frame of each of some videos, up to the network's last output. ready: prepare the model as `only_infer`
    does."""
    c = model.config
    if ready:
        fold_norms(model)
        cast_weights(model, torch.bfloat16)
    image = torch.rand(batch, 3, *c.image_size).contiguous(memory_format=torch.channels_last)
    maps = torch.zeros(batch, len(c.history_offsets), *c.mask_size, dtype=torch.uint8)
    history = history_to_bits([maps, maps, maps > 0, maps > 0], c.code_bits, c.scale)
    x = torch.randn(batch, c.bits, *c.mask_size).contiguous(memory_format=torch.channels_last)
    condition = model.denoiser.condition(model.encode(image), history)
    return sample(model, "ddim", condition, x, sampling_times(steps), lambda: torch.randn_like(x))


def bytes_a_sample(config: ModelConfig, loss: LossConfig | None = None, recompute: bool = False) -> int:
    """Bytes that the forward pass of a training step keeps for the backward pass, for one more sample in the batch."""
    one, two = (_kept(config, loss or LossConfig(), batch, recompute) for batch in (1, 2))
    return two - one


def _kept(config: ModelConfig, loss: LossConfig, batch: int, recompute: bool) -> int:
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with cuda(), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        forward(config, loss, batch, recompute)
        return sum(t.untyped_storage().nbytes() for t in kept.values())


def forward(config: ModelConfig, loss: LossConfig, batch: int, recompute: bool = False) -> None:
    """The forward pass of a training step; call it under `cuda`."""
    model = made(config).train()
    model.encoder.recompute = model.denoiser.recompute = recompute
    maps = torch.zeros(batch, len(config.history_offsets) + 1, *config.mask_size, dtype=torch.uint8)
    image = torch.zeros(batch, 3, *config.image_size).contiguous(memory_format=torch.channels_last)
    known = torch.ones_like(maps, dtype=torch.bool)
    clips = {"image": image, "semantic": maps, "instance": maps, "semantic_known": known, "instance_known": known}
    noise, t = torch.randn(batch, config.bits, *config.mask_size), torch.rand(batch)
    with torch.enable_grad():
        training_loss(model, config, loss, clips, Draws(t, noise, torch.zeros(batch, dtype=torch.long)))


def needs(settings: Settings) -> tuple[float, int]:
    """Bytes of a training whatever its batch, and bytes of each sample."""
    config = dataclasses.replace(settings.model, backbone_norm="frozen_batch")
    with cuda():
        weights = sum(p.nbytes for p in Pix2SeqD(config).parameters())
    # Weights, gradients, averaged weights, two momenta, and the weights in bfloat16
    return 5.5 * weights, bytes_a_sample(config, settings.loss)


def fits(fixed: float, each: int, gigabytes: float) -> int:
    """How many samples of a training step the memory of a GPU holds, with MARGIN."""
    return int(max(0, gigabytes * 0.95e9 - fixed) // (MARGIN * each))


def main() -> None:
    print("| preset | script | GiB a training sample | samples in 24 GB | in 80 GB | batch |")
    print("|---|---|---|---|---|---|")
    for preset, script in itertools.product(PRESETS, (pretrain, train)):
        settings = preset_settings(preset, script.RECIPE)
        need = needs(settings)
        held = " | ".join(str(fits(*need, gigabytes)) for gigabytes in (24, 80))
        print(f"| {preset} | {script.__name__}.py | {need[1] / 2**30:.2f} | {held} | {settings.training.batch_size} |")
    print("\n| preset | operations a frame of 4 steps | of them casts and copies |\n|---|---|---|")
    for preset in PRESETS:
        with cuda(), torch.no_grad():
            model = made(dataclasses.replace(PRESETS[preset], backbone_norm="frozen_batch")).eval()
            with Count() as count:
                frame(model, steps=4, ready=True)
        print(f"| {preset} | {count.calls:,} | {sum(count.named(*COPIES)):,} |")


if __name__ == "__main__":
    main()
