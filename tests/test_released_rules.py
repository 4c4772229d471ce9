"""Rules of released evaluators against plain formulations: loops, exponentials, float64, Python's own slices."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.camera import PinholeCamera
from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.config.published_protocols import PUBLISHED_PROTOCOLS
from rgbdseg.errors import UsageError
from rgbdseg.inference import segment
from rgbdseg.input_spec import InputSpec, Stream, rgb_stream
from rgbdseg.models._base import SegmentationOutput
from rgbdseg.sample import RGBDSample
from rgbdseg.transforms.spatial import resize_raster

CLASSES = 4
SPEC = InputSpec((rgb_stream((0.25,) * 3, (0.5,) * 3), Stream("depth", "depth_m", (2.0,), (0.5,), divide_by=1.0)))


class Network:
    """A convolution of both inputs, so that every border shows, in the precision of what it is given."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.weight = 0.3 * torch.randn(CLASSES, 4, 5, 5, generator=generator)
        self.sizes: list[tuple[int, ...]] = []

    def logits(self, both: Tensor) -> Tensor:
        self.sizes.append(tuple(both.shape[-2:]))
        return functional.conv2d(both, self.weight.to(both.dtype), padding=2)

    def __call__(self, images: Mapping[str, Tensor], camera: Tensor | None) -> SegmentationOutput:
        return SegmentationOutput(self.logits(torch.cat((images["rgb"], images["depth"]), 1)))


def frame(height: int, width: int) -> RGBDSample:
    generator = torch.Generator().manual_seed(5)
    rgb = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    return RGBDSample(rgb, depth_m=1 + 3 * torch.rand(1, height, width, generator=generator))


def normalized(rgb: Tensor, depth_m: Tensor) -> Tensor:
    """(4, H, W) in float64."""
    return torch.cat(((rgb.double() / 255 - 0.25) / 0.5, (depth_m.double() - 2) / 0.5))


# --- CMX and Sigma: rows and columns exchanged


def centered(image: Tensor, height: int, width: int, value: float) -> tuple[Tensor, slice, slice]:
    rows, columns = max(0, height - image.shape[-2]), max(0, width - image.shape[-1])
    padded = functional.pad(image, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2), value=value)
    top, left = rows // 2, columns // 2
    return padded, slice(top, top + image.shape[-2]), slice(left, left + image.shape[-1])


def released_cmx(network: Network, sample: RGBDSample, crop: tuple[int, int], scales: tuple[float, ...]) -> Tensor:
    assert sample.depth_m is not None
    total = torch.zeros(CLASSES, *sample.size, dtype=torch.float64)
    for scale in scales:
        height, width = (round(side * scale) for side in sample.size)
        rgb = resize_raster(sample.rgb, (height, width), "bilinear", scale)
        depth = resize_raster(sample.depth_m, (height, width), "nearest", scale)
        image = normalized(rgb, depth)

        def scored(part: Tensor) -> Tensor:
            view, rows, columns = centered(part, *crop, 0.0)
            both = network.logits(view[None]) + network.logits(view[None].flip(-1)).flip(-1)
            return both[0, :, rows, columns].exp()

        if width <= crop[1] or height <= crop[0]:
            scores = scored(image)
        else:
            stride = [math.ceil(side * 2 / 3) for side in crop]
            scores = torch.zeros(CLASSES, height, width, dtype=torch.float64)
            for row in range(math.ceil((height - crop[0]) / stride[0]) + 1):
                for column in range(math.ceil((width - crop[1]) / stride[1]) + 1):
                    end_x = min(column * stride[0] + crop[0], width)
                    end_y = min(row * stride[1] + crop[1], height)
                    x, y = slice(end_x - crop[0], end_x), slice(end_y - crop[1], end_y)  # negative as Python reads it
                    scores[:, y, x] += scored(image[:, y, x])
        total += functional.interpolate(scores[None], sample.size, mode="bilinear", align_corners=False)[0]
    return total


@pytest.mark.parametrize(
    ("size", "scales"),
    [
        ((48, 64), (0.75, 1.0, 1.25)),  # a tenth of NYU Depth V2
        ((60, 80), (1.0,)),
        ((48, 81), (1.0,)),  # no higher than the window: whole
        ((71, 77), (1.0, 0.9)),  # rows begin at a whole window here
        ((53, 67), (1.25, 0.75)),  # sides that are no whole numbers
    ],
)
def test_cmx_as_released(size: tuple[int, int], scales: tuple[float, ...]) -> None:
    protocol = EvaluationProtocol(
        "sliding", (48, 64), 2 / 3, scales, True, "sagate", resize_by="factor", windows="cmx_released"
    )
    sample = frame(*size)
    result = segment(Network(), sample, SPEC, protocol)
    expected = released_cmx(Network(), sample, (48, 64), scales)
    torch.testing.assert_close(result.scores.double(), expected, rtol=5e-5, atol=1e-9)
    assert torch.equal(result.prediction.long(), expected.argmax(0))


