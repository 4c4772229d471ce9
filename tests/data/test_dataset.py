from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rgbdseg.camera import PinholeCamera
from rgbdseg.data.dataset import RGBDDataset, rasters_needed
from rgbdseg.errors import DataError, UsageError
from rgbdseg.geometry.hha import INDOOR, HHAParameters, encode_hha
from rgbdseg.png import write_png
from tests.specs import RGB_DEPTH, RGB_HHA, RGB_ONLY
from tests.synthetic import make_camera, make_scene, write_tree


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("trees") / "a tree", raw_depth=True)


@pytest.fixture
def root(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "copy"))


def describe(root: Path, **changes: Any) -> None:
    path = root / "dataset.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def geometry_hha(index: int, camera: PinholeCamera, raw: bool = False) -> torch.Tensor:
    scene = make_scene(index)
    depth = torch.from_numpy(np.round(scene.depth_m * 1000).astype(np.float32) / 1000)[None, None]
    measured = depth.masked_fill(torch.from_numpy(scene.hole), 0) if raw else None
    return encode_hha(depth, torch.tensor([camera.as_tuple()]), raw_depth_m=measured)[0]


def test_a_sample_holds_exactly_what_was_written(prepared: Path) -> None:
    dataset = RGBDDataset(prepared, "test", needs={"rgb", "depth_m", "raw_depth_m", "label"})
    assert len(dataset) == 2
    assert dataset.ids == ("4", "5")
    for index, number in enumerate((4, 5)):
        sample, scene = dataset[index], make_scene(number)
        assert sample.sample_id == str(number)
        assert sample.camera == make_camera((48, 64))
        assert torch.equal(sample.rgb.permute(1, 2, 0), torch.from_numpy(scene.rgb))
        assert sample.label is not None
        assert torch.equal(sample.label[0], torch.from_numpy(scene.label))
        assert sample.depth_m is not None
        np.testing.assert_allclose(sample.depth_m[0].numpy(), scene.depth_m, atol=0.00051)
        assert sample.raw_depth_m is not None
        assert torch.equal(sample.raw_depth_m[0] == 0, torch.from_numpy(scene.hole))
        assert sample.hha is None


@pytest.mark.parametrize(("depth_format", "step_m"), [("mm16", 0.001), ("8bit", 0.02), ("npy", 1e-6)])
def test_all_ways_to_store_depth_give_meters(tmp_path: Path, depth_format: Any, step_m: float) -> None:
    root = write_tree(tmp_path, count=1, depth_format=depth_format, train=1)
    sample = RGBDDataset(root, "train", needs={"depth_m"})[0]
    assert sample.depth_m is not None
    np.testing.assert_allclose(sample.depth_m[0].numpy(), make_scene(0).depth_m, atol=step_m * 0.51)


def test_only_what_is_needed_is_read(root: Path) -> None:
    for folder in ("Depth", "RawDepth", "Label"):
        shutil.rmtree(root / folder)
    describe(root, splits=None)
    sample = RGBDDataset(root, needs=())[0]
    assert [name for name, _ in sample.rasters()] == ["rgb"]
    with pytest.raises(DataError, match=r"frame '0' \(RGB\) has no label: expected Label/0"):
        RGBDDataset(root, needs={"label"})


def test_needs_follow_from_the_models_input() -> None:
    assert rasters_needed(RGB_ONLY, label=False) == {"rgb"}
    assert rasters_needed(RGB_HHA, label=True) == {"rgb", "hha", "label"}
    assert rasters_needed(RGB_HHA, label=True, depth=True) == {"rgb", "hha", "label", "depth_m"}
    assert rasters_needed(RGB_DEPTH, label=False) == {"rgb", "depth_m"}


def test_limit_and_ids_select_frames(prepared: Path) -> None:
    assert RGBDDataset(prepared, "train", needs=(), limit=2).ids == ("0", "1")
    assert RGBDDataset(prepared, needs=(), ids=["5", "1"]).ids == ("5", "1")
    with pytest.raises(UsageError, match=r"unknown frame of split 'train' .* '5'"):
        RGBDDataset(prepared, "train", needs=(), ids=["5"])
    with pytest.raises(UsageError, match="unknown raster 'depth'; did you mean 'depth_m'"):
        RGBDDataset(prepared, "train", needs={"depth"})


def test_missing_hha_is_computed_from_depth_raw_depth_and_camera(prepared: Path) -> None:
    sample = RGBDDataset(prepared, "train")[1]
    assert sample.hha is not None
    assert torch.equal(sample.hha, geometry_hha(1, make_camera((48, 64)), raw=True))
    assert not torch.equal(sample.hha, geometry_hha(1, make_camera((48, 64)), raw=False))
    # what was read only to compute HHA is not carried along
    assert sample.raw_depth_m is None
    assert RGBDDataset(prepared, "train", needs={"hha"})[1].depth_m is None


