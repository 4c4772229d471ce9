"""Whether intrinsics can be those of an image."""

from __future__ import annotations

import math

from rgbdseg.camera import PinholeCamera
from rgbdseg.errors import DataError

FIELD_OF_VIEW_DEG = (20.0, 150.0)
"""From left to right, of cameras without a fisheye lens."""

_SAME_RATIO, _OTHER_RESOLUTION = 1.08, 1.4
_NEAR_SIZE = 0.05
_USUAL_SIZES = (
    (480, 640), (480, 848), (720, 1280), (1080, 1920), (240, 320), (424, 512), (576, 640), (1440, 1920), (968, 1296),
    (1536, 2048), (2160, 3840),
)  # fmt: skip


def camera_fault(camera: PinholeCamera, size: tuple[int, int]) -> str | None:
    """Return why intrinsics cannot be those of an image, with those that are likely meant; None where they can.

    Args:
        camera: in pixels of the image.
        size: (height, width) of the image.
    """
    height, width = size
    if not (0 <= camera.cx <= width - 1 and 0 <= camera.cy <= height - 1):
        return f"{_text(camera)}: the center lies outside the {height}x{width} image{_remedy(camera, size)}"
    down, across = _ratios(camera, size)
    if max(down, 1 / down) > _OTHER_RESOLUTION and max(down / across, across / down) < _SAME_RATIO:
        return (
            f"{_text(camera)}: these are intrinsics of another resolution than {height}x{width}{_remedy(camera, size)}"
        )
    view_deg = math.degrees(2 * math.atan(width / (2 * camera.fx)))
    low, high = FIELD_OF_VIEW_DEG
    if not low <= view_deg <= high:
        return f"{_text(camera)}: sees {view_deg:.0f} degrees across {width} pixels, expected {low:g}..{high:g}"
    return None


def camera_oddity(camera: PinholeCamera, size: tuple[int, int]) -> str | None:
    """Return what is unusual about intrinsics that may be right; see `camera_fault`."""
    height, width = size
    if not 0.8 <= camera.fx / camera.fy <= 1.25:
        return f"{_text(camera)}: fx and fy differ by more than 20 %"
    if abs(camera.cx - width / 2) > width / 4 or abs(camera.cy - height / 2) > height / 4:
        return f"{_text(camera)}: the center is far from the middle of the {height}x{width} image"
    return None


def require_plausible_camera(camera: PinholeCamera | None, size: tuple[int, int], name: str) -> None:
    """Raise DataError for intrinsics that cannot be those of an image; see `camera_fault`.

    Args:
        camera: None passes.
        size: (height, width) of the image.
        name: what has this camera, for the message.
    """
    fault = None if camera is None else camera_fault(camera, size)
    if fault is not None:
        raise DataError(f"{name}: camera {fault}")


def _ratios(camera: PinholeCamera, size: tuple[int, int]) -> tuple[float, float]:
    """Return twice the distance of the center from the top and from the left over the image's sides: about 1."""
    height, width = size
    return (2 * camera.cy + 1) / height, (2 * camera.cx + 1) / width


def _remedy(camera: PinholeCamera, size: tuple[int, int]) -> str:
    down, across = _ratios(camera, size)
    if min(down, across) <= 0 or max(down / across, across / down) > 1.25:
        return ""
    height, width = size
    ratio = math.sqrt(down * across)
    old = (round(height * ratio), round(width * ratio))
    usual = [s for s in _USUAL_SIZES if abs(s[0] / old[0] - 1) < _NEAR_SIZE and abs(s[1] / old[1] - 1) < _NEAR_SIZE]
    old = usual[0] if usual else old
    numbers = ",".join(f"{value:.4g}" for value in camera.resized(old, size).as_tuple())
    return f"; if they belong to images of {old[0]}x{old[1]}, they are {numbers} at this size"


def _text(camera: PinholeCamera) -> str:
    return f"fx {camera.fx:.6g} fy {camera.fy:.6g} cx {camera.cx:.6g} cy {camera.cy:.6g}"
