"""Operations that PyTorch has in another form: those that keep their type and layout or are faster, and dropout."""

import contextlib
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class GroupNorm(nn.GroupNorm):
    """Group norm in its input's type, on a GPU too, where autocast would make float32 of each bfloat16 map, and of what
    follows it. The kernel sums in float32 in any case."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cuda":  # a CPU's autocast leaves it alone, and weights may be of another type
            return super().forward(x)
        with torch.autocast("cuda", enabled=False):
            y = F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
        return y.contiguous(memory_format=torch.channels_last)  # what it was, which older CUDA kernels lose


def resized(x: Tensor, size: Sequence[int], mode: str = "nearest") -> Tensor:
    """x (B, C, h, w) -> (B, C, *size) in its own type, of which a GPU's autocast would make float32."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    with torch.autocast("cuda", enabled=False) if x.device.type == "cuda" else contextlib.nullcontext():
        return F.interpolate(x, tuple(size), mode=mode, align_corners=False if mode == "bilinear" else None)


def to_patches(x: Tensor, patch: int) -> Tensor:
    """(B, C, h p, w p) -> (B, C p p, h, w), as `pixel_unshuffle`, but channels-last stays channels-last."""
    return rearrange(x, "b c (h p) (w q) -> b h w (c p q)", p=patch, q=patch).permute(0, 3, 1, 2)


def conv_from_patches(x: Tensor, weight: Tensor, bias: Tensor, patch: int) -> Tensor:
    """A 1x1 convolution, then `pixel_shuffle`: (B, D, h, w) -> (B, C, h p, w p), channels-last.

    weight: (C p p, D, 1, 1), bias: (C p p,). The outputs are computed pixel by pixel of the patch, so that the shuffle
    copies all channels of a row of the patch at once: 4 times as fast on a CPU.
    """
    weight, bias = (rearrange(n, "(c p) ... -> (p c) ...", p=patch**2) for n in (weight, bias))
    x = F.conv2d(x, weight, bias)
    return rearrange(x, "b (p q c) h w -> b (h p) (w q) c", p=patch, q=patch).permute(0, 3, 1, 2)


FUSED = torch.cpu.get_capabilities().get("amx_bf16", False)  # attention in bfloat16 on a CPU, where its kernel uses AMX


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for (B, heads, N, d). In bfloat16 inference on a CPU without AMX two plain products,
    in half the time of PyTorch's fused kernel at some hundreds of tokens. With AMX that kernel takes half of theirs."""
    if FUSED or q.device.type != "cpu" or q.dtype != torch.bfloat16 or torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v)
    scores = torch.bmm(q.flatten(0, 1) * q.shape[-1] ** -0.5, k.flatten(0, 1).transpose(1, 2))
    return torch.bmm(scores.softmax(dim=-1), v.flatten(0, 1)).unflatten(0, q.shape[:2])


def apply(module: nn.Module, *inputs, recompute: bool):
    """module(*inputs); with `recompute`, in training, its activations are computed again for the gradient instead of
    kept (gradient checkpointing, arXiv 1604.06174)."""
    if recompute and module.training and torch.is_grad_enabled():
        return checkpoint(module, *inputs, use_reentrant=False)
    return module(*inputs)


def dropped(x: Tensor, rate: float, key: Tensor | None, place: int = 0, whole: bool = False) -> Tensor:
    """Dropout that follows a sample, whatever the batch and the process it is in: x (B, ...), key int64 (B,), None for
    none; place: of the layer, so that each draws its own.

    whole: all of a sample's values or none. The random numbers are a hash of key and place (lowbias32 of Chris
    Wellons, twice), so that no generator has a state, and recomputed activations are the same.
    """
    if key is None or rate == 0:
        return x
    count = 1 if whole else x[0].numel()
    value = (torch.arange(count, device=x.device) + _hashed(key + place)[:, None]) & 0xFFFFFFFF  # (B, count)
    keep = _hashed(value) >= rate * 2**32
    return x * keep.view(-1, *([1] * (x.ndim - 1) if whole else x.shape[1:])) / (1 - rate)


def _hashed(value: Tensor) -> Tensor:
    """A hash of 32 bits, of the lower 32 bits of an int64 tensor."""
    value = value & 0xFFFFFFFF
    value = ((value ^ (value >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    value = ((value ^ (value >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return value ^ (value >> 16)
