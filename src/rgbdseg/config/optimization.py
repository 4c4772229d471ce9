"""How weights are changed: the optimizer with its parameter groups, and how rates and momentum move."""

from __future__ import annotations

import dataclasses
from typing import Literal

from rgbdseg.config.checks import check_kinds, check_literals, check_not_negative, check_positive, check_ranges
from rgbdseg.errors import UsageError


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its parameter groups.

    Args:
        name: sgd or adamw.
        learning_rate: base rate of the schedule.
        momentum: of SGD; schedule.momentum_range takes its place.
        nesterov: SGD with Nesterov's momentum.
        weight_decay: see weight_decay_on.
        head_learning_rate_factor: multiplies the rate of everything outside the backbone.
        block_rate_factor: multiplies the rate of a plain transformer's block once for every block behind it, so that
            the last one learns at the base rate; what comes before the blocks learns as the first, what comes after
            them at the base rate.  1 for one rate.
        weight_decay_on: 'weights' of convolutions and linear layers only, so that biases and normalization have none;
            'all' parameters; or 'all_but_backbone_norms', which spares the normalization of the backbone only.
        gradient_clip_norm: gradients are scaled down to this norm over all parameters; null leaves them.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.02
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    head_learning_rate_factor: float = 1.0
    block_rate_factor: float = 1.0
    weight_decay_on: Literal["weights", "all", "all_but_backbone_norms"] = "weights"
    gradient_clip_norm: float | None = None

    def __post_init__(self) -> None:
        check_kinds(self, "optimizer.")
        check_literals(self, "optimizer.")
        check_positive(self, "optimizer.", ("learning_rate", "gradient_clip_norm", "block_rate_factor"))
        check_not_negative(self, "optimizer.", ("weight_decay", "head_learning_rate_factor"))
        if not 0 <= self.momentum < 1:
            raise UsageError(f"optimizer.momentum is {self.momentum}; expected 0 to below 1")
        if self.nesterov and self.name != "sgd":
            raise UsageError(f"optimizer.nesterov is given with optimizer.name {self.name}; it belongs to sgd")
        if self.nesterov and not self.momentum:
            raise UsageError("optimizer.nesterov needs a momentum, but optimizer.momentum is 0")


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """How long, and how the learning rate moves.

    Args:
        epochs: an epoch is a fixed number of optimizer steps, not a pass over the data.
        iterations_per_epoch: optimizer steps per epoch.
        warmup_epochs: the rate rises linearly to the base rate; then the decay is evaluated at the absolute iteration,
            so the polynomial continues a little below the base rate, unless decay_from says otherwise.
        warmup_iterations: as warmup_epochs and in its place, in iterations; null for warmup_epochs.
        warmup_start: share of the base rate at the first iteration.
        power: of the polynomial (1 - iteration / total) ** power.
        validate_every_epochs: 0 switches validation off; the last epoch is always validated otherwise.
        checkpoint_every_epochs: a numbered checkpoint is kept that often; the newest state is always in last.ckpt.
        checkpoint_from_epoch: first epoch that leaves a numbered checkpoint.
        checkpoint_every_minutes: last.ckpt is also written inside an epoch when the newest one is older than this.
        decay: 'polynomial'; 'step': the rate is multiplied by step_factor after every step_epochs epochs; 'one_cycle':
            along a cosine from warmup_start up to the base rate, which the last unit of warm-up has, and along another
            down to end_share, which the last unit of the run has.
        decay_from: where the polynomial begins to fall: at the 'start' of the run, or of the 'warmup''s end.
        decay_iterations: iterations after which the polynomial reaches 0, counted from the start; null for all of the
            run, or of a stage.
        step_epochs: see decay.
        step_factor: see decay.
        end_share: see decay.
        changes: whether the rate changes with every 'iteration', or once per 'epoch'.
        momentum_range: (lowest, highest); momentum goes from the highest to the lowest as the rate of 'one_cycle' goes
            up, and back.  null for optimizer.momentum.
        stage_epochs: the schedule begins anew after so many epochs, warm-up and optimizer state included; null for one
            stage.
        stage_factor: multiplies all rates once for every stage before.
        backbone_delay_epochs: epochs in which the rate of the backbone is 0; its schedule begins after them.
        backbone_warmup_epochs: warm-up of the backbone after that; null for the same as of all else.
        set_after_step: rates are set after a step and not before it, as some released trainers do: the first step is
            made at the base rate, and every other at the rate of the one before.
    """

    epochs: int = 400
    iterations_per_epoch: int = 98
    warmup_epochs: int = 10
    warmup_iterations: int | None = None
    warmup_start: float = 0.0
    power: float = 0.9
    validate_every_epochs: int = 10
    checkpoint_every_epochs: int = 10
    checkpoint_from_epoch: int = 0
    checkpoint_every_minutes: float = 10.0
    decay: Literal["polynomial", "step", "one_cycle"] = "polynomial"
    decay_from: Literal["start", "warmup"] = "start"
    decay_iterations: int | None = None
    step_epochs: int = 100
    step_factor: float = 0.1
    end_share: float = 0.0
    changes: Literal["iteration", "epoch"] = "iteration"
    momentum_range: tuple[float, float] | None = None
    stage_epochs: int | None = None
    stage_factor: float = 1.0
    backbone_delay_epochs: int = 0
    backbone_warmup_epochs: int | None = None
    set_after_step: bool = False

    def __post_init__(self) -> None:
        check_kinds(self, "schedule.")
        check_literals(self, "schedule.")
        positive = ("epochs", "iterations_per_epoch", "step_epochs", "step_factor", "stage_epochs", "stage_factor")
        check_positive(self, "schedule.", (*positive, "decay_iterations"))
        not_negative = ("warmup_epochs", "validate_every_epochs", "checkpoint_every_epochs", "checkpoint_from_epoch")
        check_not_negative(self, "schedule.", (*not_negative, "backbone_delay_epochs"))
        check_ranges(self, "schedule.", {"warmup_start": (0, 1, ""), "end_share": (0, 1, "")})
        for name in ("warmup_iterations", "backbone_warmup_epochs"):
            if getattr(self, name) is not None:
                check_not_negative(self, "schedule.", (name,))
        ends = self.momentum_range
        if ends is not None and not (len(ends) == 2 and 0 <= ends[0] <= ends[1] < 1):
            raise UsageError(
                f"schedule.momentum_range is {ends}; expected (lowest, highest), 0 <= lowest <= highest < 1"
            )
        if ends is not None and self.decay != "one_cycle":
            raise UsageError(f"schedule.momentum_range is {ends} with schedule.decay {self.decay}; it needs one_cycle")

    @property
    def iterations(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epochs * self.iterations_per_epoch

    @property
    def stage_iterations(self) -> int:
        """Optimizer steps of a stage."""
        return (self.stage_epochs or self.epochs) * self.iterations_per_epoch
