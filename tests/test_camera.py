"""The camera follows the pixels: a 3-D point stays on the same piece of the image."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rgbdseg.camera import PinholeCamera
from rgbdseg.errors import DataError

CAMERA = PinholeCamera(500.0, 510.0, 320.5, 239.25)
POINT = (0.3, -0.2, 2.0)


def project(camera: PinholeCamera, point: tuple[float, float, float] = POINT) -> tuple[float, float]:
    x, y, z = point
    return (camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy)


def test_projection_of_the_optical_axis_is_the_principal_point() -> None:
    assert project(CAMERA, (0.0, 0.0, 1.0)) == (320.5, 239.25)


@given(st.integers(20, 2000), st.integers(20, 2000))
def test_resizing_keeps_the_place_relative_to_the_outer_borders(height: int, width: int) -> None:
    u, v = project(CAMERA)
    new_u, new_v = project(CAMERA.resized((480, 640), (height, width)))
    # Pixel centers lie at integers, so the left border of the image is at -0.5.
    assert (new_u + 0.5) / width == pytest.approx((u + 0.5) / 640)
    assert (new_v + 0.5) / height == pytest.approx((v + 0.5) / 480)


def test_cropping_and_padding_shift_the_point() -> None:
    u, v = project(CAMERA)
    assert project(CAMERA.cropped(top=10, left=25)) == pytest.approx((u - 25, v - 10))
    assert project(CAMERA.cropped(top=-3, left=-4)) == pytest.approx((u + 4, v + 3))


def test_mirroring_twice_is_nothing_and_once_mirrors_x() -> None:
    u, v = project(CAMERA)
    mirrored = CAMERA.flipped(640)
    assert project(mirrored, (-POINT[0], POINT[1], POINT[2])) == pytest.approx((639 - u, v))
    assert mirrored.flipped(640) == CAMERA


def test_one_based_intrinsics_are_shifted_by_one() -> None:
    nyu = PinholeCamera.from_one_based(518.857901, 519.469611, 325.582449, 253.736166)
    assert (nyu.cx, nyu.cy) == pytest.approx((324.582449, 252.736166))
    assert (nyu.fx, nyu.fy) == (518.857901, 519.469611)


def test_text_and_dict_round_trip() -> None:
    assert PinholeCamera.from_string("500, 510,320.5,239.25") == CAMERA
    assert PinholeCamera.from_dict(CAMERA.to_dict()) == CAMERA


@pytest.mark.parametrize("text", ["1,2,3", "1,2,3,4,5", "a,b,c,d", "", "0,1,2,3", "-5,5,1,1", "nan,1,1,1", "inf,1,1,1"])
def test_unusable_cameras_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="camera"):
        PinholeCamera.from_string(text)


def test_missing_keys_are_refused() -> None:
    with pytest.raises(DataError, match="expected numbers fx, fy, cx, cy"):
        PinholeCamera.from_dict({"fx": 1, "fy": 1, "cx": 0})