def seen_by_cmx(size: tuple[int, int], weights: float = 1.0) -> NDArray[np.float64]:
    """How often the released windows of 480x640 see each pixel: scores of logits that are 0 everywhere."""

    def silent(images: Mapping[str, Tensor], camera: Tensor | None) -> SegmentationOutput:
        return SegmentationOutput(images["rgb"][:, :1] * 0)

    protocol = EvaluationProtocol("sliding", (480, 640), flip=True, combination="sagate", windows="cmx_released")
    sample = RGBDSample(torch.zeros(3, *size, dtype=torch.uint8))
    seen: NDArray[np.float64] = segment(silent, sample, InputSpec((rgb_stream(),)), protocol).scores[0].numpy()
    return seen


def test_at_scale_1_25_only_the_last_40_rows_are_scored_by_cmx() -> None:
    seen = seen_by_cmx((600, 800))
    assert (seen[:560] == 0).all()
    assert np.allclose(seen[560:, :320], 2)
    assert np.allclose(seen[560:, 320:480], 4)
    assert np.allclose(seen[560:, 480:], 2)
    assert (seen_by_cmx((480, 640)) == 1).all()


# --- DFormer and others: inputs resized with aligned corners


def released_msf(
    network: Network, image: Tensor, scales: tuple[float, ...], flip: bool, up: bool, crop: tuple[int, int] | None
) -> Tensor:
    """Sum of softmax over scales and mirror images; image (1, 4, H, W)."""
    height, width = image.shape[-2:]

    def bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
        return functional.interpolate(x, size=size, mode="bilinear", align_corners=True)

    def run(x: Tensor) -> Tensor:
        if crop is None:
            return network.logits(x)
        if crop[0] > x.shape[2] or crop[1] > x.shape[3]:
            x = bilinear(x, crop)
        stride = [int(2 / 3 * side) for side in crop]
        rows, columns = (max(n - c + s - 1, 0) // s + 1 for n, c, s in zip(x.shape[2:], crop, stride, strict=True))
        logits, count = torch.zeros(1, CLASSES, *x.shape[2:], dtype=x.dtype), torch.zeros(x.shape[2:])
        for i in range(rows):
            for j in range(columns):
                bottom, right = min(i * stride[0] + crop[0], x.shape[2]), min(j * stride[1] + crop[1], x.shape[3])
                area = (..., slice(max(bottom - crop[0], 0), bottom), slice(max(right - crop[1], 0), right))
                logits[area] += network.logits(x[area])
                count[area] += 1
        return logits / count

    total = torch.zeros(CLASSES, height, width, dtype=torch.float64)
    for scale in scales:
        whole = int(scale * height), int(scale * width)
        up_size = math.ceil(whole[0] / 32) * 32, math.ceil(whole[1] / 32) * 32
        down_size = int(height * scale // 32) * 32, int(width * scale // 32) * 32
        scaled = bilinear(image, up_size if up else down_size)
        total += bilinear(run(scaled), (height, width)).softmax(1)[0]
        if flip:
            total += bilinear(run(scaled.flip(3)).flip(3), (height, width)).softmax(1)[0]
    return total


@pytest.mark.parametrize("size", [(96, 128), (85, 131)])
@pytest.mark.parametrize("name", ["dformer", "dformer-sliding", "cmnext", "hdbformer", "dplnet"])
def test_inputs_resized_with_aligned_corners(name: str, size: tuple[int, int]) -> None:
    protocol = PUBLISHED_PROTOCOLS[name]
    crop = None if protocol.mode == "whole" else (96, 128)
    if crop is not None:
        assert protocol.crop_size == (480, 640)  # too large to try
        protocol = EvaluationProtocol(**{**vars(protocol), "crop_size": crop, "window_batch": 3})
    sample = frame(*size)
    assert sample.depth_m is not None
    mine, plain = Network(), Network()
    scores = segment(mine, sample, SPEC, protocol).scores
    image = normalized(sample.rgb, sample.depth_m)[None]
    expected = released_msf(plain, image, protocol.scales, protocol.flip, name != "dplnet", crop)
    views = len(protocol.scales) * 2
    torch.testing.assert_close(scores.double(), expected / views, rtol=1e-4, atol=1e-6)
    assert set(mine.sizes) == set(plain.sizes)
    assert all(side % 32 == 0 for sides in mine.sizes for side in sides)


def test_asymformer_adds_logits_of_inputs_that_were_resized_about_pixel_centers() -> None:
    protocol = PUBLISHED_PROTOCOLS["asymformer"]
    sample = frame(160, 320)
    assert sample.depth_m is not None
    total = torch.zeros(CLASSES, 160, 320, dtype=torch.float64)
    for height, width in ((160, 320), (192, 384), (224, 448)):
        rgb = functional.interpolate(sample.rgb[None].double(), (height, width), mode="bilinear", align_corners=False)
        rows = ((torch.arange(height) + 0.5) * 160 / height).floor().long()
        columns = ((torch.arange(width) + 0.5) * 320 / width).floor().long()
        image = normalized(rgb[0], sample.depth_m[:, rows][:, :, columns])[None]
        logits = Network().logits(image)
        total += functional.interpolate(logits, (160, 320), mode="bilinear", align_corners=True)[0]
    result = segment(Network(), sample, SPEC, protocol).log_scores
    torch.testing.assert_close(result.double(), total, rtol=1e-4, atol=1e-3)  # positions are float32


def test_windows_average_logits_where_logits_are_added() -> None:
    network = nn.Conv2d(3, CLASSES, 1)

    def model(images: Mapping[str, Tensor], camera: Tensor | None) -> SegmentationOutput:
        return SegmentationOutput(network(images["rgb"]))

    sample, spec = frame(20, 30), InputSpec((rgb_stream(),))
    pieces = EvaluationProtocol("sliding", (16, 16), 0.5, combination="logits", flip=True)
    whole = EvaluationProtocol(combination="logits", flip=True)
    torch.testing.assert_close(
        segment(model, sample, spec, pieces).log_scores, segment(model, sample, spec, whole).log_scores
    )


@pytest.mark.parametrize("resize", ["input", "input_centered"])
def test_the_camera_follows_inputs_that_are_resized(resize: str) -> None:
    """A ray through a pixel stays the same ray: columns as seen by the camera, resized with the picture."""
    spec = InputSpec((rgb_stream((0.0,) * 3, (1 / 255,) * 3),), needs_camera=True)
    camera = PinholeCamera(20.0, 25.0, 7.3, 5.1)
    rows, columns = torch.meshgrid(torch.arange(12), torch.arange(22), indexing="ij")
    rgb = torch.stack((columns, rows, rows)).to(torch.uint8)
    differences: list[float] = []

    def model(images: Mapping[str, Tensor], cameras: Tensor | None) -> SegmentationOutput:
        assert cameras is not None
        fx, fy, cx, cy = cameras[0]
        image = images["rgb"][0]
        y, x = torch.meshgrid(torch.arange(image.shape[1]), torch.arange(image.shape[2]), indexing="ij")
        inside = (..., slice(2, -2), slice(2, -2))  # borders are repeated about pixel centers
        differences.append(float((((x - cx) / fx) - (image[0] - 7.3) / 20).abs()[inside].max()))
        differences.append(float((((y - cy) / fy) - (image[1] - 5.1) / 25).abs()[inside].max()))
        return SegmentationOutput(images["rgb"])

    protocol = EvaluationProtocol(scales=(1.5, 0.75), resize=resize)  # type: ignore[arg-type]
    segment(model, RGBDSample(rgb, camera=camera), spec, protocol)
    assert len(differences) == 4
    assert max(differences) < 1e-5


def test_sides_that_the_model_cannot_take_are_refused() -> None:
    spec = InputSpec(SPEC.streams, size_divisor=32)
    protocol = EvaluationProtocol(resize="input", scales=(0.5,))
    with pytest.raises(
        UsageError, match="an input of 48x64 is not divisible by 32, which this model needs; use side_mult"
    ):
        segment(Network(), frame(96, 128), spec, protocol)


# --- factor or size


def test_geometry_is_sampled_by_factor_like_color() -> None:
    """Nearest readings at floor(x / scale), with a camera to match, where 101 * 0.5 is no whole number."""
    depth = torch.arange(101.0).view(1, 1, 101) + 1
    sample = RGBDSample(torch.zeros(3, 1, 101, dtype=torch.uint8), depth_m=depth, camera=PinholeCamera(10, 10, 5, 0))
    seen: list[tuple[Tensor, Tensor]] = []

    def model(images: Mapping[str, Tensor], camera: Tensor | None) -> SegmentationOutput:
        assert camera is not None
        seen.append((images["depth"][0, 0, 0], camera[0]))
        return SegmentationOutput(images["rgb"])

    spec = InputSpec((rgb_stream(), Stream("depth", "depth_m", (0.0,), (1.0,), divide_by=1.0)), needs_camera=True)
    for by in ("factor", "size"):
        segment(model, sample, spec, EvaluationProtocol(scales=(0.5,), resize_by=by))  # type: ignore[arg-type]
    (by_factor, camera), (by_size, other) = seen
    assert by_factor.tolist() == [2 * x + 1 for x in range(50)]
    assert by_size.tolist() == [x * 101 // 50 + 1 for x in range(50)]
    assert camera[0] == 5
    assert camera[2] == (5 + 0.5) * 0.5 - 0.5
    assert other[0] == pytest.approx(10 * 50 / 101)


def test_floating_rasters_are_sampled_by_factor_too() -> None:
    line = torch.arange(5.0).view(1, 1, 5)
    resized = resize_raster(line, (1, 8), "bilinear", 1.5)
    expected = [(x + 0.5) / 1.5 - 0.5 for x in range(8)]
    assert resized.flatten().tolist() == pytest.approx([min(max(x, 0), 4) for x in expected])
