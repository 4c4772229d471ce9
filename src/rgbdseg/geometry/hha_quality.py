"""What HHA images show of how they were made: channels that saturate, channels in another order."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from rgbdseg.geometry.hha import HHA_CHANNELS

# H height, W width; hha_3HW: channels disparity, height, angle

SATURATED_SHARE = 0.5
"""More pixels than this at an end of a channel say that the channel holds little; 0.37 at most in NYU Depth V2."""

_DISPARITY, _HEIGHT = 0, 1
_EQUAL_LEVELS, _ALIKE, _CLEARLY_BETTER = 2.0, 0.5, 0.2


def saturated_shares(hha_3HW: Tensor, reading_HW: Tensor) -> tuple[float, float, float]:
    """Return the shares of the pixels with a reading at disparity 255, at height 255 and at height 0."""
    disparity, height = (hha_3HW[channel][reading_HW] for channel in (_DISPARITY, _HEIGHT))
    if not disparity.numel():
        return (0.0, 0.0, 0.0)
    return (
        float((disparity == 255).float().mean()),
        float((height == 255).float().mean()),
        float((height == 0).float().mean()),
    )


def saturation_text(shares: tuple[float, float, float]) -> str | None:
    """Say which channel saturates, and what helps; None where none does.

    Args:
        shares: means over frames of `saturated_shares`.
    """
    near, high, low = shares
    if high > SATURATED_SHARE:
        return (
            f"height is 255 in {high:.0%} of the pixels, with the usual constants 2.55 m and more above the lowest "
            "point: where single readings lie far below the floor, take it from a percentile (floor_percentile=1), or "
            "state what means no reading and the largest depth; is the depth unit right?"
        )
    if low > SATURATED_SHARE:
        return f"height is 0 in {low:.0%} of the pixels: floor_percentile is too large, or the camera is not level"
    if near > SATURATED_SHARE:
        return (
            f"disparity is 255 in {near:.0%} of the pixels, since they are nearer than 1.2 m with the usual constants: "
            "the largest disparity is disparity_scale_cm over the depth in cm; is the depth unit right?"
        )
    return None


def channel_correlation(stored_3HW: Tensor, computed_3HW: Tensor, reading_HW: Tensor) -> Tensor:
    """Return Pearson's correlation of stored (row) and computed channels (column), (3, 3); 0 where one is constant."""
    stored, computed = (
        hha[:, reading_HW].double() - hha[:, reading_HW].double().mean(1, keepdim=True)
        for hha in (stored_3HW, computed_3HW)
    )
    norms = stored.norm(dim=1)[:, None] * computed.norm(dim=1)[None, :]
    return torch.where(norms > 0, stored @ computed.T / norms.clamp(min=1e-12), torch.zeros_like(norms))


def channels_are_equal(stored_3HW: Tensor) -> bool:
    """Tell whether all channels show the same, as gray pictures do that were stored in color."""
    values = stored_3HW.float()
    return float((values - values.mean(0, keepdim=True)).abs().mean()) < _EQUAL_LEVELS


def stored_order(correlation_33: Tensor) -> tuple[str, ...] | None:
    """Return the order of the stored channels that fits what was computed; None where none does.

    The order (disparity, height, angle) is believed unless another one fits clearly better.

    Args:
        correlation_33: mean over frames of `channel_correlation`.
    """
    rows = range(len(HHA_CHANNELS))
    orders = itertools.permutations(rows)
    fit = {order: sum(float(correlation_33[row, order[row]]) for row in rows) / len(rows) for order in orders}
    best = max(fit, key=lambda order: fit[order])
    usual = tuple(rows)
    if fit[best] - fit[usual] <= _CLEARLY_BETTER:
        best = usual
    return tuple(HHA_CHANNELS[channel] for channel in best) if fit[best] > _ALIKE else None
