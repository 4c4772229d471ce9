"""What is minimised; free of torch, so that recipes load in an instant."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from rgbdseg.errors import UsageError


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Cross-entropy on the logits plus weighted auxiliary losses.

    About ``loss_scale``: the released SA-Gate and Malleable 2.5D trainers divide the loss by the number of processes
    W before back-propagation, and their distributed wrapper averages the gradients once more, so the published runs
    behave like a learning rate of lr / W with a weight decay of W * wd.  A scale of 1 / W reproduces that on any number
    of devices (4 for the released 480-pixel SA-Gate run, 8 for the 432-pixel and the Malleable runs).

    Args:
        auxiliary_weight: weight of every auxiliary output that auxiliary_weights does not name.
        auxiliary_weights: weight by name of the auxiliary output.
        label_smoothing: share of the target spread evenly over all classes, from 0 to below 1.
        class_weights: one weight per class; null weighs all alike.
        auxiliary_resolution: where an auxiliary output of lower resolution meets the label: 'upsample_logits'
            enlarges the logits bilinearly, 'downsample_label' takes the nearest label.
        loss_scale: the total is multiplied by it before back-propagation; logged values are not.
    """

    auxiliary_weight: float = 0.2
    auxiliary_weights: dict[str, float] = dataclasses.field(default_factory=dict)
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    auxiliary_resolution: Literal["upsample_logits", "downsample_label"] = "upsample_logits"
    loss_scale: float = 1.0

    def __post_init__(self) -> None:
        for name, weight in {"auxiliary_weight": self.auxiliary_weight, **self.auxiliary_weights}.items():
            if not 0 <= weight < math.inf:
                raise UsageError(f"loss weight '{name}' is {weight}; expected 0 or more")
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"label_smoothing is {self.label_smoothing}; expected 0 to below 1")
        if self.class_weights is not None and not all(0 <= weight < math.inf for weight in self.class_weights):
            raise UsageError(f"class_weights are {self.class_weights}; expected numbers of 0 or more")
        if not 0 < self.loss_scale < math.inf:
            raise UsageError(f"loss_scale is {self.loss_scale}; expected a positive number")
