from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rgbdseg.errors import DataError, UsageError
from rgbdseg.geometry.neighbors import cell_points, nearest_neighbors

# B batch, N points, D coordinates, K neighbors


def brute_force(points_BND: Tensor, count: int) -> Tensor:
    """All differences at once in float64, and a stable sort: of equal distances the lower index comes first."""
    points = points_BND.double()
    squared = (points[:, :, None] - points[:, None]).square().sum(-1)
    return squared.sort(dim=-1, stable=True).indices[..., :count]


def random_points(batch: int, number: int, dimensions: int = 3) -> Tensor:
    return torch.rand(batch, number, dimensions, generator=torch.Generator().manual_seed(7))


def lattice(batch: int, side: int, number: int) -> Tensor:
    """Points of a cubic lattice in random order: many equal distances, all exact, and no two points coincide."""
    generator = torch.Generator().manual_seed(3)
    axis = torch.arange(side, dtype=torch.float32) / 8
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).flatten(0, 2)
    return torch.stack([points[torch.randperm(side**3, generator=generator)[:number]] for _ in range(batch)])


def test_equals_brute_force_at_the_size_of_a_frame() -> None:
    points = random_points(1, 4800)
    found = nearest_neighbors(points, 64)
    squared = (points.double()[0, :, None] - points.double()[0, None]).square().sum(-1)
    distances, expected = squared.sort(dim=-1, stable=True)
    # Rows in which rounding to float32 could exchange the last neighbor with the next are left out.
    clear = distances[:, 64] - distances[:, 63] > 1e-6 * distances[:, 64]
    assert clear.sum() > 4000
    assert torch.equal(found[0, clear].sort(-1).values, expected[clear, :64].sort(-1).values)
    assert torch.equal(found[0, :, 0], torch.arange(4800))
    near = squared.gather(1, found[0])
    assert bool((near.diff(dim=1) >= -1e-6 * near[:, 1:]).all())  # nearest first


@pytest.mark.parametrize("max_pairs", [1, 101, 3 * 101 * 7, 2**22])
def test_the_same_in_chunks_of_any_size(max_pairs: int) -> None:
    points = lattice(3, 5, 101)
    found = nearest_neighbors(points, 12, max_pairs=max_pairs)
    assert torch.equal(found, brute_force(points, 12))


def test_ties_go_to_the_lower_index_and_to_the_point_itself() -> None:
    square = torch.tensor([[[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]])
    assert nearest_neighbors(square, 3).tolist() == [[[0, 1, 2], [1, 0, 3], [2, 0, 3], [3, 1, 2]]]
    same_place = torch.ones(1, 300, 3)
    found = nearest_neighbors(same_place, 3)[0].tolist()
    assert found[0] == [0, 1, 2]
    assert found[1] == [1, 0, 2]
    assert all(row == [index, 0, 1] for index, row in enumerate(found) if index > 1)


def test_images_of_a_batch_do_not_mix() -> None:
    points = random_points(3, 40)
    points[1] += 100
    found = nearest_neighbors(points, 5)
    for image in range(3):
        assert torch.equal(found[image], nearest_neighbors(points[image : image + 1], 5)[0])


def test_an_outlier_has_neighbors_but_is_nobodys() -> None:
    points = random_points(1, 200)
    points[0, 123] = 50.0
    found = nearest_neighbors(points, 64)[0]
    assert found[123, 0] == 123
    assert len(set(found[123].tolist())) == 64
    assert not bool((found[torch.arange(200) != 123] == 123).any())


def test_far_from_the_origin_distances_do_not_cancel() -> None:
    """By x^2 + y^2 - 2xy in float32, all of these distances would be 0 or negative."""
    line = torch.zeros(1, 6, 3)
    line[0, :, 2] = 4000 + torch.tensor([0.0, 4, 1, 8, 2, 16]) * 2**-9
    assert nearest_neighbors(line, 6)[0, 0].tolist() == [0, 2, 4, 1, 3, 5]


def test_fewer_points_than_neighbors() -> None:
    found = nearest_neighbors(random_points(2, 5), 64)
    assert found.shape == (2, 5, 5)
    assert bool((found.sort(-1).values == torch.arange(5)).all())


def test_shapes_are_found_without_computing() -> None:
    found = nearest_neighbors(torch.empty(2, 4800, 5, device="meta"), 64)
    assert (found.shape, found.dtype) == ((2, 4800, 64), torch.int64)


@pytest.mark.parametrize(
    ("points", "count", "message"),
    [
        (torch.zeros(5, 3), 1, r"points have shape \(5, 3\); expected \(batch, points, coordinates\)"),
        (torch.zeros(1, 5, 3), 0, "count is 0 and max_pairs"),
    ],
)
def test_bad_arguments(points: Tensor, count: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        nearest_neighbors(points, count)


# Cells

CAMERA = torch.tensor([[10.0, 20.0, 3.0, 4.0]])


def test_the_median_of_each_coordinate_over_the_readings() -> None:
    depth = torch.zeros(1, 1, 2, 4)
    depth[0, 0] = torch.tensor([[1.0, 2, 7, 0], [4.0, 3, 5, 6]])
    points = cell_points(depth, CAMERA, 2)
    assert points.shape == (1, 3, 1, 2)
    # Left: x = (u - 3) z / 10 of (u, z) = (0, 1), (1, 2), (0, 4), (1, 3): -.3, -.4, -1.2, -.6; lower median -.6.
    # y = (v - 4) z / 20: -.2, -.4, -.6, -.45; lower median -.45.  z: 2.  Right: three readings.
    expected = torch.tensor([[-0.6, -0.5], [-0.45, -0.9], [2.0, 6.0]])
    torch.testing.assert_close(points[0, :, 0], expected)


def test_a_cell_without_reading_is_the_origin_and_borders_are_cut_off() -> None:
    depth = torch.full((1, 1, 9, 17), 2.0)
    depth[..., :8, :8] = 0
    depth[..., 8, 0] = torch.nan
    points = cell_points(depth, CAMERA, 8)
    assert points.shape == (1, 3, 2, 3)
    assert points[0, :, 0, 0].tolist() == [0, 0, 0]
    # The corner has one pixel (u, v) = (16, 8).
    torch.testing.assert_close(points[0, :, 1, 2], torch.tensor([2.6, 0.4, 2.0]))
    # The first cell of the last row has columns 1 to 7; the lower median is that of column 4.
    torch.testing.assert_close(points[0, :, 1, 0], torch.tensor([0.2, 0.4, 2.0]))


def test_one_wrong_reading_does_not_move_a_cell() -> None:
    depth = torch.full((1, 1, 8, 8), 2.0)
    clean = cell_points(depth, CAMERA, 8)
    depth[0, 0, 3, 3] = 900.0
    assert (cell_points(depth, CAMERA, 8) - clean).abs().max() < 0.21  # a column is .2 m wide there


def test_bad_cells() -> None:
    with pytest.raises(UsageError, match="cell is 0; expected a side of at least 1 pixel"):
        cell_points(torch.ones(1, 1, 8, 8), CAMERA, 0)
    with pytest.raises(DataError, match="expected"):
        cell_points(torch.ones(1, 8, 8), CAMERA, 8)


@pytest.mark.gpu
def test_the_same_on_a_gpu() -> None:
    points = lattice(2, 17, 4800)
    found = nearest_neighbors(points, 64)
    for _ in range(3):
        assert torch.equal(nearest_neighbors(points.cuda(), 64).cpu(), found)
