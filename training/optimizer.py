"""The optimizer of a model: AdamW, as published, or Muon on matrices and kernels. And the average of its weights."""

import torch
from ema_pytorch import EMA
from torch import nn

from training.config import TrainingConfig
from training.muon import MuonAdamW


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


def build_average(model: nn.Module, config: TrainingConfig, device: torch.device) -> EMA:
    """The moving average of a Pix2SeqD's weights. Its decay warms up, but for the published model."""
    ema = EMA(
        model,
        beta=config.ema_decay,
        min_value=config.ema_decay if model.config.published else 0.0,
        update_every=1,
        update_after_step=0,
        include_online_model=False,
        use_foreach=True,
    ).to(device)
    ema.ema_model.eval()
    ema.step, ema.initted = ema.step.cpu(), ema.initted.cpu()  # it reads its counters in each step
    return ema
