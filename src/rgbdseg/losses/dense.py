"""Losses of depth, surface normals and label contours: the auxiliary tasks of multi-task methods.

All are means over the pixels that have a target, computed in float32, and 0 with gradients of 0 where there is none.
A prediction of another size than the targets meets them as `LossConfig.auxiliary_resolution` says.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rgbdseg.config.loss import DenseLossConfig, LossConfig
from rgbdseg.losses.targets import Targets, label_contours
from rgbdseg.options import check_choice

# B batch, H W size of the targets, h w size of the prediction

PENALTIES = ("l1", "l2", "berhu")
BERHU_SHARE = 0.2
"""Of the largest residual of the batch: where the reverse Huber loss turns from linear to quadratic."""


def depth_task_loss(prediction: Tensor, targets: Targets, config: LossConfig) -> Tensor:
    """Compare predicted depth (B, 1, h, w) with the readings, as `DenseLossConfig` says.

    Raises:
        UsageError: when the targets lack depth, or the camera where one focal length is asked for.
    """
    target, valid = depth_target(targets, config.dense)
    prediction, (target, valid) = _meet(prediction, (target, valid), config)
    residual = torch.where(valid, prediction - target, 0.0)
    return valid_mean(penalty(residual, config.dense.depth_loss), valid)


def normals_task_loss(prediction: Tensor, targets: Targets, config: LossConfig) -> Tensor:
    """Compare predicted normals (B, 3, h, w), of any length, with those of the depth, as `DenseLossConfig` says.

    Raises:
        UsageError: when the targets lack depth or camera.
    """
    prediction, (target,) = _meet(prediction, (targets.normals_cam,), config)
    valid = (target != 0).any(dim=1, keepdim=True)
    unit = functional.normalize(prediction, dim=1, eps=1e-6)
    if config.dense.normals_loss == "cosine":
        return valid_mean(1 - (unit * target).sum(dim=1, keepdim=True), valid)
    return valid_mean(penalty(unit - target, config.dense.normals_loss).mean(dim=1, keepdim=True), valid)


def contours_task_loss(prediction: Tensor, targets: Targets, config: LossConfig) -> Tensor:
    """Weighted binary cross-entropy of contour logits (B, 1, h, w) against the changes of the label.

    Contour pixels weigh w and all others 1 - w; without a configured w it is the batch's share of the others.
    """
    label = targets.label
    if config.auxiliary_resolution == "downsample_label":
        label = _nearest(label[:, None].float(), prediction)[:, 0].long()
    prediction = _enlarged(prediction.float(), label)
    contour, known = label_contours(label)
    count = known.sum().clamp(min=1)
    weight: float | Tensor
    if config.dense.contour_positive_weight is None:
        weight = (known & ~contour).sum() / count
    else:
        weight = config.dense.contour_positive_weight
    entropy = functional.binary_cross_entropy_with_logits(prediction, contour.float(), reduction="none")
    return valid_mean(entropy * torch.where(contour, weight, 1 - weight), known)


def depth_target(targets: Targets, config: DenseLossConfig) -> tuple[Tensor, Tensor]:
    """Return what a depth output should predict, float32 (B, 1, H, W), and where that is known, bool.

    For an image enlarged by s the focal length is s times larger too.  Seen with a fixed focal length instead, depth
    is divided by s and inverse depth multiplied by it, as in the published augmentations.
    """
    depth_m = targets.valid_depth_m
    valid = depth_m > 0
    if config.depth_focal_px is not None:
        depth_m = depth_m * (config.depth_focal_px / targets.focal_px)
    if config.depth_target == "inverse":
        return torch.where(valid, config.nearest_depth_m / torch.where(valid, depth_m, 1.0), 0.0), valid
    return depth_m, valid


def penalty(residual: Tensor, kind: str) -> Tensor:
    """Return ``l1`` |d|, ``l2`` d^2 or ``berhu`` of every residual d.

    berhu, the reverse Huber loss (Laina et al., Deeper Depth Prediction with Fully Convolutional Residual Networks, 3DV
    2016): |d| up to c, (d^2 + c^2) / (2c) beyond, where c is a fifth of the largest |d| and counts as a constant.

    Raises:
        UsageError: for another kind.
    """
    check_choice("penalty", kind, PENALTIES)
    if kind == "l2":
        return residual.square()
    size = residual.abs()
    if kind == "l1":
        return size
    corner = (BERHU_SHARE * size.detach().amax()).clamp(min=1e-6)
    return torch.where(size <= corner, size, (residual.square() + corner.square()) / (2 * corner))


def valid_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Return the mean of ``values`` where ``valid`` (bool, of the same shape), 0 with gradients of 0 for nowhere."""
    return torch.where(valid, values, 0.0).sum() / valid.sum().clamp(min=1)


def _meet(prediction: Tensor, targets: tuple[Tensor, ...], config: LossConfig) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Bring prediction and targets to one size; targets are never mixed across an edge."""
    prediction = prediction.float()  # half floats have three digits, too few for meters
    if config.auxiliary_resolution == "downsample_label":
        return prediction, tuple(_nearest(target.float(), prediction).to(target.dtype) for target in targets)
    return _enlarged(prediction, targets[0]), targets


def _enlarged(prediction: Tensor, like: Tensor) -> Tensor:
    if prediction.shape[-2:] == like.shape[-2:]:
        return prediction
    return functional.interpolate(prediction, size=like.shape[-2:], mode="bilinear", align_corners=False)


def _nearest(raster: Tensor, like: Tensor) -> Tensor:
    """Resize by pixel centers; float32 holds every label exactly."""
    if raster.shape[-2:] == like.shape[-2:]:
        return raster
    return functional.interpolate(raster, size=like.shape[-2:], mode="nearest-exact")
