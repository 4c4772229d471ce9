from __future__ import annotations

import re

import pytest

from rgbdseg.camera import PinholeCamera
from rgbdseg.camera_check import camera_fault, camera_oddity, require_plausible_camera
from rgbdseg.errors import DataError

VGA = PinholeCamera(518.86, 519.47, 324.58, 252.74)


@pytest.mark.parametrize(
    "size", [(120, 160), (240, 320), (1440, 1920), (960, 1280)], ids=lambda size: f"{size[0]}x{size[1]}"
)
def test_intrinsics_of_another_resolution_are_refused_and_scaled(size: tuple[int, int]) -> None:
    fault = camera_fault(VGA, size)
    assert fault is not None
    assert "images of 480x640" in fault
    numbers = [float(value) for value in re.search(r"they are ([-\d.,]+) at", fault)[1].split(",")]  # type: ignore[index]
    expected = VGA.resized((480, 640), size)
    assert numbers == pytest.approx(expected.as_tuple(), rel=1e-3)
    assert camera_fault(expected, size) is None
    assert camera_oddity(expected, size) is None
    with pytest.raises(DataError, match=r"a\.png: camera fx 518\.86 fy 519\.47"):
        require_plausible_camera(VGA, size, "a.png")


def test_cameras_of_their_own_resolution_pass() -> None:
    assert camera_fault(VGA, (480, 640)) is None
    require_plausible_camera(VGA, (480, 640), "a.png")
    require_plausible_camera(None, (480, 640), "a.png")
    # Cut out of the middle and of one side: the center moves, but not as it does with another resolution.
    assert camera_fault(VGA.cropped(40, 40), (400, 560)) is None
    assert camera_fault(VGA.cropped(0, 100), (480, 440)) is None


def test_the_center_outside_and_the_view() -> None:
    assert "the center lies outside the 480x640 image" in str(
        camera_fault(PinholeCamera(500, 500, 700, 240), (480, 640))
    )
    assert "the center lies outside" in str(camera_fault(PinholeCamera(500, 500, 320, -1), (480, 640)))
    assert "sees 7 degrees across 64 pixels" in str(camera_fault(PinholeCamera(518, 519, 32, 24), (48, 64)))
    assert "fx and fy differ" in str(camera_oddity(PinholeCamera(500, 390, 320, 240), (480, 640)))
    assert "far from the middle" in str(camera_oddity(PinholeCamera(500, 500, 600, 240), (480, 640)))
