"""The presets and the choices of a model: each trains with a gradient in every parameter."""

import dataclasses
import itertools

import pytest
import torch
from small import DEVICE, reduced, scene

from model import PRESETS, Pix2SeqD
from model.diffusion.draws import draw
from model.diffusion.loss import LossConfig, training_loss
from model.network.published import padded
from training.step import to_device


def batch_of(config, count=2):
    """Clips whose image is the scene's, at the image's size."""
    at_mask = dataclasses.replace(config, image_size=config.mask_size)
    batch = to_device(torch.utils.data.default_collate([scene(n, at_mask) for n in range(count)]), DEVICE)
    batch["image"] = torch.nn.functional.interpolate(batch["image"], tuple(config.image_size))
    return batch


def lively(model):
    """Nothing starts at zero, so that a gradient reaches all that has a part in the answer."""
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return model


CHOICES = [
    *((preset, {}) for preset in PRESETS),
    *(("tiny", {"backbone": name, "backbone_norm": norm}) for name, norm in itertools.product(
        ("resnet10", "resnet14", "resnet18", "resnet50", "cspnet"), ("group", "frozen_batch"))
        if (name, norm) != ("cspnet", "group")),
    *(("tiny", {"patch": patch, "mask_size": mask}) for patch, mask in itertools.product(
        (1, 2, 4), ((256, 512), (128, 256), (64, 128), (32, 64)))),
    *(("base", {"mask_size": mask}) for mask in ((384, 1248), (96, 312), (48, 156))),
    ("base", {"history_offsets": ()}),
    ("base", {"backbone": "cspnet", "encoder_depth": 0}),
    ("tiny", {"encoder_depth": 0, "denoiser_depth": 0}),
]  # fmt: skip


def test_the_published_first_weights_have_the_bounds_of_keras():
    """sqrt(6 / (inputs + outputs)), where a kernel (inputs, heads, width) of attention has heads x inputs as inputs and
    width x inputs as outputs, and the first convolution is one."""
    torch.manual_seed(0)
    model = Pix2SeqD(reduced("base"))  # 64 wide, 4 heads; 16 bits, 32 channels of the image, 32 out
    encoder, denoiser = model.encoder.transformer[0], model.denoiser
    bounds = {
        encoder.attention.to_q: 64 * 4 + 64 * 16,
        denoiser.transformer[0].cross.to_kv: 64 * 4 + 64 * 16,
        encoder.attention.out: 64 + 64 * 4,
        encoder.mlp[0]: 64 + 256,
        denoiser.conv_in: 16 + 32 + 32,
        denoiser.conv_image: 16 + 32 + 32,
        denoiser.down[0].conv1: 9 * (32 + 32),
    }
    for layer, both in bounds.items():
        assert 0.9 < float(layer.weight.detach().abs().max()) / (6 / both) ** 0.5 <= 1, layer
    assert not denoiser.conv_history.weight.any() and not denoiser.conv_out.weight.any()


def test_the_published_downsampling_pads_as_tensorflow():
    """The centre of the kernel is on every second pixel: from the second one on where the side is even."""
    centre = torch.zeros(1, 1, 3, 3)
    centre[..., 1, 1] = 1
    for size, taken in ((6, [1, 3, 5]), (7, [0, 2, 4, 6])):
        x = torch.arange(float(size)).expand(1, 1, 4, size)
        assert torch.nn.functional.conv2d(padded(x), centre, stride=2)[0, 0].tolist() == [taken, taken]


@pytest.mark.parametrize(("preset", "changes"), CHOICES)
def test_every_parameter_has_a_gradient(preset, changes):
    torch.manual_seed(0)
    config = reduced(preset, **changes)
    model = lively(Pix2SeqD(config)).train().to(DEVICE)
    draws = draw(0, range(2), model, config.mask_size, DEVICE)
    loss, _ = training_loss(model, config, LossConfig(), batch_of(config), draws)
    loss.backward()
    assert loss.isfinite()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
