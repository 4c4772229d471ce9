"""Further picture-like inputs beside RGB, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rgbdseg.errors import UsageError
from rgbdseg.input_spec import Stream


def check_modalities(names: Sequence[str]) -> None:
    """Raise UsageError for modalities that stand twice, or that are RGB, which every model sees anyway."""
    if "rgb" in names or len(set(names)) != len(names):
        raise UsageError(f"modalities are {', '.join(names)}; expected each once, and not rgb, which is always there")


def depth_picture(mean: float, std: float, tone: Literal["linear", "greys_r"] = "linear") -> Stream:
    """Return the input of networks that are fed depth as a gray picture, which is repeated for three channels.

    Args:
        mean: of the picture in 0 to 1.
        std: as ``mean``.
        tone: ``greys_r`` for the pictures that DFormer's authors released.
    """
    return Stream("depth", "depth_m", (mean,) * 3, (std,) * 3, stretch="image", tone=tone)
