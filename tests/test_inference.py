from __future__ import annotations

import dataclasses
import json
import math
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from rgbdseg.camera import PinholeCamera
from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.device import place_model
from rgbdseg.errors import DataError, UsageError
from rgbdseg.inference import Segmentation, segment, window_positions
from rgbdseg.inference.coarse import CoarseScores
from rgbdseg.inference.scores import add_logarithms
from rgbdseg.input_spec import InputSpec, Stream, rgb_stream
from rgbdseg.models._base import SegmentationModel, SegmentationOutput
from rgbdseg.nn.resize import resize_logits
from rgbdseg.sample import RGBDSample
from rgbdseg.transforms.derive import with_noise
from rgbdseg.transforms.spatial import resize_raster
from tests.shared_data import shared_path
from tests.specs import METRIC_DEPTH, PLAIN_RGB, RGB_HHA

Function = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]


def image(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


class Recorder:
    """Turns rgb, the other stream, if any, and camera into logits by a function, and notes the shapes of rgb."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, images: Mapping[str, Tensor], camera: Tensor | None) -> SegmentationOutput:
        rgb, *others = images.values()
        self.shapes.append(tuple(rgb.shape))
        return SegmentationOutput(self.function(rgb, others[0] if others else None, camera))


# --- the window grid


@pytest.mark.parametrize(
    ("size", "crop", "expected"),
    [
        ((480, 640), 480, [(0, 0), (0, 160)]),
        ((600, 800), 480, [(0, 0), (0, 320), (120, 0), (120, 320)]),
        ((480, 640), 432, [(0, 0), (0, 208), (48, 0), (48, 208)]),
        ((360, 480), 480, [(0, 0)]),
        ((1024, 2048), 800, [(t, x) for t in (0, 224) for x in (0, 534, 1068, 1248)]),
        ((96, 224), 96, [(0, 0), (0, 64), (0, 128)]),  # divides exactly: no window twice
    ],
)
def test_published_window_grids(size: tuple[int, int], crop: int, expected: list[tuple[int, int]]) -> None:
    assert window_positions(size, (crop, crop), 2 / 3) == expected


@given(length=st.integers(1, 400), extent=st.integers(1, 200), rate=st.floats(0.05, 1), other=st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_windows_cover_everything_and_stay_inside(length: int, extent: int, rate: float, other: int) -> None:
    positions = [left for _, left in window_positions((other, length), (other, extent), rate)]
    assert positions[0] == 0
    assert positions == sorted(set(positions))
    assert positions[-1] == max(0, length - extent)
    stride = math.ceil(extent * rate)
    steps = np.diff(positions)
    assert all(steps[:-1] == stride)
    assert all(steps <= min(stride, extent))


# --- a margin that is cut off


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0)])
def test_a_margin_is_not_seen_and_gets_the_scores_of_the_nearest_pixel(scales: tuple[float, ...]) -> None:
    rgb = image(12, 16)
    model = Recorder(lambda rgb, *_: rgb)
    protocol = EvaluationProtocol(scales=scales, combination="sagate", margin=3)
    result = segment(model, RGBDSample(rgb), PLAIN_RGB, protocol)
    inside = segment(
        model, RGBDSample(rgb[:, 3:9, 3:13]), PLAIN_RGB, EvaluationProtocol(scales=scales, combination="sagate")
    )
    assert model.shapes[0][-2:] == (round(6 * scales[0]), round(10 * scales[0]))
    assert result.log_scores.shape == (3, 12, 16)
    assert torch.equal(result.log_scores[:, 3:9, 3:13], inside.log_scores)
    assert torch.equal(result.log_scores[:, :4, 15], inside.log_scores[:, :1, 9].expand(3, 4))
    with pytest.raises(DataError, match="is 12x16, of which nothing is left after cutting 6 pixels off each side"):
        segment(model, RGBDSample(rgb), PLAIN_RGB, EvaluationProtocol(margin=6))


def test_the_camera_follows_a_margin() -> None:
    seen: list[Tensor] = []

    def model(images: Mapping[str, Tensor], camera: Tensor | None) -> SegmentationOutput:
        assert camera is not None
        seen.append(camera)
        return SegmentationOutput(images["rgb"])

    sample = RGBDSample(image(12, 16), camera=PinholeCamera(20.0, 21.0, 8.0, 5.5))
    segment(model, sample, PLAIN_RGB, EvaluationProtocol(margin=3))
    assert seen[0].tolist() == [[20.0, 21.0, 5.0, 2.5]]


# --- classes and confidence


@pytest.mark.parametrize("size", [(3, 5), (300, 500)])  # the latter is more than is looked at at once
def test_prediction_and_confidence_are_those_of_argmax_and_softmax(size: tuple[int, int]) -> None:
    values = torch.randn(7, *size, generator=torch.Generator().manual_seed(0)).mul(30).round()
    values[:, 0, 1] = 3.0
    values[2:, 0, 2] = -math.inf
    result = Segmentation(values, normalized=False)
    # argmax may return any of equal ones; the first is asked for.
    first = (values == values.amax(0)).to(torch.uint8).argmax(0)
    assert result.prediction.dtype == torch.uint8
    assert torch.equal(result.prediction.long(), first)
    torch.testing.assert_close(result.confidence, values.softmax(0).amax(0), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(result.log_scores, values.log_softmax(0))
    assert result.log_scores is result.log_scores  # computed once


class Coarse(SegmentationModel):
    """Scores of squares of 4 pixels; ``shifts`` them after they were enlarged."""

    def __init__(self, shifts: bool = False, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(9, dataclasses.replace(PLAIN_RGB, size_divisor=4))
        self.convolution = nn.Conv2d(3, 9, 4, 4, dtype=dtype)
        nn.init.zeros_(self.convolution.bias)  # type: ignore[arg-type]
        self.shifts = shifts

    def forward(self, images: Mapping[str, Tensor], camera: Tensor | None = None) -> SegmentationOutput:
        rgb = images["rgb"]
        logits = resize_logits(self.convolution(rgb.to(self.convolution.weight.dtype)), (rgb.shape[-2], rgb.shape[-1]))
        return SegmentationOutput(logits.roll(1, dims=-1) if self.shifts else logits)


@pytest.mark.parametrize("size", [(20, 32), (21, 30)])  # the latter gets a border
@pytest.mark.parametrize("shifts", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_classes_that_are_decided_before_all_scores_are_enlarged_are_the_same(
    size: tuple[int, int], shifts: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model = Coarse(shifts, dtype).eval()
    protocol = EvaluationProtocol()
    plain = segment(model.forward, RGBDSample(image(*size)), model.input_spec, protocol)
    result = segment(model, RGBDSample(image(*size)), model.input_spec, protocol)
    assert isinstance(result.given, CoarseScores) is not shifts
    assert isinstance(plain.given, Tensor)
    assert torch.equal(result.prediction, plain.prediction)
    assert result.prediction.unique().numel() > 2
    torch.testing.assert_close(result.confidence, plain.confidence.to(result.confidence.dtype))
    torch.testing.assert_close(result.log_scores, plain.log_scores, rtol=0, atol=0)


def test_confidence_of_logits_beyond_exponentials() -> None:
    """Between cells of 960 and of -960 both classes are near 0, far below the bound of the sum of exponentials."""
    model = Coarse().eval()
    with torch.no_grad():
        model.convolution.weight.zero_()
        model.convolution.weight[0], model.convolution.weight[1] = 40.0, -40.0
        assert model.convolution.bias is not None
        model.convolution.bias[0], model.convolution.bias[1] = -960.0, 960.0
    rgb = image(20, 32)
    rgb[:] = torch.tensor([0, 255], dtype=torch.uint8).repeat(4).repeat_interleave(4)
    result = segment(model, RGBDSample(rgb), model.input_spec, EvaluationProtocol())
    torch.testing.assert_close(result.confidence, result.values.softmax(0).amax(0), rtol=1e-5, atol=1e-7)
    assert result.confidence.isfinite().all()
    assert isinstance(result.given, CoarseScores)
    assert result.given.logits.logits[:, :2].abs().min() > 900  # or the test would not reach what it is about


def test_a_window_that_an_image_does_not_fit_into_is_not_decided_before() -> None:
    model = Coarse().eval()
    protocol = EvaluationProtocol("sliding", (16, 16))
    assert isinstance(segment(model, RGBDSample(image(20, 32)), model.input_spec, protocol).given, Tensor)
    assert isinstance(segment(model, RGBDSample(image(16, 12)), model.input_spec, protocol).given, CoarseScores)


@pytest.mark.parametrize("margin", [0, 3])
@pytest.mark.parametrize("combination", ["softmax", "malleable"])
@pytest.mark.parametrize("flip", [False, True])
def test_a_single_view_has_the_scores_of_its_rule(combination: str, flip: bool, margin: int) -> None:
    weight = 5 * torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    model = Recorder(lambda rgb, *_: functional.conv2d(rgb, weight, padding=1))
    one = EvaluationProtocol(flip=flip, combination=combination, margin=margin)  # type: ignore[arg-type]
    result = segment(model, RGBDSample(image(20, 30)), PLAIN_RGB, one)
    assert result.normalized is (flip and combination == "softmax")
    torch.testing.assert_close(result.scores.sum(0), torch.ones(20, 30))
    twice = segment(model, RGBDSample(image(20, 30)), PLAIN_RGB, dataclasses.replace(one, scales=(1.0, 1.0)))
    expected = twice.scores if combination == "softmax" else twice.scores / 2
    torch.testing.assert_close(result.scores, expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(result.prediction, twice.prediction)


@pytest.mark.parametrize("channels_last", [False, True])
def test_images_come_in_the_memory_order_of_the_kernels(channels_last: bool) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, images: Mapping[str, Tensor], camera: Tensor | None) -> SegmentationOutput:
            assert images["rgb"].is_contiguous(memory_format=torch.channels_last) is channels_last
            return SegmentationOutput(images["rgb"])

    network = Network().eval()
    if channels_last:
        place_model(network, torch.device("cpu"))
    assert network.conv.weight.is_contiguous(memory_format=torch.channels_last) is channels_last
    result = segment(network, RGBDSample(image(20, 30)), PLAIN_RGB, EvaluationProtocol(flip=True))
    assert result.log_scores.is_contiguous()


def test_one_view_at_a_time_on_a_cpu_unless_told_otherwise() -> None:
    for window_batch, most in ((None, 1), (4, 4)):
        model = Recorder(lambda rgb, *_: rgb)
        protocol = EvaluationProtocol("sliding", (16, 16), flip=True, window_batch=window_batch)
        segment(model, RGBDSample(image(40, 40)), PLAIN_RGB, protocol)
        assert max(shape[0] for shape in model.shapes) == most


# --- how views are combined


def two_window_scores(combination: str) -> tuple[list[float], int]:
    """Two 4-pixel windows over 6 columns, with logits (0, 1) in the first and (5, 4.5) in the second."""
    logits = torch.tensor([[0.0, 1.0], [5.0, 4.5]])
    model = Recorder(lambda rgb, *_: logits[:, :, None, None].expand(2, 2, 4, 4))
    protocol = EvaluationProtocol("sliding", (4, 4), 0.5, combination=combination, window_batch=2)  # type: ignore[arg-type]
    result = segment(model, RGBDSample(image(4, 6)), PLAIN_RGB, protocol)
    return result.scores[:, 0, 2].tolist(), int(result.prediction[0, 2])


def test_sagate_sums_exponentials() -> None:
    scores, prediction = two_window_scores("sagate")
    assert scores == pytest.approx([1 + math.exp(5), math.e + math.exp(4.5)], rel=1e-6)
    assert scores == pytest.approx([149.4, 92.7], abs=0.05)
    assert prediction == 0


def test_malleable_sums_probabilities() -> None:
    scores, prediction = two_window_scores("malleable")
    assert scores == pytest.approx([0.891, 1.109], abs=5e-4)
    assert prediction == 1


def test_softmax_averages_probabilities() -> None:
    scores, prediction = two_window_scores("softmax")
    assert scores == pytest.approx([0.891 / 2, 1.109 / 2], abs=5e-4)
    assert sum(scores) == pytest.approx(1, abs=1e-6)
    assert prediction == 1


@pytest.mark.parametrize(
    ("combination", "expected"),
    [
        ("sagate", [math.exp(4), math.exp(1)]),
        ("malleable", [1 / (1 + math.exp(-1.5)), 1 / (1 + math.exp(1.5))]),
        (
            "softmax",
            [(1 / (1 + math.exp(-4)) + 1 / (1 + math.e)) / 2, (1 / (1 + math.exp(4)) + math.e / (1 + math.e)) / 2],
        ),
    ],
)
def test_mirror_image_enters_as_each_rule_says(combination: str, expected: list[float]) -> None:
    # logits (4, 0) for the image and (0, 1) for its mirror image
    logits = torch.tensor([[4.0, 0.0], [0.0, 1.0]])
    model = Recorder(lambda rgb, *_: logits[:, :, None, None].expand(2, 2, *rgb.shape[-2:]))
    protocol = EvaluationProtocol(flip=True, combination=combination, window_batch=2)  # type: ignore[arg-type]
    scores = segment(model, RGBDSample(image(3, 5)), PLAIN_RGB, protocol).scores
    assert scores[:, 1, 2].tolist() == pytest.approx(expected, rel=1e-6)


def test_logits_fixed_by_position_are_doubled_in_the_overlap_and_keep_their_argmax() -> None:
    rows, columns = torch.meshgrid(torch.arange(480), torch.arange(640), indexing="ij")
    coordinates = torch.stack((rows // 2, columns // 4, columns % 4)).to(torch.uint8)
    model = Recorder(lambda rgb, *_: rgb * torch.tensor([3.0, 4.0, 90.0]).view(3, 1, 1))
    logits = model.function(coordinates.float() / 255, None, None)
    sagate = EvaluationProtocol("sliding", (480, 480), combination="sagate")
    summed = segment(model, RGBDSample(coordinates), PLAIN_RGB, sagate)
    factor = summed.scores / logits.exp()
    torch.testing.assert_close(factor[..., 160:480], torch.full((3, 480, 320), 2.0), rtol=1e-5, atol=0)
    outside = torch.cat((factor[..., :160], factor[..., 480:]), dim=-1)
    torch.testing.assert_close(outside, torch.ones(3, 480, 320), rtol=1e-5, atol=0)
    assert torch.equal(summed.prediction.long(), logits.argmax(0))
    averaged = segment(model, RGBDSample(coordinates), PLAIN_RGB, EvaluationProtocol("sliding", (480, 480)))
    torch.testing.assert_close(averaged.scores, logits.softmax(0), rtol=1e-5, atol=1e-7)


# --- against a plain formulation of the rules


def reference_scores(network: nn.Conv2d, rgb: Tensor, protocol: EvaluationProtocol) -> Tensor:
    """The rules with loops, exponentials and float64."""
    assert protocol.crop_size is not None
    size, (crop_h, crop_w) = tuple(rgb.shape[-2:]), protocol.crop_size
    total = torch.zeros(())
    for scale in protocol.scales:
        height, width = round(size[0] * scale), round(size[1] * scale)
        scaled = resize_raster(rgb, (height, width), "bilinear").double() / 255
        normalized = (scaled - 0.25) / 0.5
        black = (0 - 0.25) / 0.5
        released = protocol.combination != "softmax"
        border = black if released and (height > crop_h or width > crop_w) else 0.0
        rows, columns = max(0, crop_h - height), max(0, crop_w - width)
        padding = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
        padded = functional.pad(normalized, padding, value=border)
        scores = torch.zeros(network.out_channels, *padded.shape[1:], dtype=torch.float64)
        count = torch.zeros(padded.shape[1:], dtype=torch.float64)
        stride_h, stride_w = (math.ceil(c * protocol.stride_rate) for c in (crop_h, crop_w))
        for i in range(math.ceil((padded.shape[1] - crop_h) / stride_h) + 1):
            for j in range(math.ceil((padded.shape[2] - crop_w) / stride_w) + 1):
                bottom = min(i * stride_h + crop_h, padded.shape[1])
                right = min(j * stride_w + crop_w, padded.shape[2])
                area = (slice(bottom - crop_h, bottom), slice(right - crop_w, right))
                view = padded[(slice(None), *area)][None]
                logits = [network(view)]
                if protocol.flip:
                    logits.append(network(view.flip(-1)).flip(-1))
                score = {
                    "sagate": sum(logits).exp(),
                    "malleable": (sum(logits) / len(logits)).softmax(1),
                    "softmax": sum(x.softmax(1) for x in logits) / len(logits),
                }[protocol.combination]
                scores[(slice(None), *area)] += score[0]
                count[area] += 1
        if not released:
            scores = scores / count / len(protocol.scales)
        top, left = padding[2], padding[0]
        inside = scores[None, :, top : top + height, left : left + width]
        total = total + functional.interpolate(inside, size=size, mode="bilinear", align_corners=False)[0]
    return total


@pytest.mark.parametrize("combination", ["sagate", "malleable", "softmax"])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("size", "crop", "scales"),
    [
        ((21, 33), (16, 16), (1.0,)),  # larger than the window on both sides
        ((13, 33), (16, 16), (1.0, 0.75, 1.25)),  # on one side, and on neither at 0.75 of the height
        ((11, 14), (16, 16), (1.0, 0.5)),  # smaller, odd borders
        ((20, 31), (12, 16), (1.25, 0.6)),  # windows that are not square
    ],
)
def test_scores_equal_the_plain_formulation(
    combination: str, flip: bool, size: tuple[int, int], crop: tuple[int, int], scales: tuple[float, ...]
) -> None:
    torch.manual_seed(1)
    network = nn.Conv2d(3, 4, 5, padding=2)
    nn.init.normal_(network.weight, std=0.2)
    spec = InputSpec((rgb_stream((0.25,) * 3, (0.5,) * 3),))
    protocol = EvaluationProtocol("sliding", crop, 2 / 3, scales, flip, combination)  # type: ignore[arg-type]
    result = segment(Recorder(lambda rgb, *_: network(rgb)), RGBDSample(image(*size)), spec, protocol)
    with torch.no_grad():
        expected = reference_scores(network.double(), image(*size), protocol)
    torch.testing.assert_close(result.scores.double(), expected, rtol=2e-5, atol=1e-7)
    assert torch.equal(result.prediction.long(), expected.argmax(0))


@pytest.mark.parametrize("case", ["single_scale", "multi_scale_flip", "small_image", "odd_sizes"])
@pytest.mark.parametrize("window_batch", [1, 3])
def test_published_evaluation(case: str, window_batch: int) -> None:
    facts = json.loads(shared_path(f"golden/evaluation_{case}.json").read_text())
    with np.load(shared_path(f"golden/evaluation_{case}.npz"), allow_pickle=False) as arrays:
        data = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    weight, bias = data["param:weight"], data["param:bias"]

    def network(images: Mapping[str, Tensor], camera: Tensor | None) -> SegmentationOutput:
        both = torch.cat((images["rgb"], images["hha"]), 1)
        return SegmentationOutput(functional.conv2d(both, weight, bias, padding=3))

    sample = RGBDSample(data["input:rgb"].permute(2, 0, 1), hha=data["input:hha"].permute(2, 0, 1))
    crop = facts["crop_size"]
    protocol = EvaluationProtocol(
        "sliding",
        (crop, crop),
        facts["stride_rate"],
        tuple(facts["scales"]),
        facts["flip"],
        "sagate",
        window_batch,
        resize_by="factor",
    )
    # Steps that are no whole numbers are rounded otherwise in OpenCV: 3 of 90,294 scores differ by up to 1.2e-5.
    rtol = 2e-5 if case == "odd_sizes" else 1e-5
    result = segment(network, sample, RGB_HHA, protocol)
    torch.testing.assert_close(result.scores, data["output:scores"].permute(2, 0, 1), rtol=rtol, atol=0)
    assert torch.equal(result.prediction, data["output:prediction"])


# --- memory


class PeakMemory(TorchDispatchMode):
    """Notes the most bytes that tensors made inside it held at one time, counting shared memory once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.now = 0
        self.users: Counter[int] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.note(tensor)
        return result

    def note(self, tensor: Tensor) -> None:
        key, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        self.users[key] += 1
        if self.users[key] == 1:
            self.now += size
            self.peak = max(self.peak, self.now)
        weakref.finalize(tensor, self.forget, key, size)

    def forget(self, key: int, size: int) -> None:
        self.users[key] -= 1
        if self.users[key] == 0:
            self.now -= size


@pytest.mark.parametrize("combination", ["sagate", "softmax"])
@pytest.mark.parametrize(("scales", "most"), [((1.0,), 1.0), ((0.75, 1.0, 1.25), 1 + 1.25**2)])
def test_one_score_map_is_held_and_one_at_the_scale_in_progress(
    combination: str, scales: tuple[float, ...], most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rgbdseg.inference.scores.NUMBERS_AT_ONCE", 1)
    weight = torch.randn(40, 3, 1, 1)
    model = Recorder(lambda rgb, *_: functional.conv2d(rgb, weight))
    protocol = EvaluationProtocol("sliding", (16, 16), 2 / 3, scales, True, combination, window_batch=1)  # type: ignore[arg-type]
    sample = RGBDSample(image(96, 192))
    with PeakMemory() as memory:
        result = segment(model, sample, PLAIN_RGB, protocol)
    one_map = 40 * 96 * 192 * 4
    assert result.log_scores.untyped_storage().nbytes() == one_map
    # The rest: windows of 16 x 16, a few maps of one class, the image itself.
    assert most * one_map <= memory.peak < (most + 0.5) * one_map


def test_resizing_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(7, 3, 3, 3)
    protocol = EvaluationProtocol("sliding", (16, 16), 2 / 3, (0.6, 1.0, 1.4))
    results = []
    for numbers in (1, 3 * 40 * 50, 2**24):
        monkeypatch.setattr("rgbdseg.inference.scores.NUMBERS_AT_ONCE", numbers)
        model = Recorder(lambda rgb, *_: functional.conv2d(rgb, weight, padding=1))
        results.append(segment(model, RGBDSample(image(29, 37)), PLAIN_RGB, protocol).log_scores)
    for result in results[:2]:  # vector instructions round a little differently where an array ends
        torch.testing.assert_close(result, results[2], rtol=1e-6, atol=1e-6)


# --- large logits


@pytest.mark.parametrize("combination", ["sagate", "malleable", "softmax"])
def test_large_logits_stay_finite_and_pixels_far_below_keep_their_class(combination: str) -> None:
    # Left half: logits around 10,000.  Right half: around 0.  A constant per image would erase the right half.
    rgb = image(24, 40)
    factor = torch.ones(40)
    factor[:20] = 10_000.0
    logits = (rgb.float() / 255) * factor
    logits[0, :, :20] += 100.0
    columns = torch.zeros(3, 24, 40, dtype=torch.uint8)
    columns[:] = torch.arange(40, dtype=torch.uint8)

    def network(images: Mapping[str, Tensor], camera: Tensor | None) -> SegmentationOutput:
        left = (images["rgb"][0, 0, 0] * 255).round().long()
        return SegmentationOutput(logits[None, :, :, left])

    protocol = EvaluationProtocol("sliding", (24, 24), 0.5, combination=combination, window_batch=1)  # type: ignore[arg-type]
    result = segment(network, RGBDSample(columns), PLAIN_RGB, protocol)
    assert torch.isfinite(result.log_scores).all()
    assert torch.isfinite(result.scores).all()
    assert torch.equal(result.prediction.long(), logits.argmax(0))


def test_scores_beyond_float32_are_scaled_and_log_scale_says_how() -> None:
    logits = torch.tensor([9999.0, 10_000.0])
    model = Recorder(lambda rgb, *_: logits.view(1, 2, 1, 1).expand(len(rgb), 2, *rgb.shape[-2:]))
    protocol = EvaluationProtocol("sliding", (4, 4), 0.5, combination="sagate")
    result = segment(model, RGBDSample(image(4, 6)), PLAIN_RGB, protocol)
    # The two windows overlap in columns 2 and 3; float32 knows 10,000 to a thousandth.
    assert result.log_scale == pytest.approx(10_000 + math.log(2), abs=2e-3)
    expected = [0.5, 0.5, 1, 1, 0.5, 0.5]
    assert result.scores[1, 0].tolist() == pytest.approx(expected, rel=2e-3)
    assert result.scores[0, 0].tolist() == pytest.approx([value / math.e for value in expected], rel=4e-3)


def test_logarithms_of_sums() -> None:
    nothing = -math.inf
    numbers = torch.tensor([nothing, -200.0, -30.0, -1e-6, 0.0, 0.5, 17.0, 100.0, 3e38])
    total, other = (pair.flatten().repeat(2, 1)[..., None] for pair in torch.meshgrid(numbers, numbers, indexing="ij"))
    expected = torch.logaddexp(total.double(), other.double()).float()
    view = torch.full((2, total.shape[1] + 3, 4), 7.0)
    view[:, 1:-2, 2:3] = total
    add_logarithms(view[:, 1:-2, 2:3], other)
    torch.testing.assert_close(view[:, 1:-2, 2:3], expected, rtol=2e-7, atol=2e-7)
    assert bool((view[..., :2] == 7).all())


def test_mean_over_scales_is_taken_of_scores_not_of_logits() -> None:
    # At half size each 2x2 block is one pixel; enlarging mixes neighbors with weights 3/4 and 1/4.
    values = torch.tensor([0, 255], dtype=torch.uint8).repeat_interleave(2).expand(3, 2, 4).contiguous()
    model = Recorder(lambda rgb, *_: 300 * rgb[:, :2] * torch.tensor([1.0, 0.5]).view(2, 1, 1))
    protocol = EvaluationProtocol(scales=(0.5,), combination="sagate")
    log_scores = segment(model, RGBDSample(values), PLAIN_RGB, protocol).log_scores
    ln = math.log
    assert log_scores[0, 0].tolist() == pytest.approx([0, 300 + ln(0.25), 300 + ln(0.75), 300], rel=1e-6, abs=2e-7)
    assert log_scores[1, 0].tolist() == pytest.approx([0, 150 + ln(0.25), 150 + ln(0.75), 150], rel=1e-6, abs=2e-7)


# --- sizes, borders, cameras


def test_whole_image_is_padded_to_the_divisor_and_cropped_back() -> None:
    spec = InputSpec((rgb_stream((0.5,) * 3, (0.25,) * 3),), size_divisor=8)
    seen: list[Tensor] = []

    def network(images: Mapping[str, Tensor], camera: Tensor | None) -> SegmentationOutput:
        seen.append(images["rgb"])
        return SegmentationOutput(images["rgb"])

    rgb = image(13, 18)
    result = segment(network, RGBDSample(rgb), spec, EvaluationProtocol(combination="sagate"))
    assert seen[0].shape == (1, 3, 16, 24)
    assert torch.all(seen[0][..., 0, :] == 0)  # the border is 0 after normalization
    torch.testing.assert_close(result.log_scores, (rgb.float() / 255 - 0.5) / 0.25)
    assert result.prediction.dtype == torch.uint8
    assert result.prediction.shape == (13, 18)


@pytest.mark.parametrize("combination", ["sagate", "softmax"])
def test_border_of_an_image_larger_on_one_side_is_black_as_released_or_neutral(combination: str) -> None:
    spec = InputSpec((rgb_stream((0.5,) * 3, (0.25,) * 3),))
    seen: list[Tensor] = []

    def network(images: Mapping[str, Tensor], camera: Tensor | None) -> SegmentationOutput:
        seen.append(images["rgb"])
        return SegmentationOutput(images["rgb"])

    protocol = EvaluationProtocol("sliding", (8, 8), combination=combination)  # type: ignore[arg-type]
    segment(network, RGBDSample(image(5, 12)), spec, protocol)
    border = torch.cat((seen[0][:, :, :1], seen[0][:, :, 6:]), dim=2)
    assert torch.all(border == (-2.0 if combination == "sagate" else 0.0))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("mode", ["whole", "sliding"])
def test_camera_follows_windows_borders_and_mirror_images(mode: str, flip: bool) -> None:
    spec = InputSpec((rgb_stream(), METRIC_DEPTH), needs_camera=True, size_divisor=4)
    camera = PinholeCamera(20.0, 25.0, 7.3, 5.1)
    depth_m = torch.rand(1, 11, 21, generator=torch.Generator().manual_seed(2)) + 0.5
    sample = RGBDSample(image(11, 21), depth_m=depth_m, camera=camera)

    def rays(rgb: Tensor, geometry: Tensor | None, cameras: Tensor | None) -> Tensor:
        """The squared x of each point, its y and its depth: none of them changes in a mirror."""
        assert geometry is not None
        assert cameras is not None
        fx, fy, cx, cy = (value.view(-1, 1, 1) for value in cameras.unbind(1))
        rows, columns = torch.meshgrid(torch.arange(rgb.shape[-2]), torch.arange(rgb.shape[-1]), indexing="ij")
        z = geometry[:, 0]
        return torch.stack((((columns - cx) / fx * z) ** 2, (rows - cy) / fy * z, z), dim=1)

    protocol = EvaluationProtocol(mode, (8, 8), flip=flip, combination="softmax")  # type: ignore[arg-type]
    result = segment(Recorder(rays), sample, spec, protocol)
    expected = rays(sample.rgb[None], depth_m[None], torch.tensor([camera.as_tuple()]))[0]
    torch.testing.assert_close(result.scores, expected.softmax(0), rtol=1e-4, atol=1e-6)


def test_views_go_through_in_batches_and_the_batch_changes_nothing() -> None:
    network = nn.Conv2d(3, 4, 3, padding=1)
    sample = RGBDSample(image(20, 44))
    results = []
    # 2 x 4 windows and their mirror images
    for window_batch, sizes in ((1, [1] * 16), (2, [2] * 8), (6, [6, 6, 4]), (64, [16])):
        model = Recorder(lambda rgb, *_: network(rgb))
        protocol = EvaluationProtocol("sliding", (16, 16), 2 / 3, flip=True, window_batch=window_batch)
        results.append(segment(model, sample, PLAIN_RGB, protocol).scores)
        assert [shape[0] for shape in model.shapes] == sizes
        torch.testing.assert_close(results[-1], results[0], rtol=1e-5, atol=1e-7)


def test_what_the_model_does_not_eat_is_not_needed_and_the_sample_stays_as_it_is() -> None:
    rgb = image(9, 12)
    sample = RGBDSample(rgb.clone(), label=torch.zeros(1, 9, 12, dtype=torch.uint8), camera=PinholeCamera(9, 9, 6, 4))
    segment(Recorder(lambda x, *_: x), sample, PLAIN_RGB, EvaluationProtocol(scales=(1.5,), flip=True))
    assert torch.equal(sample.rgb, rgb)


def test_noise_is_added_and_belongs_to_the_frame() -> None:
    spec = InputSpec((rgb_stream(), Stream("noise", "noise", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))))
    model = Recorder(lambda rgb, geometry, _: rgb * 0 if geometry is None else geometry)
    protocol = EvaluationProtocol(combination="sagate")
    frame = RGBDSample(image(9, 12), sample_id="7")
    scores = [segment(model, one, spec, protocol).log_scores for one in (frame, frame, frame.replace(sample_id="8"))]
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])
    expected = with_noise(frame).noise
    assert expected is not None
    torch.testing.assert_close(scores[0], expected / 255)
    assert frame.noise is None


