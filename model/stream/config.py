"""The settings of a stream."""

import math
from dataclasses import dataclass
from typing import Annotated

from model.checks import ConfigError, in_range
from model.diffusion.samplers import SAMPLERS


@dataclass(frozen=True)
class StreamConfig:
    """How a video is predicted. Raises ConfigError for values outside their range."""

    first_steps: Annotated[int, "denoising steps of a frame without history"] = 20
    steps: Annotated[int, "denoising steps of each frame after it"] = 8
    time_difference: Annotated[float, "asymmetric time intervals, a fraction of the time range"] = 0.0
    sampler: Annotated[str, "how a step is made", tuple(SAMPLERS)] = "ddim"
    seed: Annotated[int, "of the noise"] = 42
    history_steps: Annotated[int, "of the later frames' steps, how many see the history; published: all"] = 0
    average_classes: Annotated[bool, "classes by all steps, not by the last alone, as published"] = True
    min_area: Annotated[int, "instances of fewer mask pixels are dropped"] = 24
    merge: Annotated[float, "merge slots this likely for each other's pixels; 0: never"] = 0.5
    class_split: Annotated[float, "split a class off a slot at this share; 0: never"] = 0.2
    max_gap: Annotated[int, "frames for which a lost track can come back; 0: none"] = 5

    def __post_init__(self):
        in_range(self, 1, math.inf, "first_steps", "steps")
        in_range(self, 0, math.inf, "max_gap", "history_steps", "min_area")
        in_range(self, 0, 1, "merge", "class_split", "time_difference")
        if self.sampler not in SAMPLERS:
            raise ConfigError(f"sampler must be one of {', '.join(SAMPLERS)}, not {self.sampler!r}")

    @property
    def fresh_steps(self) -> int:
        """How many of `steps` do not see the history."""
        return max(self.steps - self.history_steps, 0)
