"""The second stream of models that read depth in meters, and the controls that take its place."""

from __future__ import annotations

from typing import Literal

from rgbdseg.input_spec import Stream, hha_stream, noise_stream
from rgbdseg.options import check_choice

SecondStream = Literal["depth", "hha", "noise"]
"""What the second stream is made from; ``noise`` is the control without geometry."""
DepthStatistics = Literal["nyuv2", "nyuv2_raw", "sunrgbd", "cityscapes"]
"""Whose depth readings a network was trained with: a key of ``DEPTH_STATISTICS_M``."""
MissingDepth = Literal["normalized", "mean"]
"""What a missing reading becomes: ``normalized`` like every other value (0 m), or the ``mean``, 0 for the network."""

DEPTH_STATISTICS_M: dict[str, tuple[float, float]] = {
    "nyuv2": (2.84194941272766, 1.4172594281672277),
    "nyuv2_raw": (2.7690187903686697, 1.3504174149841133),
    # Released in the unit of the dataset's 16-bit files, an eighth of a millimeter.
    "sunrgbd": (19025.14930492213 / 8000, 9880.916071806689 / 8000),
    "cityscapes": (31.715617493177906, 38.70280704877372),
}
"""Mean and standard deviation of depth in meters over the training images.

Source: github.com/TUI-NICR/ESANet, converted from millimeters.  ``nyuv2``: of the filled depth, which the released
networks are normalized with whether depth is filled or raw; ``nyuv2_raw``: of the sensor's own readings.
"""


def depth_stream(kind: str, statistics: str, missing: str) -> Stream:
    """Return the stream of this ``kind``: depth of one channel, or an image of three.

    Raises:
        UsageError: for names outside `SecondStream`, `DepthStatistics` and `MissingDepth`.
    """
    check_choice("second_stream", kind, SecondStream)
    check_choice("depth_statistics", statistics, DepthStatistics)
    check_choice("missing_depth", missing, MissingDepth)
    if kind == "hha":
        return hha_stream()
    if kind == "noise":
        return noise_stream()
    mean_m, std_m = DEPTH_STATISTICS_M[statistics]
    return Stream("depth", "depth_m", (mean_m,), (std_m,), 1.0, missing="mean" if missing == "mean" else None)
