"""Checkpoint layouts of the published code, one file per family.

To add a family, write a function from our parameter names to the published ones and enter its `Layout` here.
"""

from __future__ import annotations

from rgbdseg.models.layouts import acfnet, acnet, danet, gald, malleable, rdfnet, sagate
from rgbdseg.models.layouts.base import Layout

__all__ = ["LAYOUTS", "Layout"]

LAYOUTS: dict[str, Layout] = {
    "acfnet": acfnet.LAYOUT,
    "acnet": acnet.LAYOUT,
    "danet": danet.LAYOUT,
    "gald": gald.LAYOUT,
    "malleable": malleable.LAYOUT,
    "rdfnet": rdfnet.LAYOUT,
    "sagate": sagate.LAYOUT,
}
