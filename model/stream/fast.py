"""The sampling loop as the stream runs it: all steps' times at once, without the estimate that nobody reads, and on a
GPU as one CUDA graph.

The samplers are those of model/diffusion/loss.py. What is here changes when their work is done, and not what comes out.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._pytree import tree_leaves, tree_map
from torchvision.ops import FrozenBatchNorm2d

from model.diffusion.samplers import SAMPLERS, MeanClasses, Times
from model.network.layers import GroupNorm
from model.network.pix2seq_d import Pix2SeqD
from model.network.unet import Condition

MOST_GRAPHS = 8  # first and later frames, for a few numbers of videos side by side


def sample(
    model: Pix2SeqD,
    sampler: str,
    condition: Condition,
    x: Tensor,
    times: Times,
    noise: Callable[[], Tensor],
    average_classes: bool = False,
) -> Tensor:
    """One frame's sampling: the network's last output, float32 (B, codes or bits, h, w).

    As model.diffusion's `denoiser_of` under a sampler, but the times of all steps are embedded together, and the last
    output is no longer made an estimate of: a half of all estimates where there are two steps. Nothing in it waits for
    the device.
    """
    left = len(times)
    modulation = model.modulation(torch.cat([torch.full((1,), now, device=x.device) for now, _ in times]))
    averaged = MeanClasses(model.config) if average_classes and left > 1 else None

    def denoise(x: Tensor, t: float, x0_previous: Tensor | None) -> tuple[Tensor, Tensor | None]:
        nonlocal left
        moment = modulation.at(len(times) - left)
        left -= 1
        output = model.predict(x, moment, condition, x0_previous if model.config.self_conditioning else None)
        x0 = model.estimate(output) if left else None
        return averaged(output, read=not left) if averaged else output, x0

    return SAMPLERS[sampler](denoise, x, times, noise).float()


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


# ---------------------------------------------------------------------------------------------------------------------
# CUDA graphs
# ---------------------------------------------------------------------------------------------------------------------


def cuda_graph(call: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Capture a call on the current CUDA device, after a warm-up on a side stream, as PyTorch's notes on CUDA graphs
    have it. Returns what replays it, and its output, which each replay writes anew."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()
    return graph.replay, output


class GraphedSampling:
    """`sample`, as one launch a frame in place of thousands.

    A graph always reads and writes the same memory: one is captured for each sampler, list of times and shape of the
    inputs, and the inputs of a frame are copied to where its graph reads them. Noise is drawn outside, in the order in
    which the sampler asks for it. The answer is valid until the next call.

    capture: (call) -> (replay, output); tests on a CPU give their own.
    """

    def __init__(self, capture: Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]] = cuda_graph):
        self.capture = capture
        self.graphs: dict[tuple, tuple] = {}

    def __call__(
        self,
        model: Pix2SeqD,
        sampler: str,
        condition: Condition,
        x: Tensor,
        times: Times,
        noise: Callable[[], Tensor],
        average_classes: bool = False,
    ) -> Tensor:
        given = _tensors(condition, x)
        shapes = tuple((tuple(t.shape), t.stride(), t.dtype) for t in given)
        key = (sampler, tuple(times), shapes, average_classes)
        if key not in self.graphs:
            while len(self.graphs) >= MOST_GRAPHS:
                self.graphs.pop(next(iter(self.graphs)))
            self.graphs[key] = self._captured(model, sampler, condition, x, times, average_classes)
        inputs, drawn, replay, output = self.graphs[key]
        for target, source in zip(inputs, given, strict=True):
            target.copy_(source)
        for target in drawn:
            target.copy_(noise())
        replay()
        return output

    def _captured(
        self, model: Pix2SeqD, sampler: str, condition: Condition, x: Tensor, times: Times, average_classes: bool
    ) -> tuple:
        condition, x = tree_map(lambda t: None if t is None else t.clone(), (condition, x))
        drawn: list[Tensor] = []
        kind = x.device.type
        autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

        def call() -> Tensor:
            asked = 0

            def noise() -> Tensor:
                nonlocal asked
                if asked == len(drawn):  # in the warm-up: as many as the sampler wants
                    drawn.append(torch.zeros_like(x))
                asked += 1
                return drawn[asked - 1]

            # Without its cache: what that holds is freed at the end of the frame, and a graph would go on reading it.
            with torch.autocast(kind, autocast[1], autocast[0], cache_enabled=False):
                return sample(model, sampler, condition, x, times, noise, average_classes)

        replay, output = self.capture(call)
        return _tensors(condition, x), drawn, replay, output


def _tensors(condition: Condition, x: Tensor) -> list[Tensor]:
    return [t for t in tree_leaves((condition, x)) if t is not None]
