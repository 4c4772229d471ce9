"""One look at an image on a CPU: classes are decided before the scores of all of them are enlarged."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from rgbdseg.inference.setup import Model, Setup, logits_of, model_output
from rgbdseg.models._base import SegmentationModel
from rgbdseg.nn.resize import PostponedResize, postponed_resize
from rgbdseg.sample import RGBDSample
from rgbdseg.transforms.pack import pack_placed
from rgbdseg.transforms.placement import Placement

# C classes, H height, W width


@dataclasses.dataclass(frozen=True, eq=False)
class CoarseScores:
    """Logits of one image that are still to be enlarged, class by class.

    Args:
        logits: of a batch of one.
        inside: rows and columns of the enlarged map that show the image.
    """

    logits: PostponedResize
    inside: tuple[slice, slice]

    def class_map(self, number: int) -> Tensor:
        """Return the logits of one class, float32 (H, W)."""
        return self.logits.class_map(number)[0, *self.inside]

    def all_maps(self) -> Tensor:
        """Return the logits of all classes, float32 (C, H, W)."""
        return self.logits.all_maps()[0, :, *self.inside].float()

    def largest_class(self) -> tuple[Tensor, Tensor]:
        """Return the same as `largest_class` of all maps."""
        largest = self.class_map(0).clone(memory_format=torch.contiguous_format)
        index = torch.zeros_like(largest, dtype=torch.uint8)
        for number in range(1, self.logits.logits.shape[1]):
            scores = self.class_map(number)
            index.masked_fill_(scores > largest, number)
            torch.maximum(largest, scores, out=largest)
        return largest, index

    def share_of_largest(self, largest: Tensor) -> Tensor:
        """Return the same as `share_of_largest` of all maps."""
        total = torch.zeros_like(largest)
        for number in range(self.logits.logits.shape[1]):
            total.add_((self.class_map(number) - largest).exp_())
        return total.reciprocal_()


def decides_coarsely(model: Model, setup: Setup, sample: RGBDSample, device: torch.device) -> bool:
    """Return whether the classes can be decided before all scores are enlarged, which is faster on a CPU."""
    protocol = setup.protocol
    fits = protocol.crop_size is None or all(s <= w for s, w in zip(sample.size, protocol.crop_size, strict=True))
    one_look = (protocol.mode == "whole" or fits) and not protocol.flip and not protocol.margin
    # What was compiled has decided already how its scores are made.
    plain = isinstance(model, SegmentationModel) and model._compiled_call_impl is None
    return device.type == "cpu" and one_look and plain and model.ends_enlarging


def score_coarsely(setup: Setup, sample: RGBDSample) -> CoarseScores | Tensor:
    """Return logits that are still to be enlarged; all of them (C, H, W) where a model does not end so."""
    protocol = setup.protocol
    whole = protocol.mode == "whole" or protocol.crop_size is None
    placement = Placement.centered(sample.size, setup.spec.padded_size(sample.size) if whole else protocol.crop_size)
    batch = pack_placed([(sample, placement)], setup.spec).to(sample.rgb.device)
    with postponed_resize() as asked:
        logits = model_output(setup, batch.images, batch.camera)
    if len(asked) == 1 and asked[0].placeholder is logits:
        return CoarseScores(asked[0], placement.inside)
    if asked:  # a model of somebody else's that does not say so
        logits = logits_of(setup, batch.images, batch.camera)
    return placement.uncover(logits[0].float())
