"""From a model and a physical sample to class scores: whole image or sliding window, multi-scale, mirror image."""

from __future__ import annotations

from rgbdseg.inference.segment import segment
from rgbdseg.inference.segmentation import Segmentation
from rgbdseg.inference.setup import Model
from rgbdseg.inference.windows import window_positions

__all__ = ["Model", "Segmentation", "segment", "window_positions"]
