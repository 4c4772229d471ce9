from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rgbdseg.camera import PinholeCamera
from rgbdseg.transforms.placement import Placement


@pytest.mark.parametrize(
    ("size", "target", "border", "input_size"),
    [
        ((4, 4), (7, 8), (1, 2), (7, 8)),  # the odd pixel goes below
        ((4, 9), (4, 8), (0, 0), (4, 9)),  # a longer side has no border
        ((5, 3), (4, 4), (0, 0), (5, 4)),
    ],
)
def test_centered(
    size: tuple[int, int], target: tuple[int, int], border: tuple[int, int], input_size: tuple[int, int]
) -> None:
    placement = Placement.centered(size, target)
    assert (placement.border_top, placement.border_left) == border
    assert placement.input_size == input_size
    assert placement.has_border == (size != input_size)


@given(
    frame=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    window=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    target=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    corner=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
@settings(max_examples=100, deadline=None)
def test_pixels_and_rays_end_up_in_the_same_place(
    frame: tuple[int, int], window: tuple[int, int], target: tuple[int, int], corner: tuple[float, float]
) -> None:
    """Every pixel of the input tells which pixel of the frame it is; the cameras must agree on its ray."""
    size = (min(frame[0], window[0]), min(frame[1], window[1]))
    top, left = (round(share * (whole - part)) for share, whole, part in zip(corner, frame, size, strict=True))
    placement = Placement.centered(size, target, top, left)
    index = torch.arange(frame[0] * frame[1]).view(1, *frame) + 1
    shown = placement.surround(placement.take(index), 0)
    assert tuple(shown.shape[-2:]) == placement.input_size
    assert torch.equal(placement.uncover(shown), index[:, top : top + size[0], left : left + size[1]])
    rows, columns = shown[0].nonzero().T
    assert len(rows) == size[0] * size[1]
    before = PinholeCamera(10.0, 11.0, 3.5, 2.25)
    after = placement.camera(before)
    source = shown[0, rows, columns] - 1
    assert torch.equal(columns - after.cx, source % frame[1] - before.cx)
    assert torch.equal(rows - after.cy, torch.div(source, frame[1], rounding_mode="floor") - before.cy)