def test_each_image_has_its_own_camera_and_sensor(tmp_path: Path) -> None:
    root = write_tree(tmp_path, count=3, cameras="per_image", sensors=("kinect", "xtion"), train=3)
    dataset = RGBDDataset(root, "train", needs={"hha"})
    own = PinholeCamera(51.2, 51.2, 33.5, 23.5)
    assert dataset.camera(2) == dataset[2].camera == own
    assert torch.equal(dataset[2].hha, geometry_hha(2, own))  # type: ignore[arg-type]
    assert [dataset.sensor(i) for i in range(3)] == ["kinect", "xtion", "kinect"]


def test_stored_hha_is_read_in_its_channel_order(root: Path) -> None:
    write_png(root / "HHA" / "0.png", np.full((48, 64, 3), (200, 100, 38), np.uint8))
    dataset = RGBDDataset(root, "train", needs={"hha"})
    assert dataset[0].hha is not None
    assert dataset[0].hha[:, 0, 0].tolist() == [200, 100, 38]
    # the other frames have none: theirs is computed
    assert torch.equal(dataset[1].hha, geometry_hha(1, make_camera((48, 64)), raw=True))  # type: ignore[arg-type]


def test_stored_hha_needs_neither_depth_nor_camera(root: Path) -> None:
    for index in range(4):
        write_png(root / "HHA" / f"{index}.png", np.full((48, 64, 3), 9, np.uint8))
    shutil.rmtree(root / "Depth")
    describe(root, camera=None, depth=None, raw_depth=None)
    assert RGBDDataset(root, "train", needs={"hha"})[3].camera is None
    with pytest.raises(DataError, match="'4' has no HHA image, and none can be computed without a camera"):
        RGBDDataset(root, "test", needs={"hha"})


def test_hha_cannot_be_computed_without_depth(root: Path) -> None:
    (root / "Depth" / "1.png").unlink()
    with pytest.raises(DataError, match=r"frame '1' \(train\.txt line 2\) has no depth_m"):
        RGBDDataset(root, "train", needs={"hha"})
    describe(root, depth=None)
    with pytest.raises(DataError, match=r"states no unit for depth_m; add e\.g\. \"depth\": "):
        RGBDDataset(root, "train", needs={"hha"})


