"""The diffusion around the network: noise and loss in training, samplers as free functions of one signature.

Bit Diffusion (arXiv 2208.04202) and Pix2Seq-D (arXiv 2210.06366).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from model.bits import labels_to_bits, labels_to_codes
from model.pix2seq_d import ConfigError, ModelConfig, Pix2SeqD
from model.schedule import add_noise, gamma

# ---------------------------------------------------------------------------------------------------------------------
# Random numbers: each sample draws its own, from its number alone, so that neither the batch it is in, nor the process,
# nor a restart changes them.
# ---------------------------------------------------------------------------------------------------------------------


class Draws(NamedTuple):
    """What one training step draws for its B samples; all but the noises uniform in [0, 1)."""

    t: Tensor  # (B,)
    noise: Tensor  # (B, bits, h, w) standard normal
    t_next: Tensor  # (B,) of self-aligned denoising, as a share of t
    noise_next: Tensor | None  # (B, bits, h, w)
    coins: Tensor  # (B, 2) for self-conditioning, self-aligned denoising


def seeded(device: torch.device | str, *key: int) -> torch.Generator:
    """A generator on the device, seeded by a key of integers (mixed as in splitmix64)."""
    mask, state = 0xFFFFFFFFFFFFFFFF, 0x9E3779B97F4A7C15
    for number in key:
        state = ((state ^ (number & mask)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return torch.Generator(device).manual_seed(state >> 1)


def draw(seed: int, numbers: Sequence[int], model: Pix2SeqD, mask_size: Sequence[int], device, twice: bool) -> Draws:
    """The draws of the samples with these numbers: sample n draws the same whatever batch it is in.

    twice: whether a second noise is needed (self-aligned denoising).
    """
    rows, noises = [], []
    for number in numbers:
        g = seeded(device, seed, int(number))
        rows.append(torch.rand(4, generator=g, device=device))
        noises.append(torch.randn(2 if twice else 1, model.config.bits, *mask_size, generator=g, device=device))
    t, t_next, coins = torch.stack(rows).split((1, 1, 2), dim=1)
    noise = torch.stack(noises)
    return Draws(t[:, 0], noise[:, 0], t_next[:, 0], noise[:, 1] if twice else None, coins)


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


def _field(default, group: str, text: str):
    return field(default=default, metadata={"group": group, "help": text})


@dataclass(frozen=True)
class LossConfig:
    """How the diffusion is trained; each departure from the published recipe is measured in benchmarks/quality.md.

    Raises ConfigError for values outside their range.
    """

    instance_weight: float = _field(0.2, "loss", "p of the pixel weight (1 / (area + 1))^p; 0 weights all alike")
    stuff_by_class: bool = _field(False, "loss", "the area of a stuff pixel is its class's, not all stuff's")
    learn_void: bool = _field(False, "loss", "learn void as a class, as the published code does")
    self_conditioning_rate: float = _field(0.5, "loss", "share of samples given their own first estimate")
    self_aligned_rate: float = _field(0.0, "loss", "share of samples denoised from their own re-noised estimate")
    time_power: float = _field(1.0, "loss", "t = u^(1 / power), u uniform: above 1 spends more on noisy times")
    loss_stride: int = _field(1, "loss", "answer only each n-th row and column, others in each step: n^2 less to do")

    def __post_init__(self):
        for name in ("self_conditioning_rate", "self_aligned_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is a share, 0..1, not {getattr(self, name)}")
        if not 0 <= self.instance_weight < math.inf or not 0 < self.time_power < math.inf:
            raise ConfigError("instance_weight must be 0 or more, and time_power above 0")
        if self.loss_stride < 1:
            raise ConfigError(f"loss_stride is 1 or more, not {self.loss_stride}")


def pixel_weights(semantic: Tensor, slot: Tensor, known: Tensor, power: float, stuff_by_class: bool = False) -> Tensor:
    """Instance weighting (Pix2Seq-D, equation 4): (1 / (area + 1))^p, normalised to mean 1 over the known pixels.

    semantic, slot: integers (B, h, w); known: bool (B, h, w). The area is the number of known pixels of the same slot
    in the sample; for stuff (slot 0) of all stuff, or of the same class where stuff_by_class.
    Returns float (B, h, w), 0 where unknown.
    """
    if power == 0:
        return known.float()
    # fmt: off
    group = slot.long()
    if stuff_by_class:
        group = torch.where(group == 0, semantic.long(), group + 32)         # 32: above all semantic codes
    flat = group.flatten(1)                                                  # (B, h w)
    # uint8 slots (all presets) need 256 bins; three-code ids need them all. Known from the type, without a device sync.
    bins = (256 if slot.dtype == torch.uint8 else 65_536) + 32
    area = torch.zeros(flat.shape[0], bins, device=flat.device).scatter_add_(1, flat, known.flatten(1).float())
    weight = (1 / (area.gather(1, flat) + 1)).pow(power).view_as(group) * known
    mean = weight.sum(dim=(1, 2), keepdim=True) / known.sum(dim=(1, 2), keepdim=True).clamp_min(1)
    return weight / mean.clamp_min(1e-12)
    # fmt: on


def training_loss(
    model: torch.nn.Module, config, loss: LossConfig, batch: dict[str, Tensor], draws: Draws, step: int = 0
):
    """The loss of a batch of clips, the history as it is to be seen.

    model: a Pix2SeqD, as it is or wrapped for several processes; config: its ModelConfig. batch: `image` float
    (B, 3, H, W) in [0, 1]; `semantic`, `instance` integers and `semantic_known`, `instance_known` bool
    (B, T + 1, h, w), the current frame last. step: of the training, by which loss_stride takes its turns.
    Returns the loss, a scalar: the mean over samples, codes and all pixels of the weighted cross-entropy, 0 where a
    pixel is unknown, so that a frame of which little is known counts little; and its detached parts, {"semantic",
    "instance"}.
    """
    semantic, slot = batch["semantic"], batch["instance"]
    semantic_known, slot_known = batch["semantic_known"], batch["instance_known"]
    if loss.learn_void:
        inside = semantic_known[:, -1:].any(dim=-2, keepdim=True) & semantic_known[:, -1:].any(dim=-1, keepdim=True)
        semantic_known = semantic_known | inside
        slot_known = slot_known | (inside & (semantic == 0))

    # fmt: off
    # Target: the current frame as analog bits, noised
    now = [m[:, -1] for m in (semantic, slot, semantic_known, slot_known)]   # (B, h, w)
    x0 = labels_to_bits(*now, config.code_bits, config.scale)                # (B, bits, h, w)
    t = draws.t ** (1 / loss.time_power)
    x = add_noise(x0, draws.noise, t)

    # History: the masks before it
    past = [m[:, :-1] for m in (semantic, slot, semantic_known, slot_known)]  # (B, T, h, w)
    history = unwrapped(model).history_bits(*past)                           # (B, T bits, h, w)

    # fmt: on
    # Predict
    self_condition = draws.coins[:, 0] < loss.self_conditioning_rate if config.self_conditioning else None
    realign = None
    if loss.self_aligned_rate > 0:
        realign = (draws.coins[:, 1] < loss.self_aligned_rate, draws.t_next * t, draws.noise_next)
    grid = None
    if loss.loss_stride > 1:
        grid = (loss.loss_stride, *divmod(step % loss.loss_stride**2, loss.loss_stride))
    output = model(batch["image"], x, t, history, self_condition, realign, grid)

    # Compare
    weight = pixel_weights(now[0], now[1], now[2], loss.instance_weight, loss.stuff_by_class)
    if grid is not None:
        stride, top, left = grid
        *now, weight, x0 = (m[..., top::stride, left::stride] for m in (*now, weight, x0))
    if config.loss == "mse":
        semantic_error, slot_error = (
            (output - x0).square().div(config.scale**2).split([config.code_bits[0], sum(config.code_bits[1:])], dim=1)
        )
        errors = [semantic_error.mean(dim=1), slot_error.mean(dim=1)]
    else:
        codes = labels_to_codes(now[0], now[1], config.code_bits)
        parts = output.split(config.code_sizes, dim=1)
        errors = [F.cross_entropy(p, code, reduction="none") for p, code in zip(parts, codes, strict=True)]
    knowns = [now[2]] + [now[3]] * (len(errors) - 1)
    losses = [(error * weight * known).mean() for error, known in zip(errors, knowns, strict=True)]
    total = torch.stack(losses).mean()
    return total, {"semantic": losses[0].detach(), "instance": torch.stack(losses[1:]).mean().detach()}


def unwrapped(model: torch.nn.Module) -> Pix2SeqD:
    """The Pix2SeqD inside DistributedDataParallel."""
    return model.module if hasattr(model, "module") else model


# ---------------------------------------------------------------------------------------------------------------------
# Sampling. A sampler is a function (denoise, x, times, noise) -> the network's last output:
#   denoise(x, t, x0_previous) -> (output, x0), the network's output for x at time t and the estimate that follows;
#   x: noise (B, bits, h, w); times: [(now, next), ...] of model.schedule.sampling_times; noise() -> fresh noise like x.
# The answer is read from the last output, so that no step is spent on moving to time 0 (Pix2Seq-D, algorithm 2).
# ---------------------------------------------------------------------------------------------------------------------

Denoise = Callable[[Tensor, float, Tensor | None], tuple[Tensor, Tensor]]
Times = Sequence[tuple[float, float]]


def ddim_step(x: Tensor, x0: Tensor, now: float, then: float) -> Tensor:
    """Keep the noise that the estimate implies (DDIM, arXiv 2010.02502, equation 12 with sigma = 0):
    sqrt(g') x0 + sqrt(1 - g') eps, where eps = (x - sqrt(g) x0) / sqrt(1 - g). In one pass each over x and x0."""
    g, g_next = gamma(now), gamma(then)
    kept = math.sqrt((1 - g_next) / max(1 - g, 1e-12))  # of x, and so of its noise
    return torch.add(kept * x, x0, alpha=math.sqrt(g_next) - kept * math.sqrt(g))


def ddpm_step(x: Tensor, x0: Tensor, now: float, then: float, noise: Tensor) -> Tensor:
    """Draw from the posterior q(x_then | x_now, x0) (DDPM, arXiv 2006.11239, equations 6 and 7)."""
    g, g_next = gamma(now), gamma(then)
    alpha = min(g / g_next, 1.0)
    variance = (1 - g_next) / max(1 - g, 1e-12) * (1 - alpha)
    mean = math.sqrt(g_next) * (1 - alpha) / max(1 - g, 1e-12) * x0
    mean = mean + math.sqrt(alpha) * (1 - g_next) / max(1 - g, 1e-12) * x
    return mean + math.sqrt(variance) * noise


def ddim(denoise: Denoise, x: Tensor, times: Times, noise: Callable[[], Tensor]) -> Tensor:
    """Deterministic sampling; `noise` is not used."""
    output, x0 = None, None
    for k, (now, then) in enumerate(times):
        output, x0 = denoise(x, now, x0)
        if k < len(times) - 1:
            x = ddim_step(x, x0, now, then)
    return output


def ddpm(denoise: Denoise, x: Tensor, times: Times, noise: Callable[[], Tensor]) -> Tensor:
    """Ancestral sampling."""
    output, x0 = None, None
    for k, (now, then) in enumerate(times):
        output, x0 = denoise(x, now, x0)
        if k < len(times) - 1:
            x = ddpm_step(x, x0, now, then, noise())
    return output


SAMPLERS = {"ddim": ddim, "ddpm": ddpm}


def class_logits(config: ModelConfig, output: Tensor) -> Tensor:
    """The part (B, codes, h, w) of the network's output that says the classes: a view; empty for squared error."""
    return output[:, : config.code_sizes[0] if config.loss == "softmax" else 0]


