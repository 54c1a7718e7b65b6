"""The optimised sampling is the plain one: the network and the samplers written out, step by step."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from einops import rearrange
from small import CONFIG, lively_model, stream_step
from torch.nn import functional as F

from model import Pix2SeqD, StreamConfig, StreamState
from model.diffusion.samplers import sample, sampling_times
from model.diffusion.schedule import gamma
from model.network.layers import coordinates, position_encoding

pytestmark = pytest.mark.quick

# ---------------------------------------------------------------------------------------------------------------------
# The plain, unoptimised network and sampler
# ---------------------------------------------------------------------------------------------------------------------


def plain_denoiser(model: Pix2SeqD, image, history, x, t):
    """The denoiser, everything from the image on in each step: one first convolution over the concatenation of noisy
    bits, features, history and place; keys and values from the image's tokens; attention written out."""
    net, c = model.denoiser, model.config
    features = model.encode(image, x.shape[-2:])
    noisy, past = F.pixel_unshuffle(x, c.patch), F.pixel_unshuffle(history, c.patch)
    place, pixel_place = (coordinates(*n.shape[-2:], x.device).expand(len(x), -1, -1, -1) for n in (noisy, x))
    history = [net.conv_history.weight] if net.conv_history else []
    weight = torch.cat([net.conv_in.weight, net.conv_image.weight, *history, net.conv_place.weight], dim=1)
    bias = net.conv_in.bias + net.conv_image.bias
    y = F.conv2d(torch.cat([noisy, features.map, past, place], dim=1), weight, bias)
    time = net.time(torch.full((len(x),), t))
    skips = []
    for block, downsample in zip(net.down, net.downsample, strict=True):
        y = block(y, block.time(time))
        skips.append(y)
        y = downsample(y)
    h, w = y.shape[-2:]
    tokens = rearrange(net.to_tokens(y), "b c h w -> b (h w) c")
    tokens = tokens + position_encoding(h, w, tokens.shape[-1], x.device) + net.time_token(time)[:, None]
    for layer in net.transformer:
        tokens = tokens + plain_attention(layer.attention, layer.norm1(tokens), None)
        tokens = tokens + plain_attention(layer.cross, layer.norm_cross(tokens), features.tokens)
        tokens = tokens + layer.mlp(layer.norm2(tokens))
    y = y + net.from_tokens(rearrange(tokens, "b (h w) c -> b c h w", h=h))
    for first, second in net.up:
        skip = skips.pop()
        y = first(torch.cat([F.interpolate(y, skip.shape[-2:], mode="nearest"), skip], dim=1), first.time(time))
        y = second(y, second.time(time))
    y = F.silu(net.norm_out(y))
    pixels = F.pixel_shuffle(net.conv_patch(y), c.patch) + features.detail + net.pixel_place(pixel_place)
    return net.conv_out(F.silu(pixels))


def plain_attention(attention, x, context):
    q = attention.to_q(x)
    k, v = attention.to_kv(x if context is None else context).chunk(2, dim=-1)
    q, k, v = (n.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for n in (q, k, v))
    weight = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)
    return attention.out((weight @ v).transpose(1, 2).flatten(2))


def plain_estimate(model: Pix2SeqD, output):
    c = model.config
    planes = []
    for logits, bits in zip(output.split(c.code_sizes, dim=1), c.code_bits, strict=True):
        probability = logits.softmax(dim=1)
        for shift in range(bits - 1, -1, -1):
            signs = torch.tensor([1.0 if code >> shift & 1 else -1.0 for code in range(logits.shape[1])])
            planes.append((probability * signs[:, None, None]).sum(dim=1) * c.scale)
    return torch.stack(planes, dim=1)


def plain_sampling(model: Pix2SeqD, image, history, x, times, sampler, fresh):
    """Bit Diffusion, algorithm 2, with DDIM or DDPM steps; `fresh` gives the noise of each step."""
    for k, (now, then) in enumerate(times):
        output = plain_denoiser(model, image, history, x, now)
        x0 = plain_estimate(model, output)
        if k == len(times) - 1:
            return output
        g, g_next = gamma(now), gamma(then)
        if sampler == "ddim":
            x = math.sqrt(g_next) * x0 + math.sqrt(1 - g_next) * (x - math.sqrt(g) * x0) / math.sqrt(1 - g)
            continue
        alpha = g / g_next
        mean = (math.sqrt(g_next) * (1 - alpha) * x0 + math.sqrt(alpha) * (1 - g_next) * x) / (1 - g)
        x = mean + math.sqrt(1 - alpha) * fresh()
    raise AssertionError("unreachable: the last step returns")


VARIANTS = {
    "softmax": {},
    "patch": {"patch": 2},
    "no history": {"history_offsets": ()},
}


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_sampling_loop_equals_the_plain_sampler(variant, sampler):
    config = dataclasses.replace(CONFIG, **VARIANTS[variant])
    model = lively_model(config=config).to(memory_format=torch.channels_last)
    image = torch.rand(2, 3, *config.image_size)
    shape = (2, config.bits, *config.mask_size)
    history = torch.randn(2, config.bits * len(config.history_offsets), *config.mask_size)
    x, drawn, times = torch.randn(shape), [torch.randn(shape) for _ in range(5)], sampling_times(5, 0.1)

    def fresh():
        left = iter(drawn)
        return lambda: next(left)

    with torch.inference_mode():
        expected = plain_sampling(model, image, history, x, times, sampler, fresh())
        condition = model.denoiser.condition(model.encode(image), history)
        output = sample(model, sampler, condition, x, times, fresh())
    size = expected.abs().max()
    assert expected.std() > 0.1
    assert (output - expected).abs().max() <= 1e-5 * size


def test_the_stream_answers_what_the_plain_sampler_does():
    config = dataclasses.replace(CONFIG, tracked=tuple(range(0, 19, 2)))  # so that some pixels are, and some are not
    model = lively_model(config=config)
    images = torch.rand(1, 3, *CONFIG.image_size)
    published = StreamConfig(first_steps=4, min_area=1, merge=0.0, history_steps=8, average_classes=False)
    images, seen = (images * 255).to(torch.uint8), []
    ((semantic, _),), (state,) = stream_step(model, images, [StreamState(0)], published)
    stream_step(model, images, [StreamState(0)], published, callback=lambda *step: seen.append(step[1]))
    history = torch.zeros(1, 2 * CONFIG.bits, *CONFIG.mask_size)
    with torch.inference_mode():
        output = plain_sampling(model, images.float() / 255, history, seen[0], sampling_times(4), "ddim", None)
    classes, slots = output[0].split(config.code_sizes)
    expected, slot = classes[1:].argmax(dim=0).numpy() + 1, slots.argmax(dim=0).numpy()
    untracked = ~np.isin(expected - 1, config.tracked)
    assert untracked.any() and len(np.unique(expected)) > 1
    assert np.array_equal(semantic[untracked], expected[untracked] - 1)
    kept = ~untracked & (slot > 0)
    assert len(np.unique(slot[kept])) > 1
    assert np.array_equal(state.slot[-1][kept], slot[kept])
