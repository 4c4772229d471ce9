from __future__ import annotations

import colorsys

import pytest
import torch

from rgbdseg.transforms.hsv import change_hsv, hsv_to_rgb, rgb_to_hsv


def pixel(*rgb: int) -> torch.Tensor:
    return torch.tensor(rgb, dtype=torch.uint8).view(3, 1, 1)


@pytest.mark.parametrize(
    ("rgb", "amounts", "expected"),
    [
        # Value 200, saturation 150 / 200, hue (50 / 150) / 6; then 1.1 / 18 turns, 0.675 and 221.
        ((200, 100, 50), (1.1, 0.9, 21.0), (221, 127, 72)),
        ((200, 100, 50), (1.1, None, None), (200, 105, 50)),
        ((200, 100, 50), (None, 0.9, None), (200, 110, 65)),
        ((200, 100, 50), (None, None, -20.0), (180, 90, 45)),
        ((200, 100, 50), (None, 5.0, None), (200, 67, 0)),  # the saturation stops at 1
        ((200, 80, 50), (None, None, 90.0), (255, 102, 64)),  # the value stops at 255, the ratios stay
        ((20, 10, 5), (None, None, -25.0), (0, 0, 0)),
        ((200, 0, 20), (1.1, None, None), (200, 0, 0)),  # 0.983 turns stop at 1 and do not go on past red
        ((200, 0, 0), (1.1, None, None), (200, 0, 0)),
        ((90, 90, 90), (0.9, 1.1, 4.0), (94, 94, 94)),
        ((0, 0, 0), (1.1, 1.1, 25.0), (25, 25, 25)),
        ((200, 100, 100), (None, None, None, 51.0), (200, 60, 60)),  # saturation 0.5 to 0.7
        ((200, 20, 20), (None, None, None, 51.0), (200, 0, 0)),
        ((200, 180, 180), (None, None, None, -51.0), (200, 200, 200)),
        ((200, 100, 100), (None, 0.8, None, 51.0), (200, 80, 80)),  # after the factor
    ],
)
def test_by_hand(rgb: tuple[int, int, int], amounts: tuple[float | None, ...], expected: tuple[int, ...]) -> None:
    changed = change_hsv(pixel(*rgb), *amounts)
    assert changed.dtype == torch.uint8
    assert changed.flatten().tolist() == list(expected)


def test_conversions_agree_with_the_standard_library() -> None:
    steps = torch.tensor([0, 1, 60, 127, 128, 200, 254, 255], dtype=torch.float32)
    rgb = torch.cartesian_prod(steps, steps, steps).T.reshape(3, 16, 32)
    hsv = torch.stack(rgb_to_hsv(rgb))
    expected = torch.tensor([colorsys.rgb_to_hsv(*(c / 255)) for c in rgb.double().flatten(1).T.numpy()])
    scaled = torch.stack((hsv[0], hsv[1], hsv[2] / 255)).flatten(1).T
    torch.testing.assert_close(scaled.double(), expected.double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(hsv_to_rgb(*hsv), rgb, atol=1e-3, rtol=0)


def test_images_of_any_shape_are_changed_pixel_by_pixel() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8, generator=generator)
    together = change_hsv(images, 1.1, 0.9, 7.0)
    for index in range(2):
        for row in range(4):
            one = change_hsv(images[index, :, row : row + 1, 2:3], 1.1, 0.9, 7.0)
            assert torch.equal(together[index, :, row : row + 1, 2:3], one)
