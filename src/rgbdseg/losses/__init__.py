"""The training loss: one loss function per task, weighted and summed as a `LossConfig` says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from rgbdseg.config.loss import LossConfig
from rgbdseg.errors import UsageError, unknown_name
from rgbdseg.losses.affinity import depth_affinity_loss, normals_affinity_loss, segmentation_affinity_loss
from rgbdseg.losses.dense import contours_task_loss, depth_task_loss, normals_task_loss
from rgbdseg.losses.mask_matching import mask_matching_loss
from rgbdseg.losses.segmentation import segmentation_task_loss
from rgbdseg.losses.targets import Targets
from rgbdseg.models._base import AuxiliaryOutput, SegmentationOutput, Task

__all__ = ["Loss", "Targets", "segmentation_loss", "segmentation_task_loss"]


class Loss(NamedTuple):
    """What a batch costs.

    Args:
        total: scalar to back-propagate, times `loss_scale`.
        parts: detached and without `loss_scale`, for logging: 'loss' (their weighted sum), 'main', and every auxiliary
            output by name.
    """

    total: Tensor
    parts: dict[str, Tensor]


def segmentation_loss(
    output: SegmentationOutput,
    label: Tensor,
    config: LossConfig,
    depth_m: Tensor | None = None,
    camera: Tensor | None = None,
) -> Loss:
    """Return the weighted sum of the main and all auxiliary losses.

    Args:
        output: of the model while training.
        label: int64 (B, H, W), 255 = void; a batch without any labeled pixel has a finite loss of 0 and gradients of 0.
        config: kind, classes and weights of the losses.
        depth_m: targets of depth and normal tasks, see `Targets`.
        camera: targets of depth and normal tasks, see `Targets`.

    Raises:
        UsageError: for a task without a loss, a weight for an output the model does not have, and class weights that do
            not match the classes.
    """
    targets = Targets(label, depth_m, camera, config.dense.farthest_depth_m)
    main = _TASK_LOSSES["segmentation"](output.logits, targets, config)
    total, parts = config.main_weight * main, {"main": main.detach()}
    unused = set(config.auxiliary_weights) - {auxiliary.name for auxiliary in output.aux}
    if output.aux and unused:
        raise unknown_name("auxiliary output", sorted(unused)[0], [auxiliary.name for auxiliary in output.aux])
    auxiliary_config = dataclasses.replace(config, criterion=config.auxiliary_criterion or config.criterion)
    masks: AuxiliaryOutput | None = None
    for auxiliary in output.aux:
        if auxiliary.task == "query_masks":
            masks = auxiliary  # their classes are the next output, and their loss is one
            continue
        if auxiliary.task == "query_classes" and masks is not None:
            value = mask_matching_loss(masks.value, auxiliary.value, label, config.mask_matching)
        elif auxiliary.task in _TASK_LOSSES:
            value = _TASK_LOSSES[auxiliary.task](auxiliary.value, targets, auxiliary_config)
        else:
            raise UsageError(
                f"auxiliary output '{auxiliary.name}' has the task '{auxiliary.task}', which has no loss yet; "
                f"expected one of: {', '.join(sorted(_TASK_LOSSES))}"
            )
        total = total + config.auxiliary_weights.get(auxiliary.name, config.auxiliary_weight) * value
        parts[auxiliary.name] = value.detach()
    return Loss(total * config.loss_scale, {"loss": total.detach(), **parts})


TaskLoss = Callable[[Tensor, Targets, LossConfig], Tensor]
"""Compares a task's value (see `AuxiliaryOutput`) with the targets; returns a finite scalar."""

_TASK_LOSSES: dict[Task, TaskLoss] = {
    "segmentation": segmentation_task_loss,
    "depth": depth_task_loss,
    "normals": normals_task_loss,
    "contours": contours_task_loss,
    "affinity_segmentation": segmentation_affinity_loss,
    "affinity_depth": depth_affinity_loss,
    "affinity_normals": normals_affinity_loss,
}
