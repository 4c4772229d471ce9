"""The loss of segmentation logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rgbdseg.errors import UsageError
from rgbdseg.labels import IGNORE_INDEX
from rgbdseg.loss_config import LossConfig
from rgbdseg.losses.targets import Targets

# B batch, C classes, h and w: of the logits


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


def _class_weights(config: LossConfig, logits: Tensor) -> Tensor | None:
    if config.class_weights is None:
        return None
    if len(config.class_weights) != logits.shape[1]:
        raise UsageError(
            f"class_weights has {len(config.class_weights)} numbers; expected {logits.shape[1]}, one per class"
        )
    return torch.tensor(config.class_weights, dtype=logits.dtype, device=logits.device)
