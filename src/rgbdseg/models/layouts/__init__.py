"""Checkpoint layouts of the published code, one file per family.

To add a family, write a function from our parameter names to the published ones and enter its `Layout` here.
"""

from __future__ import annotations

from rgbdseg.models.layouts import malleable, sagate
from rgbdseg.models.layouts.base import Layout

__all__ = ["LAYOUTS", "Layout"]

LAYOUTS: dict[str, Layout] = {
    "malleable": malleable.LAYOUT,
    "sagate": sagate.LAYOUT,
}
