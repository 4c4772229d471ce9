"""HHA in few tensor operators and without decisions on values, for graphs that run outside PyTorch.

The same encoding as `rgbdseg.geometry.hha`, written for another machine: there, in-place arithmetic and ways around
work that is not needed; here, few and large operators, since a graph holds each of them as a node.  Window sums are
convolutions, sums over normals are matrix products, eigenvectors are powers of a matrix.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from rgbdseg.geometry.backproject import clean_depth, pixel_rays
from rgbdseg.geometry.hha import HHAParameters
from rgbdseg.geometry.singular import published_singular_fit

# B images, H height, W width

_COLLINEAR = 1e-5  # as in `rgbdseg.geometry.normals`
_PREVIOUS_WEIGHT = 1e-5  # as in `rgbdseg.geometry.gravity`
_NOT_A_HEIGHT_CM = 1e30
_SQUARINGS, _PER_SCALING = 25, 5


def encode_hha_in_graph(depth_m: Tensor, camera: Tensor, parameters: HHAParameters) -> Tensor:
    """Return HHA as `rgbdseg.geometry.hha.encode_hha` does, but for rounding, uint8 (B, 3, H, W).

    Args:
        depth_m: float32 (B, 1, H, W), z-depth in meters, 0 or not finite = no reading.
        camera: float64 (B, 4) as fx, fy, cx, cy in pixels counted from 0.
        parameters: all constants.
    """
    z_BHW = clean_depth(depth_m)[:, 0]
    rays = pixel_rays(camera, *z_BHW.shape)
    reading_BHW = z_BHW.sign()
    for_gravity, _ = _fit_planes(z_BHW, camera, rays, parameters.gravity_radius, published=False)
    gravity_B3 = _gravity(for_gravity, parameters)
    published = parameters.singular_windows == "published"
    normals, defined = _fit_planes(z_BHW, camera, rays, parameters.normal_radius, published=published)
    depth_cm = z_BHW * 100
    channels = torch.stack(
        (
            parameters.disparity_scale_cm / depth_cm.clamp(min=parameters.min_depth_cm),
            _heights(depth_cm, reading_BHW, rays, gravity_B3, parameters),
            _angles(normals, defined, z_BHW=z_BHW, rays=rays, gravity_B3=gravity_B3, parameters=parameters),
        ),
        dim=1,
    )
    channels = channels.round().clamp(0, 255)
    if parameters.missing_fill is not None:
        channels = torch.where(reading_BHW[:, None] > 0, channels, float(parameters.missing_fill))
    return channels.to(torch.uint8)


def _fit_planes(
    z_BHW: Tensor, camera: Tensor, rays: tuple[Tensor, Tensor], radius: int, *, published: bool
) -> tuple[Tensor, Tensor]:
    """Return unit normals of either sign (B, 3, H, W) and 1 or 0 for defined (B, H, W), as `normals.fit_planes`."""
    mask = z_BHW.sign()
    # float32 holds these sums of whole numbers exactly.
    count, sum_u, sum_uu, sum_v, sum_uv, sum_vv = _window_sums(mask, radius, order=2)
    # Divided by something else where there is no reading, since 0 times the infinite is not 0.
    sum_w, sum_uw, sum_vw = _window_sums(mask / (z_BHW + 1 - mask), radius, order=1)
    present = count.clamp(min=1)
    mean_u, mean_v = sum_u / present, sum_v / present
    scatter_uu, scatter_uv = sum_uu - mean_u * sum_u, sum_uv - mean_u * sum_v
    scatter_vv = sum_vv - mean_v * sum_v
    product = scatter_uu * scatter_vv
    determinant = product - scatter_uv * scatter_uv
    defined = (determinant - _COLLINEAR * product).sign().clamp(min=0)
    inverse = defined / (determinant * defined + 1 - defined)
    scatter_uw, scatter_vw = sum_uw - mean_u * sum_w, sum_vw - mean_v * sum_w
    fx, fy = camera.to(z_BHW.dtype)[:, :2, None, None].unbind(1)
    n_x = (scatter_uw * scatter_vv - scatter_vw * scatter_uv) * inverse * fx
    n_y = (scatter_vw * scatter_uu - scatter_uw * scatter_uv) * inverse * fy
    x_BW, y_BH = (ray.to(z_BHW.dtype) for ray in rays)
    n_z = sum_w / present - n_x * (x_BW[:, None, :] + mean_u / fx) - n_y * (y_BH[:, :, None] + mean_v / fy)
    n_z = n_z * defined
    # Not a sum over an axis of three, which takes a runtime ten times as long.
    shorter = (n_x * n_x + n_y * n_y + n_z * n_z).clamp(min=1e-36).rsqrt()
    normals = torch.stack((n_x * shorter, n_y * shorter, n_z * shorter), dim=1)
    if published:
        return _with_published_fits(normals, defined, count, z_BHW=z_BHW, camera=camera, radius=radius)
    return normals, defined


def _with_published_fits(
    normals: Tensor, defined: Tensor, count: Tensor, *, z_BHW: Tensor, camera: Tensor, radius: int
) -> tuple[Tensor, Tensor]:
    at_N3 = ((1 - defined) * count).nonzero()
    fits_N3 = published_singular_fit(z_BHW, camera, radius, at_N3).to(z_BHW.dtype)
    b, v, u = at_N3.unbind(1)
    found_N1 = fits_N3.abs().amax(1, keepdim=True).sign()
    both = torch.cat((normals, defined[:, None]), dim=1).permute(0, 2, 3, 1)
    both = both.index_put((b, v, u), torch.cat((fits_N3, found_N1), dim=1)).permute(0, 3, 1, 2)
    return both[:, :3], both[:, 3]


def _window_sums(values_BHW: Tensor, radius: int, order: int) -> tuple[Tensor, ...]:
    """Return sums of u**p v**q times the values over windows, (B, H, W) each, u and v the offsets from the center.

    The powers (q, p) are in the order (0, 0), (0, 1), .. (0, order), (1, 0), .. with p + q up to ``order``.
    """
    offset = torch.arange(-radius, radius + 1, dtype=values_BHW.dtype)
    powers = [(q, p) for q in range(order + 1) for p in range(order + 1 - q)]
    over_rows = torch.stack([offset**q for q in range(order + 1)])[:, None, :, None]
    over_columns = torch.zeros(len(powers), order + 1, 1, 2 * radius + 1, dtype=values_BHW.dtype)
    for index, (q, p) in enumerate(powers):
        over_columns[index, q, 0] = offset**p
    by_rows = functional.conv2d(values_BHW[:, None], over_rows, padding=(radius, 0))
    return functional.conv2d(by_rows, over_columns, padding=(0, radius)).unbind(1)


def _gravity(normals: Tensor, parameters: HHAParameters) -> Tensor:
    """Return the direction of gravity, float64 (B, 3), as `gravity.gravity_direction`."""
    initial = _unit(parameters.initial_gravity)
    n_x, n_y, n_z = normals.unbind(1)
    products = (n_x * n_x, n_x * n_y, n_x * n_z, n_y * n_y, n_y * n_z, n_z * n_z)
    products_BH6W = torch.stack(products, dim=2)
    gravity_B3 = initial.expand(normals.shape[0], 3)
    for threshold_deg, repetitions in zip(
        parameters.gravity_thresholds_deg, parameters.gravity_iterations, strict=True
    ):
        sine, cosine = math.sin(math.radians(threshold_deg)), math.cos(math.radians(threshold_deg))
        for _ in range(repetitions):
            toward_BHW = _cosine(normals, gravity_B3).abs()
            # 1 for walls, -1 for floors.
            sign_BHW = (toward_BHW < sine).to(normals.dtype) - (toward_BHW > cosine).to(normals.dtype)
            # Rows are added up in float32 and their sums in float64, or a large image would lose digits.
            sums_B6 = (products_BH6W @ sign_BHW[:, :, :, None])[:, :, :, 0].to(torch.float64).sum(1)
            evidence_B33 = sums_B6[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].unflatten(1, (3, 3))
            weight_B11 = _PREVIOUS_WEIGHT * evidence_B33.square().sum((1, 2), keepdim=True).sqrt() + 1e-30
            gravity_B3 = smallest_eigenvector(
                evidence_B33 - weight_B11 * gravity_B3[:, :, None] * gravity_B3[:, None, :], gravity_B3
            )
            if parameters.max_gravity_rotation_deg is not None:
                gravity_B3 = _within(initial, gravity_B3, math.radians(parameters.max_gravity_rotation_deg))
    return gravity_B3


def smallest_eigenvector(matrix_B33: Tensor, side_B3: Tensor) -> Tensor:
    """Return the unit eigenvectors of the smallest eigenvalues of symmetric matrices, (B, 3), toward ``side_B3``.

    The powers of c I - A approach v v^T but for a factor, where c bounds the eigenvalues.  A power of 2**25 is as exact
    as a factorization where the two smallest eigenvalues differ by 1e-6 of the largest.
    """
    bound_B11 = matrix_B33.square().sum((1, 2), keepdim=True).sqrt()
    power_B33 = bound_B11 * torch.eye(3, dtype=matrix_B33.dtype) - matrix_B33
    for step in range(_SQUARINGS):
        if step % _PER_SCALING == 0:
            # The largest element of such a matrix is on its diagonal, and at least a third of its largest eigenvalue.
            power_B33 = power_B33 / power_B33.amax((1, 2), keepdim=True)
        power_B33 = torch.bmm(power_B33, power_B33)  # one node, where @ makes five
    # Every column is a multiple of v; the longest, turned to the side, is the safest.
    length_B13 = power_B33.square().sum(1, keepdim=True)
    chosen_B13 = (length_B13 >= length_B13.amax(2, keepdim=True)).to(power_B33.dtype)
    columns_B33 = power_B33 * (power_B33 * side_B3[:, :, None]).sum(1, keepdim=True).sign()
    vector_B3 = (columns_B33 * chosen_B13).sum(2)
    return vector_B3 / vector_B3.square().sum(1, keepdim=True).sqrt()


def _cosine(normals: Tensor, gravity_B3: Tensor) -> Tensor:
    """Return the products of normals (B, 3, H, W) with a direction, (B, H, W)."""
    product_B1N = gravity_B3.to(normals.dtype)[:, None, :] @ normals.flatten(2)
    return product_B1N.reshape(normals.shape[0], normals.shape[2], normals.shape[3])


def _within(start_3: Tensor, direction_B3: Tensor, limit_rad: float) -> Tensor:
    """Return the direction nearest to ``direction_B3`` within an angle of ``start_3``."""
    cosine_B1 = (start_3 * direction_B3).sum(1, keepdim=True)
    sideways_B3 = direction_B3 - cosine_B1 * start_3
    sideways_B3 = sideways_B3 / sideways_B3.square().sum(1, keepdim=True).sqrt().clamp(min=1e-12)
    limited_B3 = math.cos(limit_rad) * start_3 + math.sin(limit_rad) * sideways_B3
    return torch.where(cosine_B1 < math.cos(limit_rad), limited_B3, direction_B3)


def _heights(
    depth_cm: Tensor,
    reading_BHW: Tensor,
    rays: tuple[Tensor, Tensor],
    gravity_B3: Tensor,
    parameters: HHAParameters,
) -> Tensor:
    """Return scaled heights above the floor (B, H, W)."""
    initial = _unit(parameters.initial_gravity)
    limit = math.cos(math.radians(parameters.min_gravity_rotation_deg))
    turned_B1 = (gravity_B3 * initial).sum(1, keepdim=True) < limit
    g_x, g_y, g_z = torch.where(turned_B1, gravity_B3, initial).split(1, dim=1)
    by_column = (-g_x * rays[0]).to(depth_cm.dtype)[:, None, :]
    by_row = (-g_y * rays[1] - g_z).to(depth_cm.dtype)[:, :, None]
    over_camera_cm = (by_column + by_row) * depth_cm
    readings = torch.where(reading_BHW > 0, over_camera_cm, _NOT_A_HEIGHT_CM).flatten(1)
    if parameters.floor_percentile == 0:
        found_B = readings.amin(1)
    else:
        found_B = _percentile(readings, reading_BHW.flatten(1).to(torch.float64).sum(1), parameters.floor_percentile)
    believed_B = found_B < _NOT_A_HEIGHT_CM / 2
    if parameters.floor_threshold_cm is not None:
        believed_B = believed_B & (found_B <= parameters.floor_threshold_cm)
    floor_cm = torch.where(believed_B, found_B, parameters.floor_fallback_cm)
    return (over_camera_cm - floor_cm[:, None, None]) * parameters.height_scale


def _percentile(values: Tensor, count_B: Tensor, percentile: float) -> Tensor:
    """Return the percentile of the smallest ``count_B`` values of each row, interpolated linearly."""
    size = values.shape[1]
    # Of a size that is known, the smallest that any row can need are enough.
    needed = math.ceil(percentile / 100 * (size - 1)) + 1 if isinstance(size, int) else size
    ascending = values.topk(needed, dim=1, largest=False, sorted=True).values
    position_B = (count_B - 1).clamp(min=0) * (percentile / 100)
    below_B, above_B = position_B.floor(), position_B.ceil()
    low_B, high_B = ascending.gather(1, torch.stack((below_B, above_B), dim=1).to(torch.int64)).unbind(1)
    between_B = (position_B - below_B).to(values.dtype)
    return torch.where(between_B > 0, low_B + (high_B - low_B) * between_B, low_B)


def _angles(
    normals: Tensor,
    defined: Tensor,
    *,
    z_BHW: Tensor,
    rays: tuple[Tensor, Tensor],
    gravity_B3: Tensor,
    parameters: HHAParameters,
) -> Tensor:
    """Return the angles between normals, pointing away from the camera, and gravity plus the offset, in degrees."""
    x_BW, y_BH = (ray.to(normals.dtype) for ray in rays)
    n_x, n_y, n_z = normals.unbind(1)
    away = (n_x * x_BW[:, None, :] + n_y * y_BH[:, :, None] + n_z) * z_BHW
    away = (away.sign() * 2 + n_z.sign() + 0.5).sign()
    cosine = _cosine(normals, gravity_B3) * away
    angle_deg = cosine.clamp(-1, 1).acos() * (180 / math.pi)
    return torch.where(defined > 0, angle_deg, parameters.undefined_angle_deg) + parameters.angle_offset_deg


def _unit(vector: tuple[float, float, float]) -> Tensor:
    values = torch.tensor(vector, dtype=torch.float64)
    return values / values.norm()
