"""EfficientViTs with multi-scale linear attention of timm as staged encoders.

Cai, Li, Hu, Gan, Han, EfficientViT: Lightweight Multi-Scale Attention for High-Resolution Dense Prediction, ICCV 2023,
arXiv 2205.14756.
"""

from __future__ import annotations

from rgbdseg.encoders._timm import TimmEncoder


class EfficientViTEncoder(TimmEncoder):
    """A timm EfficientViT without its classifier; see `TimmEncoder`.

    name: timm model of the module ``efficientvit_mit``.  The networks of the same name in ``efficientvit_msra`` start
    at 1/16 of the image, which leaves no fine features, and are not supported.
    """
