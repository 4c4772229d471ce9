"""Facts that recipes of several families share."""

from __future__ import annotations

from rgbdseg.config.train import AugmentationConfig
from rgbdseg.datasets import find_facts

ACNET_AUGMENTATION = AugmentationConfig(
    crop_size=(480, 640), scale_range=(1.0, 1.4), hsv_hue_factor=0.1, hsv_saturation_factor=0.1, hsv_value_shift=25.0
)
"""The data layer of ACNet, which ESANet's and AsymFormer's descend from."""

CMNEXT_AUGMENTATION = AugmentationConfig(
    crop_size=(480, 640),
    scale_range=(0.5, 2.0),
    brightness=0.5,
    contrast=0.5,
    saturation=0.5,
    color_probability=0.2,
    blur_probability=0.2,
)
"""The data layer of CMNeXt, which GeminiFusion and DiffPixelFormer took over."""


def training_frames(dataset: str) -> int:
    """Return how many frames the official training split of a benchmark has."""
    facts = find_facts(dataset)
    assert facts is not None
    return facts.splits["train"]
