"""What a model eats: named streams, each made from one raster of a frame.

The spec travels inside every checkpoint, so prediction can never normalize differently from training.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from rgbdseg.errors import CheckpointError, DataError, UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FROM_DEPTH = ("depth_m", "raw_depth_m", "hha")
"""Rasters that are measured by a depth sensor or computed from such a measurement."""


@dataclasses.dataclass(frozen=True, slots=True)
class Stream:
    """How one raster becomes one input of the network, (B, C, H, W) with as many channels as ``mean`` has numbers.

    The value that a network sees is ``(stored / divide_by - mean) / std``; outside the image it is 0.

    Args:
        name: key of the tensor in ``images``, such as ``rgb``, ``hha``, ``depth`` or ``thermal``.
        raster: what it is made from, a key of `rgbdseg.sample.RASTERS`: ``rgb``, ``hha`` as (disparity, height,
            angle), ``depth_m``, ``noise``, ...  A raster of one channel is repeated where ``mean`` has more.
        mean: per channel as the network sees them, that is after ``channel_order``.
        std: as ``mean``.
        divide_by: 255 for pictures of 0..255; 1 for meters.
        channel_order: ``reversed`` for networks that were trained on BGR files read as they are.
        missing: what a reading of 0, which is none, becomes.  None: it is normalized as any other value; ``mean``: 0
            after normalization; a number, in the raster's unit: normalized in its place.
        stretch: ``image`` stretches the readings of each frame from their smallest and largest to 0..255 first, as
            depth pictures of published datasets are made.
        tone: what becomes of stretched readings: ``linear`` leaves them, ``greys_r`` makes of each the gray level that
            matplotlib's color map of that name has, in whole numbers.
        optional: whether a frame without the raster will do: the network then sees what it sees where a reading is
            missing everywhere.

    Raises:
        UsageError: for statistics that do not belong together, and values that mean nothing.
    """

    name: str
    raster: str
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    divide_by: float = 255.0
    channel_order: Literal["stored", "reversed"] = "stored"
    missing: float | Literal["mean"] | None = None
    stretch: Literal["none", "image"] = "none"
    tone: Literal["linear", "greys_r"] = "linear"
    optional: bool = False

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and isinstance(self.raster, str) and self.name and self.raster):
            raise UsageError(f"stream {self.name!r} of raster {self.raster!r}: both need a name")
        finite = all(math.isfinite(value) for value in (*self.mean, *self.std))
        if not self.mean or len(self.mean) != len(self.std) or not finite or not all(value > 0 for value in self.std):
            raise UsageError(
                f"stream '{self.name}' has mean {self.mean} and std {self.std}; expected one number per channel in "
                "both, and positive ones in std"
            )
        if not 0 < self.divide_by < math.inf:
            raise UsageError(f"stream '{self.name}' divides by {self.divide_by}; expected a positive number")
        if self.channel_order not in ("stored", "reversed") or self.stretch not in ("none", "image"):
            raise UsageError(
                f"stream '{self.name}' has channel_order {self.channel_order!r} and stretch {self.stretch!r}; expected "
                "'stored' or 'reversed', and 'none' or 'image'"
            )

        if self.tone not in ("linear", "greys_r") or (self.tone != "linear" and self.stretch != "image"):
            raise UsageError(
                f"stream '{self.name}' has tone {self.tone!r} and stretch {self.stretch!r}; expected 'linear', or "
                "'greys_r' with stretch 'image'"
            )

    @property
    def channels(self) -> int:
        """Channels that the network sees."""
        return len(self.mean)

    @property
    def from_depth(self) -> bool:
        """Whether it is measured by a depth sensor, so that a frame without depth will not do."""
        return self.raster in FROM_DEPTH


@dataclasses.dataclass(frozen=True, slots=True)
class InputSpec:
    """What a network is fed.

    Args:
        streams: in the order of the paper; names are unique.
        needs_camera: the network also asks for intrinsics (B, 4).
        size_divisor: image height and width must be multiples of it.

    Raises:
        UsageError: for no stream, two of one name, and a size_divisor below 1.
    """

    streams: tuple[Stream, ...]
    needs_camera: bool = False
    size_divisor: int = 1

    def __post_init__(self) -> None:
        names = [stream.name for stream in self.streams]
        if not names or len(set(names)) != len(names):
            raise UsageError(f"an input has streams {names}; expected at least one, and each name once")
        if type(self.size_divisor) is not int or self.size_divisor < 1:
            raise UsageError(f"an input has the size_divisor {self.size_divisor!r}; expected a whole number above 0")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the streams, in order."""
        return tuple(stream.name for stream in self.streams)

    @property
    def rasters(self) -> tuple[str, ...]:
        """Names of the rasters that the streams are made from, each once."""
        return tuple(dict.fromkeys(stream.raster for stream in self.streams))

    @property
    def asks_for_camera(self) -> bool:
        """Whether a frame must come with its intrinsics: for the network itself, or for HHA it cannot do without."""
        return self.needs_camera or any(stream.raster == "hha" and not stream.optional for stream in self.streams)

    @property
    def needs_depth(self) -> bool:
        """Whether a frame without depth will not do."""
        return any(stream.from_depth and not stream.optional for stream in self.streams)

    def stream(self, name: str) -> Stream:
        """Return the stream called ``name``; raises KeyError."""
        return next(stream for stream in self.streams if stream.name == name)

    def check_size(self, size: tuple[int, int]) -> None:
        """Raise DataError unless the network can take images of this (height, width)."""
        if size[0] % self.size_divisor or size[1] % self.size_divisor:
            height, width = self.padded_size(size)
            raise DataError(
                f"size {size[0]}x{size[1]} is not divisible by {self.size_divisor}; pad to {height}x{width}"
            )

    def padded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the smallest (height, width) that the network can take and that holds ``size``."""
        divisor = self.size_divisor
        return -(-size[0] // divisor) * divisor, -(-size[1] // divisor) * divisor

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON or a checkpoint."""
        plain = dataclasses.asdict(self)
        return {**plain, "streams": [_listed(stream) for stream in plain["streams"]]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> InputSpec:
        """Rebuild from `to_dict`, or from what checkpoints of version 0.1 hold.

        Raises:
            CheckpointError: for anything else.
        """
        try:
            if "streams" not in values:
                return _from_first_format(values)
            streams = tuple(Stream(**{k: _tupled(v) for k, v in stream.items()}) for stream in values["streams"])
            return cls(streams, **{k: v for k, v in values.items() if k != "streams"})
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError, UsageError) as error:
            raise CheckpointError(f"input spec {values!r} is not understood: {error!r}") from None


