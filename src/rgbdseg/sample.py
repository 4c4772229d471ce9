"""The two sample types: `RGBDSample` holds physical rasters, `RGBDBatch` holds model-ready tensors.

They are distinct on purpose, so that physical and normalized data cannot be confused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor

from rgbdseg.camera import PinholeCamera
from rgbdseg.errors import DataError
from rgbdseg.labels import IGNORE_INDEX
from rgbdseg.open_registry import OpenRegistry

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# B batch, C channels, H height, W width

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
DEPTH_SUFFIXES = (".npy", ".png", ".tif", ".tiff", ".npz", ".exr", ".pgm", ".pfm")
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".npy", ".pgm")


@dataclasses.dataclass(frozen=True, slots=True)
class RasterRule:
    """What one kind of raster holds, how it is moved, and where its files lie.

    Args:
        channels: of the stored raster.
        dtype: ``torch.uint8`` for pictures, ``torch.float32`` for measured values.
        interpolation: how it is resized: measured values have no mean across an edge, so they take the nearest.
        fill: what the area outside the image holds.
        suffixes: of its files; where one frame has several files, the first suffix listed wins.  Empty: never stored.
        folder: where its files lie in a prepared tree unless ``dataset.json`` says otherwise; empty: it must say.
    """

    channels: int
    dtype: torch.dtype
    interpolation: Literal["bilinear", "nearest"]
    fill: int = 0
    suffixes: tuple[str, ...] = PICTURE_SUFFIXES
    folder: str = ""


_BUILT_IN = {
    "rgb": RasterRule(3, torch.uint8, "bilinear", folder="RGB"),
    # A mean of two depths across an edge is a point in empty space, and a mean with 0 is no reading at all.
    "depth_m": RasterRule(1, torch.float32, "nearest", suffixes=DEPTH_SUFFIXES, folder="Depth"),
    "raw_depth_m": RasterRule(1, torch.float32, "nearest", suffixes=DEPTH_SUFFIXES, folder="RawDepth"),
    "hha": RasterRule(3, torch.uint8, "bilinear", suffixes=(".png", ".jpg", ".jpeg"), folder="HHA"),
    "noise": RasterRule(3, torch.uint8, "bilinear", suffixes=()),
    "label": RasterRule(1, torch.uint8, "nearest", IGNORE_INDEX, suffixes=LABEL_SUFFIXES, folder="Label"),
}

BUILT_IN_RASTERS = tuple(_BUILT_IN)
"""Rasters that are fields of `RGBDSample`."""

_PICTURES = {
    "thermal": RasterRule(1, torch.uint8, "bilinear", folder="Thermal"),
    "event": RasterRule(3, torch.uint8, "bilinear", folder="Event"),
    "lidar": RasterRule(3, torch.uint8, "bilinear", folder="LiDAR"),
}
"""What the sensors of further datasets show."""

RASTERS: OpenRegistry[RasterRule] = OpenRegistry("raster", "", "RASTERS", "rgbdseg.rasters", {**_BUILT_IN, **_PICTURES})
"""Every kind of raster by name: the one place where a new modality says what it is.

