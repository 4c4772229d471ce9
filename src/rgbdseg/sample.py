"""The two sample types: `RGBDSample` holds physical rasters, `RGBDBatch` holds model-ready tensors.

They are distinct on purpose, so that physical and normalised data cannot be confused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor

from rgbdseg.camera import PinholeCamera
from rgbdseg.errors import DataError
from rgbdseg.labels import IGNORE_INDEX

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# B batch, C channels, H height, W width


@dataclasses.dataclass(frozen=True, slots=True)
class RasterRule:
    """How one kind of raster is resampled and what fills the area outside the image."""

    channels: int
    dtype: torch.dtype
    interpolation: Literal["bilinear", "nearest"]
    fill: int


RASTERS: dict[str, RasterRule] = {
    "rgb": RasterRule(3, torch.uint8, "bilinear", 0),
    # A mean of two depths across an edge is a point in empty space, and a mean with 0 is no reading at all.
    "depth_m": RasterRule(1, torch.float32, "nearest", 0),
    "raw_depth_m": RasterRule(1, torch.float32, "nearest", 0),
    "hha": RasterRule(3, torch.uint8, "bilinear", 0),
    "noise": RasterRule(3, torch.uint8, "bilinear", 0),
    "label": RasterRule(1, torch.uint8, "nearest", IGNORE_INDEX),
}
"""The rule of every raster of `RGBDSample`: the one place where a new modality says how it is transformed."""


@dataclasses.dataclass(frozen=True, slots=True)
class RGBDSample:
    """One physical, unbatched RGB-D frame; everything but ``rgb`` is optional.

    rgb: uint8 (3, H, W), RGB order.
    depth_m: float32 (1, H, W), z-depth in metres, 0 = no reading; may be in-painted.
    raw_depth_m: float32 (1, H, W), the sensor's own readings in metres, 0 = no reading (the missing mask of HHA).
    hha: uint8 (3, H, W) as (disparity, height, angle).
    noise: uint8 (3, H, W), what models of the control that sees no geometry get in its place.
    label: uint8 (1, H, W), class indices, 255 = ignore.
    camera: intrinsics of exactly these pixels.
    sample_id: the name that outputs carry.
    """

    rgb: Tensor
    depth_m: Tensor | None = None
    raw_depth_m: Tensor | None = None
    hha: Tensor | None = None
    label: Tensor | None = None
    camera: PinholeCamera | None = None
    sample_id: str = ""
    noise: Tensor | None = None

    def __post_init__(self) -> None:
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

    def rasters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and tensor of every raster that is present."""
        for name in RASTERS:
            raster = getattr(self, name)
            if raster is not None:
                yield name, raster

    def replace(self, **changes: object) -> RGBDSample:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True, slots=True)
class RGBDBatch:
    """Model-ready tensors of one batch.

    rgb: float (B, 3, H, W), normalised.  geometry: float (B, C, H, W) as the model's input spec says, or None.
    camera: float32 (B, 4) as fx, fy, cx, cy in pixels of this H x W, or None.
    label: int64 (B, H, W), 255 = ignore, or None.
    depth_m: float32 (B, 1, H, W), metres, 0 = no reading: the target of depth and normal tasks, or None.
    """

    rgb: Tensor
    geometry: Tensor | None = None
    camera: Tensor | None = None
    label: Tensor | None = None
    depth_m: Tensor | None = None
    sample_ids: tuple[str, ...] = ()

    def to(self, device: torch.device | str, non_blocking: bool = True) -> RGBDBatch:
        """Return the batch on ``device``."""
        return move_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> RGBDBatch:
        """Return the batch in page-locked memory, which a data loader asks for before copying to a GPU."""
        return move_tensors(self, Tensor.pin_memory)


Held = TypeVar("Held", bound="DataclassInstance")


def move_tensors(values: Held, move: Callable[[Tensor], Tensor]) -> Held:
    """Return a dataclass with ``move`` applied to each field that is a tensor."""
    moved: dict[str, Any] = {
        f.name: move(value) for f in dataclasses.fields(values) if isinstance(value := getattr(values, f.name), Tensor)
    }
    return dataclasses.replace(values, **moved)
