"""EfficientViTs with multi-scale linear attention of timm as staged encoders.

Cai, Li, Hu, Gan, Han, EfficientViT: Lightweight Multi-Scale Attention for High-Resolution Dense Prediction, ICCV 2023,
arXiv 2205.14756.
"""

from __future__ import annotations

from typing import Any

from rgbdseg.encoders._base import EncoderEntry
from rgbdseg.encoders._timm import NoOptions, SequentialStem, TimmEncoder


class EfficientViTEncoder(TimmEncoder):
    """A timm EfficientViT without its classifier; see `TimmEncoder`.

    Its models are those of timm's module ``efficientvit_mit``.  The networks of the same name in ``efficientvit_msra``
    start at 1/16 of the image, which leaves no fine features, and are not supported.
    """

    def adapt(self, options: Any) -> None:
        """Let the stem return a state."""
        stem: Any = self.get_submodule("stem")
        self.add_module("stem", SequentialStem(stem))


TIMM_MODULES: dict[str, EncoderEntry] = {
    "efficientvit_mit": EncoderEntry(EfficientViTEncoder, NoOptions, weights="timm"),
}
