"""Model families, one file each, and what a family is made of; public names are imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rgbdseg.public_names import on_first_use

if TYPE_CHECKING:
    from rgbdseg.models._base import AuxiliaryOutput, SegmentationModel, SegmentationOutput
    from rgbdseg.models._card import MethodCard, PublishedResult
    from rgbdseg.models._layout import Layout, replace_prefix
    from rgbdseg.models._registry import Variant, create_model, list_models, register_model

__all__ = [
    "AuxiliaryOutput",
    "Layout",
    "MethodCard",
    "PublishedResult",
    "SegmentationModel",
    "SegmentationOutput",
    "Variant",
    "create_model",
    "list_models",
    "register_model",
    "replace_prefix",
]

__getattr__ = on_first_use(
    __name__,
    {
        **dict.fromkeys(("AuxiliaryOutput", "SegmentationModel", "SegmentationOutput"), "rgbdseg.models._base"),
        **dict.fromkeys(("MethodCard", "PublishedResult"), "rgbdseg.models._card"),
        **dict.fromkeys(("Layout", "replace_prefix"), "rgbdseg.models._layout"),
        **dict.fromkeys(("Variant", "create_model", "list_models", "register_model"), "rgbdseg.models._registry"),
    },
)
