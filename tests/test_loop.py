"""The sampling loop as the stream runs it: no wait for the device, the plain sampler's answers, and what a CUDA graph
needs of it, tried on a CPU with a stand-in for the graph."""

import dataclasses

import numpy as np
import pytest
import torch
from small import CONFIG, lively_model
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.ops import FrozenBatchNorm2d

from model import ConfigError, Pix2SeqD, StreamConfig, StreamState, VideoPredictor
from model.diffusion.samplers import SAMPLERS, sample, sampling_times
from model.network import operations
from model.network.precision import cast_weights, fold_norms
from model.stream.cuda_graphs import MOST_GRAPHS, GraphedSampling

VARIANTS = {
    "softmax": {},
    "patch": {"patch": 2},
}


def frame(config, videos=2, seed=0, device="cpu"):
    """An image, its history, and noise."""
    g = torch.Generator().manual_seed(seed)
    history = torch.randn(videos, config.bits * len(config.history_offsets), *config.mask_size, generator=g)
    image = torch.rand(videos, 3, *config.image_size, generator=g)
    noise = torch.randn(videos, config.bits, *config.mask_size, generator=g)
    return [n.to(device) for n in (image, history, noise)]


def drawn(seed, like):
    g = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(like.shape, generator=g)


@torch.inference_mode()
def test_averaged_classes_are_the_mean_of_all_steps_and_slots_those_of_the_last():
    model = lively_model()
    image, history, x = frame(model.config)
    condition, times = model.denoiser.condition(model.encode(image), history), sampling_times(3, 0.5)
    outputs = []
    last = sample(
        model, "ddim", condition, x, times, drawn(1, x), callback=lambda *step: outputs.append(step[2].clone())
    )
    n = model.config.code_sizes[0]
    answer = sample(model, "ddim", condition, x, times, drawn(1, x), average_classes=True)
    mean = torch.stack(outputs)[:, :, :n].mean(dim=0)
    assert torch.allclose(answer[:, :n], mean, atol=1e-5) and not torch.allclose(last[:, :n], mean, atol=1e-2)
    assert torch.equal(answer[:, n:], last[:, n:])


@pytest.mark.parametrize("steps", [2, 3])
@torch.inference_mode()
def test_averaged_classes_are_rounded_once(steps):
    """In bfloat16, where a sum of three that is rounded on its way would differ."""
    model, outputs = lively_model(), []
    image, history, x = frame(model.config)
    with torch.autocast("cpu", torch.bfloat16):
        condition, times = model.denoiser.condition(model.encode(image), history), sampling_times(steps, 0.5)
        answer = sample(
            model, "ddim", condition, x, times, drawn(1, x), True, lambda *step: outputs.append(step[2].clone())
        )
    n = model.config.code_sizes[0]
    mean = torch.stack(outputs)[:, :, :n].float().mean(dim=0).bfloat16()
    assert answer.dtype == torch.bfloat16 and torch.equal(answer[:, :n], mean)


def test_what_is_kept_of_one_size_is_not_taken_for_another():
    """Coordinates, once a predictor is ready for a long run."""
    plain, ready = (VideoPredictor(lively_model(), StreamConfig(2, 1, min_area=1), "cpu", "no") for _ in range(2))
    ready.only_infer()
    for size in ((32, 64), (64, 32), (32, 64), (24, 96)):
        image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
        a, b = plain(image), ready(image)
        assert np.array_equal(a.semantic, b.semantic) and np.array_equal(a.track, b.track)


@torch.inference_mode()
def test_the_callback_sees_each_step():
    model = lively_model()
    image, history, x = frame(model.config)
    condition, times, seen = model.denoiser.condition(model.encode(image), history), sampling_times(3), []
    last = sample(model, "ddim", condition, x, times, drawn(1, x), callback=lambda *step: seen.append(step))
    assert [now for now, *_ in seen] == [now for now, _ in times]
    assert torch.equal(seen[0][1], x) and torch.equal(seen[-1][2], last)


