"""One look at an image on a CPU: classes are decided before the scores of all of them are enlarged."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rgbdseg.inference.largest import share_of_largest
from rgbdseg.inference.setup import Model, Setup, logits_of, model_output
from rgbdseg.inference.windows import view_size
from rgbdseg.models._base import SegmentationModel
from rgbdseg.nn.resize import PostponedResize, postponed_resize
from rgbdseg.sample import RGBDSample
from rgbdseg.transforms.pack import pack_placed
from rgbdseg.transforms.placement import Placement

# C classes, H height, W width

_SMALLEST_TOTAL = 1e-30
"""Of the exponentials of a pixel; smaller ones lose digits."""
_LEAST_ENLARGED = 4
"""Pixels for each score, below which looking for classes that are out of the question costs what it saves."""
_ROUNDING = 1e-5
"""Of the largest score: by far more than enlarging in float32 can be off."""


@dataclasses.dataclass(frozen=True, eq=False)
class CoarseScores:
    """Logits of one image that are still to be enlarged, class by class.

    Args:
        logits: of a batch of one.
        inside: rows and columns of the enlarged map that show the image.
    """

    logits: PostponedResize
    inside: tuple[slice, slice]

    @property
    def classes(self) -> int:
        """Their number."""
        return self.logits.logits.shape[1]

    def class_map(self, number: int) -> Tensor:
        """Return the logits of one class, float32 (H, W)."""
        return self.logits.class_map(number)[0, *self.inside]

    def all_maps(self) -> Tensor:
        """Return the logits of all classes, float32 (C, H, W)."""
        return self.logits.all_maps()[0, :, *self.inside].float()

    def largest_class(self) -> tuple[Tensor, Tensor]:
        """Return the same as `largest_class` of all maps."""
        largest, index, _ = self._in_one_pass(None)
        return largest, index

    def with_share(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return `largest_class` and the softmax of the largest, float32 (H, W), for little more."""
        # The mean of the highest logits is never below the highest mean, so that no exponential is above 1.
        highest = dataclasses.replace(self.logits, logits=self.logits.logits.amax(1, keepdim=True))
        bound = CoarseScores(highest, self.inside).class_map(0)
        largest, index, total = self._in_one_pass(bound)
        share = (largest - bound).exp_().div_(total)
        if not bool((total > _SMALLEST_TOTAL).all()):  # logits of opposite sign, far beyond what networks return
            share = share_of_largest(self.all_maps(), largest)
        return largest, index, share

    def _in_one_pass(self, bound: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the largest logit, its class and the sum of exp(logits - bound), where that is given."""
        contenders = self._contenders()
        largest = self.class_map(contenders[0]).clone(memory_format=torch.contiguous_format)
        index = torch.full_like(largest, contenders[0], dtype=torch.uint8)
        total = torch.zeros_like(largest) if bound is None else (largest - bound).exp_()
        # Maps of its own for what is computed on the way, since new ones cost more than what is done with them.
        higher, part = torch.empty_like(index), torch.empty_like(largest)
        others = contenders[1:] if bound is None else [k for k in range(self.classes) if k != contenders[0]]
        for number in others:
            scores = self.class_map(number)
            if number in contenders:
                # Numbers only grow.  A mask that is filled is several times slower than whole numbers.
                torch.gt(scores, largest, out=higher.view(torch.bool))
                torch.maximum(index, higher.mul_(number), out=index)
                torch.maximum(largest, scores, out=largest)
            if bound is not None:
                total.add_(torch.sub(scores, bound, out=part).exp_())
        return largest, index, total

    def _contenders(self) -> Sequence[int]:
        """Return the classes that may be the largest of some pixel, in order: 14 to 29 of 40 in frames of NYU Depth V2.

        Enlarged scores are weighted means of four neighbors.  A class is never the largest that has no neighbors of
        which one is as high as the lowest of them is of another class.
        """
        coarse_CHW = self.logits.logits[0]
        height, width = coarse_CHW.shape[1:]
        if min(height, width) < 2 or _LEAST_ENLARGED * height * width > math.prod(self.logits.size):
            return range(self.classes)
        low_CHW, high_CHW = coarse_CHW, coarse_CHW
        for dim in (1, 2):
            pairs = coarse_CHW.shape[dim] - 1
            low_CHW = torch.minimum(low_CHW.narrow(dim, 0, pairs), low_CHW.narrow(dim, 1, pairs))
            high_CHW = torch.maximum(high_CHW.narrow(dim, 0, pairs), high_CHW.narrow(dim, 1, pairs))
        rounding = _ROUNDING * coarse_CHW.abs().amax()
        # So that numbers that are none make no class hopeless.
        hopeless_C = (high_CHW < low_CHW.amax(0) - rounding).flatten(1).all(1)
        return torch.nonzero(~hopeless_C).flatten().tolist() or range(self.classes)


def decides_coarsely(model: Model, setup: Setup, device: torch.device) -> bool:
    """Return whether the classes can be decided before all scores are enlarged, which is faster on a CPU."""
    one_look = setup.postponed and not setup.protocol.flip and not setup.protocol.margin
    if device.type != "cpu" or not one_look or not isinstance(model, SegmentationModel):
        return False
    # What was compiled has decided already how its scores are made.
    return model.ends_enlarging and model._compiled_call_impl is None


def score_coarsely(setup: Setup, sample: RGBDSample) -> CoarseScores | Tensor:
    """Return logits that are still to be enlarged; all of them (C, H, W) where a model does not end so."""
    placement = Placement.centered(sample.size, view_size(setup.protocol, setup.spec, sample.size))
    batch = pack_placed([(sample, placement)], setup.spec).to(sample.rgb.device)
    with postponed_resize() as asked:
        logits = model_output(setup, batch.images, batch.camera)
    if len(asked) == 1 and asked[0].placeholder is logits:
        return CoarseScores(asked[0], placement.inside)
    if asked:  # a model of somebody else's that does not say so
        logits = logits_of(setup, batch.images, batch.camera)
    return placement.uncover(logits[0].float())
