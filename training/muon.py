"""Muon: an optimizer for matrices and kernels, whose updates are made orthogonal."""

from typing import Any

import torch
from torch import Tensor

from model.checkpoint import check_moments
from model.network.precision import precision


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon): each update is made orthogonal.

    A kernel is a matrix: output channels by everything else. Updates are scaled to the size of AdamW's (Liu et al.,
    arXiv 2502.16982, section 2.2), so that both share one learning rate. `torch.optim.Muon` takes matrices only and
    always multiplies in bfloat16, which takes 20 times as long on a CPU that has no instructions for it.
    """

    def __init__(self, params: list[Any], lr: float, weight_decay: float, momentum: float = 0.95):
        """params: of two or more dimensions, contiguous, channels first or last."""
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        device = self.param_groups[0]["params"][0].device
        self.dtype = precision("auto", device) or torch.float32  # of the products: the one the device is fast in

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            if not (params := [p for p in group["params"] if p.grad is not None]):
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers, grads = [self.state[p]["momentum_buffer"] for p in params], [p.grad for p in params]
            torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
            updates = torch._foreach_lerp(buffers, grads, 1 - group["momentum"])  # Nesterov; laid out as the parameters
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            # On a GPU, matrices of one shape side by side: the number of kernels costs time, not their work
            shapes: dict[Any, list[tuple[Tensor, Tensor]]] = {}
            for n, (p, update) in enumerate(zip(params, updates, strict=True)):
                matrix = _matrix(p)
                shapes.setdefault(matrix.shape if p.is_cuda else n, []).append((matrix, _matrix(update)))
            for pairs in shapes.values():
                matrices, directions = zip(*pairs, strict=True)
                size = 0.2 * max(matrices[0].shape) ** 0.5
                steps = orthogonal(torch.stack(directions), self.dtype).unbind()
                torch._foreach_add_(matrices, steps, alpha=-group["lr"] * size)


class MuonAdamW(torch.optim.Optimizer):
    """Muon on hidden matrices and kernels, AdamW on the rest, as one optimizer."""

    def __init__(
        self, hidden: list[Tensor], groups: list[dict[str, Any]], lr: float, weight_decay: float, beta2: float
    ):
        """hidden: parameters of two or more dimensions; groups: the others, with their weight decay."""
        super().__init__([{"params": hidden, "weight_decay": weight_decay}, *groups], {"lr": lr, "betas": (0.9, beta2)})
        self.muon = Muon([{"params": list(hidden)}], lr, weight_decay)
        self.adamw = torch.optim.AdamW(
            [{**group, "params": list(group["params"])} for group in groups], lr=lr, betas=(0.9, beta2), fused=True
        )

    @torch.no_grad()
    def step(self, closure=None):
        for theirs, group in zip([*self.muon.param_groups, *self.adamw.param_groups], self.param_groups, strict=True):
            theirs.update({k: v for k, v in group.items() if k != "params" and k in theirs})
        self.muon.step()
        self.adamw.step()

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Momenta alone: settings are of this run. Raises ValueError or KeyError for a state of another optimizer."""
        for part, name in ((self.muon, "muon"), (self.adamw, "adamw")):
            part.load_state_dict({**part.state_dict(), "state": state_dict[name]["state"]})
            check_moments(part)


def orthogonal(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Of each matrix (N, rows, columns) the nearest one with singular values of about 1, by five steps of a quintic
    Newton-Schulz iteration, in this type."""
    a, b, c = 3.4445, -4.775, 2.0315
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def _matrix(p: Tensor) -> Tensor:
    """(out, ...) -> (out, rest): a view where the tensor is contiguous, channels first or last."""
    if p.ndim == 4 and not p.is_contiguous():
        p = p.permute(0, 2, 3, 1)
    return p.view(p.shape[0], -1)
