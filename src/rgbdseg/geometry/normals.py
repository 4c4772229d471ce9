"""Surface normals by a plane fit in a square window of inverse depth.

Over the pixels of the window with a reading, with rays r = (x/z, y/z, 1), the plane n.P = 1 minimizes
sum (n.r - 1/z)^2 (Gupta, Arbelaez, Malik, "Perceptual Organization and Recognition of Indoor Scenes from RGB-D
Images", CVPR 2013; the form used by the published HHA encoders).  On a pixel grid this is the regression of inverse
depth on column and row, so it is solved in pixel offsets from the window's center: the plane is the same, the
arithmetic is well conditioned in float32, and where no reading is missing all but three of the window sums are known
in closed form.

Masks are 0 and 1 in floating point and choices are products, because comparisons and selections take several times
as long as arithmetic on the CPU.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor

from rgbdseg.errors import DataError
from rgbdseg.geometry.backproject import clean_depth, pixel_rays
from rgbdseg.geometry.singular import published_singular_fit
from rgbdseg.geometry.windows import window_moments

# B images, H height, W width

SingularWindows = Literal["undefined", "published"]
"""What becomes of a window whose readings all lie on one line: see `plane_fit_normals`."""

# 1 - correlation^2 of columns and rows over the window's readings below which they lie on one line.  Rounding leaves
# 1e-7; one pixel beside a line of readings makes more than 1e-3.
_COLLINEAR = 1e-5


@dataclasses.dataclass(frozen=True)
class _WindowPixels:
    """Count, mean and scatter of the pixel offsets (u, v) from the center, over the readings of each window.

    Every field broadcasts to (B, H, W).  ``defined`` is 1 where the readings fix a plane, else 0.
    """

    count: Tensor
    mean_u: Tensor
    mean_v: Tensor
    inverse_uu: Tensor  # inverse of the 2x2 scatter matrix, 0 where it has none
    inverse_uv: Tensor | None  # None: zero
    inverse_vv: Tensor
    defined: Tensor


@torch.no_grad()
def plane_fit_normals(
    depth_m: Tensor,
    camera: Tensor,
    radius: int = 3,
    raw_depth_m: Tensor | None = None,
    singular: SingularWindows = "undefined",
) -> tuple[Tensor, Tensor]:
    """Return unit surface normals in the camera frame, pointing away from the camera, and where they are defined.

    Args:
        depth_m: (B, 1, H, W), z-depth in meters, 0 or non-finite = no reading.
        camera: (B, 4) or (1, 4) as fx, fy, cx, cy in pixels counted from 0.
        radius: the window has 2 radius + 1 pixels a side and is cut off at the image border.
        raw_depth_m: (B, 1, H, W), the sensor's readings where ``depth_m`` was in-painted; pixels missing here are left
            out of the fits.
        singular: a window with fewer than three readings, or all on one line, fixes no plane.  "undefined" says so.
            "published" returns what the published encoders make of one with readings: the rounding errors of their
            singular system, normalized.  Reproducing those takes ``camera`` in float64.

    Returns:
        normals_cam (B, 3, H, W), with n.P >= 0 for the pixel's point P (n_z >= 0 where it has no depth), and valid,
            bool (B, 1, H, W); undefined normals are zero vectors. A pixel without a reading has a normal when its
            window has readings. Computed in float32, or float64 for float64 depth; not differentiable.

    Raises:
        DataError: for other shapes or a radius below 1.
    """
    depth = clean_depth(depth_m)
    usable = measured_depth(depth, raw_depth_m)
    normals_cam, defined = fit_planes(usable, camera, radius, singular)
    x_BW, y_BH = (ray.to(depth.dtype) for ray in pixel_rays(camera.to(depth.device), *depth[:, 0].shape))
    n_x, n_y, n_z = normals_cam.unbind(1)
    away = (n_x * x_BW[:, None, :]).addcmul_(n_y, y_BH[:, :, None]).add_(n_z).mul_(depth[:, 0])
    # The sign of n.P where that is not zero, else of n_z, else +1.
    away = away.sign_().mul_(2).add_(n_z.sign()).add_(0.5).sign_()
    return normals_cam.mul_(away[:, None]), (defined > 0)[:, None]


def measured_depth(depth: Tensor, raw_depth_m: Tensor | None) -> Tensor:
    """Return clean depth (B, 1, H, W) set to 0 where ``raw_depth_m`` has no reading."""
    if raw_depth_m is None:
        return depth
    if raw_depth_m.shape != depth.shape:
        raise DataError(f"raw_depth_m has shape {tuple(raw_depth_m.shape)}, but depth_m {tuple(depth.shape)}")
    return depth * clean_depth(raw_depth_m, "raw_depth_m").to(depth).sign_()


def fit_planes(
    depth: Tensor, camera: Tensor, radius: int, singular: SingularWindows = "undefined"
) -> tuple[Tensor, Tensor]:
    """Return unit normals of either sign (B, 3, H, W), zero where undefined, and 1 or 0 for defined (B, H, W).

    Args:
        depth: (B, 1, H, W) as `clean_depth` returns it. For sign-free uses such as the direction of gravity.
        camera: (B, 4) or (1, 4) as fx, fy, cx, cy in pixels counted from 0.
        radius: of the square windows that planes are fitted to, in pixels.
        singular: what becomes of a window whose readings all lie on one line: see `plane_fit_normals`.
    """
    if radius < 1:
        raise DataError(f"normal window radius {radius} is too small; expected 1 or more pixels")
    camera = camera.to(depth.device)
    # A single row or column fixes no plane even when it is complete.
    complete_B = (depth.flatten(1).amin(1) > 0) & (min(depth.shape[2:]) > 1)
    if complete_B.all():
        return _fit(depth[:, 0], camera, _full_windows(depth[:, 0], radius), radius)
    pixels = _partial_windows(depth[:, 0], radius)
    normals, defined = _fit(depth[:, 0], camera, pixels, radius)
    if singular == "published":
        at_N3 = ((1 - defined) * pixels.count).nonzero()
        fits_N3 = published_singular_fit(depth[:, 0], camera, radius, at_N3).to(depth.dtype)
        b, v, u = at_N3.unbind(1)
        normals[b, :, v, u] = fits_N3
        defined[b, v, u] = fits_N3.abs().amax(1).sign()
    if complete_B.any():
        # The two ways round differently, and an image must not depend on the others of its batch.
        cameras = camera.expand(depth.shape[0], -1)[complete_B]
        normals[complete_B], defined[complete_B] = fit_planes(depth[complete_B], cameras, radius)
    return normals, defined


def _fit(z_BHW: Tensor, camera: Tensor, pixels: _WindowPixels, radius: int) -> tuple[Tensor, Tensor]:
    """Regress inverse depth on the pixel offsets and turn the coefficients into unit normals."""
    x_BW, y_BH = (ray.to(z_BHW.dtype) for ray in pixel_rays(camera, *z_BHW.shape))
    fx, fy = camera.to(z_BHW.dtype)[:, :2, None, None].unbind(1)
    inverse_BHW = z_BHW.reciprocal().nan_to_num_(posinf=0.0)
    by_rows, by_rows_v = window_moments(inverse_BHW, radius, -2, 1)
    sum_w, sum_uw = window_moments(by_rows, radius, -1, 1)
    (sum_vw,) = window_moments(by_rows_v, radius, -1, 0)

    scatter_uw = sum_uw.addcmul(pixels.mean_u, sum_w, value=-1)
    scatter_vw = sum_vw.addcmul(pixels.mean_v, sum_w, value=-1)
    normals = torch.empty(z_BHW.shape[0], 3, *z_BHW.shape[1:], dtype=z_BHW.dtype, device=z_BHW.device)
    n_x, n_y, n_z = normals.unbind(1)
    torch.mul(scatter_uw, pixels.inverse_uu, out=n_x)
    torch.mul(scatter_vw, pixels.inverse_vv, out=n_y)
    if pixels.inverse_uv is not None:
        n_x.addcmul_(scatter_vw, pixels.inverse_uv)
        n_y.addcmul_(scatter_uw, pixels.inverse_uv)
    n_x.mul_(fx)
    n_y.mul_(fy)
    # The fit passes through the mean: n.r = 1/z for the mean ray and the mean inverse depth.
    torch.div(sum_w, pixels.count.clamp(min=1), out=n_z)
    n_z.addcmul_(n_x, x_BW[:, None, :] + pixels.mean_u / fx, value=-1)
    n_z.addcmul_(n_y, y_BH[:, :, None] + pixels.mean_v / fy, value=-1)
    n_z.mul_(pixels.defined)  # the other two are zero already

    length = (n_x * n_x).addcmul_(n_y, n_y).addcmul_(n_z, n_z)
    normals.mul_(length.clamp_(min=1e-36).rsqrt_()[:, None])
    return normals, pixels.defined.expand(z_BHW.shape)


def _full_windows(z_BHW: Tensor, radius: int) -> _WindowPixels:
    """Every pixel has a reading: a window is a rectangle and its sums factor into columns and rows."""

    def axis(length: int) -> tuple[Tensor, Tensor, Tensor]:
        place = torch.arange(length, dtype=torch.float64, device=z_BHW.device)
        before, after = place.clamp(max=radius), place.flip(0).clamp(max=radius)
        count = before + after + 1
        return count, (after - before) / 2, count * (count * count - 1) / 12

    count_u, mean_u, scatter_u = (values[None, None, :] for values in axis(z_BHW.shape[2]))
    count_v, mean_v, scatter_v = (values[None, :, None] for values in axis(z_BHW.shape[1]))
    return _WindowPixels(
        (count_u * count_v).to(z_BHW.dtype),
        mean_u.to(z_BHW.dtype),
        mean_v.to(z_BHW.dtype),
        (1 / (scatter_u * count_v)).to(z_BHW.dtype),
        None,
        (1 / (scatter_v * count_u)).to(z_BHW.dtype),
        torch.ones((1, 1, 1), dtype=z_BHW.dtype, device=z_BHW.device),
    )


def _partial_windows(z_BHW: Tensor, radius: int) -> _WindowPixels:
    """Readings are missing: the sums over the mask are needed too."""
    # 16-bit integers are added twice as fast as float32.
    fits_16_bits = (2 * radius + 1) ** 2 * radius * (radius + 1) // 3 < 2**15
    mask = z_BHW.sign().to(torch.int16 if fits_16_bits else torch.int32)
    by_rows, by_rows_v, by_rows_vv = window_moments(mask, radius, -2, 2)
    sums = [*window_moments(by_rows, radius, -1, 2), *window_moments(by_rows_v, radius, -1, 1)]
    sums += window_moments(by_rows_vv, radius, -1, 0)
    count, sum_u, sum_uu, sum_v, sum_uv, sum_vv = (values.to(z_BHW.dtype) for values in sums)
    mean_u, mean_v = sum_u / count.clamp(min=1), sum_v / count.clamp(min=1)
    scatter_uu = sum_uu.addcmul(mean_u, sum_u, value=-1)
    scatter_uv = sum_uv.addcmul(mean_u, sum_v, value=-1)
    scatter_vv = sum_vv.addcmul(mean_v, sum_v, value=-1)
    product = scatter_uu * scatter_vv
    determinant = product.addcmul(scatter_uv, scatter_uv, value=-1)
    defined = product.mul_(-_COLLINEAR).add_(determinant).sign_().clamp_(min=0)
    inverse = defined / determinant.mul_(defined).add_(1).sub_(defined)
    return _WindowPixels(
        count,
        mean_u,
        mean_v,
        scatter_vv.mul_(inverse),
        scatter_uv.mul_(inverse).neg_(),
        scatter_uu.mul_(inverse),
        defined,
    )
