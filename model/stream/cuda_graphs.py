"""One frame's sampling as one CUDA graph: one launch in place of thousands."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from model.diffusion.samplers import Times, sample
from model.network.pix2seq_d import Pix2SeqD
from model.network.unet import Condition

MOST_GRAPHS = 8  # first and later frames, for a few numbers of videos side by side


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
    which the sampler asks for it.

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
        return output.clone()  # the next frame's replay writes over it

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