Other packages add to it with `register_raster`, or with an entry point in the group ``rgbdseg.rasters`` that names a
module with a dictionary ``RASTERS``.
"""


def register_raster(name: str, rule: RasterRule) -> None:
    """Add a modality from outside this package.

    Args:
        name: by which streams, ``folders`` of ``dataset.json`` and samples refer to it.
        rule: what it is.

    Raises:
        UsageError: for a name that stands for another rule already.
    """
    RASTERS.register(name, rule)


@dataclasses.dataclass(frozen=True, slots=True)
class RGBDSample:
    """One physical, unbatched RGB-D frame; everything but ``rgb`` is optional.

    Args:
        rgb: uint8 (3, H, W), RGB order.
        depth_m: float32 (1, H, W), z-depth in meters, 0 = no reading; may be in-painted.
        raw_depth_m: float32 (1, H, W), the sensor's own readings in meters, 0 = none (the missing mask of HHA).
        hha: uint8 (3, H, W) as (disparity, height, angle).
        label: uint8 (1, H, W), class indices, 255 = ignore.
        camera: intrinsics of exactly these pixels.
        sample_id: the name that outputs carry.
        noise: uint8 (3, H, W), what models of the control that sees no geometry get in its place.
        others: further rasters by their name in `RASTERS`, (C, H, W) each.
        reading_ranges: by raster, the smallest and the largest reading of the whole frame that this is a part of, for
            streams that are stretched between the two.

    Raises:
        DataError: for a raster of another type or shape, or of another size than ``rgb``.
        UsageError: for an unknown raster.
    """

    rgb: Tensor
    depth_m: Tensor | None = None
    raw_depth_m: Tensor | None = None
    hha: Tensor | None = None
    label: Tensor | None = None
    camera: PinholeCamera | None = None
    sample_id: str = ""
    noise: Tensor | None = None
    others: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    reading_ranges: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.others:
            RASTERS.get(name)
            if name in BUILT_IN_RASTERS:
                raise DataError(f"sample '{self.sample_id}': {name} is among the others; give it as {name}=")
        for name, raster in self.rasters():
            rule = RASTERS[name]
            expected = (rule.channels, *self.size)
            if tuple(raster.shape) != expected or raster.dtype != rule.dtype:
                raise DataError(
                    f"sample '{self.sample_id}': {name} is {raster.dtype} {tuple(raster.shape)}, "
                    f"expected {rule.dtype} {expected} (channels, height, width)"
                )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.rgb.shape[-2], self.rgb.shape[-1])

    def raster(self, name: str) -> Tensor | None:
        """Return a raster by its name in `RASTERS`, or None where the frame has none."""
        return getattr(self, name) if name in BUILT_IN_RASTERS else self.others.get(name)

    def rasters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and tensor of every raster that is present."""
        for name in (*BUILT_IN_RASTERS, *self.others):
            raster = self.raster(name)
            if raster is not None:
                yield name, raster

    def replace(self, **changes: object) -> RGBDSample:
        """Return a copy with some fields, or rasters of any name, changed; None takes a raster away."""
        others = {**self.others, **{name: changes.pop(name) for name in list(changes) if name not in _ALL_FIELDS}}
        if others:
            changes["others"] = {name: raster for name, raster in others.items() if raster is not None}
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


_ALL_FIELDS = frozenset(field.name for field in dataclasses.fields(RGBDSample))


@dataclasses.dataclass(frozen=True, slots=True)
class RGBDBatch:
    """Model-ready tensors of one batch.

    Args:
        images: float (B, C, H, W) by the name of the stream, normalized as the model's input spec says.
        camera: float32 (B, 4) as fx, fy, cx, cy in pixels of this H x W, or None.
        label: int64 (B, H, W), 255 = ignore, or None.
        depth_m: float32 (B, 1, H, W), meters, 0 = no reading: the target of depth and normal tasks, or None.
        sample_ids: the frames' names.
    """

    images: dict[str, Tensor]
    camera: Tensor | None = None
    label: Tensor | None = None
    depth_m: Tensor | None = None
    sample_ids: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(next(iter(self.images.values())))

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return next(iter(self.images.values())).device

    def to(self, device: torch.device | str, non_blocking: bool = True) -> RGBDBatch:
        """Return the batch on ``device``."""
        return move_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> RGBDBatch:
        """Return the batch in page-locked memory, which a data loader asks for before copying to a GPU."""
        return move_tensors(self, Tensor.pin_memory)


TensorRecord = TypeVar("TensorRecord", bound="DataclassInstance")


def move_tensors(record: TensorRecord, move: Callable[[Tensor], Tensor]) -> TensorRecord:
    """Return a dataclass with ``move`` applied to each field that is a tensor or holds tensors by name."""
    moved: dict[str, Any] = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Tensor):
            moved[field.name] = move(value)
        elif isinstance(value, dict) and any(isinstance(item, Tensor) for item in value.values()):
            moved[field.name] = {name: move(tensor) for name, tensor in value.items()}
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            moved[field.name] = move_tensors(value, move)
    return dataclasses.replace(record, **moved)
