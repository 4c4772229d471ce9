"""From what users have in memory, NumPy arrays or tensors in the usual layouts, to a checked physical sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rgbdseg.camera import PinholeCamera
from rgbdseg.camera_check import require_plausible_camera
from rgbdseg.depth import DepthUnit, check_plausible, parse_depth_unit
from rgbdseg.device import dtype_name
from rgbdseg.errors import DataError, UsageError
from rgbdseg.sample import RASTERS, RGBDSample

# H height, W width, C channels

CameraLike = PinholeCamera | Sequence[float] | Mapping[str, float] | Any
"""A `PinholeCamera`, (fx, fy, cx, cy), a mapping with these keys, or a 3x3 matrix; pixels, counted from 0."""


def make_sample(
    rgb: Any,
    depth: Any = None,
    camera: CameraLike | None = None,
    *,
    depth_unit: str | float | DepthUnit | None = None,
    images: Mapping[str, Any] | None = None,
    name: str = "frame",
    device: torch.device | str = "cpu",
) -> RGBDSample:
    """Return a frame as a sample.

    Args:
        rgb: uint8 in RGB order, (H, W, 3) or (3, H, W): a NumPy array, a tensor, or a picture of Pillow.
        depth: z-depth of the same pixels, (H, W), (H, W, 1) or (1, H, W); 0, negative and not-a-number are no reading.
        camera: see `CameraLike`.
        depth_unit: of ``depth``: m, cm, mm or the meters per unit.  None: numbers with a fraction are meters, and
            whole numbers are refused, since their unit cannot be known.
        images: further rasters by their name in `rgbdseg.sample.RASTERS`, (H, W), (H, W, C) or (C, H, W).
        name: of the frame, for messages and files.
        device: where the tensors go.

    Raises:
        DataError: for arrays of another type, shape or size, and depth in this unit or a camera that cannot be right.
        UsageError: for unknown names.
    """
    rgb_CHW = _rgb(rgb, name).to(device)
    size = (rgb_CHW.shape[-2], rgb_CHW.shape[-1])
    known_camera = make_camera(camera)
    require_plausible_camera(known_camera, size, name)
    rasters: dict[str, Tensor] = {}
    if depth is not None:
        rasters["depth_m"] = _depth_m(depth, depth_unit, size, name).to(device)
    for raster, values in (images or {}).items():
        rasters[raster] = _further(raster, values, size, name).to(device)
    return RGBDSample(rgb_CHW, camera=known_camera, sample_id=name).replace(**rasters)


def make_camera(camera: CameraLike | None) -> PinholeCamera | None:
    """Return the camera in the form of this library; see `CameraLike`.

    Raises:
        DataError: for anything that is not understood.
    """
    if camera is None or isinstance(camera, PinholeCamera):
        return camera
    if isinstance(camera, Mapping):
        return PinholeCamera.from_dict(camera)
    if isinstance(camera, str):
        return PinholeCamera.from_string(camera)
    expected = "expected (fx, fy, cx, cy) or a 3x3 matrix, in pixels"
    try:
        values = np.asarray(camera, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"camera {camera!r} is not understood; {expected}") from None
    if values.shape == (4,):
        fx, fy, cx, cy = values.tolist()
        return PinholeCamera(fx, fy, cx, cy)
    if values.shape == (3, 3):
        if abs(values[0, 1]) > 1e-6 * abs(values[0, 0]):
            raise DataError(f"the camera matrix has a skew of {values[0, 1]:g}; expected one without")
        return PinholeCamera(*(float(values[position]) for position in ((0, 0), (1, 1), (0, 2), (1, 2))))
    raise DataError(f"the camera has the shape {values.shape}; {expected}")


def _rgb(rgb: Any, name: str) -> Tensor:
    values = _tensor(rgb, name, "rgb")
    expected = "expected uint8 of 0 to 255, (height, width, 3) or (3, height, width)"
    if values.ndim != 3 or 3 not in (values.shape[0], values.shape[-1]):
        hint = "; leave out the alpha channel: rgb[..., :3]" if values.ndim == 3 and values.shape[-1] == 4 else ""
        raise DataError(f"{name}: rgb has the shape {tuple(values.shape)}; {expected}{hint}")
    if values.dtype != torch.uint8:
        hint = "; values of 0 to 1 become (255 * rgb).round()" if values.dtype.is_floating_point else ""
        raise DataError(f"{name}: rgb is {_dtype(values)}; {expected}{hint}")
    return _channels_first(rgb, values, 3)


def _depth_m(depth: Any, unit: str | float | DepthUnit | None, size: tuple[int, int], name: str) -> Tensor:
    values = _tensor(depth, name, "depth")
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[-1]):
        values = values.reshape(values.shape[1:] if values.shape[0] == 1 else values.shape[:2])
    if values.ndim != 2:
        raise DataError(
            f"{name}: depth has the shape {tuple(values.shape)}; expected (height, width) of distances; is it a "
            "colored rendering?"
        )
    if tuple(values.shape) != size:
        raise DataError(
            f"{name}: depth is {_size(values)} but rgb is {size[0]}x{size[1]}; register depth to the color image first"
        )
    if values.dtype == torch.bool or values.is_complex():
        raise DataError(f"{name}: depth is {_dtype(values)}; expected numbers")
    if unit is None and not values.dtype.is_floating_point:
        raise DataError(
            f"{name}: depth is {_dtype(values)}, whole numbers whose unit is not known; give depth_unit='mm', or the "
            "meters per unit"
        )
    known = unit if isinstance(unit, DepthUnit) else parse_depth_unit("m" if unit is None else unit)
    meters = known.to_meters(values.cpu().numpy())
    if not meters.any():
        raise DataError(f"{name}: depth has no reading: every value is 0, negative or not a number")
    check_plausible(meters, f"{name}: depth", known)
    return torch.from_numpy(meters)[None]


def _further(raster: str, given: Any, size: tuple[int, int], name: str) -> Tensor:
    rule = RASTERS.get(raster)
    values = _tensor(given, name, raster)
    if values.ndim == 2:
        values = values[None]
    expected = f"expected {dtype_name(rule.dtype)} ({rule.channels}, {size[0]}, {size[1]})"
    if values.ndim != 3 or rule.channels not in (values.shape[0], values.shape[-1]):
        raise DataError(f"{name}: {raster} has the shape {tuple(values.shape)}; {expected}")
    values = _channels_first(given, values, rule.channels)
    if tuple(values.shape[-2:]) != size:
        raise DataError(f"{name}: {raster} is {_size(values)} but rgb is {size[0]}x{size[1]}; expected the same size")
    if rule.dtype == torch.uint8 and values.dtype != torch.uint8:
        raise DataError(f"{name}: {raster} is {_dtype(values)}; {expected}")
    return values.to(rule.dtype)


def _tensor(values: Any, name: str, what: str) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach()
    try:
        array = np.asarray(values)
        # A view of memory that is read-only, or that counts backwards, is no tensor.
        return torch.from_numpy(array if array.flags.writeable and min(array.strides, default=0) >= 0 else array.copy())
    except TypeError:
        raise DataError(
            f"{name}: {what} is {type(values).__name__} of {np.asarray(values).dtype}; expected a NumPy array or tensor"
        ) from None


def _channels_first(given: Any, values: Tensor, channels: int) -> Tensor:
    """Return (C, H, W); where both ends could be the channels, tensors have them first and arrays last."""
    first = values.shape[0] == channels
    if first and values.shape[-1] == channels and channels != 1:
        first = isinstance(given, Tensor)
    return (values if first else values.permute(2, 0, 1)).contiguous()


def _size(values: Tensor) -> str:
    return f"{values.shape[-2]}x{values.shape[-1]}"


def _dtype(values: Tensor) -> str:
    return dtype_name(values.dtype)


def check_known(names: Sequence[str], wanted: Sequence[str], model: str) -> None:
    """Raise UsageError for rasters that a model has no use for."""
    for name in names:
        RASTERS.get(name)
        if name not in wanted:
            raise UsageError(f"images holds '{name}', which {model} does not look at; it takes {', '.join(wanted)}")
