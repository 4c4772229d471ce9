"""What a model eats.

The spec travels inside every checkpoint, so prediction can never normalise differently from training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

from rgbdseg.errors import CheckpointError

GeometryKind = Literal["none", "hha", "depth", "metric_depth", "noise"]
"""``none``: RGB only.  ``hha``: (disparity, height, angle) as uint8, divided by 255 and normalised.  ``depth``: one
channel of metres, normalised.  ``metric_depth``: one channel of metres as it is, 0 = no reading.
``noise``: three channels of uint8 noise in place of HHA and treated like it, a control that shows what a second stream
adds by itself."""

_RASTERS: dict[GeometryKind, str] = {
    "hha": "hha",
    "depth": "depth_m",
    "metric_depth": "depth_m",
    "noise": "noise",
}

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True, slots=True)
class InputSpec:
    """How physical rasters become model input.

    RGB: ``(uint8 / 255 - rgb_mean) / rgb_std``, channels in ``channel_order``.
    Geometry: nothing for ``none`` and ``metric_depth``; ``(uint8 / 255 - mean) / std`` for ``hha`` and ``noise``;
    ``(depth_m - mean) / std`` for ``depth`` where a reading exists; elsewhere 0, or what ``missing_depth_m`` becomes.
    ``missing_depth_m``: depth in metres that a ``depth`` model takes where there is no reading; None: the mean.
    ``size_divisor``: input height and width must be multiples of it.
    ``needs_camera``: the model asks for the intrinsics (B, 4) as its third input.
    """

    geometry: GeometryKind = "hha"
    channel_order: Literal["rgb", "bgr"] = "rgb"
    rgb_mean: tuple[float, float, float] = IMAGENET_MEAN
    rgb_std: tuple[float, float, float] = IMAGENET_STD
    geometry_mean: tuple[float, ...] = IMAGENET_MEAN
    geometry_std: tuple[float, ...] = IMAGENET_STD
    size_divisor: int = 1
    needs_camera: bool = False
    missing_depth_m: float | None = None

    def __post_init__(self) -> None:
        if self.geometry not in get_args(GeometryKind):
            raise ValueError(f"geometry {self.geometry!r} is not one of {get_args(GeometryKind)}")
        if self.geometry in ("hha", "depth", "noise") and not (
            len(self.geometry_mean) == len(self.geometry_std) == self.geometry_channels
        ):
            raise ValueError(
                f"geometry '{self.geometry}' has {self.geometry_channels} channels, got mean {self.geometry_mean} "
                f"and std {self.geometry_std}"
            )

    @property
    def geometry_channels(self) -> int:
        """Channels of the geometry input: 0, 1 or 3."""
        return {"none": 0, "hha": 3, "depth": 1, "metric_depth": 1, "noise": 3}[self.geometry]

    @property
    def geometry_raster(self) -> str | None:
        """Name of the raster of `RGBDSample` that the geometry input is made from, or None without such an input."""
        return _RASTERS.get(self.geometry)

    @property
    def needs_depth(self) -> bool:
        """Whether the geometry input is measured, so that a frame without depth will not do."""
        return self.geometry not in ("none", "noise")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON or a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> InputSpec:
        """Rebuild from `to_dict`; sequences may have become lists."""
        try:
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            return cls(**fields)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"input spec {dict(values)!r} is not understood: {error}") from None