def rgb_stream(
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    channel_order: Literal["stored", "reversed"] = "stored",
) -> Stream:
    """Return the usual color input: divided by 255 and normalized."""
    return Stream("rgb", "rgb", mean, std, channel_order=channel_order)


def hha_stream(
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    channel_order: Literal["stored", "reversed"] = "stored",
) -> Stream:
    """Return the usual HHA input: divided by 255 and normalized as color is."""
    return Stream("hha", "hha", mean, std, channel_order=channel_order)


def noise_stream(mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD) -> Stream:
    """Return the control in place of HHA: values of its range that say nothing about the scene."""
    return Stream("noise", "noise", mean, std)


def metric_depth_stream() -> Stream:
    """Return depth in meters as it is, with 0 where there is no reading."""
    return Stream("depth", "depth_m", (0.0,), (1.0,), divide_by=1.0)


def _from_first_format(values: Mapping[str, Any]) -> InputSpec:
    """Read the one geometry slot beside RGB of version 0.1."""
    order: Literal["stored", "reversed"] = "reversed" if values["channel_order"] == "bgr" else "stored"
    streams = [Stream("rgb", "rgb", _tupled(values["rgb_mean"]), _tupled(values["rgb_std"]), channel_order=order)]
    geometry = values["geometry"]
    mean, std = _tupled(values["geometry_mean"]), _tupled(values["geometry_std"])
    if geometry in ("hha", "noise"):
        streams.append(Stream(geometry, geometry, mean, std))
    elif geometry == "depth":
        missing = values.get("missing_depth_m")
        streams.append(Stream("depth", "depth_m", mean, std, 1.0, missing="mean" if missing is None else missing))
    elif geometry == "metric_depth":
        streams.append(Stream("depth", "depth_m", (0.0,), (1.0,), 1.0))
    elif geometry != "none":
        raise UsageError(f"geometry {geometry!r} is not one of none, hha, noise, depth, metric_depth")
    return InputSpec(tuple(streams), bool(values["needs_camera"]), int(values["size_divisor"]))


def _listed(stream: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in stream.items()}


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
