"""What is minimized; free of torch, so that recipes load in an instant."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from rgbdseg.config.checks import check_kinds, check_literals, check_not_negative, check_positive
from rgbdseg.config.mask_matching import MaskMatchingConfig
from rgbdseg.errors import UsageError

Criterion = Literal["cross_entropy", "ohem"]


@dataclasses.dataclass(frozen=True)
class DenseLossConfig:
    """Losses of the auxiliary outputs that predict depth, surface normals or contours.

    Args:
        depth_loss: l1, l2 (the mean square) or berhu (reverse Huber), over the pixels with a reading.
        depth_target: 'metric' regresses meters, 'inverse' nearest_depth_m / meters.
        nearest_depth_m: depth whose inverse target is 1.
        farthest_depth_m: readings beyond it count as missing, for depth and normals; null keeps all.
        depth_focal_px: regress depth as a camera of this focal length would see it, so that it is divided by s where
            an image is enlarged by s; null regresses the depth of the scene, whatever the scale of the image.
        normals_loss: l1, l2 (means over the three components of unit normals) or cosine (1 - cosine of the angle).
        contour_positive_weight: weight w of contour pixels, 1 - w of all others, from 0 to 1; null takes the share of
            the others in each batch.
    """

    depth_loss: Literal["l1", "l2", "berhu"] = "l1"
    depth_target: Literal["metric", "inverse"] = "metric"
    nearest_depth_m: float = 1.0
    farthest_depth_m: float | None = None
    depth_focal_px: float | None = None
    normals_loss: Literal["l1", "l2", "cosine"] = "cosine"
    contour_positive_weight: float | None = 0.95

    def __post_init__(self) -> None:
        check_kinds(self, "loss.dense.")
        check_literals(self, "loss.dense.")
        check_positive(self, "loss.dense.", ("nearest_depth_m", "farthest_depth_m", "depth_focal_px"))
        if self.contour_positive_weight is not None and not 0 <= self.contour_positive_weight <= 1:
            raise UsageError(
                f"loss.dense.contour_positive_weight is {self.contour_positive_weight}; expected 0 to 1, or null"
            )


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What is asked of segmentation logits, main and auxiliary alike, and the weights of the auxiliary losses.

    About ``loss_scale``: the released SA-Gate and Malleable 2.5D trainers divide the loss by the number of processes
    W before back-propagation, and their distributed wrapper averages the gradients once more, so the published runs
    behave like a learning rate of lr / W with a weight decay of W * wd.  A scale of 1 / W reproduces that on any number
    of devices (4 for the released 480-pixel SA-Gate run, 8 for the 432-pixel and the Malleable runs).

    Args:
        main_weight: weight of the logits at the input's resolution.
        auxiliary_weight: weight of every auxiliary output that auxiliary_weights does not name.
        auxiliary_weights: weight by name of the auxiliary output.
        label_smoothing: share of the target spread evenly over all classes, from 0 to below 1.
        class_weights: one weight per class; null weighs all alike.
        class_weights_mean: a weighted cross-entropy is divided by the sum of the 'weights' of the labeled pixels, or
            by the number of labeled 'pixels'.
        auxiliary_resolution: where an auxiliary output of lower resolution meets the label: 'upsample_logits'
            enlarges the logits bilinearly, 'downsample_label' takes the nearest label.
        loss_scale: the total is multiplied by it before back-propagation; logged values are not.
        dense: losses of auxiliary outputs that predict depth, normals or contours.
        criterion: 'cross_entropy' averages over all labeled pixels; 'ohem' over the hard ones of the batch only, see
            ohem_threshold and ohem_min_kept.
        auxiliary_criterion: criterion of the auxiliary outputs; null takes that of the logits.
        ohem_threshold: a pixel is hard when the probability of its true class is at most that.
        ohem_min_kept: that many pixels with the lowest probabilities are hard in any case, and all are when fewer are
            labeled; counted over the images that go through the model together, on one device and in one pass.
        cross_entropy_weight: weight of the criterion; 0 leaves only the terms below.
        lovasz_weight: weight of the Lovász-softmax loss, which is added; 0 for none.
        dice_weight: weight of the soft Dice loss, which is added; 0 for none.
        mask_matching: losses of queries that predict masks.
    """

    main_weight: float = 1.0
    auxiliary_weight: float = 0.2
    auxiliary_weights: dict[str, float] = dataclasses.field(default_factory=dict)
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    class_weights_mean: Literal["weights", "pixels"] = "weights"
    auxiliary_resolution: Literal["upsample_logits", "downsample_label"] = "upsample_logits"
    loss_scale: float = 1.0
    dense: DenseLossConfig = DenseLossConfig()
    criterion: Criterion = "cross_entropy"
    auxiliary_criterion: Criterion | None = None
    ohem_threshold: float = 0.7
    ohem_min_kept: int = 100_000
    cross_entropy_weight: float = 1.0
    lovasz_weight: float = 0.0
    dice_weight: float = 0.0
    mask_matching: MaskMatchingConfig = MaskMatchingConfig()

    def __post_init__(self) -> None:
        check_kinds(self, "loss.")
        check_literals(self, "loss.")
        check_not_negative(self, "loss.", ("main_weight", "auxiliary_weight"))
        check_positive(self, "loss.", ("loss_scale", "ohem_min_kept"))
        for name, weight in self.auxiliary_weights.items():
            if not 0 <= weight < math.inf:
                raise UsageError(f"loss.auxiliary_weights.{name} is {weight}; expected 0 or more")
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"loss.label_smoothing is {self.label_smoothing}; expected 0 to below 1")
        if not 0 <= self.ohem_threshold <= 1:
            raise UsageError(f"loss.ohem_threshold is {self.ohem_threshold}; expected a probability, 0 to 1")
        self._check_class_weights()
        weights = (self.cross_entropy_weight, self.lovasz_weight, self.dice_weight)
        if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
            raise UsageError(
                f"loss.cross_entropy_weight, lovasz_weight and dice_weight are {', '.join(map(str, weights))}; "
                "expected numbers of 0 or more, one of them above 0"
            )

    def _check_class_weights(self) -> None:
        if self.class_weights is None:
            return
        if not all(0 <= weight < math.inf for weight in self.class_weights):
            raise UsageError(f"loss.class_weights are {self.class_weights}; expected numbers of 0 or more")
        if not any(self.class_weights):
            raise UsageError(
                "loss.class_weights are all 0, so that nothing would be learned; null weighs all classes alike"
            )
