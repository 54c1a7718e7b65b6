"""What runs on a GPU alone, without one: the same results by another way, and types, layouts, casts and memory on fake
CUDA tensors, of which nothing is computed (benchmarks/simulated.py)."""

import dataclasses
import itertools
from unittest import mock

import pytest
import torch
from small import CONFIG, DEVICE, lively_model, reduced
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import FrozenBatchNorm2d

import pretrain
import train
from benchmarks.simulated import COPIES, Count, bytes_a_sample, cuda, fits, forward, frame, made, needs
from model import PRESETS, Pix2SeqD
from model.diffusion.loss import LossConfig
from model.network.layers import Attention
from model.network.operations import conv_from_patches, to_patches
from model.network.precision import make_fast
from model.network.resnet import FrozenBatchNorm
from model.stream.answer import candidates, slot_masses, to_device
from training.machine import _cuda_peak
from training.options import preset_settings

# ---------------------------------------------------------------------------------------------------------------------
# The same results
# ---------------------------------------------------------------------------------------------------------------------


def test_answers_are_read_alike_with_and_without_a_choice_of_pixels():
    model = lively_model()
    output = torch.randn(2, sum(CONFIG.code_sizes), 40, 48, device=DEVICE)
    few, all_ = (candidates(model.config, output, everywhere) for everywhere in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(few, all_, strict=True)) and few[2].any()
    few, all_ = (slot_masses(model.config, output, few[2], everywhere) for everywhere in (False, True))
    assert (few == all_).all() and few.any()


@pytest.mark.parametrize("patch", [1, 2, 3])
def test_patches_are_pixel_shuffle_and_stay_channels_last(patch):
    x = torch.randn(2, 5, 6 * patch, 4 * patch).contiguous(memory_format=torch.channels_last)
    inward = to_patches(x, patch)
    assert torch.equal(inward, torch.nn.functional.pixel_unshuffle(x, patch))
    same = torch.eye(5 * patch**2)[:, :, None, None]
    outward = conv_from_patches(inward, same, torch.arange(5.0).repeat_interleave(patch**2), patch)
    torch.testing.assert_close(outward, x + torch.arange(5.0)[:, None, None])
    for y in (inward, outward):
        assert y.is_contiguous(memory_format=torch.channels_last)


def test_a_frozen_norm_is_torchvisions_in_the_type_of_its_input():
    ours, theirs = FrozenBatchNorm(7), FrozenBatchNorm2d(7)
    for name, buffer in theirs.named_buffers():
        buffer.copy_(torch.rand(7) + 0.5)
        getattr(ours, name).copy_(buffer)
    x = torch.randn(2, 7, 5, 5)
    torch.testing.assert_close(ours(x), theirs(x))
    assert ours(x.bfloat16()).dtype == torch.bfloat16 and theirs(x.bfloat16()).dtype == torch.float32


def test_a_copy_to_a_gpu_goes_through_pinned_memory():
    tensor, gpu = mock.Mock(), torch.device("cuda")
    assert to_device(tensor, gpu) is tensor.pin_memory().to.return_value
    tensor.pin_memory().to.assert_called_once_with(gpu, non_blocking=True)


def test_the_memory_of_a_sample_is_measured_after_kernels_were_tried_out(monkeypatch):
    held, peak, calls = [0], [0], []

    def call():
        calls.append(10 if calls else 1000)  # the first call has a workspace of its own
        peak[0] = max(peak[0], held[0] + calls[-1])

    fake = {"synchronize": lambda: None, "empty_cache": lambda: None, "memory_allocated": lambda: held[0],
            "reset_peak_memory_stats": lambda: peak.__setitem__(0, held[0]),
            "max_memory_allocated": lambda: peak[0]}  # fmt: skip
    for name, function in fake.items():
        monkeypatch.setattr(torch.cuda, name, function)
    assert _cuda_peak(call) == 10 and len(calls) == 2


def test_a_predictor_leaves_a_deterministic_training_so():
    gpu, before = torch.device("cuda"), torch.backends.cudnn.benchmark  # settings of the process alone
    try:
        make_fast(gpu, deterministic=True)
        make_fast(gpu)
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
        torch.use_deterministic_algorithms(False)
        make_fast(gpu)
        assert torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.benchmark = before


