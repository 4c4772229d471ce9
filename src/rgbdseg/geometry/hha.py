"""HHA: depth as horizontal disparity, height above the floor and angle with gravity, three channels of 8 bits.

Gupta, Girshick, Arbelaez, Malik, "Learning Rich Features from RGB-D Images for Object Detection and Segmentation",
ECCV 2014; constants and treatment of missing readings as in the published MATLAB and Python encoders that the data
of SA-Gate and its relatives were made with.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import Tensor

from rgbdseg.errors import DataError, UsageError, unknown_name
from rgbdseg.geometry.backproject import clean_depth, pixel_rays
from rgbdseg.geometry.gravity import gravity_direction
from rgbdseg.geometry.normals import SingularWindows, fit_planes, measured_depth, plane_fit_normals
from rgbdseg.worker_threads import run_workers, worker_count

# B images, H height, W width

HHA_CHANNELS = ("disparity", "height", "angle")
"""The order of the channels."""

_NOT_A_HEIGHT_CM = 1e30


@dataclasses.dataclass(frozen=True)
class HHAParameters:
    """Every constant of the encoding; the defaults are the published ones, for rooms.

    Args:
        disparity_scale_cm: channel 0 is this divided by max(depth in cm, min_depth_cm).
        min_depth_cm: see there.
        height_scale: gray levels of channel 1 per centimeter above the floor.
        floor_percentile: this percentile of the heights (relative to the camera) is the floor; 0 is the lowest point.
        floor_threshold_cm: a floor found above it is not believed; None: every floor is.
        floor_fallback_cm: the floor that is taken instead, of a camera held at that height.
        angle_offset_deg: channel 2 is the angle between normal and gravity plus this: 38 floor, 128 wall, 218 ceiling.
        undefined_angle_deg: the angle where the normal is undefined.
        normal_radius: window radius, in pixels, of the normals behind channel 2.
        singular_windows: what becomes of normals that the readings do not fix, see `plane_fit_normals`.
        gravity_radius: window radius, in pixels, of the normals that gravity is found from.
        gravity_thresholds_deg: see `gravity_direction`.
        gravity_iterations: see there.
        initial_gravity: see there.
        min_gravity_rotation_deg: a smaller rotation from the initial direction is not applied to the heights.
        max_gravity_rotation_deg: the most that gravity may turn away from the initial direction, or None.
        missing_fill: value of all channels where there is no depth.  None, as published: depth 0 is encoded like any
            other (disparity of ``min_depth_cm``, the height of the camera, the angle of the readings around).
    """

    disparity_scale_cm: float = 31000.0
    min_depth_cm: float = 100.0
    height_scale: float = 1.0
    floor_percentile: float = 0.0
    floor_threshold_cm: float | None = -90.0
    floor_fallback_cm: float = -130.0
    angle_offset_deg: float = 128.0 - 90.0
    undefined_angle_deg: float = 180.0
    normal_radius: int = 3
    singular_windows: SingularWindows = "published"
    gravity_radius: int = 10
    gravity_thresholds_deg: tuple[float, ...] = (45.0, 15.0)
    gravity_iterations: tuple[int, ...] = (5, 5)
    initial_gravity: tuple[float, float, float] = (0.0, 1.0, 0.0)
    min_gravity_rotation_deg: float = 0.1
    max_gravity_rotation_deg: float | None = None
    missing_fill: int | None = None

    def __post_init__(self) -> None:
        def require(condition: bool, name: str, expected: str) -> None:
            if not condition:
                raise UsageError(f"HHA parameter {name} is {getattr(self, name)!r}; expected {expected}")

        for name in ("disparity_scale_cm", "min_depth_cm", "height_scale"):
            require(0 < getattr(self, name) < math.inf, name, "a positive number")
        for name in ("floor_fallback_cm", "angle_offset_deg", "undefined_angle_deg", "min_gravity_rotation_deg"):
            require(math.isfinite(getattr(self, name)), name, "a finite number")
        for name in ("normal_radius", "gravity_radius"):
            require(isinstance(getattr(self, name), int) and getattr(self, name) >= 1, name, "1 or more pixels")
        require(0 <= self.floor_percentile <= 100, "floor_percentile", "0..100")
        require(
            len(self.gravity_iterations) == len(self.gravity_thresholds_deg)
            and all(isinstance(count, int) and count >= 0 for count in self.gravity_iterations),
            "gravity_iterations",
            f"one whole number for each of the thresholds {self.gravity_thresholds_deg}",
        )
        require(
            len(self.initial_gravity) == 3 and math.hypot(*self.initial_gravity) > 0,
            "initial_gravity",
            "a vector x, y, z of positive length",
        )
        require(
            self.singular_windows in get_args(SingularWindows),
            "singular_windows",
            " or ".join(repr(choice) for choice in get_args(SingularWindows)),
        )
        require(self.missing_fill is None or 0 <= self.missing_fill <= 255, "missing_fill", "None or 0..255")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HHAParameters:
        """Rebuild from `to_dict`; fields left out take their indoor defaults.

        Raises:
            UsageError: for unknown names.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise unknown_name("HHA parameter", name, known)
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        try:
            return cls(**fields)
        except TypeError as error:
            raise UsageError(f"HHA parameters {dict(values)!r} are not understood: {error}") from None


