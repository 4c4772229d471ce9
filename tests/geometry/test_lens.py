from __future__ import annotations

import math

import pytest
import torch

from rgbdseg.camera import PinholeCamera
from rgbdseg.geometry.lens import Lens
from rgbdseg.geometry.register import register_depth

# Those of a depth camera and of a color camera of an Azure Kinect.
DEPTH = Lens(
    k1=6.0841460,
    k2=4.3754911,
    k3=0.23618598,
    k4=6.4087334,
    k5=6.4182959,
    k6=1.2202921,
    p1=-5.5295703e-5,
    p2=6.5029337e-5,
)
COLOR = Lens(
    k1=0.58438081,
    k2=-2.4942491,
    k3=1.3602830,
    k4=0.46475524,
    k5=-2.3362465,
    k6=1.3011596,
    p1=6.5308170e-4,
    p2=-1.7650700e-4,
)


def grid(half_width: float, half_height: float, steps: int = 21) -> tuple[torch.Tensor, torch.Tensor]:
    y, x = torch.meshgrid(
        torch.linspace(-half_height, half_height, steps, dtype=torch.float64),
        torch.linspace(-half_width, half_width, steps, dtype=torch.float64),
        indexing="ij",
    )
    return x, y


def test_the_rational_model_as_it_is_written() -> None:
    x, y = 0.3, -0.2
    r2 = x**2 + y**2
    radial = (1 + COLOR.k1 * r2 + COLOR.k2 * r2**2 + COLOR.k3 * r2**3) / (
        1 + COLOR.k4 * r2 + COLOR.k5 * r2**2 + COLOR.k6 * r2**3
    )
    wanted = (
        x * radial + 2 * COLOR.p1 * x * y + COLOR.p2 * (r2 + 2 * x**2),
        y * radial + COLOR.p1 * (r2 + 2 * y**2) + 2 * COLOR.p2 * x * y,
    )
    found = COLOR.distort(torch.tensor([x], dtype=torch.float64), torch.tensor([y], dtype=torch.float64))
    assert [float(value) for value in found] == pytest.approx(wanted, abs=1e-14)


@pytest.mark.parametrize(("lens", "half"), [(DEPTH, (0.6, 0.5)), (DEPTH, (1.0, 1.0)), (COLOR, (0.75, 0.45))])
def test_there_and_back(lens: Lens, half: tuple[float, float]) -> None:
    x, y = grid(*half)
    back = lens.undistort(*lens.distort(x, y))
    torch.testing.assert_close(back, (x, y), rtol=0, atol=1e-7)
    moved = lens.distort(x, y)
    assert float((moved[0] - x).abs().max()) > 0.002  # or it would be no lens


def test_what_no_lens_shows_is_no_number() -> None:
    barrel = Lens(k1=-0.3)
    # r (1 - 0.3 r2) is largest where 1 = 0.9 r2, and shows 2/3 of it.
    edge = 1 / math.sqrt(0.9)
    assert barrel.largest_radius == pytest.approx(edge, abs=2e-3)
    axis = torch.tensor([0.0, 0.9, 1.2, 2.5], dtype=torch.float64)
    shown, _ = barrel.distort(axis, torch.zeros_like(axis))
    assert shown[:2].tolist() == pytest.approx([0.0, 0.9 * (1 - 0.3 * 0.81)])
    assert shown[2:].isnan().all()
    seen, _ = barrel.undistort(torch.tensor([0.6, 0.8], dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    assert float(seen[0] * (1 - 0.3 * seen[0] ** 2)) == pytest.approx(0.6)
    assert seen[1].isnan()  # beyond 2/3 of the edge
    assert Lens().largest_radius == math.inf
    assert Lens().is_plain


def test_registration_through_two_lenses() -> None:
    """A slanted wall through the lens of one camera, as the other, which has another lens, sees it."""
    size, color_size = (58, 64), (72, 128)
    depth_camera, color_camera = PinholeCamera(50.4, 50.4, 33.0, 32.0), PinholeCamera(61.0, 61.2, 63.0, 37.0)
    angle = math.radians(6)
    rotation = torch.tensor(
        [[1, 0, 0], [0, math.cos(angle), math.sin(angle)], [0, -math.sin(angle), math.cos(angle)]], dtype=torch.float64
    )
    translation = torch.tensor([-0.032, -0.002, 0.004], dtype=torch.float64)
    normal, offset = torch.tensor([0.25, 0.1, 1.0], dtype=torch.float64), 1.5

    def wall_m(camera: PinholeCamera, lens: Lens, shape: tuple[int, int], n: torch.Tensor, d: float) -> torch.Tensor:
        v, u = torch.meshgrid(torch.arange(shape[0]).double(), torch.arange(shape[1]).double(), indexing="ij")
        x, y = lens.undistort((u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy)
        return d / (torch.stack([x, y, torch.ones_like(x)], -1) @ n)

    depth_m = wall_m(depth_camera, DEPTH, size, normal, offset).float()
    seen = register_depth(
        depth_m, depth_camera, color_camera, color_size, rotation=rotation, translation_m=translation,
        depth_lens=DEPTH, color_lens=COLOR,
    )  # fmt: skip
    turned = rotation @ normal
    wanted = wall_m(color_camera, COLOR, color_size, turned, float(offset + turned @ translation)).float()
    found = seen > 0
    assert found[10:-10, 35:-35].float().mean() > 0.99
    off = ((seen - wanted).abs() / wanted)[found]
    assert float(off.mean()) < 0.003  # a reading covers more than a pixel of the wall
    without = register_depth(
        depth_m, depth_camera, color_camera, color_size, rotation=rotation, translation_m=translation
    )
    astray = ((without - wanted).abs() / wanted)[without > 0]
    assert float(off.mean()) < 0.5 * float(astray.mean())
