"""The training loss: one loss function per task, weighted and summed as a `LossConfig` says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from rgbdseg.errors import UsageError, unknown_name
from rgbdseg.labels import IGNORE_INDEX
from rgbdseg.loss_config import LossConfig
from rgbdseg.models.base import SegmentationOutput, Task

# B batch, C classes, H height, W width, h and w: of an auxiliary output


@dataclasses.dataclass(frozen=True)
class Targets:
    """What the outputs are compared with.

    label: int64 (B, H, W), 255 = void.  depth_m: float (B, 1, H, W), metres, 0 = no reading, where a task needs it.
    """

    label: Tensor
    depth_m: Tensor | None = None


class Loss(NamedTuple):
    """total: scalar to back-propagate, times `loss_scale`.  parts: detached and without `loss_scale`, for logging:
    'loss' (their weighted sum), 'main', and every auxiliary output by name.
    """

    total: Tensor
    parts: dict[str, Tensor]


def segmentation_loss(
    output: SegmentationOutput, label: Tensor, config: LossConfig, depth_m: Tensor | None = None
) -> Loss:
    """Return the weighted sum of the main and all auxiliary losses.

    label: int64 (B, H, W), 255 = void; a batch without any labelled pixel has a finite loss of 0 and gradients of 0.
    depth_m: target of depth tasks.  Raises UsageError for a task without a loss, a weight for an output the model does
    not have, and class weights that do not match the classes.
    """
    targets = Targets(label, depth_m)
    main = _TASK_LOSSES["segmentation"](output.logits, targets, config)
    total, parts = main, {"main": main.detach()}
    unused = set(config.auxiliary_weights) - {auxiliary.name for auxiliary in output.aux}
    if output.aux and unused:
        raise unknown_name("auxiliary output", sorted(unused)[0], [auxiliary.name for auxiliary in output.aux])
    for auxiliary in output.aux:
        if auxiliary.task not in _TASK_LOSSES:
            raise UsageError(
                f"auxiliary output '{auxiliary.name}' has the task '{auxiliary.task}', which has no loss yet; "
                f"expected one of: {', '.join(sorted(_TASK_LOSSES))}"
            )
        value = _TASK_LOSSES[auxiliary.task](auxiliary.value, targets, config)
        total = total + config.auxiliary_weights.get(auxiliary.name, config.auxiliary_weight) * value
        parts[auxiliary.name] = value.detach()
    return Loss(total * config.loss_scale, {"loss": total.detach(), **parts})


def segmentation_task_loss(logits: Tensor, targets: Targets, config: LossConfig) -> Tensor:
    """Return the mean cross-entropy of logits (B, C, h, w) over all labelled pixels, in float32.

    Logits of another size than the label meet it as `LossConfig.auxiliary_resolution` says.
    """
    label = targets.label
    logits = logits.float()  # under mixed precision, half floats would lose the logarithms of small probabilities
    if logits.shape[-2:] != label.shape[-2:]:
        if config.auxiliary_resolution == "upsample_logits":
            logits = functional.interpolate(logits, size=label.shape[-2:], mode="bilinear", align_corners=False)
        else:
            # Nearest by pixel centres; float32 holds every label exactly.
            small = functional.interpolate(label[:, None].float(), size=logits.shape[-2:], mode="nearest-exact")
            label = small[:, 0].long()
    weight = _class_weights(config, logits)
    # The built-in mean is 0 / 0 when every pixel is void.
    summed = functional.cross_entropy(
        logits, label, weight, ignore_index=IGNORE_INDEX, reduction="sum", label_smoothing=config.label_smoothing
    )
    labelled = label != IGNORE_INDEX
    if weight is None:
        return summed / labelled.sum().clamp(min=1)
    shares = weight[label.clamp(max=len(weight) - 1)] * labelled
    return summed / shares.sum().clamp(min=torch.finfo(summed.dtype).tiny)


TaskLoss = Callable[[Tensor, Targets, LossConfig], Tensor]
"""Compares a task's value (see `AuxiliaryOutput`) with the targets; returns a finite scalar."""

_TASK_LOSSES: dict[Task, TaskLoss] = {"segmentation": segmentation_task_loss}


def _class_weights(config: LossConfig, logits: Tensor) -> Tensor | None:
    if config.class_weights is None:
        return None
    if len(config.class_weights) != logits.shape[1]:
        raise UsageError(
            f"class_weights has {len(config.class_weights)} numbers; expected {logits.shape[1]}, one per class"
        )
    return torch.tensor(config.class_weights, dtype=logits.dtype, device=logits.device)