# --- the model's side


class Tiny(SegmentationModel):
    def __init__(self) -> None:
        super().__init__(5, PLAIN_RGB)
        self.layer = nn.Conv2d(3, 5, 3, padding=1)

    def forward(self, images: Mapping[str, Tensor], camera: Tensor | None = None) -> SegmentationOutput:
        return SegmentationOutput(self.layer(images["rgb"]))


def test_mixed_precision_runs_the_model_only() -> None:
    model = Tiny().eval()
    sample = RGBDSample(image(9, 12))
    exact = segment(model, sample, PLAIN_RGB, EvaluationProtocol())
    mixed = segment(model, sample, PLAIN_RGB, EvaluationProtocol(), autocast_dtype=torch.bfloat16)
    assert mixed.scores.dtype == torch.float32
    assert not torch.equal(mixed.scores, exact.scores)
    torch.testing.assert_close(mixed.scores, exact.scores, rtol=0.05, atol=0.01)
    assert not exact.scores.requires_grad


def test_a_model_in_training_mode_is_refused() -> None:
    with pytest.raises(UsageError, match=r"the model is in training mode; call model\.eval\(\)"):
        segment(Tiny(), RGBDSample(image(8, 8)), PLAIN_RGB, EvaluationProtocol())


def test_a_window_the_model_cannot_take_is_refused() -> None:
    spec = InputSpec((rgb_stream(),), size_divisor=32)
    message = "window 480x425 is not divisible by 32, which this model needs; use 480x448"
    with pytest.raises(UsageError, match=message):
        segment(Recorder(lambda x, *_: x), RGBDSample(image(8, 8)), spec, EvaluationProtocol("sliding", (480, 425)))


def test_missing_geometry_is_refused_before_anything_runs() -> None:
    model = Recorder(lambda x, *_: x)
    with pytest.raises(DataError, match="sample 'a' has no hha, which this model needs"):
        segment(model, RGBDSample(image(8, 8), sample_id="a"), RGB_HHA, EvaluationProtocol())
    assert model.shapes == []
