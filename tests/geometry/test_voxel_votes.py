"""Votes in cubes of space against counting one by one, and bounded memory."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest

from rgbdseg.errors import DataError, UsageError
from rgbdseg.geometry.voxel_votes import VoxelVotes, steady_readings
from rgbdseg.visualize_points import draw_points


def random_points(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 2, 254, 255], count).astype(np.uint8)
    return rng.uniform(-0.4, 0.4, (count, 3)), labels, rng.integers(0, 256, (count, 3)).astype(np.uint8)


def test_votes_are_counted_as_one_by_one() -> None:
    votes = VoxelVotes(0.1)
    members: dict[tuple[int, ...], dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    frames = [random_points(700, seed) for seed in range(3)]
    for xyz, labels, colors in frames:
        votes.add(xyz, labels, colors)
    xyz, labels, colors = (np.concatenate(parts) for parts in zip(*frames, strict=True))
    for k in range(len(xyz)):
        if labels[k] != 255:
            members[tuple(int(np.floor(v / 0.1)) for v in xyz[k])][int(labels[k])].append(k)
    points = votes.points(min_votes=2)
    expected = {}
    for cell, by_label in members.items():
        label = min(by_label, key=lambda name: (-len(by_label[name]), name))
        if len(by_label[label]) >= 2:
            expected[cell] = (label, by_label[label], sum(map(len, by_label.values())))
    assert len(points) == len(expected)
    for k in range(len(points)):
        label, chosen, total = expected[tuple(np.floor(points.xyz_world_m[k] / 0.1).astype(int).tolist())]
        assert points.labels[k] == label
        assert points.votes[k] == len(chosen)
        assert points.share[k] == pytest.approx(len(chosen) / total)
        np.testing.assert_allclose(points.xyz_world_m[k], xyz[chosen].mean(0), atol=1e-6)
        np.testing.assert_allclose(points.colors[k], colors[chosen].mean(0), atol=0.51)


def test_memory_is_bounded_by_larger_cubes() -> None:
    votes = VoxelVotes(0.01, max_entries=500)
    total: Counter[int] = Counter()
    for seed in range(4):
        xyz, labels, colors = random_points(2000, seed)
        votes.add(xyz, labels, colors)
        total.update(labels[labels != 255].tolist())
        assert len(votes) <= 500
    assert votes.voxel_m in (0.08, 0.16, 0.32)
    coarse = VoxelVotes(votes.voxel_m)
    for seed in range(4):
        coarse.add(*random_points(2000, seed))
    one, other = votes.points(), coarse.points()
    assert np.array_equal(one.labels, other.labels)
    assert np.array_equal(one.votes, other.votes)
    np.testing.assert_allclose(one.xyz_world_m, other.xyz_world_m, atol=1e-5)


def test_what_does_not_fit() -> None:
    votes = VoxelVotes(0.01)
    assert len(votes.points()) == 0
    with pytest.raises(DataError, match=r"5000 m from the origin; .* reaches 1311 m"):
        votes.add(np.array([[5000.0, 0, 0]]), np.zeros(1, np.uint8), np.zeros((1, 3), np.uint8))
    with pytest.raises(UsageError, match="voxel size 0 m"):
        VoxelVotes(0)


def test_readings_on_rims_are_not_steady() -> None:
    depth = np.full((4, 6), 2.0, np.float32)
    depth[:, 3:] = 2.2
    depth[0, 0] = 0
    steady = steady_readings(depth)
    assert steady[1].tolist() == [True, True, False, False, True, True]
    assert steady[0].tolist() == [False, True, False, False, True, True]  # a hole is no jump
    assert steady_readings(depth.T).T.tolist() == steady.tolist()
    assert steady_readings(depth, 0.2)[1].all()


def test_the_nearer_point_is_drawn() -> None:
    xyz = np.array([[0.0, 0, 0], [0, 0, 1], [1, 0, 0], [-1, 1, 0]])
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], np.uint8)
    image = draw_points(xyz, colors, up=np.array([0, 0, 1.0]), size=(40, 40), elevation_deg=90, dot_px=3)
    found = {tuple(color) for color in image.reshape(-1, 3).tolist()}
    assert found == {(255, 255, 255), (0, 255, 0), (0, 0, 255), (9, 9, 9)}
    assert (image == (0, 255, 0)).all(2).sum() == 9
    with pytest.raises(DataError, match="no points"):
        draw_points(np.empty((0, 3)), np.empty((0, 3), np.uint8), up=np.array([0, 0, 1.0]))
