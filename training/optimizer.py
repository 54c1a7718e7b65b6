"""The learning rate of a step, and the optimizer: AdamW, as published, or Muon on matrices and kernels."""

from typing import Any

import torch
from torch import Tensor, nn

from model.checkpoint import check_moments
from training.config import TrainingConfig
from training.muon import Muon


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then linear decay, which reaches `final_lr` of it after the last step."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return config.lr * (1 - (1 - config.final_lr) * done)


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """The optimizer of a Pix2SeqD. Weight decay is for matrices and kernels alone.

    The backbone learns by AdamW at `backbone_lr` times the learning rate, because pre-trained weights need small steps.
    If that is 1, it is treated like the rest. `set_learning_rate` reads a group's `lr_share`.
    """
    own = [*model.encoder.stem.parameters(), *model.encoder.stages.parameters()] if config.backbone_lr != 1 else []
    backbone = set(own)
    parameters = [p for p in model.parameters() if p.requires_grad and p not in backbone]
    groups = []
    for share, part in ((1.0, parameters), (config.backbone_lr, [p for p in own if p.requires_grad])):
        for decay, chosen in (
            (config.weight_decay, [p for p in part if p.ndim >= 2]),
            (0.0, [p for p in part if p.ndim < 2]),
        ):
            if chosen:
                groups.append({"params": chosen, "weight_decay": decay, "lr_share": share})
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2), fused=True)
    last = set(model.denoiser.conv_out.parameters())  # the layer of the logits has no hidden output
    hidden = [p for p in groups[0]["params"] if p not in last]
    groups[0]["params"] = [p for p in groups[0]["params"] if p in last]
    return MuonAdamW(hidden, groups, config.lr, config.weight_decay, config.beta2)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Each group takes its share of the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_share", 1.0)


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
        if closure is not None:
            raise ValueError("a closure is not supported")
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