class MeanClasses:
    """Of one frame's outputs, step by step: gives each the mean of the class logits so far in place of its own.

    Each step estimates the classes from the image and, more and more, from its own last estimate, so that the errors of
    a step stay; of the ids, which the noise has to decide, the last step's are the ones.
    """

    def __init__(self, config: ModelConfig):
        self.config, self.total, self.count = config, None, 0

    def __call__(self, output: Tensor, read: bool = True) -> Tensor:
        """The output with the mean, in float32; where nobody will read it, as it came."""
        classes = class_logits(self.config, output).clone()  # dense: 2 times faster to add on a CPU than a slice
        self.total = classes.float() if self.total is None else self.total.add_(classes)
        self.count += 1
        if read and self.count > 1:
            output = output.float()
            torch.div(self.total, self.count, out=class_logits(self.config, output))
        return output


def denoiser_of(model: Pix2SeqD, condition, average_classes: bool = False) -> Denoise:
    """The `denoise` of one frame: the network under its conditions, computed once.

    average_classes: the class logits of each output are the mean of those so far; the estimates stay what they are.
    """
    averaged = MeanClasses(model.config) if average_classes else None

    def denoise(x: Tensor, t: float, x0_previous: Tensor | None) -> tuple[Tensor, Tensor]:
        time = torch.full((x.shape[0],), t, device=x.device)
        if not model.config.self_conditioning:
            x0_previous = None
        output = model.predict(x, time, condition, x0_previous)
        x0 = model.estimate(output)
        return averaged(output) if averaged else output, x0

    return denoise
