"""The loss of segmentation logits: cross-entropy over all or the hardest pixels, Lovász-softmax and soft Dice."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional

from rgbdseg.config.loss import LossConfig
from rgbdseg.errors import UsageError
from rgbdseg.labels import IGNORE_INDEX
from rgbdseg.losses.overlap import dice_loss, lovasz_softmax_loss
from rgbdseg.losses.targets import Targets

# B batch, C classes, H and W: of the label, h and w: of the logits


def segmentation_task_loss(logits: Tensor, targets: Targets, config: LossConfig) -> Tensor:
    """Return the weighted sum of the configured terms for logits (B, C, h, w), in float32 (or float64).

    Logits of another size than the label meet it as `LossConfig.auxiliary_resolution` says.  Void pixels take no part
    in any term; a batch that is void throughout has a loss of 0.
    """
    # Under mixed precision, half floats would lose the logarithms of small probabilities.
    logits = logits if logits.dtype == torch.float64 else logits.float()
    logits, label = _matched(logits, targets.label, config)
    terms: list[Tensor] = []
    if config.cross_entropy_weight:
        asked = label if config.criterion == "cross_entropy" else hard_pixels(logits, label, config)
        terms.append(config.cross_entropy_weight * cross_entropy(logits, asked, config))
    if config.lovasz_weight:
        terms.append(config.lovasz_weight * lovasz_softmax_loss(logits, label))
    if config.dice_weight:
        terms.append(config.dice_weight * dice_loss(logits, label))
    return torch.stack(terms).sum()


def cross_entropy(logits: Tensor, label: Tensor, config: LossConfig) -> Tensor:
    """Return the mean cross-entropy of logits (B, C, H, W) over all pixels of label (B, H, W) that are not void.

    With class weights it is the weighted mean, or as `LossConfig.class_weights_mean` says.
    """
    weight = _class_weights(config, logits)
    # The built-in mean is 0 / 0 when every pixel is void.
    summed = functional.cross_entropy(
        logits, label, weight, ignore_index=IGNORE_INDEX, reduction="sum", label_smoothing=config.label_smoothing
    )
    labeled = label != IGNORE_INDEX
    if weight is None or config.class_weights_mean == "pixels":
        return summed / labeled.sum().clamp(min=1)
    shares = weight[label.clamp(max=len(weight) - 1)] * labeled
    return summed / shares.sum().clamp(min=torch.finfo(summed.dtype).tiny)


@torch.no_grad()
def hard_pixels(logits: Tensor, label: Tensor, config: LossConfig) -> Tensor:
    """Return label (B, H, W) with everything void but the hard pixels of the batch: online hard example mining.

    A pixel is hard when the probability of its true class is at most the larger of `ohem_threshold` and the
    `ohem_min_kept`-th smallest such probability of the batch.  Void pixels are neither counted nor kept; where fewer
    pixels are labeled than must be kept, all are.  Class weights do not influence the choice.

    Source: Shrivastava, Gupta, Girshick, Training Region-based Object Detectors with Online Hard Example Mining,
    CVPR 2016; the rule for pixels is that of the loss library published with SA-Gate.
    """
    # Compared as -log(probability), which tells probabilities near 0 apart.  Void sorts behind everything.
    surprise = functional.cross_entropy(logits, label, ignore_index=IGNORE_INDEX, reduction="none")
    surprise = surprise.masked_fill(label == IGNORE_INDEX, -1.0)
    hardest = surprise.flatten().topk(min(config.ohem_min_kept, surprise.numel()), sorted=False).values
    limit = -math.log(config.ohem_threshold) if config.ohem_threshold > 0 else math.inf
    return label.masked_fill(surprise < hardest.min().clamp(max=limit), IGNORE_INDEX)


def _matched(logits: Tensor, label: Tensor, config: LossConfig) -> tuple[Tensor, Tensor]:
    """Return logits and label of one size."""
    if logits.shape[-2:] == label.shape[-2:]:
        return logits, label
    if config.auxiliary_resolution == "upsample_logits":
        enlarged = functional.interpolate(logits, size=label.shape[-2:], mode="bilinear", align_corners=False)
        return enlarged, label
    # Nearest by pixel centers; float32 holds every label exactly.
    small = functional.interpolate(label[:, None].float(), size=logits.shape[-2:], mode="nearest-exact")
    return logits, small[:, 0].long()


def _class_weights(config: LossConfig, logits: Tensor) -> Tensor | None:
    if config.class_weights is None:
        return None
    if len(config.class_weights) != logits.shape[1]:
        raise UsageError(
            f"class_weights has {len(config.class_weights)} numbers; expected {logits.shape[1]}, one per class"
        )
    return _tensor_of(tuple(config.class_weights), logits.dtype, logits.device)


@functools.lru_cache(maxsize=16)
def _tensor_of(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the tensor that was made of them the first time: sending numbers to a GPU waits for it."""
    return torch.tensor(values, dtype=dtype, device=device)