def outdoor_parameters(nearest_depth_m: float = 4.5, height_range_m: float = 8.0) -> HHAParameters:
    """Return parameters for a forward-looking camera on a vehicle; no constants for such scenes were ever published.

    The road is the lowest 1 % of the points, since stereo depth has outliers below it.  Gravity is within a few
    degrees of the image's vertical, so it may turn by no more than 10 degrees and facades cannot be taken for floors.
    Pixels without depth are 0 in all channels: sky and the vehicle itself, not something near.

    Args:
        nearest_depth_m: the depth whose disparity fills the 8 bits.  The default is where the road enters the picture
            of the Cityscapes cameras; fit it as the depth at the 99.5th percentile of the training set's disparities.
        height_range_m: the height above the road that fills the 8 bits.
    """
    return HHAParameters(
        disparity_scale_cm=255 * 100 * nearest_depth_m,
        min_depth_cm=100 * nearest_depth_m,
        height_scale=255 / (100 * height_range_m),
        floor_percentile=1.0,
        floor_threshold_cm=None,
        max_gravity_rotation_deg=10.0,
        singular_windows="undefined",
        missing_fill=0,
    )


INDOOR = HHAParameters()
"""The published encoding."""

OUTDOOR = outdoor_parameters()
"""Our constants for street scenes; see `outdoor_parameters`."""

SENSOR = HHAParameters(floor_percentile=1.0, singular_windows="undefined", missing_fill=0)
"""The published constants for depth as a sensor measures it, with outliers and holes.

The floor is the lowest 1 % of the readings, so that single readings far below the room move nothing; normals that the
readings do not fix are undefined; pixels without a reading are 0 in all channels, which no reading is.
"""

HHA_PRESETS: dict[str, HHAParameters] = {"indoor": INDOOR, "sensor": SENSOR, "outdoor": OUTDOOR}
"""The presets by name."""


def parse_hha_parameters(text: str, base: HHAParameters = INDOOR) -> HHAParameters:
    """Turn a preset, changes to it, or both, with commas between, into parameters: ``sensor,floor_percentile=2``.

    Args:
        text: a name of `HHA_PRESETS`, and NAME=VALUE for single parameters, whose values are written as in JSON.
        base: what the changes are made to where no preset is named.

    Raises:
        UsageError: for unknown names and values that do not fit.
    """
    changes: dict[str, Any] = {}
    parameters = base
    # Not the commas inside brackets: gravity_iterations=[5,5].
    for part in re.split(r",(?![^\[]*\])", text):
        name, is_change, value = (piece.strip() for piece in part.partition("="))
        if not is_change:
            if name not in HHA_PRESETS:
                raise unknown_name("HHA preset", name, HHA_PRESETS)
            parameters = HHA_PRESETS[name]
            continue
        try:
            changes[name] = json.loads(value)
        except json.JSONDecodeError:
            changes[name] = value
    return HHAParameters.from_dict({**parameters.to_dict(), **changes})


