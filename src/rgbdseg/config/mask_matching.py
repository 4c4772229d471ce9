"""How masks with classes are compared with a label map; free of torch, so that recipes load in an instant."""

from __future__ import annotations

import dataclasses
import math

from rgbdseg.config.checks import check_kinds, check_not_negative, check_positive, check_ranges
from rgbdseg.errors import UsageError


@dataclasses.dataclass(frozen=True)
class MaskMatchingConfig:
    """Losses of queries that predict masks, each with a class: those of Mask2Former and EoMT.

    Args:
        class_weight: of the cross-entropy, in the loss and when queries are assigned to the classes of an image.
        mask_weight: of the binary cross-entropy of masks, in both.
        dice_weight: of the dice loss of masks, in both.
        no_object_weight: weight of queries that no class was assigned to, in the cross-entropy; others have 1.
        points: positions at which masks are compared.
        oversampling: so many times as many positions are drawn to find uncertain ones.
        uncertain_share: share of the positions that are the most uncertain of these; the rest is drawn anew.
    """

    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    no_object_weight: float = 0.1
    points: int = 12_544
    oversampling: float = 3.0
    uncertain_share: float = 0.75

    def __post_init__(self) -> None:
        check_kinds(self, "loss.mask_matching.")
        prefix = "loss.mask_matching."
        check_not_negative(self, prefix, ("class_weight", "mask_weight", "dice_weight", "no_object_weight"))
        check_positive(self, prefix, ("points",))
        check_ranges(self, prefix, {"uncertain_share": (0, 1, "")})
        if not 1 <= self.oversampling < math.inf:
            raise UsageError(f"{prefix}oversampling is {self.oversampling}; expected at least 1")
