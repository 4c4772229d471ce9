"""Further picture-like inputs beside RGB, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from rgbdseg.errors import UsageError, unknown_name
from rgbdseg.input_spec import Stream
from rgbdseg.sample import RASTERS


def check_modalities(names: Sequence[str], computed: Sequence[str] = ()) -> None:
    """Check what a model sees besides RGB.

    Args:
        names: of rasters of 8 bits that are shown as they are stored, or of ``computed``.
        computed: names that the model makes a picture for by itself.

    Raises:
        UsageError: for modalities that stand twice, for RGB, which every model sees anyway, and for anything else.
    """
    if "rgb" in names or len(set(names)) != len(names):
        raise UsageError(f"modalities are {', '.join(names)}; expected each once, and not rgb, which is always there")
    for name in names:
        if name not in computed and not (name in RASTERS and _is_picture(name)):
            raise unknown_name("modality", name, (*computed, *(other for other in RASTERS if _is_picture(other))))


def _is_picture(raster: str) -> bool:
    return raster not in ("rgb", "label") and RASTERS[raster].dtype == torch.uint8


def depth_picture(mean: float, std: float, tone: Literal["linear", "greys_r"] = "linear") -> Stream:
    """Return the input of networks that are fed depth as a gray picture, which is repeated for three channels.

    Args:
        mean: of the picture in 0 to 1.
        std: as ``mean``.
        tone: ``greys_r`` for the pictures that DFormer's authors released.
    """
    return Stream("depth", "depth_m", (mean,) * 3, (std,) * 3, stretch="image", tone=tone)