def test_computed_hha_is_cached_and_read_again(root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "a cache"
    first = RGBDDataset(root, "train", needs={"hha"}, hha_cache=cache)[2].hha
    assert sorted(p.name for p in cache.iterdir()) == ["2.png", "hha.json"]
    with Image.open(cache / "2.png") as image:
        assert torch.equal(torch.from_numpy(np.array(image)).permute(2, 0, 1), first)  # type: ignore[arg-type]
    write_png(cache / "2.png", np.full((48, 64, 3), 77, np.uint8))
    assert RGBDDataset(root, "train", needs={"hha"}, hha_cache=cache)[2].hha.unique().tolist() == [77]  # type: ignore[union-attr]
    # frames that do not ask for HHA neither read nor make a cache
    RGBDDataset(root, "train", needs={"label"}, hha_cache=tmp_path / "unused")[0]
    assert not (tmp_path / "unused").exists()


def test_a_cache_of_other_origin_is_refused(root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    RGBDDataset(root, "train", needs={"hha"}, hha_cache=cache)[0]
    other = HHAParameters(normal_radius=5)
    with pytest.raises(DataError, match=r"hha\.json: .* parameters\.normal_radius 3, expected 5; remove the folder"):
        RGBDDataset(root, "train", hha_cache=cache, hha_parameters=other)
    moved = Path(shutil.copytree(root, tmp_path / "moved"))
    with pytest.raises(DataError, match=r"computed with tree '.*copy', expected '.*moved'"):
        RGBDDataset(moved, "train", hha_cache=cache)
    describe(root, depth={"meters_per_unit": 0.002})
    with pytest.raises(DataError, match=r"computed with depth\.meters_per_unit 0\.001, expected 0\.002"):
        RGBDDataset(root, "train", hha_cache=cache)
    strange = tmp_path / "strange"
    write_png(strange / "0.png", np.zeros((48, 64, 3), np.uint8))
    with pytest.raises(DataError, match=r"strange holds files but no hha\.json, so it is not an HHA cache"):
        RGBDDataset(root, "train", hha_cache=strange)


def test_a_cache_from_before_a_parameter_existed_is_still_good(root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    RGBDDataset(root, "train", needs={"hha"}, hha_cache=cache)[0]
    record = json.loads((cache / "hha.json").read_text())
    del record["parameters"]["missing_fill"]
    (cache / "hha.json").write_text(json.dumps(record))
    assert len(RGBDDataset(root, "train", hha_cache=cache)) == 4


def test_other_parameters_are_not_taken_for_images_of_unknown_parameters(root: Path) -> None:
    write_png(root / "HHA" / "0.png", np.zeros((48, 64, 3), np.uint8))
    assert len(RGBDDataset(root, "train", hha_parameters=INDOOR)) == 4
    with pytest.raises(DataError, match=r"HHA holds HHA images without hha\.json"):
        RGBDDataset(root, "train", hha_parameters=HHAParameters(normal_radius=5))


@pytest.mark.parametrize(
    ("folder", "pixels"),
    [
        ("Depth", np.full((48, 60), 2000, np.uint16)),
        ("Label", np.ones((40, 64), np.uint8)),
        ("HHA", np.ones((47, 64, 3), np.uint8)),
    ],
)
def test_files_of_one_frame_must_have_one_size(root: Path, folder: str, pixels: np.ndarray) -> None:
    write_png(root / folder / "1.png", pixels)
    size = f"{pixels.shape[0]}x{pixels.shape[1]}"
    with pytest.raises(DataError, match=rf"{folder}/1\.png is {size}, expected the size of RGB/1\.png, 48x64"):
        RGBDDataset(root, "train")[1]


def test_the_stated_size_holds(root: Path) -> None:
    for folder, pixels in (("RGB", np.zeros((24, 32, 3), np.uint8)), ("Label", np.ones((24, 32), np.uint8))):
        write_png(root / folder / "1.png", pixels)
    with pytest.raises(DataError, match=r"RGB/1\.png is 24x32, expected the 48x64 of the dataset"):
        RGBDDataset(root, "train", needs={"label"})[1]
    describe(root, size=None)
    assert RGBDDataset(root, "train", needs={"label"})[1].size == (24, 32)


def test_what_is_wrong_in_a_file_is_said_when_it_is_read(root: Path) -> None:
    write_png(root / "Label" / "0.png", np.full((48, 64), 5, np.uint8))
    with pytest.raises(DataError, match=r"Label/0\.png: unknown label value 5; expected 1\.\.4, void 0"):
        RGBDDataset(root, "train")[0]
    describe(root, depth={"meters_per_unit": 1})
    with pytest.raises(DataError, match=r"Depth/1\.png: the median depth is \d+ m .*\(millimeters\)"):
        RGBDDataset(root, "train")[1]


def test_a_tree_without_labels_says_so(root: Path) -> None:
    describe(root, label_set=None, first_label=None, void_label=None)
    dataset = RGBDDataset(root, "train", needs={"depth_m"})
    assert dataset[0].label is None
    with pytest.raises(DataError, match="states no label_set; add label_set, first_label and void_label"):
        _ = dataset.label_set
    with pytest.raises(DataError, match="states no label_set"):
        RGBDDataset(root, "train", needs={"label"})


def test_it_can_be_sent_to_workers(prepared: Path, tmp_path: Path) -> None:
    dataset = RGBDDataset(prepared, "train", hha_cache=tmp_path / "cache")
    copy = pickle.loads(pickle.dumps(dataset))
    for (name, mine), (_, theirs) in zip(dataset[3].rasters(), copy[3].rasters(), strict=True):
        assert torch.equal(mine, theirs), name
    with pytest.raises(IndexError):
        dataset[4]


def test_the_sagate_tree_needs_no_conversion(tmp_path: Path) -> None:
    root = write_tree(tmp_path, count=2, layout="sagate", train=1)
    sample = RGBDDataset(root, "test")[0]
    scene = make_scene(1, (480, 640))
    assert sample.sample_id == "1"
    assert torch.equal(sample.depth_m[0], torch.from_numpy(scene.depth_m))  # type: ignore[index]
    assert torch.equal(sample.label[0], torch.from_numpy(scene.label))  # type: ignore[index]
    # JPEG is lossy, but its first channel is the disparity and not, in BGR order, the angle
    disparity = torch.from_numpy(31000 / np.maximum(scene.depth_m * 100, 100))
    assert (sample.hha[0] - disparity).abs().mean() < 3  # type: ignore[index]
    assert (sample.hha[2] - disparity).abs().mean() > 20  # type: ignore[index]


def test_a_camera_that_cannot_be_right_is_refused_where_it_counts(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", count=2)
    description = json.loads((root / "dataset.json").read_text())
    description["camera"] = {"fx": 518.9, "fy": 519.5, "cx": 324.6, "cy": 252.7}  # of images of 480x640
    (root / "dataset.json").write_text(json.dumps(description))
    assert RGBDDataset(root, "all", needs={"rgb"})[0].hha is None
    for needs in ({"hha"}, {"depth_m"}):
        with pytest.raises(DataError, match=r"frame '0': camera .* the center lies outside the 48x64 image"):
            RGBDDataset(root, "all", needs=needs)[0]
