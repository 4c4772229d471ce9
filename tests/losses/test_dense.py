"""Losses of depth, normals and contours against values by hand, and what their targets are made of."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rgbdseg.camera import PinholeCamera
from rgbdseg.config.loss import DenseLossConfig, LossConfig
from rgbdseg.errors import UsageError
from rgbdseg.losses import Targets, segmentation_loss, targets
from rgbdseg.losses.dense import (
    contours_task_loss,
    depth_target,
    depth_task_loss,
    normals_task_loss,
    penalty,
)
from rgbdseg.losses.targets import label_contours
from rgbdseg.models._base import AuxiliaryOutput, SegmentationOutput
from rgbdseg.sample import RGBDSample
from rgbdseg.transforms.spatial import crop, resize, scaled_size
from tests.geometry.scenes import planes_depth
from tests.synthetic import flip_horizontal

CAMERA = PinholeCamera(50.0, 50.0, 19.5, 14.5)
VOID = torch.full((1, 30, 40), 255)


def config(**dense: Any) -> LossConfig:
    return LossConfig(dense=DenseLossConfig(**dense))


def camera_rows(camera: PinholeCamera) -> Tensor:
    return torch.tensor([camera.as_tuple()], dtype=torch.float32)


def plane(normal: tuple[float, float, float], distance_m: float, camera: PinholeCamera = CAMERA) -> Tensor:
    return planes_depth(camera_rows(camera).double(), 30, 40, [(normal, distance_m)], torch.float32)


def sample(depth_m: Tensor) -> RGBDSample:
    height, width = depth_m.shape[-2:]
    return RGBDSample(torch.zeros(3, height, width, dtype=torch.uint8), depth_m=depth_m[0], camera=CAMERA)


def targets_of(moved: RGBDSample, **options: Any) -> Targets:
    assert moved.depth_m is not None
    assert moved.camera is not None
    return Targets(VOID, moved.depth_m[None], camera_rows(moved.camera), **options)


# --- depth


@pytest.mark.parametrize(("kind", "expected"), [("l1", 0.55), ("l2", 0.505), ("berhu", (0.1 + 2.6) / 2)])
def test_depth_losses_by_hand(kind: str, expected: float) -> None:
    # Residuals 0.1 and 1.0: the corner of berhu is 0.2; the pixel without a reading would be far off.
    depth_m = torch.tensor([[[[2.0, 3.0, 0.0]]]])
    prediction = torch.tensor([[[[2.1, 2.0, 77.0]]]])
    loss = depth_task_loss(prediction, Targets(VOID, depth_m), config(depth_loss=kind))
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_the_reverse_huber_loss_is_smooth_where_its_halves_meet() -> None:
    # The largest residual 1 puts the corner at 0.2; below, the slope is 1, above it is d / 0.2.
    residual = torch.tensor([0.2 - 1e-3, 0.2 + 1e-3, 1.0, -1.0], requires_grad=True)
    values = penalty(residual, "berhu")
    values.sum().backward()
    assert residual.grad is not None
    torch.testing.assert_close(residual.grad, torch.tensor([1.0, 1.005, 5.0, -5.0]))
    assert float((values[1] - values[0]).detach()) == pytest.approx(0.002, rel=0.01)


def test_unknown_penalties_get_a_suggestion() -> None:
    with pytest.raises(UsageError, match="unknown penalty 'huber'; did you mean 'berhu'"):
        penalty(torch.zeros(2), "huber")


def test_zoomed_depth_is_divided_by_the_scale_and_inverse_depth_multiplied() -> None:
    plain = sample(plane((0.0, 0.0, 1.0), 3.0))
    zoomed = crop(resize(plain, scaled_size(plain.size, 2.0)), 5, 8, 30, 40)
    metric = DenseLossConfig(depth_focal_px=CAMERA.fx)
    for moved, z in ((plain, 3.0), (zoomed, 1.5)):
        value, valid = depth_target(targets_of(moved), metric)
        torch.testing.assert_close(value, torch.full((1, 1, 30, 40), z))
        assert valid.all()
    torch.testing.assert_close(depth_target(targets_of(zoomed), DenseLossConfig())[0], torch.full((1, 1, 30, 40), 3.0))
    inverse = DenseLossConfig(depth_focal_px=CAMERA.fx, depth_target="inverse", nearest_depth_m=0.6)
    for moved, value in ((plain, 0.2), (zoomed, 0.4)):
        torch.testing.assert_close(depth_target(targets_of(moved), inverse)[0], torch.full((1, 1, 30, 40), value))


@pytest.mark.parametrize("target", ["metric", "inverse"])
def test_what_is_not_a_reading_or_too_far_is_left_out(target: str) -> None:
    depth_m = torch.tensor([[[[2.0, 81.0, 0.0, math.nan, math.inf, -1.0]]]])
    values, valid = depth_target(
        Targets(VOID, depth_m, farthest_depth_m=80.0),
        DenseLossConfig(depth_target=target),  # type: ignore[arg-type]
    )
    assert valid.flatten().tolist() == [True, False, False, False, False, False]
    assert values.flatten().tolist() == [2.0 if target == "metric" else 0.5, 0, 0, 0, 0, 0]


def test_targets_are_never_mixed_across_an_edge() -> None:
    depth_m = torch.tensor([1.0, 1.0, 5.0, 5.0]).expand(1, 1, 4, 4)
    small = torch.tensor([1.0, 5.0]).expand(1, 1, 2, 2)
    down = LossConfig(auxiliary_resolution="downsample_label")
    assert float(depth_task_loss(small, Targets(VOID, depth_m), down)) == 0
    # The other way the prediction is enlarged: 1, 2, 4, 5 against 1, 1, 5, 5.
    assert float(depth_task_loss(small, Targets(VOID, depth_m), LossConfig())) == pytest.approx(0.5)


# --- normals


def test_normals_of_a_plane_and_its_mirror_image() -> None:
    normal = (0.48, -0.36, 0.8)
    tilted = sample(plane(normal, 2.0))
    found = targets_of(tilted).normals_cam
    torch.testing.assert_close(found, torch.tensor(normal).view(1, 3, 1, 1).expand(1, 3, 30, 40), atol=1e-3, rtol=0)
    mirrored = targets_of(flip_horizontal(tilted)).normals_cam
    torch.testing.assert_close(mirrored[:, 0], -found.flip(-1)[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(mirrored[:, 1:], found.flip(-1)[:, 1:], atol=1e-5, rtol=0)
    # Scaling and cropping turn nothing, since the camera follows.
    zoomed = targets_of(crop(resize(tilted, scaled_size(tilted.size, 2.0)), 7, 3, 30, 40)).normals_cam[..., 4:-4, 4:-4]
    cosine = (zoomed * torch.tensor(normal).view(1, 3, 1, 1)).sum(1)
    assert float(cosine.min()) > 0.99


def test_the_floor_under_a_level_camera_points_down() -> None:
    depth_m = plane((0.0, 1.0, 0.0), 1.3)
    floor = targets_of(sample(depth_m)).normals_cam[0, :, 20:, 20]
    torch.testing.assert_close(floor, torch.tensor([[0.0], [1.0], [0.0]]).expand(3, 10), atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("kind", "expected"), [("cosine", 1 - math.cos(0.5)), ("l2", 2 * (1 - math.cos(0.5)) / 3), ("l1", None)]
)
def test_normal_losses_by_hand_and_any_length(kind: str, expected: float | None) -> None:
    target = Targets(VOID, plane((0.0, 0.0, 1.0), 2.0), camera_rows(CAMERA))
    turned = torch.tensor([math.sin(0.5), 0.0, math.cos(0.5)]).view(1, 3, 1, 1).expand(1, 3, 30, 40)
    if expected is None:
        expected = (math.sin(0.5) + 1 - math.cos(0.5)) / 3
    for length in (1.0, 7.0, 0.01):
        loss = normals_task_loss(length * turned, target, config(normals_loss=kind))
        assert float(loss) == pytest.approx(expected, rel=1e-3)


def test_normals_are_void_without_a_reading_and_then_do_not_matter() -> None:
    depth_m = plane((0.0, 0.0, 1.0), 2.0)
    depth_m[..., 10:20, 10:30] = 0
    target = Targets(VOID, depth_m, camera_rows(CAMERA))
    void = (target.normals_cam == 0).all(dim=1)
    assert torch.equal(void, depth_m[:, 0] == 0)
    prediction = torch.randn(1, 3, 30, 40, generator=torch.Generator().manual_seed(0))
    other = torch.where(void[:, None], -prediction, prediction)
    assert float(normals_task_loss(prediction, target, LossConfig())) == float(
        normals_task_loss(other, target, LossConfig())
    )


def test_normals_are_fitted_a_few_images_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    depth_m = torch.cat([plane((0.0, 0.0, 1.0), 1.0 + index) for index in range(5)])
    depth_m[2, :, 3, 4] = 0
    cameras = camera_rows(CAMERA).expand(5, 4) * torch.linspace(1, 2, 5)[:, None]
    whole = Targets(VOID, depth_m, cameras).normals_cam
    sizes: list[int] = []
    original = targets.plane_fit_normals

    def counted(depth: Tensor, *arguments: Any) -> Any:
        sizes.append(len(depth))
        return original(depth, *arguments)

    monkeypatch.setattr(targets, "plane_fit_normals", counted)
    monkeypatch.setattr(targets, "_PIXELS_AT_ONCE", 2 * 30 * 40)
    assert torch.equal(Targets(VOID, depth_m, cameras).normals_cam, whole)
    assert sizes == [2, 2, 1]
    monkeypatch.setattr(targets, "_PIXELS_AT_ONCE", 1)  # one image always goes
    assert torch.equal(Targets(VOID, depth_m, cameras).normals_cam, whole)


def test_normals_are_computed_once_for_all_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = targets.plane_fit_normals
    monkeypatch.setattr(targets, "plane_fit_normals", lambda *arguments: (calls.append(1), original(*arguments))[1])
    value = torch.ones(1, 3, 30, 40)
    output = SegmentationOutput(
        torch.zeros(1, 2, 30, 40), tuple(AuxiliaryOutput(name, "normals", value) for name in "ab")
    )
    segmentation_loss(output, VOID, LossConfig(), plane((0.0, 0.0, 1.0), 2.0), camera_rows(CAMERA))
    assert len(calls) == 1


# --- contours


def test_contours_are_label_changes_to_four_neighbors() -> None:
    label = torch.tensor(
        [
            [0, 0, 1, 1, 1],
            [0, 0, 1, 1, 1],
            [0, 0, 0, 1, 255],
            [2, 0, 0, 1, 1],
        ]
    )[None]
    contour, known = label_contours(label)
    # (2, 0) and (2, 2) touch another class below and above; (2, 1) and (3, 2) touch one at a corner only or not at all.
    assert contour[0, 0].int().tolist() == [
        [0, 1, 1, 0, 0],
        [0, 1, 1, 0, 0],
        [1, 0, 1, 1, 0],
        [1, 1, 1, 1, 0],
    ]
    # Void itself, and its neighbors (1, 4) and (3, 4), of which nothing is known; (2, 3) is on a contour anyway.
    assert known[0, 0].int().tolist() == [
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 0],
    ]
    constant = label_contours(torch.full((2, 3, 4), 7))
    assert not constant[0].any()
    assert constant[1].all()


@pytest.mark.parametrize("weight", [0.95, 0.5, None])
def test_contour_loss_weighs_positives(weight: float | None) -> None:
    label = torch.zeros(1, 4, 8, dtype=torch.long)
    label[..., 1:] = 1  # two contour columns of eight
    label[:, 0, 6:] = 255  # void, and beside it (0, 5), (1, 6), (1, 7): five unknown pixels
    logits = torch.full((1, 1, 4, 8), math.log(3))  # probability 3/4
    loss = contours_task_loss(logits, Targets(label), config(contour_positive_weight=weight))
    positives, known = 8, 27
    w = (known - positives) / known if weight is None else weight
    expected = (w * positives * math.log(4 / 3) + (1 - w) * (known - positives) * math.log(4)) / known
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_small_contour_logits_meet_the_label_as_configured() -> None:
    label = torch.zeros(1, 8, 8, dtype=torch.long)
    label[..., 4:] = 1
    logits = torch.tensor([-2.0, 2.0, 2.0, -2.0]).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    up = contours_task_loss(logits, Targets(label), LossConfig())
    enlarged = functional.interpolate(logits, (8, 8), mode="bilinear", align_corners=False)
    assert float(up) == pytest.approx(float(contours_task_loss(enlarged, Targets(label), LossConfig())))
    # The label at half size changes between its columns 1 and 2, as the logits say.
    down = contours_task_loss(logits, Targets(label), LossConfig(auxiliary_resolution="downsample_label"))
    assert float(down) == pytest.approx(0.5 * math.log1p(math.exp(-2)), rel=1e-5)


# --- all of them


def everything(seed: int, dtype: torch.dtype = torch.float32) -> SegmentationOutput:
    generator = torch.Generator().manual_seed(seed)

    def draw(channels: int) -> Tensor:
        return torch.randn(1, channels, 15, 20, generator=generator).to(dtype).requires_grad_()

    outputs = {"depth": draw(1), "normals": draw(3), "contours": draw(1)}
    return SegmentationOutput(
        draw(4),
        tuple(AuxiliaryOutput(task, task, value) for task, value in outputs.items()),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("resolution", ["upsample_logits", "downsample_label"])
@pytest.mark.parametrize("dense", [{}, {"depth_loss": "berhu", "normals_loss": "l2", "contour_positive_weight": None}])
def test_without_any_target_losses_and_gradients_are_zero(resolution: Any, dense: dict[str, Any]) -> None:
    output = everything(0)
    settings = LossConfig(dense=DenseLossConfig(**dense), auxiliary_resolution=resolution)
    nothing = torch.zeros(1, 1, 30, 40)
    total, parts = segmentation_loss(output, VOID, settings, nothing, camera_rows(CAMERA))
    assert {name: float(value) for name, value in parts.items()} == dict.fromkeys(parts, 0.0)
    total.backward()
    for value in (output.logits, *(a.value for a in output.aux)):
        assert value.grad is not None
        assert torch.all(value.grad == 0)


def test_a_pass_without_readings_leaves_the_others_alone() -> None:
    """One image without any reading among two adds nothing and takes no share."""
    depth_m = torch.cat((plane((0.0, 0.0, 1.0), 2.0), torch.zeros(1, 1, 30, 40)))
    prediction = torch.full((2, 1, 30, 40), 2.5)
    assert float(depth_task_loss(prediction, Targets(VOID, depth_m), LossConfig())) == pytest.approx(0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_outputs_are_compared_in_float32(dtype: torch.dtype) -> None:
    output = everything(1, dtype)
    full = SegmentationOutput(
        output.logits.detach().float(), tuple(a._replace(value=a.value.detach().float()) for a in output.aux)
    )
    label = torch.randint(4, (1, 30, 40), generator=torch.Generator().manual_seed(2))
    arguments = (label, LossConfig(), plane((0.0, 0.6, 0.8), 2.0), camera_rows(CAMERA))
    with torch.autocast("cpu", dtype=dtype):
        total, parts = segmentation_loss(output, *arguments)
    expected = segmentation_loss(full, *arguments).parts
    for name, value in parts.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name], msg=name)
    total.backward()
    assert all(a.value.grad is not None and a.value.grad.isfinite().all() for a in output.aux)


def test_gradients_are_those_of_finite_differences() -> None:
    depth_m = plane((0.0, 0.6, 0.8), 2.0)[..., :4, :5]
    depth_m[..., 1, 2] = 0
    label = torch.randint(2, (1, 4, 5), generator=torch.Generator().manual_seed(3))
    target = Targets(label, depth_m, camera_rows(CAMERA))
    generator = torch.Generator().manual_seed(4)
    for loss, channels in ((depth_task_loss, 1), (normals_task_loss, 3), (contours_task_loss, 1)):
        settings = config(depth_loss="l2", normals_loss="l2")
        value = torch.randn(1, channels, 4, 5, generator=generator).requires_grad_()
        loss(value, target, settings).backward()
        step = 1e-2 * torch.randn(value.shape, generator=generator)
        change = loss(value.detach() + step, target, settings) - loss(value.detach() - step, target, settings)
        assert value.grad is not None
        assert float((value.grad * step).sum()) == pytest.approx(float(change) / 2, rel=2e-2), loss.__name__


def test_missing_targets_are_named() -> None:
    depth_output = SegmentationOutput(
        torch.zeros(1, 2, 30, 40), (AuxiliaryOutput("d", "depth", torch.zeros(1, 1, 30, 40)),)
    )
    with pytest.raises(UsageError, match="trained on depth, but the batch carries no depth_m"):
        segmentation_loss(depth_output, VOID, LossConfig())
    with pytest.raises(UsageError, match="the batch carries no camera"):
        segmentation_loss(depth_output, VOID, config(depth_focal_px=500.0), plane((0.0, 0.0, 1.0), 2.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth_loss": "berhuu"}, "unknown loss.dense.depth_loss 'berhuu'; did you mean 'berhu'"),
        ({"normals_loss": "huber"}, "unknown loss.dense.normals_loss 'huber'; expected one of: cosine, l1, l2"),
        ({"depth_target": "disparity"}, "unknown loss.dense.depth_target 'disparity'"),
        ({"farthest_depth_m": 0.0}, "loss.dense.farthest_depth_m is 0.0; expected a positive number"),
        ({"depth_focal_px": -1.0}, "loss.dense.depth_focal_px is -1.0; expected a positive number"),
        ({"contour_positive_weight": 1.5}, "loss.dense.contour_positive_weight is 1.5; expected 0 to 1, or null"),
    ],
)
def test_bad_configuration_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DenseLossConfig(**options)