@torch.no_grad()
def encode_hha(
    depth_m: Tensor, camera: Tensor, raw_depth_m: Tensor | None = None, parameters: HHAParameters = INDOOR
) -> Tensor:
    """Return the HHA encoding of depth maps, uint8 (B, 3, H, W) as (disparity, height, angle).

    With the published parameters the result is within one gray level of the published encoders', except for the angle
    on the rims of holes: where a window holds readings that fix no plane, or hardly one (1 to 7 of them), rounding
    decides what they store (0.65 % of the pixels of a Kinect frame).

    Missing is 0, negative or not finite.  Any size from 1x1 and any content give an answer: without any reading
    gravity is the initial direction and, with the indoor parameters, every pixel is (255, 130, 218).  Computed in
    float32 (float64 for float64 depth), on the device of ``depth_m``.

    Args:
        depth_m: (B, 1, H, W), z-depth in meters, in-painted where possible; points, heights and disparities come from
            it.
        camera: (B, 4) or (1, 4) as fx, fy, cx, cy in pixels counted from 0.  (The principal point published with NYU
            Depth V2 counts from 1.)
        raw_depth_m: (B, 1, H, W), the sensor's readings.  Its missing pixels are left out of the normals; None takes
            those of ``depth_m``.
        parameters: all constants.  To reproduce ``singular_windows="published"``, give ``camera`` in float64.

    Raises:
        DataError: for other shapes.
    """
    count = len(depth_m) if depth_m.ndim == 4 else 0
    if depth_m.device.type != "cpu" or count < 2 or len(camera) not in (1, count) or camera.ndim != 2:
        return _encode_together(depth_m, camera, raw_depth_m, parameters)
    if raw_depth_m is not None and raw_depth_m.shape != depth_m.shape:
        raise DataError(f"raw_depth_m has shape {tuple(raw_depth_m.shape)}, but depth_m {tuple(depth_m.shape)}")
    # A CPU's cache holds the maps of one frame from step to step, but not those of several; and frames side by side
    # wait for each other once, where threads that share every operation do so hundreds of times.
    cameras = camera.expand(count, -1).split(1)
    raws = [None] * count if raw_depth_m is None else list(raw_depth_m.split(1))
    frames = list(zip(depth_m.split(1), cameras, raws, strict=True))
    hha = torch.empty((count, 3, *depth_m.shape[2:]), dtype=torch.uint8)
    workers = worker_count(depth_m.device, count)

    def encode(worker: int) -> None:
        for index in range(worker, count, workers):
            hha[index] = _encode_together(*frames[index], parameters)[0]

    run_workers(workers, encode)
    return hha


def _encode_together(depth_m: Tensor, camera: Tensor, raw_depth_m: Tensor | None, parameters: HHAParameters) -> Tensor:
    depth = clean_depth(depth_m)
    camera = camera.to(depth.device)
    gravity_B3 = _gravity(measured_depth(depth, raw_depth_m), camera, parameters)
    normals, valid = plane_fit_normals(
        depth_m, camera, parameters.normal_radius, raw_depth_m, parameters.singular_windows
    )

    depth_cm, reading = depth[:, 0] * 100, depth[:, 0].sign()
    channels = torch.stack(
        (
            parameters.disparity_scale_cm / depth_cm.clamp(min=parameters.min_depth_cm),
            _height_levels(depth_cm, reading, camera, gravity_B3, parameters),
            _angle_levels(normals, valid[:, 0], gravity_B3, parameters),
        ),
        dim=1,
    )
    channels.round_().clamp_(0, 255)
    if parameters.missing_fill is not None:
        channels.sub_(parameters.missing_fill).mul_(reading[:, None]).add_(parameters.missing_fill)
    return channels.to(torch.int16).to(torch.uint8)  # several times faster than in one step on the CPU


