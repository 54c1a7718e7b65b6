"""The loss of a batch: noise, history, prediction, weighted cross-entropy.

Bit Diffusion (arXiv 2208.04202) and Pix2Seq-D (arXiv 2210.06366).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from model.diffusion.bits import history_to_bits, labels_to_bits
from model.diffusion.config import LossConfig
from model.diffusion.draws import Draws
from model.diffusion.schedule import add_noise
from model.network.config import ModelConfig


def pixel_weights(semantic: Tensor, slot: Tensor, known: Tensor, power: float, stuff_by_class: bool = False) -> Tensor:
    """Instance weighting (Pix2Seq-D, equation 4): (1 / (area + 1))^p, normalised to mean 1 over the known pixels.

    semantic, slot: integers (B, h, w); known: bool (B, h, w). The area is the number of known pixels of the same slot
    in the sample; for stuff (slot 0) of all stuff, or of the same class where stuff_by_class.
    Returns float (B, h, w), 0 where unknown.
    """
    # fmt: off
    group = slot.long()
    if stuff_by_class:
        group = torch.where(group == 0, semantic.long(), group + 256)        # 256: above all semantic codes
    flat = group.flatten(1)                                                  # (B, h w)
    area = torch.zeros(flat.shape[0], 512, device=flat.device).scatter_add_(1, flat, known.flatten(1).float())
    weight = (1 / (area.gather(1, flat) + 1)).pow(power).view_as(group) * known
    mean = weight.sum(dim=(1, 2), keepdim=True) / known.sum(dim=(1, 2), keepdim=True).clamp_min(1)
    return weight / mean.clamp_min(1e-12)
    # fmt: on


def training_loss(
    model: torch.nn.Module, config: ModelConfig, loss: LossConfig, batch: dict[str, Tensor], draws: Draws, step: int = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch of clips, with the history that data/clips has left them.

    model: a Pix2SeqD, as it is or wrapped for several processes; config: its ModelConfig. batch: `image` float
    (B, 3, H, W) in [0, 1]; `semantic`, `instance` integers and `semantic_known`, `instance_known` bool
    (B, T + 1, h, w), the current frame last. step: of the training, by which loss_stride takes its turns.
    Returns the loss, a scalar: the weighted cross-entropy, averaged over samples, the two codes and all pixels. Unknown
    pixels count 0, so a frame of which little is known counts little. Also returns the loss of each code, detached:
    {"semantic", "instance"}.
    """
    maps = [batch[name] for name in ("semantic", "instance", "semantic_known", "instance_known")]  # (B, T + 1, h, w)
    # fmt: off
    # Target: the current frame as analog bits, noised
    now = [m[:, -1] for m in maps]                                           # (B, h, w)
    if loss.learn_void:  # in the target alone: unknown pixels of the history stay unknown, as at inference
        now[2:] = torch.ones_like(now[2]), torch.ones_like(now[3])
    x0 = labels_to_bits(*now, config.code_bits, config.scale)                # (B, bits, h, w)
    x = add_noise(x0, draws.noise, draws.t)

    # History: the masks before it
    past = [m[:, :-1] for m in maps]                                         # (B, T, h, w)
    history = history_to_bits(past, config.code_bits, config.scale)          # (B, T bits, h, w)

    # Predict, on every n-th row and column
    grid = stride, top, left = (loss.loss_stride, *divmod(step % loss.loss_stride**2, loss.loss_stride))
    logits = model(batch["image"], x, draws.t, history, grid, draws.key)

    # Compare
    weight = pixel_weights(now[0], now[1], now[2], loss.instance_weight, loss.stuff_by_class)
    *now, weight = (m[..., top::stride, left::stride] for m in (*now, weight))
    codes = zip(("semantic", "instance"), logits.split(config.code_sizes, dim=1), now[:2], now[2:], strict=True)
    losses = {}
    for name, scores, code, known in codes:
        error = F.cross_entropy(scores, code.long(), reduction="none")       # (B, h, w)
        losses[name] = (error * weight * known).mean()
    total = (losses["semantic"] + losses["instance"]) / 2
    # fmt: on
    return total, {name: value.detach() for name, value in losses.items()}
