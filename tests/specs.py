"""Input specs that many tests use."""

from __future__ import annotations

import dataclasses

from rgbdseg.input_spec import InputSpec, Stream, hha_stream, rgb_stream

RGB_ONLY = InputSpec((rgb_stream(),))
RGB_HHA = InputSpec((rgb_stream(), hha_stream()))
RGB_NOISE = InputSpec((rgb_stream(), Stream("noise", "noise")))
METRIC_DEPTH = Stream("depth", "depth_m", (0.0,), (1.0,), divide_by=1.0)
"""Depth in meters as it is."""
RGB_DEPTH = InputSpec((rgb_stream(), METRIC_DEPTH))
PLAIN_RGB = InputSpec((rgb_stream((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),))
"""Pixel values as they are, up to a factor of 255."""


def with_camera(spec: InputSpec) -> InputSpec:
    return dataclasses.replace(spec, needs_camera=True)
