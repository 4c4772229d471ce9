"""HHA of other programs against the depth beside it, and HHA of depth as sensors measure it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rgbdseg.cli.main import main
from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.data.description import DatasetDescription
from rgbdseg.data.hha_audit import audit_tree, require_fitting_hha
from rgbdseg.data.hha_cache import cache_hha, restate_hha
from rgbdseg.data.images import read_hha, write_hha
from rgbdseg.data.tree import open_tree
from rgbdseg.doctor.check import check_dataset
from rgbdseg.errors import DataError, UsageError
from rgbdseg.geometry.hha import INDOOR, SENSOR, HHAParameters, encode_hha, parse_hha_parameters
from rgbdseg.geometry.hha_quality import saturated_shares
from tests.geometry.scenes import camera_tensor, planes_depth, room
from tests.synthetic import write_tree

CAMERA = (51.2, 51.2, 31.5, 23.5)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with HHA of another program: as ours, but without a record."""
    root = write_tree(tmp_path_factory.mktemp("trees") / "foreign")
    cache_hha(root)
    (root / "HHA" / "hha.json").unlink()
    return root


@pytest.fixture
def root(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "copy"))


def describe(root: Path, **changes: Any) -> None:
    path = root / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def each(root: Path, change: Callable[[np.ndarray, str], np.ndarray]) -> None:
    for path in (root / "HHA").glob("*.png"):
        values = change(np.asarray(Image.open(path)), path.stem)
        Image.fromarray(np.ascontiguousarray(values)).save(path)


def reversed_channels(hha: np.ndarray, _: str) -> np.ndarray:
    return hha[..., ::-1]


def other_frame(root: Path) -> None:
    rng = np.random.default_rng(0)
    each(root, lambda hha, _: rng.permutation(hha.reshape(-1, 3)).reshape(hha.shape))


