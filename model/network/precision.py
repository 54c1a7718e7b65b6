"""Number types and kernels: what makes the same network faster on a device."""

import ctypes
import functools
import os
import sys
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import FrozenBatchNorm2d

from model.network.operations import GroupNorm

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