def _gravity(measured: Tensor, camera: Tensor, parameters: HHAParameters) -> Tensor:
    normals, _ = fit_planes(measured, camera, parameters.gravity_radius)
    return gravity_direction(
        normals,
        thresholds_deg=parameters.gravity_thresholds_deg,
        iterations=parameters.gravity_iterations,
        initial=parameters.initial_gravity,
        max_rotation_deg=parameters.max_gravity_rotation_deg,
    )


def _height_levels(
    depth_cm: Tensor, reading: Tensor, camera: Tensor, gravity_B3: Tensor, parameters: HHAParameters
) -> Tensor:
    """Return scaled heights above the floor (B, H, W); ``reading`` is 1 where there is depth, else 0."""
    initial = torch.tensor(parameters.initial_gravity, dtype=torch.float64, device=depth_cm.device)
    initial = initial / initial.norm()
    turned_B1 = (gravity_B3 * initial).sum(1, keepdim=True) < math.cos(
        math.radians(parameters.min_gravity_rotation_deg)
    )
    g_x, g_y, g_z = torch.where(turned_B1, gravity_B3, initial).split(1, dim=1)
    x_BW, y_BH = pixel_rays(camera, *depth_cm.shape)
    # The height over the camera is -g.P = -z (g_x x/z + g_y y/z + g_z): a sum of a row and a column vector.
    by_column = (-g_x * x_BW).to(depth_cm.dtype)[:, None, :]
    by_row = (-g_y * y_BH - g_z).to(depth_cm.dtype)[:, :, None]
    over_camera_cm = (by_column + by_row).mul_(depth_cm)
    floor_cm = _floor(over_camera_cm, reading, parameters)
    return over_camera_cm.sub_(floor_cm[:, None, None]).mul_(parameters.height_scale)


def _floor(over_camera_cm: Tensor, reading: Tensor, parameters: HHAParameters) -> Tensor:
    """Return the floor's height over the camera (B,), in centimeters."""
    readings = (over_camera_cm + (1 - reading) * _NOT_A_HEIGHT_CM).flatten(1)
    if parameters.floor_percentile == 0:
        found = readings.amin(1)
    else:
        found = _percentile(readings, reading.flatten(1).sum(1, dtype=torch.float64), parameters.floor_percentile)
    believed = found < _NOT_A_HEIGHT_CM / 2
    if parameters.floor_threshold_cm is not None:
        believed &= found <= parameters.floor_threshold_cm
    return torch.where(believed, found, torch.full_like(found, parameters.floor_fallback_cm))


def _percentile(values: Tensor, count_B: Tensor, percentile: float) -> Tensor:
    """Return the percentile of the first ``count_B`` values of each sorted row, interpolated linearly.

    Only the smallest values that any row can need are sorted out, and the size is not limited, as it is for
    torch.quantile.
    """
    most = math.ceil(percentile / 100 * (values.shape[1] - 1)) + 1
    # From the last: the floor is at the bottom of most images, and a search that meets the smallest values first is
    # several times faster.
    smallest = values.flip(1).topk(most, dim=1, largest=False, sorted=True).values
    position_B = (count_B - 1).clamp(min=0) * (percentile / 100)
    below_B = position_B.floor().to(torch.int64)
    above_B = position_B.ceil().to(torch.int64)
    low_B, high_B = smallest.gather(1, torch.stack((below_B, above_B), dim=1)).unbind(1)
    between_B = (position_B - below_B).to(values.dtype)
    return torch.where(between_B > 0, low_B + (high_B - low_B) * between_B, low_B)


def _angle_levels(normals: Tensor, valid: Tensor, gravity_B3: Tensor, parameters: HHAParameters) -> Tensor:
    """Return the angles between normals and gravity plus the offset (B, H, W), in degrees."""
    g_x, g_y, g_z = gravity_B3.to(normals.dtype)[:, :, None, None].unbind(1)
    n_x, n_y, n_z = normals.unbind(1)
    cosine = (n_x * g_x).addcmul_(n_y, g_y).addcmul_(n_z, g_z)
    angle_deg = cosine.clamp_(-1, 1).acos_().mul_(180 / math.pi)
    return angle_deg.masked_fill_(~valid, parameters.undefined_angle_deg).add_(parameters.angle_offset_deg)