def gray_depth(root: Path) -> None:
    each(
        root, lambda _, name: np.dstack([np.asarray(Image.open(root / "Depth" / f"{name}.png")) // 20] * 3).astype("u1")
    )


def test_hha_that_fits_passes(root: Path) -> None:
    audit = audit_tree(root)
    assert (audit.compared, audit.fault, audit.difference, audit.saturation) == (6, None, None, None)
    require_fitting_hha(open_tree(root), ["0", "1"])
    assert check_dataset(root).ok


def test_the_order_that_files_have_is_found_and_can_be_declared(root: Path) -> None:
    expected = [RGBDDataset(root, "all", needs={"hha"})[index].hha for index in range(6)]
    each(root, reversed_channels)
    (finding,) = check_dataset(root).problems
    assert finding.kind == "HHA unlike depth"
    assert "in the order angle, height, disparity (6 frames computed anew), not disparity, height, angle" in str(
        finding
    )
    assert '"hha_channels": ["angle", "height", "disparity"]' in str(finding)
    describe(root, hha_channels=["angle", "height", "disparity"])
    assert check_dataset(root).ok
    for index, hha in enumerate(expected):
        found = RGBDDataset(root, "all", needs={"hha"})[index].hha
        assert found is not None
        assert hha is not None
        assert torch.equal(found, hha)
    assert DatasetDescription.read(root).hha_channels == ("angle", "height", "disparity")
    # Declared the other way round, the files are as the program would have them.
    each(root, reversed_channels)
    assert '"hha_channels": ["disparity", "height", "angle"]' in str(audit_tree(root).fault)


def test_any_order_is_found(root: Path) -> None:
    each(root, lambda hha, _: hha[..., [1, 2, 0]])
    assert '"hha_channels": ["height", "angle", "disparity"]' in str(audit_tree(root).fault)
    describe(root, hha_channels=["height", "angle", "disparity"])
    assert audit_tree(root).fault is None


def test_a_wrong_order_is_an_error_of_the_description(root: Path) -> None:
    for wrong in (["angle", "height"], "reversed", ["angle", "height", "depth"], ["angle", "angle", "height"]):
        describe(root, hha_channels=wrong)
        with pytest.raises(DataError, match=r"key 'hha_channels' is .* in the order of the files, as a list"):
            open_tree(root)


def test_images_that_are_added_have_the_declared_order(root: Path) -> None:
    expected = np.asarray(Image.open(root / "HHA" / "0.png"))
    each(root, reversed_channels)
    describe(root, hha_channels=["angle", "height", "disparity"])
    (root / "HHA" / "0.png").unlink()
    assert cache_hha(root).computed == 1
    assert np.array_equal(np.asarray(Image.open(root / "HHA" / "0.png")), expected[..., ::-1])
    describe(root, hha_channels=["disparity", "height", "angle"])
    with pytest.raises(DataError, match=r"computed with channels \['angle', 'height', 'disparity'\], expected None"):
        cache_hha(root)


@pytest.mark.parametrize(
    ("spoil", "text"), [(gray_depth, "three equal channels"), (other_frame, "do not fit the depth")]
)
def test_what_is_no_hha_of_the_depth(root: Path, spoil: Callable[[Path], None], text: str) -> None:
    spoil(root)
    assert text in str(audit_tree(root).fault)
    assert not check_dataset(root).ok
    with pytest.raises(DataError, match=text):
        require_fitting_hha(open_tree(root), ["0", "1", "2", "3", "4", "5"])


def test_training_refuses_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    each(root, reversed_channels)
    options = ["--schedule.epochs", "1", "--loader.workers", "0", "--hardware.accelerator", "cpu"]
    assert main(["train", "demo", "--data", str(root), "--out", str(root.parent / "run"), *options]) == 1
    assert "have the channels in the order angle, height, disparity" in capsys.readouterr().err


def test_other_constants_are_a_remark(root: Path) -> None:
    describe(root, hha={"height_scale": 0.5})
    audit = audit_tree(root)
    assert audit.fault is None
    assert "stored HHA differs from what depth and camera give" in str(audit.difference)
    assert check_dataset(root).ok


def test_hha_with_a_record_and_trees_without_depth_are_not_compared(root: Path) -> None:
    (root / "HHA").rename(root / "old")
    cache_hha(root)
    each(root, reversed_channels)
    assert audit_tree(root).compared == 0
    shutil.rmtree(root / "Depth")
    assert audit_tree(root) == audit_tree(root).__class__()


# --- depth as sensors measure it


def spoiled_room(share: float = 0.007) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Depth (1, 1, H, W) of a room, the same with single readings at 65.535 m in the lower half, and where they are."""
    depth_m = planes_depth(camera_tensor(*CAMERA), 48, 64, room(pitch_deg=10), torch.float32)
    outlier = torch.rand(depth_m.shape, generator=torch.Generator().manual_seed(0)) < 2 * share
    outlier[:, :, :24] = False
    return depth_m, torch.where(outlier, torch.tensor(65.535), depth_m), outlier


def height(depth_m: torch.Tensor, parameters: HHAParameters) -> torch.Tensor:
    return encode_hha(depth_m, torch.tensor([CAMERA], dtype=torch.float64), parameters=parameters)[0, 1].float()


def test_a_few_outliers_ruin_the_published_height_but_not_that_of_sensors() -> None:
    clean, spoiled, outlier = spoiled_room()
    good = ~outlier[0, 0]
    truth = height(clean, INDOOR)
    assert (height(spoiled, INDOOR)[good] == 255).float().mean() > 0.9
    assert (height(spoiled, SENSOR)[good] - truth[good]).abs().mean() < 5
    assert height(clean, INDOOR).equal(height(clean, dataclasses.replace(SENSOR, floor_percentile=0.0)))


def test_sensors_have_no_reading_as_zeros() -> None:
    clean, _, _ = spoiled_room()
    clean[..., 20:24, 30:34] = 0
    hha = encode_hha(clean, torch.tensor([CAMERA], dtype=torch.float64), parameters=SENSOR)[0]
    assert (hha[:, 20:24, 30:34] == 0).all()
    assert (hha[2][clean[0, 0] > 0] > 0).all()


def write_spoiled(root: Path, missing: object = 0) -> Path:
    """A tree of rooms with 0.7 % of the readings at 65535 mm."""
    write_tree(root, count=3)
    outlier = spoiled_room()[2]
    for path in (root / "Depth").glob("*.png"):
        values = np.array(Image.open(path))
        values[outlier[0, 0].numpy()] = 65535
        Image.fromarray(values).save(path)
    describe(root, depth={"meters_per_unit": 0.001, "missing": missing})
    return root


def test_check_warns_of_saturation_until_the_description_says_better(tmp_path: Path) -> None:
    root = write_spoiled(tmp_path / "tree")
    warnings = {finding.kind: str(finding) for finding in check_dataset(root).warnings}
    assert "height is 255 in 100%" in warnings["saturated HHA"]
    assert "floor_percentile=1" in warnings["saturated HHA"]
    for better in (
        {"hha": {"floor_percentile": 2}},
        {"hha": "sensor"},
        {"depth": {"meters_per_unit": 0.001, "missing": [0, 65535]}},
        {"depth": {"meters_per_unit": 0.001, "largest_m": 10}},
    ):
        describe(root, hha={}, depth={"meters_per_unit": 0.001})
        describe(root, **better)
        assert "saturated HHA" not in {finding.kind for finding in check_dataset(root).warnings}, better


def test_several_missing_values_are_read_and_written(tmp_path: Path) -> None:
    root = write_spoiled(tmp_path / "tree", missing=[0, 65535])
    description = DatasetDescription.read(root)
    assert description.depth is not None
    assert description.depth.missing == (0.0, 65535.0)
    description.write(root)
    assert json.loads((root / "dataset.json").read_text())["depth"]["missing"] == [0.0, 65535.0]
    depth_m = RGBDDataset(root, "all", needs={"depth_m"})[0].depth_m
    assert depth_m is not None
    assert depth_m.max() < 10
    for wrong in ([], ["x"], [True], "0"):
        describe(root, depth={"meters_per_unit": 0.001, "missing": wrong})
        with pytest.raises(DataError, match=r"key 'depth\.missing' is .*; expected"):
            open_tree(root)
    describe(root, depth={"meters_per_unit": 0.001, "largest_m": 0})
    with pytest.raises(DataError, match=r"key 'depth\.largest_m' is 0; expected a positive number of meters"):
        open_tree(root)


def test_the_command_states_and_computes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_spoiled(tmp_path / "tree")
    assert main(["hha", str(root), "--workers", "0"]) == 0
    assert "WARNING height is 255" in capsys.readouterr().out
    changes = ["--parameters", "floor_percentile=1.5", "--missing", "0,65535", "--largest-depth", "8"]
    assert main(["hha", str(root), "--workers", "0", *changes]) == 1
    assert (
        "these HHA images were computed with parameters.floor_percentile 0.0, expected 1.5" in capsys.readouterr().err
    )
    assert DatasetDescription.read(root).hha == INDOOR  # nothing is stated that was not done
    assert main(["hha", str(root), "--workers", "0", "--overwrite", *changes]) == 0
    said = capsys.readouterr().out
    assert "dataset.json now says hha.floor_percentile 1.5, depth.missing (0.0, 65535.0), depth.largest_m 8.0" in said
    assert "WARNING" not in said
    description = DatasetDescription.read(root)
    assert description.hha == dataclasses.replace(INDOOR, floor_percentile=1.5)
    assert description.depth is not None
    assert (description.depth.missing, description.depth.largest_m) == ((0.0, 65535.0), 8.0)
    depth_m = RGBDDataset(root, "all", needs={"depth_m"})[0].depth_m
    assert depth_m is not None
    expected = encode_hha(depth_m[None], torch.tensor([CAMERA], dtype=torch.float64), parameters=description.hha)[0]
    assert torch.equal(read_hha(root / "HHA" / "0.png"), expected)
    assert restate_hha(root, parameters="floor_percentile=1.5") == ""


def test_parameters_as_people_write_them() -> None:
    assert parse_hha_parameters("sensor") == SENSOR
    assert parse_hha_parameters("sensor,floor_percentile=2") == dataclasses.replace(SENSOR, floor_percentile=2)
    assert parse_hha_parameters("missing_fill=null", SENSOR) == dataclasses.replace(SENSOR, missing_fill=None)
    changed = parse_hha_parameters("gravity_iterations=[3,4],singular_windows=undefined")
    assert changed == dataclasses.replace(INDOOR, gravity_iterations=(3, 4), singular_windows="undefined")
    for wrong, message in (
        ("sensors", "unknown HHA preset 'sensors'; did you mean 'sensor'"),
        ("floor_percentil=1", "unknown HHA parameter 'floor_percentil'; did you mean 'floor_percentile'"),
        ("floor_percentile=101", r"floor_percentile is 101; expected 0\.\.100"),
        ("floor_percentile=low", "are not understood"),
    ):
        with pytest.raises(UsageError, match=message):
            parse_hha_parameters(wrong)


def test_saturation_counts_pixels_with_a_reading_only(tmp_path: Path) -> None:
    hha = torch.zeros(3, 4, 4, dtype=torch.uint8)
    hha[0, :2], hha[1, 0] = 255, 255
    reading = torch.zeros(4, 4, dtype=torch.bool)
    reading[:2] = True
    assert saturated_shares(hha, reading) == (1.0, 0.5, 0.5)
    assert saturated_shares(hha, ~reading) == (0.0, 0.0, 1.0)
    assert saturated_shares(hha, torch.zeros_like(reading)) == (0.0, 0.0, 0.0)
    write_hha(tmp_path / "a.png", hha, ("height", "angle", "disparity"))
    assert torch.equal(read_hha(tmp_path / "a.png", ("height", "angle", "disparity")), hha)
    assert torch.equal(read_hha(tmp_path / "a.png"), hha[[1, 2, 0]])
