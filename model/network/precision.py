"""Number types and kernels: what makes the same network faster on a device."""

import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Sequence
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import FrozenBatchNorm2d

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def precision(mixed_precision: str, device: torch.device) -> torch.dtype | None:
    """The autocast type of `auto`, `no`, `bf16` or `fp16` on a device; None for plain float32.

    `auto` takes bf16 where the device multiplies matrices faster in it: CUDA GPUs of compute capability 8.0 and
    higher, CPUs with AMX or AVX512-BF16.
    """
    if mixed_precision == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
        flags = torch.cpu.get_capabilities() if device.type == "cpu" else {}
        return torch.bfloat16 if flags.get("amx_bf16") or flags.get("avx512_bf16") else None
    return {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[mixed_precision]


def make_fast(device: torch.device, deterministic: bool = False) -> None:
    """Settings of the process that make the same computation faster.

    On a GPU: TensorFloat-32 where float32 is left, and cuDNN's fastest kernels, tried once for each size; or, where a
    run is to be the same to the bit each time, only kernels that are. On a CPU with Linux: freed memory is kept for the
    next tensors. glibc gives blocks of some MB back to the system, and to get new pages for the output of each layer
    costs a fifth of a frame. The process's memory stays at its peak.
    """
    if device.type == "cpu":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
        if mallopt is not None:  # musl has none
            mallopt(M_MMAP_THRESHOLD, 2**30)
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        return
    torch.set_float32_matmul_precision("high")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    # A predictor, as of a validation, does not end what the training has asked for
    torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()


def cast_weights(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Keep the weights of convolutions and linear layers, and on a GPU of group norms, in the autocast type, which they
    would be cast to in each frame again. The answers are the same to the bit; the model is no longer one to train or
    to save."""
    for module in model.modules():
        for parameter in module.parameters(recurse=False) if dtype is not None else ():
            if isinstance(module, nn.Conv2d | nn.Linear) or (isinstance(module, GroupNorm) and parameter.is_cuda):
                parameter.data = parameter.data.to(dtype)


def fold_norms(model: nn.Module) -> None:
    """Put each frozen batch norm into the convolution before it, as its scale and bias. The answers change by rounding
    alone; the model is no longer one to train or to save."""
    for module in model.modules():
        for (_, conv), (name, norm) in pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, FrozenBatchNorm2d):
                conv.weight, conv.bias = fuse_conv_bn_weights(
                    conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
                )
                setattr(module, name, nn.Identity())


def for_inference(model: nn.Module, dtype: torch.dtype | None, compile: bool) -> None:
    """Fold norms, cast weights, keep what the coordinates give to a few sizes of frames, and compile where asked. The
    model is no longer one to train or to save."""
    fold_norms(model)
    cast_weights(model, dtype)
    model.denoiser.places = functools.lru_cache(8)(model.denoiser.places)
    if compile:
        model.encoder.compile()  # in place
        model.denoiser.compile()


# ---------------------------------------------------------------------------------------------------------------------
# Operations of PyTorch in the form that is fast, or that keeps its type
# ---------------------------------------------------------------------------------------------------------------------


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
