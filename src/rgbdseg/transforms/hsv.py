"""Colors as hue, saturation and value, for changes that are published in these terms."""

from __future__ import annotations

import torch
from torch import Tensor


def change_hsv(
    rgb: Tensor,
    hue_factor: float | None = None,
    saturation_factor: float | None = None,
    value_shift: float | None = None,
    saturation_shift: float | None = None,
) -> Tensor:
    """Change hue, saturation and value of RGB images; None leaves that one alone.

    Args:
        rgb: uint8 (..., 3, H, W).
        hue_factor: of the hue as 0 to 1 turns counted from red, so that red stays and violet moves most; cut off at 1.
        saturation_factor: of the saturation; cut off at 1.
        value_shift: gray levels added to the value; cut off at 0 and 255.
        saturation_shift: 255ths added to the saturation, after the factor; cut off at 0 and 1.  Gray becomes reddish,
            as its hue is 0.
    """
    hue, saturation, value = rgb_to_hsv(rgb.float())
    if hue_factor is not None:
        hue = (hue * hue_factor).clamp_(max=1)
    if saturation_factor is not None:
        saturation = (saturation * saturation_factor).clamp_(max=1)
    if saturation_shift is not None:
        saturation = (saturation + saturation_shift / 255).clamp_(0, 1)
    if value_shift is not None:
        value = (value + value_shift).clamp_(0, 255)
    return hsv_to_rgb(hue, saturation, value).round_().to(torch.uint8)


def rgb_to_hsv(rgb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return hue in turns [0, 1], saturation [0, 1] and value of float (..., 3, H, W), each (..., H, W).

    The value is on the scale of the input; gray has hue 0, black also saturation 0.
    """
    red, green, blue = rgb.unbind(-3)
    value, lowest = rgb.amax(-3), rgb.amin(-3)
    chroma = value - lowest
    # A divisor of 1 where there is nothing to divide: the differences are 0 there, too.
    divisor = torch.where(chroma > 0, chroma, 1)
    sixths = torch.where(
        value == red,
        ((green - blue) / divisor) % 6,
        torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    return sixths / 6, chroma / torch.where(value > 0, value, 1), value


def hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Return float RGB (..., 3, H, W) on the scale of ``value``; hue in turns, saturation in [0, 1], each (..., H, W).

    A channel is at the value within a sixth of a turn around its own hue and falls off linearly over the next sixth.
    """
    channels = []
    for offset in (5, 3, 1):
        sixths = (offset + 6 * hue) % 6
        channels.append(value - value * saturation * torch.minimum(sixths, 4 - sixths).clamp_(0, 1))
    return torch.stack(channels, -3)
