"""What a model with pretrained encoders is fed."""

from __future__ import annotations

from typing import Literal

from rgbdseg.encoders import AnyEncoder
from rgbdseg.errors import unknown_name
from rgbdseg.input_spec import InputSpec

GeometryImage = Literal["hha", "noise"]
"""What a geometry stream with a pretrained encoder looks at; ``noise`` is the control without geometry."""


def image_input_spec(encoder: AnyEncoder, geometry: Literal["none", "hha", "noise"]) -> InputSpec:
    """Return the input spec of a model that shows images to encoders such as ``encoder``.

    RGB and geometry both have the mean and standard deviation of the encoder's ImageNet weights, as is published for
    ResNets, and the size must suit the encoder.
    """
    return InputSpec(
        geometry=geometry,
        rgb_mean=encoder.mean,
        rgb_std=encoder.std,
        geometry_mean=encoder.mean,
        geometry_std=encoder.std,
        size_divisor=encoder.size_divisor,
    )


def check_geometry_image(geometry: str) -> None:
    """Raise UsageError for a geometry input that encoders of images do not take."""
    if geometry not in ("hha", "noise"):
        raise unknown_name("geometry input", geometry, ("hha", "noise"))
