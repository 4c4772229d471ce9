"""Pinhole rays and back-projection of depth maps.

Camera frame: +x right, +y down, +z forward, meters.  Pixel centers lie at integers counted from 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rgbdseg.errors import DataError

# B images, H height, W width; a camera row is fx, fy, cx, cy in pixels

# Beyond these 1/z or z times a coordinate would leave the range of float32; no sensor measures there.
_NEAREST_READING_M = 1e-6
_FARTHEST_READING_M = 1e6


def clean_depth(depth_m: Tensor, name: str = "depth_m") -> Tensor:
    """Return depth (B, 1, H, W) in meters with everything that is not a reading set to 0.

    Not readings are NaN, infinities, zero and negative values, and less than a micrometer; more than 1000 km counts
    as 1000 km.  The result is float64 for float64 input and float32 otherwise.

    Raises:
        DataError: for another shape.
    """
    if depth_m.ndim != 4 or depth_m.shape[1] != 1 or 0 in depth_m.shape:
        raise DataError(f"{name} has shape {tuple(depth_m.shape)}; expected (batch, 1, height, width) in meters")
    depth = depth_m.to(torch.float64 if depth_m.dtype == torch.float64 else torch.float32)
    depth = torch.nan_to_num(depth, nan=0.0, posinf=0.0, neginf=0.0)
    return torch.nn.functional.threshold(depth, _NEAREST_READING_M, 0.0).clamp_(max=_FARTHEST_READING_M)


def pixel_rays(camera: Tensor, batch: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the two coordinates of the rays (x/z, y/z, 1) through the pixel centers, in float64.

    Args:
        camera: (B, 4), or (1, 4) for all images.
        batch: B, number of images.
        height: H in pixels.
        width: W in pixels.

    Returns:
        X/z of the columns (B, W) and y/z of the rows (B, H), on the camera's device.

    Raises:
        DataError: for another shape.
    """
    if camera.ndim != 2 or camera.shape[1] != 4 or camera.shape[0] not in (1, batch):
        raise DataError(f"camera has shape {tuple(camera.shape)}; expected ({batch}, 4) as fx, fy, cx, cy in pixels")
    fx, fy, cx, cy = camera.to(torch.float64).expand(batch, 4).split(1, dim=1)
    columns = torch.arange(width, dtype=torch.float64, device=camera.device)
    rows = torch.arange(height, dtype=torch.float64, device=camera.device)
    return (columns - cx) / fx, (rows - cy) / fy


def backproject(depth_m: Tensor, camera: Tensor) -> Tensor:
    """Return the 3-D point of every pixel.

    Args:
        depth_m: (B, 1, H, W), z-depth in meters, 0 or non-finite = no reading.
        camera: (B, 4) or (1, 4) as fx, fy, cx, cy in pixels counted from 0.

    Returns:
        xyz_cam_m (B, 3, H, W): x = (u - cx) z / fx, y = (v - cy) z / fy, z; the origin where there is no reading.

    Raises:
        DataError: for other shapes.
    """
    z_BHW = clean_depth(depth_m)[:, 0]
    x_BW, y_BH = pixel_rays(camera.to(z_BHW.device), *z_BHW.shape)
    x_BHW = z_BHW * x_BW.to(z_BHW.dtype)[:, None, :]
    y_BHW = z_BHW * y_BH.to(z_BHW.dtype)[:, :, None]
    return torch.stack((x_BHW, y_BHW, z_BHW), dim=1)
