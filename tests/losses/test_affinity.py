"""Losses of affinities against values by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rgbdseg.config.loss import LossConfig
from rgbdseg.errors import UsageError
from rgbdseg.losses import Targets, segmentation_loss
from rgbdseg.losses.affinity import (
    at_cells,
    depth_affinity_loss,
    divergence,
    normals_affinity_loss,
    segmentation_affinity_loss,
)
from rgbdseg.models._base import SegmentationOutput
from rgbdseg.models.pap import PAP

CONFIG = LossConfig()
# Two cells of one class, two of another.
CLUSTERS = torch.tensor([[[0, 0], [1, 1]]])
BLOCKS = torch.tensor([[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5]])


def on_grid(rows: Tensor, height: int = 2, width: int = 2) -> Tensor:
    """Affinities (N, N) as an output of one image."""
    return rows[None].unflatten(2, (height, width))


def segmentation(rows: Tensor, label: Tensor = CLUSTERS) -> float:
    return float(segmentation_affinity_loss(on_grid(rows), Targets(label), CONFIG))


def test_clusters_by_hand() -> None:
    assert segmentation(BLOCKS) == pytest.approx(0, abs=1e-6)
    # Uniform: log(0.5 / 0.25) in each row.
    assert segmentation(torch.full((4, 4), 0.25)) == pytest.approx(math.log(2), rel=1e-5)
    # One row of four with 0.2 and 0.8 within its cluster; the wrong way round of the divergence has another value.
    uneven = BLOCKS.clone()
    uneven[0, :2] = torch.tensor([0.2, 0.8])
    expected = 0.5 * math.log(0.5 / 0.2) + 0.5 * math.log(0.5 / 0.8)
    assert segmentation(uneven) == pytest.approx(expected / 4, rel=1e-5)


def test_rows_are_those_of_the_output() -> None:
    """Row p of the matrix is channel p: the transpose of a lopsided affinity is another one."""
    label = torch.tensor([[[0, 0], [0, 1]]])
    rows = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 3]]) / 3
    assert segmentation(rows, label) == pytest.approx(0, abs=1e-6)
    away = rows.clone()
    away[3] = 0.25
    assert segmentation(away, label) == pytest.approx(math.log(4) / 4, rel=1e-5)


def test_nothing_lies_below_the_target() -> None:
    generator = torch.Generator().manual_seed(0)
    target = BLOCKS.log().clamp(min=-30)
    for _ in range(20):
        rows = (target + torch.randn(4, 4, generator=generator)).softmax(-1)
        assert segmentation(rows) > 1e-3


def test_void_counts_neither_as_a_row_nor_as_a_column() -> None:
    label = torch.tensor([[[0, 0], [1, 255]]])
    # Cell 2 is alone with its class; what rows give to the void cell does not matter, nor what the void cell gives.
    rows = torch.tensor([[0.3, 0.3, 0, 0.4], [0.5, 0.5, 0, 0], [0, 0, 0.1, 0.9], [0.7, 0.1, 0.1, 0.1]])
    assert segmentation(rows, label) == pytest.approx(0, abs=1e-6)
    uneven = rows.clone()
    uneven[1] = torch.tensor([0.2, 0.2, 0.4, 0.2])
    # Without the void column 0.25, 0.25, 0.5; one of three rows.
    assert segmentation(uneven, label) == pytest.approx(math.log(2) / 3, rel=1e-5)
    affinity = on_grid(uneven).requires_grad_()
    segmentation_affinity_loss(affinity, Targets(label), CONFIG).backward()
    assert affinity.grad is not None
    gradient = affinity.grad.flatten(2)[0]
    assert torch.all(gradient[3] == 0)
    assert torch.all(gradient[:, 3] == 0)
    assert torch.all(gradient[1, :2] < 0)
    assert gradient[1, 2] > 0


def test_a_batch_without_ground_truth_has_zero_loss_and_zero_gradient() -> None:
    affinity = on_grid(BLOCKS).requires_grad_()
    targets = Targets(torch.full((1, 2, 2), 255), torch.zeros(1, 1, 2, 2), torch.tensor([[2.0, 2.0, 0.5, 0.5]]))
    for loss in (segmentation_affinity_loss, depth_affinity_loss, normals_affinity_loss):
        value = loss(affinity, targets, CONFIG)
        assert float(value.detach()) == 0
        (gradient,) = torch.autograd.grad(value, affinity)
        assert torch.all(gradient == 0)


def test_gradient_descent_finds_the_target_from_nearly_itself_alone() -> None:
    """Where a softmax starts near the identity, all other affinities are tiny."""
    logits = (40 * torch.eye(4)).requires_grad_()
    optimizer = torch.optim.SGD([logits], 4.0)
    for _ in range(300):
        optimizer.zero_grad()
        segmentation_affinity_loss(on_grid(logits.softmax(-1)), Targets(CLUSTERS), CONFIG).backward()
        optimizer.step()
    torch.testing.assert_close(logits.softmax(-1), BLOCKS, atol=0.02, rtol=0)


def test_depth_is_compared_by_its_ratio_at_any_scale() -> None:
    depth_m = torch.tensor([[[[1.0, 1.1], [2.0, 0.0]]]])
    similarity = torch.zeros(4, 4)
    for p, d_p in enumerate((1.0, 1.1, 2.0)):
        for q, d_q in enumerate((1.0, 1.1, 2.0)):
            similarity[p, q] = math.exp(-abs(math.log(d_p / d_q)) / 0.1)
    rows = similarity / similarity.sum(-1, keepdim=True).clamp(min=1e-9)
    rows[3] = 0.25
    for scale in (1.0, 3.0):
        targets = Targets(torch.full((1, 2, 2), 255), scale * depth_m)
        assert float(depth_affinity_loss(on_grid(rows), targets, CONFIG)) == pytest.approx(0, abs=1e-6)
    uniform = torch.full((4, 4), 0.25)
    third = torch.log(3 * rows[:3, :3])  # the missing cell is no column
    expected = float((rows[:3, :3] * third).sum() / 3)
    targets = Targets(torch.full((1, 2, 2), 255), depth_m)
    assert float(depth_affinity_loss(on_grid(uniform), targets, CONFIG)) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(UsageError, match="carries no depth_m"):
        depth_affinity_loss(on_grid(uniform), Targets(CLUSTERS), CONFIG)


def test_normals_are_compared_by_their_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    root = 0.5**0.5
    normals = torch.tensor([[0.0, 0, 1], [root, 0, root], [0, 0, -1], [0, 0, 0]]).T.reshape(1, 3, 2, 2)
    targets = Targets(torch.full((1, 2, 2), 255))
    monkeypatch.setitem(targets.__dict__, "normals_cam", normals)
    # 45 degrees: 0.707; more than 90: 0; the last cell has no normal.
    rows = torch.tensor([[1, root, 0, 0], [root, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    rows = rows / rows.sum(-1, keepdim=True)
    assert float(normals_affinity_loss(on_grid(rows), targets, CONFIG)) == pytest.approx(0, abs=1e-6)
    alike = 0.5 * torch.eye(4) + 0.5 * rows
    expected = -sum(float(rows[p, q]) * math.log(alike[p, q] / rows[p, q]) for p in (0, 1) for q in (0, 1)) / 3
    assert float(normals_affinity_loss(on_grid(alike), targets, CONFIG)) == pytest.approx(expected, rel=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # three digits would show
        assert float(normals_affinity_loss(on_grid(rows), targets, CONFIG)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("side", [4, 8, 16, 32])
@pytest.mark.parametrize("size", [(57, 76), (228, 304), (64, 33)])
def test_ground_truth_is_read_within_the_cell_that_the_network_averages(side: int, size: tuple[int, int]) -> None:
    torch.manual_seed(1)
    model = PAP(3, "test_resnet", channels=8, affinity_stride=side, affinity_outputs=True).train()
    outputs = {a.name: a.value for a in model({"rgb": torch.rand(2, 3, *size)}).aux}
    affinity = outputs["affinity_depth"]
    for dim, length in ((2, size[0]), (3, size[1])):
        position = torch.arange(length).float()
        raster = position.view(1, 1, -1, 1) if dim == 2 else position.view(1, 1, 1, -1)
        at = at_cells(raster.expand(1, 1, *size), affinity).movedim(dim, 0).flatten(1)[:, 0]
        assert len(at) == math.ceil(math.ceil(length / 4) / (side // 4))
        for cell, pixel in enumerate(at.tolist()):
            assert pixel == min(cell * side + side // 2, length - 1)
            assert pixel // side == cell


def test_a_loss_keeps_no_more_than_four_matrices() -> None:
    affinity = torch.full((1, 300, 15, 20), 1 / 300).requires_grad_()
    kept: dict[int, int] = {}

    def remember(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    label = torch.randint(4, (1, 240, 320), generator=torch.Generator().manual_seed(2))
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        segmentation_affinity_loss(affinity, Targets(label), CONFIG)
    assert sum(kept.values()) < 4.1 * 4 * 300**2


def test_similarities_need_not_be_normalized() -> None:
    known = torch.ones(1, 4, dtype=torch.bool)
    assert float(divergence(on_grid(BLOCKS), 7 * BLOCKS[None], known)) == pytest.approx(0, abs=1e-6)


def test_the_embeddings_learn_from_the_affinities_of_their_task_alone() -> None:
    torch.manual_seed(1)
    model = PAP(3, "test_resnet", channels=8, affinity_outputs=True).train()
    label = torch.randint(3, (2, 64, 64), generator=torch.Generator().manual_seed(3))
    depth_m = 1 + torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(4))
    camera = torch.tensor([[50.0, 50.0, 31.5, 31.5]]).expand(2, 4)
    output: SegmentationOutput = model({"rgb": torch.rand(2, 3, 64, 64)})
    names = [a.name for a in output.aux]
    assert names[-3:] == ["affinity_segmentation", "affinity_depth", "affinity_normals"]
    weights = {name: float(name == "affinity_depth") for name in names}
    settings = LossConfig(main_weight=0.0, auxiliary_weights=weights)
    loss = segmentation_loss(output, label, settings, depth_m, camera)
    assert float(loss.parts["loss"]) == pytest.approx(float(loss.parts["affinity_depth"]))
    loss.total.backward()
    for task, embedding in model.embeddings.items():
        gradient = embedding.weight.grad
        assert (gradient is not None and gradient.abs().max() > 0) == (task == "depth")
    # Without the option there is nothing to weigh, which is said.
    plain = PAP(3, "test_resnet", channels=8).train()({"rgb": torch.rand(2, 3, 64, 64)})
    with pytest.raises(UsageError, match="unknown auxiliary output 'affinity_"):
        segmentation_loss(plain, label, settings, depth_m, camera)
