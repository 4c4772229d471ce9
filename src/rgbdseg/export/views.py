"""Where the network looks at a frame: its size after scaling, its border and its windows."""

from __future__ import annotations

from rgbdseg.errors import UsageError
from rgbdseg.export.plan import GraphPlan, Size
from rgbdseg.inference.windows import view_size, window_positions
from rgbdseg.transforms.placement import Placement


def network_size(plan: GraphPlan) -> Size | None:
    """Return the size of the frame after scaling; None where sizes are open."""
    if plan.size is None:
        return None
    return plan.protocol.scaled_size(plan.size, plan.protocol.scales[0])


def factor(plan: GraphPlan) -> float | None:
    """Return the factor that pictures are resized by; None where they are resized to a size."""
    return plan.protocol.scales[0] if plan.protocol.resize_by == "factor" else None


def bordered(plan: GraphPlan) -> Placement:
    """Return the black border of the frame before normalization; it has a width in one case of the released protocols.

    That is an image that is larger than the window on one side only, see `rgbdseg.inference`.

    Raises:
        UsageError: for a plan whose sizes are open.
    """
    size = network_size(plan)
    if size is None:
        raise UsageError("the plan is for frames of any size, so their border is not known; expected one with a size")
    window = view_size(plan.protocol, plan.spec, size)
    fits = size[0] <= window[0] and size[1] <= window[1]
    return Placement.centered(size, size if fits or plan.protocol.combination == "softmax" else window)


def window_placements(plan: GraphPlan) -> list[Placement]:
    """Return where each window of a frame, with its border, lies; one for a frame that is looked at whole."""
    size = bordered(plan).input_size
    window = view_size(plan.protocol, plan.spec, size)
    extent = (min(window[0], size[0]), min(window[1], size[1]))
    positions = window_positions(size, window, plan.protocol.stride_rate)
    return [Placement.centered(extent, window, *position) for position in positions]


def views_per_frame(plan: GraphPlan) -> int:
    """Return how often the network looks at each frame."""
    windows = 1 if plan.size is None else len(window_placements(plan))
    return windows * (2 if plan.protocol.flip else 1)