# ---------------------------------------------------------------------------------------------------------------------
# Fake CUDA tensors, in a process of their own
# ---------------------------------------------------------------------------------------------------------------------


def maps_not_in_bfloat16(preset):
    config = dataclasses.replace(reduced(preset, (64, 128)), backbone_norm="frozen_batch")
    odd = []

    def look(module, _, output):
        for y in output if isinstance(output, tuple | list) else [output]:
            if isinstance(y, torch.Tensor) and y.ndim == 4 and y.dtype != torch.bfloat16:
                odd.append((type(module).__name__, str(y.dtype), tuple(y.shape)))

    with cuda(), torch.no_grad():
        model = made(config).eval()
        for module in model.modules():
            if not isinstance(module, Pix2SeqD | torch.nn.ModuleList):
                module.register_forward_hook(look)
        frame(model, steps=2)
    return odd


@pytest.mark.parametrize("preset", PRESETS)
def test_maps_are_bfloat16_on_a_gpu(elsewhere, preset):
    assert elsewhere.submit(maps_not_in_bfloat16, preset).result() == []


GROUP_NORM = torch.nn.functional.group_norm


def older_group_norm(*given, **named):
    """The CUDA kernel of older PyTorch loses the layout."""
    return GROUP_NORM(*given, **named).contiguous()


class Convolutions(TorchDispatchMode):
    """Lists the shapes of inputs of convolutions that are not channels-last, which cuDNN would copy."""

    def __init__(self):
        super().__init__()
        self.count, self.copied = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            self.count += 1
            if not args[0].is_contiguous(memory_format=torch.channels_last):
                self.copied.append(tuple(args[0].shape))
            output = output.contiguous(memory_format=torch.channels_last)  # as cuDNN answers to such kernels
        return output


def convolutions(preset, training):
    config = dataclasses.replace(reduced(preset, (64, 128)), backbone_norm="frozen_batch")
    older = mock.patch.object(torch.nn.functional, "group_norm", older_group_norm)
    with cuda(), older, Convolutions() as seen:
        if training:
            forward(config, LossConfig(), batch=2)
        else:
            with torch.no_grad():
                frame(made(config).eval(), steps=2, batch=2)
    return seen.count, seen.copied


@pytest.mark.parametrize(("preset", "training"), itertools.product(PRESETS, (False, True)))
def test_what_a_convolution_takes_is_channels_last(elsewhere, preset, training):
    count, copied = elsewhere.submit(convolutions, preset, training).result()
    assert count > 20 and copied == []


def operations_of_a_frame():
    with cuda(), torch.no_grad(), Count() as count:
        frame(made(reduced("tiny", (64, 128))).eval(), steps=1, ready=True)
    return count.calls, sum(count.named(*COPIES))


def test_a_frame_casts_few_tensors(elsewhere):
    """With the weights cast once, what is left is what the transformers keep in float32, and the noise."""
    calls, copies = elsewhere.submit(operations_of_a_frame).result()
    assert calls > 100 and copies < 0.2 * calls


def test_memory_of_a_sample_grows_with_the_mask_and_shrinks_with_recomputing(elsewhere):
    config = dataclasses.replace(CONFIG, backbone_norm="frozen_batch")
    larger = dataclasses.replace(config, mask_size=(32, 64))
    calls = ((config,), (config, None, True), (larger,))
    sample, recomputed, large = (elsewhere.submit(bytes_a_sample, *call).result() for call in calls)
    assert 1e5 < recomputed < 0.8 * sample and large > 2 * sample


def kept_by_attention(tokens):
    """Bytes that attention over so many tokens keeps for the backward pass."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with cuda(), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        Attention(64, 4)(torch.randn(1, tokens, 64))
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def test_attention_on_a_gpu_keeps_no_matrix_of_tokens_by_tokens(elsewhere):
    few, many = (elsewhere.submit(kept_by_attention, n).result() for n in (1000, 4000))
    assert few < many < 4.1 * few


@pytest.mark.parametrize("script", [pretrain, train])
def test_the_batch_of_small_fits_a_gpu_of_24_gb(elsewhere, script):
    settings = preset_settings("small", script.RECIPE)
    assert fits(*elsewhere.submit(needs, settings).result(), 24) >= settings.training.batch_size
