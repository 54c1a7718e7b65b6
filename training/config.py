"""The settings of one training run."""

import math
from dataclasses import dataclass
from typing import Annotated

from model.checks import ConfigError, in_range

OPTIMIZERS = ("adamw", "muon")


@dataclass(frozen=True)
class TrainingConfig:
    """One run. Raises ConfigError where the values do not fit together."""

    steps: Annotated[int, "optimizer steps"] = 30_000
    batch_size: Annotated[int, "samples of one step, over all processes"] = 16
    accumulate: Annotated[int | str, "slices of a step, or auto: by the free memory"] = "auto"
    optimizer: Annotated[str, "adamw, as published, or muon on matrices and kernels", OPTIMIZERS] = "adamw"
    lr: Annotated[float, "learning rate after the warm-up"] = 1e-4
    backbone_lr: Annotated[float, "learning rate of the backbone, as a share of --lr; below 1 by AdamW"] = 1.0
    final_lr: Annotated[float, "learning rate at the end, as a share; linear in between"] = 0.1
    warmup: Annotated[int, "steps of linear warm-up"] = 500
    weight_decay: Annotated[float, "on matrices and kernels"] = 0.05
    beta2: Annotated[float, "of AdamW"] = 0.999
    clip: Annotated[float, "largest norm of the gradient"] = 1.0
    ema_decay: Annotated[float, "decay of the averaged weights; they warm up to it, but the published"] = 0.999
    freeze_backbone: Annotated[bool, "keep the backbone as it is"] = False
    max_nonfinite: Annotated[int, "skipped steps in a row (loss or gradient not finite) that end the run"] = 10
    sampling: Annotated[tuple[float, ...], "recommended sampling: steps of first, of later frames, time difference"] = (
        20, 8, 0.0,
    )  # fmt: skip
    save_every: Annotated[int, "steps between checkpoints"] = 500
    keep: Annotated[int, "numbered checkpoints that are kept; 0 keeps all"] = 5
    milestone: Annotated[int, "every n-th checkpoint is kept whatever --keep says; 0: none"] = 10
    validate_every: Annotated[int, "steps between validations on held-out clips; 0: never"] = 1000
    seed: Annotated[int, "of weights, data order, augmentation and noise"] = 42
    num_workers: Annotated[int | str, "loader processes, or auto: 2, with a GPU by the cores"] = "auto"
    compile: Annotated[bool, "compile the network with torch.compile, on a GPU"] = False
    recompute: Annotated[bool, "gradient checkpointing: less memory, a third more to compute"] = False
    deterministic: Annotated[bool, "on a GPU, too, resume to the bit; slower"] = False

    def __post_init__(self):
        for name, least in (("accumulate", 1), ("num_workers", 0)):
            value = getattr(self, name)
            if value != "auto" and (isinstance(value, str) or value < least):
                raise ConfigError(f"{name} must be auto, or {least} or more, not {value}")
        in_range(self, 1, math.inf, "steps", "batch_size", "save_every", "max_nonfinite")
        if len(self.sampling) != 3 or any(n < 1 or n % 1 for n in self.sampling[:2]) or not 0 <= self.sampling[2] <= 1:
            raise ConfigError(f"sampling is two numbers of steps and a fraction, as 20 8 0.0, not {self.sampling}")
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")
        in_range(self, 0, math.inf, "final_lr", "backbone_lr", "weight_decay")
        in_range(self, 0, math.inf, "warmup", "keep", "milestone", "validate_every")
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, not {self.optimizer!r}")
        for name in ("ema_decay", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 0 or more and below 1, not {getattr(self, name)}")
