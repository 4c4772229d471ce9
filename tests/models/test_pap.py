"""PAP: affinities, their combination, diffusion, and what depends on what."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import rgbdseg
from rgbdseg.config.loss import LossConfig
from rgbdseg.errors import UsageError
from rgbdseg.losses import segmentation_loss
from rgbdseg.models._base import SegmentationOutput
from rgbdseg.models.pap import PAP, AffinityForm, affinity_matrix, diffuse
from rgbdseg.recipes import get_recipe
from tests.models.feed import feed

CLASSES = 5
forms = pytest.mark.parametrize("form", ["softmax", "exp_dist", "relu_norm"])


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small(**options: Any) -> PAP:
    torch.manual_seed(1)
    return PAP(CLASSES, "test_resnet", **{"channels": 8, **options})


@forms
def test_affinities_by_their_formula(form: AffinityForm) -> None:
    x = draw(0, 2, 6, 3).double()
    found = affinity_matrix(x, form)
    expected = torch.empty(2, 6, 6, dtype=torch.float64)
    for b in range(2):
        for p in range(6):
            for q in range(6):
                product = float(x[b, p] @ x[b, q])
                distance = float((x[b, p] - x[b, q]).square().sum())
                expected[b, p, q] = {
                    "softmax": torch.exp(torch.tensor(product / 3**0.5, dtype=torch.float64)),
                    "exp_dist": torch.exp(torch.tensor(-distance / 3**0.5, dtype=torch.float64)),
                    "relu_norm": max(0.0, product),
                }[form]
    expected = expected / expected.sum(-1, keepdim=True)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@forms
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 100.0])
def test_rows_sum_to_one_and_nothing_is_negative(form: AffinityForm, scale: float) -> None:
    found = affinity_matrix(scale * draw(1, 2, 12, 4), form)
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 12), atol=1e-5, rtol=0)


@forms
def test_a_constant_feature_is_a_fixed_point(form: AffinityForm) -> None:
    """Columns that sum to one instead of rows would fail this."""
    affinity = affinity_matrix(draw(2, 1, 9, 4), form)
    assert (affinity.sum(-2) - 1).abs().max() > 0.1
    constant = torch.full((1, 9, 3), 2.5)
    for steps in (1, 2, 5):
        torch.testing.assert_close(diffuse(constant, affinity, steps, 0.7), constant)


def test_diffusion_by_hand() -> None:
    affinity = torch.tensor([[[0.5, 0.5], [0.0, 1.0]]])
    h = torch.tensor([[[4.0], [0.0]]])
    # M h = (2, 0), M M h = (1, 0).
    assert diffuse(h, affinity, 2, 0.25).flatten().tolist() == [0.25 * 1 + 0.75 * 4, 0.0]
    assert torch.equal(diffuse(h, affinity, 0, 0.25), h)
    assert torch.equal(diffuse(h, affinity, 3, 0.0), h)


def test_two_clusters_give_their_means_and_stay() -> None:
    first, second = torch.tensor([30.0, 0.0]), torch.tensor([0.0, 30.0])
    x = torch.stack([first, first, second, second, second])[None]
    affinity = affinity_matrix(x, "softmax")
    h = draw(3, 1, 5, 4)
    means = torch.cat(
        (h[:, :2].mean(1, keepdim=True).expand(1, 2, 4), h[:, 2:].mean(1, keepdim=True).expand(1, 3, 4)), 1
    )
    torch.testing.assert_close(diffuse(h, affinity, 1, 1.0), means)
    torch.testing.assert_close(diffuse(h, affinity, 4, 1.0), means)


def test_diffusion_never_widens_the_range() -> None:
    affinity = affinity_matrix(draw(4, 2, 20, 5), "softmax")
    h = draw(5, 2, 20, 6)
    widths = [(d.amax(1) - d.amin(1)) for d in (diffuse(h, affinity, steps, 1.0) for steps in range(6))]
    for before, after in itertools.pairwise(widths):
        assert (after <= before + 1e-6).all()
    assert (widths[-1] < 0.5 * widths[0]).all()


def test_combination_is_convex_and_can_be_one_task_alone() -> None:
    model = small()
    affinities = [affinity_matrix(draw(seed, 1, 8, 4), "softmax") for seed in (6, 7, 8)]
    own = model.combined_affinity("depth", affinities)
    share = torch.tensor([0.0, 1.0, 0.0]).softmax(0)
    torch.testing.assert_close(own, sum(s * a for s, a in zip(share, affinities, strict=True)))
    torch.testing.assert_close(own.sum(-1), torch.ones(1, 8), atol=1e-5, rtol=0)
    with torch.no_grad():
        model.alpha_logits[0] = torch.tensor([-1e4, 1e4, -1e4])
    assert torch.equal(model.combined_affinity("segmentation", affinities), affinities[1])


def test_with_the_weight_on_depth_the_segmentation_s_own_affinity_does_not_count() -> None:
    model = small().eval()
    with torch.no_grad():
        model.alpha_logits[0] = torch.tensor([-1e4, 1e4, -1e4])
    rgb = draw(9, 1, 3, 64, 64)
    before = feed(model, rgb).logits
    with torch.no_grad():
        model.embeddings["segmentation"].weight.mul_(-3).add_(1)
    assert torch.equal(feed(model, rgb).logits, before)
    with torch.no_grad():
        model.embeddings["depth"].weight.mul_(-3).add_(1)
    assert not torch.equal(feed(model, rgb).logits, before)


def test_without_diffusion_tasks_are_independent_and_with_it_segmentation_teaches_depth() -> None:
    for beta in (0.0, 0.5):
        model = small(beta=beta).train()
        output = feed(model, draw(10, 2, 3, 64, 64))
        label = torch.randint(CLASSES, (2, 64, 64), generator=torch.Generator().manual_seed(11))
        segmentation_loss(SegmentationOutput(output.logits), label, LossConfig()).total.backward()
        gradients = [p.grad for p in model.decoders["depth"].parameters()]
        taught = any(g is not None and g.abs().max() > 0 for g in gradients)
        assert taught == (beta > 0)


def test_no_diffusion_is_the_identity() -> None:
    model = small(beta=0.0).eval()
    rgb = draw(12, 1, 3, 61, 47)
    feature = model.decoders["segmentation"](model.encoder(rgb))
    assert torch.equal(feed(model, rgb).logits, model.reconstructions["segmentation"](feature, (61, 47)))


@pytest.mark.parametrize(("stride", "grid"), [(4, (16, 12)), (8, (8, 6)), (16, (4, 3)), (32, (2, 2))])
def test_the_working_resolution_bounds_the_affinities(stride: int, grid: tuple[int, int]) -> None:
    model = small(affinity_stride=stride).eval()
    seen: list[tuple[int, ...]] = []
    original = model.task_affinities

    def task_affinities(working: Any) -> list[Tensor]:
        affinities = original(working)
        seen.extend(tuple(a.shape) for a in affinities)
        assert tuple(working["depth"].shape[-2:]) == grid
        return affinities

    model.task_affinities = task_affinities  # type: ignore[method-assign]
    feed(model, draw(13, 1, 3, 61, 47))
    assert seen == [(1, grid[0] * grid[1], grid[0] * grid[1])] * 3


def test_affinities_are_float32_in_mixed_precision() -> None:
    model = small(beta=1.0).eval()
    working = {task: draw(14, 1, 8, 4, 4) for task in ("segmentation", "depth", "normals")}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        affinities = model.task_affinities(working)  # type: ignore[arg-type]
        assert all(a.dtype == torch.float32 for a in affinities)
        torch.testing.assert_close(affinities[0].sum(-1), torch.ones(1, 16), atol=1e-5, rtol=0)
        half = model._change("depth", working["depth"].bfloat16(), affinities)
    full = model._change("depth", working["depth"].bfloat16().float(), affinities)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half, full.bfloat16())


def test_sizes_of_the_full_network() -> None:
    model = rgbdseg.create_model("pap_resnet50", 40).to("meta").train()
    assert sum(p.numel() for p in model.parameters()) == 43_142_433
    output = feed(model, torch.empty(2, 3, 480, 640, device="meta"))
    assert output.logits.shape == (2, 40, 480, 640)
    assert {a.name: (a.task, tuple(a.value.shape[1:])) for a in output.aux} == {
        "initial_segmentation": ("segmentation", (40, 120, 160)),
        "initial_depth": ("depth", (1, 120, 160)),
        "initial_normals": ("normals", (3, 120, 160)),
        "depth": ("depth", (1, 480, 640)),
        "normals": ("normals", (3, 480, 640)),
    }


def test_shares_of_tasks_have_no_weight_decay_and_start_with_their_own() -> None:
    model = small()
    assert "alpha_logits" in model.no_decay_names
    assert torch.equal(model.alpha_logits.detach().argmax(1), torch.arange(3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"affinity": "soft"}, "unknown PAP affinity 'soft'; did you mean 'softmax'"),
        ({"iterations": 0}, "model option iterations is 0; expected 1 or more; beta 0 switches diffusion off"),
        ({"beta": 1.5}, "model option beta is 1.5; expected a number from 0 to 1"),
        ({"affinity_stride": 12}, r"model option affinity_stride is 12; expected one of \(4, 8, 16, 32\)"),
        ({"channels": 6}, "model option channels is 6; expected a multiple of 4"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        small(**options)


def test_the_recipe_sees_half_size_images_in_training_and_evaluation() -> None:
    half, full = get_recipe("pap-nyuv2"), get_recipe("pap-nyuv2-480")
    assert half.evaluation.scales == half.validation.scales == (0.5,)
    assert half.loss.dense.depth_focal_px == pytest.approx(full.loss.dense.depth_focal_px / 2)  # type: ignore[operator]
    assert [scale / 0.5 for scale in half.augmentation.scales] == pytest.approx(full.augmentation.scales)
    assert half.loss.main_weight == half.loss.auxiliary_weight == 1 / 3


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
def test_what_diffusion_adds_stays_where_it_was_taken_from(stride: int) -> None:
    model, cell = small(affinity_stride=stride), stride // 4
    height, width = 57, 38  # a crop of 228x152; not whole cells
    rows = torch.arange(height).float()[:, None].expand(1, 1, height, width)
    back = model._from_grid(model._to_grid(rows), (height, width))
    assert back.shape == rows.shape
    inner = slice(cell, height - 2 * cell)  # bilinear enlargement clamps at the border
    torch.testing.assert_close(back[..., inner, :], rows[..., inner, :], atol=1e-4, rtol=0)
