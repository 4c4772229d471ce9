"""The loss of queries that predict masks, each with a class, against a label map.

Cheng, Misra, Schwing, Kirillov, Girdhar, Masked-attention Mask Transformer for Universal Image Segmentation
(Mask2Former), CVPR 2022, arXiv 2112.01527.  For a label map every class that an image shows is one mask; void belongs
to none of them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rgbdseg.config.mask_matching import MaskMatchingConfig
from rgbdseg.labels import IGNORE_INDEX
from rgbdseg.losses.assignment import assign
from rgbdseg.nn.blocks import at_least_float32

# B batch, Q queries, K classes, T masks of an image, M matched pairs of the batch, S sampled points
# h w size of predicted masks, H W size of the label


def mask_matching_loss(
    mask_logits: Tensor, class_logits: Tensor, label: Tensor, config: MaskMatchingConfig | None = None
) -> Tensor:
    """Return the weighted sum of cross-entropy, binary cross-entropy of masks and dice loss.

    Each image's queries are assigned one to one to its classes at the least total cost; all others should predict "no
    object".  The sums over masks are divided by the number of masks, averaged over processes and at least 1.

    Args:
        mask_logits: (B, Q, h, w), of any resolution.
        class_logits: (B, Q, K + 1), the last one of "no object".
        label: int64 (B, H, W), 255 = void.
        config: None: as published.
    """
    config = config or MaskMatchingConfig()
    mask_logits, class_logits = at_least_float32(mask_logits), at_least_float32(class_logits)
    queries: list[Tensor] = []
    classes: list[Tensor] = []
    target = torch.full(class_logits.shape[:2], class_logits.shape[2] - 1, device=label.device)
    for image, (masks, scores) in enumerate(zip(mask_logits, class_logits, strict=True)):
        shown = present_classes(label[image])
        chosen = match(masks, scores, label[image], shown, config)
        target[image, chosen] = shown
        queries.append(chosen)
        classes.append(shown)
    total = config.class_weight * query_class_loss(class_logits, target, config)
    matched = torch.cat([mask_logits[image, chosen] for image, chosen in enumerate(queries)])
    truth = torch.cat([class_masks(label[image], shown) for image, shown in enumerate(classes)])
    entropy, dice = mask_losses(matched, truth, config)
    return total + config.mask_weight * entropy + config.dice_weight * dice


def present_classes(label: Tensor) -> Tensor:
    """Return the classes of a label map (H, W) in ascending order, void excluded."""
    found = label.unique()
    return found[found != IGNORE_INDEX]


def class_masks(label: Tensor, classes: Tensor) -> Tensor:
    """Return one binary mask per class, float32 (T, H, W)."""
    return (label == classes[:, None, None]).float()


@torch.no_grad()
def match(
    mask_logits: Tensor, class_logits: Tensor, label: Tensor, classes: Tensor, config: MaskMatchingConfig
) -> Tensor:
    """Return which query is assigned to each of the classes of one image, int64 (T,).

    Costs are taken at random positions, the same for all pairs.

    Args:
        mask_logits: (Q, h, w).
        class_logits: (Q, K + 1).
        label: (H, W).
        classes: (T,).
        config: weights and number of positions.
    """
    points = torch.rand(1, config.points, 2, device=mask_logits.device, dtype=mask_logits.dtype)
    logits_QS = sample_at(mask_logits[None], points)[0]
    truth_TS = sample_at(class_masks(label, classes)[None].to(points.dtype), points)[0]
    cost = config.mask_weight * pairwise_entropy(logits_QS, truth_TS)
    cost = cost + config.dice_weight * pairwise_dice(logits_QS, truth_TS)
    cost = cost - config.class_weight * class_logits.softmax(-1)[:, classes]
    cost = cost.nan_to_num(1e10, 1e10, -1e10).clamp(-1e10, 1e10)
    return torch.as_tensor(assign(cost.T.double().cpu().numpy()), device=classes.device)


def pairwise_entropy(logits_QS: Tensor, truth_TS: Tensor) -> Tensor:
    """Return the mean binary cross-entropy of every query with every mask (Q, T)."""
    # softplus(x) - x t is the cross-entropy of a logit x with a target t.
    summed = functional.softplus(logits_QS).sum(1, keepdim=True) - logits_QS @ truth_TS.T
    return summed / logits_QS.shape[1]


def pairwise_dice(logits_QS: Tensor, truth_TS: Tensor) -> Tensor:
    """Return 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1) of every query with every mask (Q, T)."""
    p = logits_QS.sigmoid()
    return 1 - (2 * p @ truth_TS.T + 1) / (p.sum(1, keepdim=True) + truth_TS.sum(1) + 1)


def query_class_loss(class_logits: Tensor, target: Tensor, config: MaskMatchingConfig) -> Tensor:
    """Return the weighted mean of the cross-entropy of all queries.

    Args:
        class_logits: (B, Q, K + 1).
        target: classes (B, Q), K for "no object".
        config: weights.
    """
    weight = class_logits.new_ones(class_logits.shape[2])
    weight[-1] = config.no_object_weight
    surprise = functional.cross_entropy(class_logits.flatten(0, 1), target.flatten(), weight, reduction="sum")
    # The built-in mean is 0 / 0 where every query has a weight of 0.
    return surprise / weight[target].sum().clamp(min=torch.finfo(surprise.dtype).tiny)


def mask_losses(logits: Tensor, truth: Tensor, config: MaskMatchingConfig) -> tuple[Tensor, Tensor]:
    """Return binary cross-entropy and dice loss of matched masks at uncertain positions, 0 where there are none.

    Args:
        logits: (M, h, w).
        truth: (M, H, W).
        config: number of positions and how they are drawn.
    """
    count = _mean_over_processes(len(logits), logits)
    if not len(logits):
        return logits.sum(), logits.sum()
    with torch.no_grad():
        points = uncertain_points(logits, config)
        truth_MS = sample_at(truth[:, None].to(logits.dtype), points)[:, 0]
    logits_MS = sample_at(logits[:, None], points)[:, 0]
    entropy = functional.binary_cross_entropy_with_logits(logits_MS, truth_MS, reduction="none").mean(1)
    p = logits_MS.sigmoid()
    dice = 1 - (2 * (p * truth_MS).sum(1) + 1) / (p.sum(1) + truth_MS.sum(1) + 1)
    return entropy.sum() / count, dice.sum() / count


@torch.no_grad()
def uncertain_points(logits: Tensor, config: MaskMatchingConfig) -> Tensor:
    """Return positions (M, S, 2) as (x, y) from 0 to 1, most of them where the logits (M, h, w) are closest to 0."""
    masks = len(logits)
    drawn = int(config.points * config.oversampling)
    uncertain = int(config.points * config.uncertain_share)
    candidates = torch.rand(masks, drawn, 2, device=logits.device, dtype=logits.dtype)
    certainty = sample_at(logits[:, None], candidates)[:, 0].abs()
    kept = certainty.topk(uncertain, dim=1, largest=False, sorted=False).indices
    chosen = candidates.gather(1, kept[..., None].expand(-1, -1, 2))
    fresh = torch.rand(masks, config.points - uncertain, 2, device=logits.device, dtype=logits.dtype)
    return torch.cat([chosen, fresh], dim=1)


def sample_at(maps: Tensor, points: Tensor) -> Tensor:
    """Return bilinear samples (B, C, S) of maps (B, C, h, w), 0 outside, at (x, y) in 0 to 1 (B, S, 2) of the image."""
    grid = 2 * points[:, :, None] - 1
    return functional.grid_sample(maps, grid, align_corners=False)[..., 0]


def _mean_over_processes(masks: int, like: Tensor) -> Tensor:
    """Return the number of masks of a process, averaged over all and at least 1."""
    count = like.new_tensor(float(masks))
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(count)
        count = count / torch.distributed.get_world_size()
    return count.clamp(min=1)
