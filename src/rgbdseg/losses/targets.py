"""What outputs are compared with."""

from __future__ import annotations

import dataclasses

from torch import Tensor

# B batch, H height, W width


@dataclasses.dataclass(frozen=True)
class Targets:
    """What the outputs are compared with.

    label: int64 (B, H, W), 255 = void.
    depth_m: float (B, 1, H, W), metres, 0 = no reading, where a task needs it.
    camera: float (B, 4) as fx, fy, cx, cy in pixels, where a task needs it.
    """

    label: Tensor
    depth_m: Tensor | None = None
    camera: Tensor | None = None