class OnOneDevice(TorchDispatchMode):
    """Refuses an operation between devices: a transfer, for which the host or the device may have to wait."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        answer = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, answer)) if isinstance(t, torch.Tensor) and t.ndim]
        assert len({t.device.type for t in tensors}) <= 1, func
        return answer


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_the_loop_never_asks_for_a_value(variant, sampler):
    """On the meta device tensors have no values: whatever would wait for one raises."""
    model = lively_model(config=dataclasses.replace(CONFIG, **VARIANTS[variant])).to("meta")
    image, history, x = frame(model.config, device="meta")
    condition = model.denoiser.condition(model.encode(image), history)
    with OnOneDevice():
        output = sample(model, sampler, condition, x, sampling_times(3), lambda: torch.randn_like(x))
    assert output.device.type == "meta" and output.shape[-2:] == x.shape[-2:]


def test_what_would_wait_is_found():
    x = torch.ones(3, device="meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        x.sum().item()
    with pytest.raises(AssertionError), OnOneDevice():
        torch.ones(3).to("meta")


# ---------------------------------------------------------------------------------------------------------------------
# CUDA graphs, in structure
# ---------------------------------------------------------------------------------------------------------------------


def stand_in(call):
    """As a graph: the same call on the same memory, into the same output, at each replay."""
    for _ in range(2):
        output = call().clone()
    return lambda: output.copy_(call()), output


@pytest.mark.parametrize("sampler", SAMPLERS)
@torch.inference_mode()
def test_a_graph_reads_each_frames_inputs(sampler):
    model, graphed = lively_model(), GraphedSampling(stand_in)
    for seed, videos, steps in ((0, 2, 3), (1, 2, 3), (2, 1, 3), (3, 2, 1), (4, 2, 3)):
        image, history, x = frame(model.config, videos, seed)
        condition, times = model.denoiser.condition(model.encode(image), history), sampling_times(steps)
        expected = sample(model, sampler, condition, x, times, drawn(seed, x))
        assert torch.equal(graphed(model, sampler, condition, x, times, drawn(seed, x)), expected)
    assert len(graphed.graphs) == 3  # two videos or one, three steps or one


@torch.inference_mode()
def test_graphs_are_given_up_when_there_are_too_many():
    model, graphed = lively_model(), GraphedSampling(stand_in)
    image, history, x = frame(model.config, 1)
    condition = model.denoiser.condition(model.encode(image), history)
    for steps in range(1, MOST_GRAPHS + 2):
        graphed(model, "ddim", condition, x, sampling_times(steps), None)
    assert len(graphed.graphs) == MOST_GRAPHS
    assert tuple(sampling_times(1)) not in {key[1] for key in graphed.graphs}


def test_a_stream_is_the_same_under_graphs_and_with_cast_weights():
    frames = np.random.default_rng(0).integers(0, 256, (4, *CONFIG.image_size, 3), np.uint8)
    config = StreamConfig(first_steps=3, steps=3, history_steps=1, sampler="ddpm", min_area=1)
    plain, ready = (VideoPredictor(lively_model(), config, "cpu", "bf16") for _ in range(2))
    ready.only_infer()
    ready.sampling = GraphedSampling(stand_in)
    answers = [(plain(image), ready(image)) for image in frames]
    assert all(np.array_equal(a.semantic, b.semantic) and np.array_equal(a.track, b.track) for a, b in answers)
    assert (
        len({a.semantic.tobytes() for a, _ in answers}) == 4 and len(ready.sampling.graphs) == 3
    )  # first and later frames, and the look without history


def test_first_and_later_frames_side_by_side_may_share_a_graph():
    """With as many steps each: the answer to the first ones is still there when the others have been seen."""
    frames = np.random.default_rng(0).integers(0, 256, (3, *CONFIG.image_size, 3), np.uint8)
    config = StreamConfig(first_steps=2, steps=2, min_area=1)
    plain, ready = (VideoPredictor(lively_model(), config, "cpu", "no") for _ in range(2))
    ready.sampling = GraphedSampling(stand_in)
    (_,), (later,) = plain.step([frames[0]], [StreamState(1)])
    expected, _ = plain.step(list(frames[1:]), [StreamState(0), later])
    answers, _ = ready.step(list(frames[1:]), [StreamState(0), later])
    assert len(ready.sampling.graphs) == 1
    for answer, other in zip(answers, expected, strict=True):
        assert np.array_equal(answer.semantic, other.semantic) and np.array_equal(answer.track, other.track)


def test_weights_are_cast_where_autocast_would_and_nowhere_else():
    model = lively_model()
    kept = {name: p.clone() for name, p in model.named_parameters() if "norm" in name}
    cast_weights(model, torch.bfloat16)
    assert model.denoiser.conv_in.weight.dtype == model.encoder.to_tokens.bias.dtype == torch.bfloat16
    assert kept and all(torch.equal(p, kept[n]) for n, p in model.named_parameters() if n in kept)
    before = {n: p.dtype for n, p in model.named_parameters()}
    cast_weights(model, None)
    assert before == {n: p.dtype for n, p in model.named_parameters()}


@pytest.mark.parametrize("fused", [False, True])
@torch.inference_mode()
def test_attention_is_the_same_with_and_without_pytorchs_kernel(monkeypatch, fused):
    monkeypatch.setattr(operations, "FUSED", fused)
    q, k, v = (torch.randn(2, 3, n, 16) for n in (7, 5, 5))
    expected = (q @ k.transpose(-1, -2) / 4).softmax(dim=-1) @ v
    assert torch.allclose(operations.attend(*(x.bfloat16() for x in (q, k, v))).float(), expected, atol=0.05)


@pytest.mark.parametrize("what", ["cuda_graphs", "compile"])
def test_graphs_and_compiling_are_refused_without_a_cuda_device(what):
    predictor = VideoPredictor(lively_model(), None, "cpu", "no")
    with pytest.raises(ConfigError, match=f"{what} is for a CUDA device"):
        predictor.only_infer(**{what: True})
    assert predictor.sampling is sample


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_no_history_is_one_of_zeros(variant):
    model = lively_model(config=dataclasses.replace(CONFIG, **VARIANTS[variant]))
    image, history, _ = frame(model.config)
    features = model.encode(image)
    without, zeros = (
        model.denoiser.condition(features, None),
        model.denoiser.condition(features, torch.zeros_like(history)),
    )
    torch.testing.assert_close(without, zeros)
    assert (model.denoiser.condition(features, history + 1).first - zeros.first).abs().max() > 0.1


@torch.inference_mode()
def test_folded_norms_change_an_image_s_features_by_rounding_alone():
    config = dataclasses.replace(CONFIG, backbone="resnet50", backbone_norm="frozen_batch")
    model, g = Pix2SeqD(config).eval(), torch.Generator().manual_seed(0)
    norms = [m for m in model.modules() if isinstance(m, FrozenBatchNorm2d)]
    for norm in norms:
        for statistic in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            statistic.copy_(0.5 + torch.rand(statistic.shape, generator=g))
    torch.nn.init.normal_(model.encoder.detail[-1].weight, std=0.1, generator=g)  # it starts at zero
    image = torch.rand(2, 3, *config.image_size, generator=g)
    before = model.encode(image)
    fold_norms(model)
    after = model.encode(image)
    assert len(norms) > 40 and not any(isinstance(m, FrozenBatchNorm2d) for m in model.modules())
    for a, b in zip(before, after, strict=True):
        assert a.std() > 0.01 and torch.allclose(a, b, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# torch.compile, without a compiler: what it makes of the Python, and that nothing in it breaks the graph. In a process
# of its own, since after it autograd refuses to run in the forks of other tests.
# ---------------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def answers(variant):
    """The answer of the model, and of the model compiled."""
    model = lively_model(config=dataclasses.replace(CONFIG, **VARIANTS[variant]))
    image, history, x = frame(model.config)

    def answer():
        condition = model.denoiser.condition(model.encode(image), history)
        return sample(model, "ddim", condition, x, sampling_times(4), drawn(1, x)).numpy()

    plain = answer()
    for part in (model.encoder, model.denoiser):
        part.compile(backend="eager", fullgraph=True)
    return plain, answer()


def graphs_in_training():
    """How many graphs there are after steps whose loss is of other pixels each time."""
    model = lively_model(config=dataclasses.replace(CONFIG, patch=4)).train()
    image, history, x = frame(model.config)
    torch._dynamo.reset()
    counter = CompileCounter()
    model.compile(backend=counter, fullgraph=True)
    for step in range(16):
        model(image, x, torch.rand(2), history, grid=(4, *divmod(step, 4)))
    return counter.frame_count


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_part_compiles_to_one_graph_with_the_same_answer(elsewhere, variant):
    plain, compiled = elsewhere.submit(answers, variant).result()
    np.testing.assert_allclose(compiled, plain, rtol=1e-5, atol=1e-5)


def test_training_compiles_to_few_graphs(elsewhere):
    assert 1 <= elsewhere.submit(graphs_in_training).result() <= 4
