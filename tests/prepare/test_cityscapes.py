from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from rgbdseg.camera import PinholeCamera
from rgbdseg.cli.main import main
from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.data.description import DatasetDescription
from rgbdseg.data.tree import open_tree
from rgbdseg.datasets.cityscapes import CITYSCAPES19
from rgbdseg.doctor.check import check_dataset
from rgbdseg.errors import DataError, RGBDSegError, UsageError
from rgbdseg.geometry.hha import OUTDOOR
from rgbdseg.png import write_png
from rgbdseg.prepare.cityscapes import (
    OFFICIAL_FRAMES,
    StereoCamera,
    depth_to_stored,
    disparity_to_depth_m,
    prepare_cityscapes,
    to_train_ids,
)
from rgbdseg.prepare.cityscapes_hha import fit_outdoor_parameters

SIZE = (64, 128)
FRAMES = {
    "train": ("aachen_000000_000019", "aachen_000010_000019", "zurich_000002_000019"),
    "val": ("munster_000000_000019",),
    "test": ("berlin_000000_000019", "berlin_000001_000019"),
}
ALL_IDS = tuple(name for names in FRAMES.values() for name in names)
# name -> training class, from the paper's list of 30 labels; the others are not evaluated
EVALUATED = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip


def made_frame(name: str) -> dict[str, npt.NDArray[Any]]:
    """A street: road up to the horizon, houses to either side, sky without disparity."""
    random = np.random.default_rng(ALL_IDS.index(name))
    fx, baseline = camera_of(name)["intrinsic"]["fx"], camera_of(name)["extrinsic"]["baseline"]
    v, u = np.mgrid[: SIZE[0], : SIZE[1]].astype(float)
    road_m = np.where(v > 31, 1.2 * fx / np.maximum(v - 31, 1e-3), np.inf)
    house_m = np.where(np.abs(u - 64) > 20, 6 * fx / np.abs(u - 64).clip(1), np.inf)
    depth_m = np.minimum(road_m, np.where(v > 10, house_m, np.inf))
    disparity = np.where(depth_m < 100, np.rint(baseline * fx / depth_m * 256 + 1), 0)
    disparity[random.random(SIZE) < 0.05] = 0
    label = np.where(depth_m == road_m, 7, np.where(depth_m == house_m, 11, 23))
    label[-4:] = 1  # the vehicle itself
    label[20:24, 30:64] = np.arange(34)
    light = np.kron(random.integers(0, 120, (8, 16)), np.ones((8, 8)))[..., None]
    rgb = (random.integers(0, 20, (*SIZE, 3)) + light + 3 * label[..., None]).astype(np.uint8)
    return {"rgb": rgb, "disparity": disparity.astype(np.uint16), "label": label.astype(np.uint8)}


def camera_of(name: str) -> dict[str, dict[str, float]]:
    k = ALL_IDS.index(name)
    return {
        "extrinsic": {"baseline": 0.209313 + 0.001 * k, "pitch": 0.03, "roll": 0.0, "x": 1.7, "y": 0.1, "z": 1.22},
        "intrinsic": {"fx": 110.0 + k, "fy": 111.0 + k, "u0": 63.5 + k, "v0": 31.25},
    }


def write_source(root: Path) -> Path:
    for split, names in FRAMES.items():
        for name in names:
            city, made = name.split("_")[0], made_frame(name)
            write_png(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", made["rgb"])
            write_png(root / "disparity" / split / city / f"{name}_disparity.png", made["disparity"])
            write_png(root / "gtFine" / split / city / f"{name}_gtFine_labelIds.png", made["label"])
            write_png(root / "gtFine" / split / city / f"{name}_gtFine_color.png", made["rgb"])
            camera = root / "camera" / split / city / f"{name}_camera.json"
            camera.parent.mkdir(parents=True, exist_ok=True)
            camera.write_text(json.dumps(camera_of(name)))
    return root


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("cityscapes"))


@pytest.fixture(scope="module")
def prepared(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_cityscapes(source, tmp_path_factory.mktemp("made") / "tree", partial=True).root


def expected_depth_m(name: str) -> npt.NDArray[np.float64]:
    values, camera = made_frame(name)["disparity"].astype(float), camera_of(name)
    with np.errstate(divide="ignore", invalid="ignore"):
        depth_m = camera["extrinsic"]["baseline"] * camera["intrinsic"]["fx"] / ((values - 1) / 256)
    return np.where((values > 1) & (depth_m < 65535.5 / 256), np.rint(depth_m * 256) / 256, 0)


@pytest.mark.parametrize("split", FRAMES)
def test_every_field_of_every_frame(prepared: Path, source: Path, split: str) -> None:
    labeled = split != "test"
    dataset = RGBDDataset(prepared, split, needs={"rgb", "depth_m"} | ({"label"} if labeled else set()))
    assert dataset.ids == FRAMES[split]
    for index, name in enumerate(FRAMES[split]):
        sample, made = dataset[index], made_frame(name)
        assert np.array_equal(sample.rgb.permute(1, 2, 0), made["rgb"])
        assert sample.depth_m is not None
        assert np.array_equal(sample.depth_m[0].numpy(), expected_depth_m(name).astype(np.float32))
        intrinsic = camera_of(name)["intrinsic"]
        assert sample.camera == PinholeCamera(*(intrinsic[key] for key in ("fx", "fy", "u0", "v0")))
        if labeled:
            assert sample.label is not None
            classes = np.array([CITYSCAPES19.index(EVALUATED[k]) if k in EVALUATED else 255 for k in range(34)])
            assert np.array_equal(sample.label[0], classes[made["label"]])
        else:
            assert not (prepared / "Label" / f"{name}.png").exists()
        original = source / "leftImg8bit" / split / name.split("_")[0] / f"{name}_leftImg8bit.png"
        assert (prepared / "RGB" / f"{name}.png").read_bytes() == original.read_bytes()


def test_the_description(prepared: Path) -> None:
    tree = open_tree(prepared)
    description: DatasetDescription = tree.description
    assert (description.name, description.size, description.hha) == ("cityscapes", SIZE, OUTDOOR)
    assert (description.label_set, description.first_label, description.void_labels) == (CITYSCAPES19, 0, (255,))
    assert tree.split_names == ("train", "val", "test")
    assert (prepared / "test.txt").read_text().splitlines()[0] == "RGB/berlin_000000_000019.png"
    assert (prepared / "val.txt").read_text() == "RGB/munster_000000_000019.png\tLabel/munster_000000_000019.png\n"
    assert RGBDDataset(prepared, "val", needs={"hha"})[0].hha is not None


def test_the_tree_passes_its_check_but_for_what_a_miniature_lacks(prepared: Path) -> None:
    report = check_dataset(prepared)
    assert report.ok, report.lines()
    assert {f.kind for f in report.warnings} <= {"split size", "unlabeled split", "unusual camera"}
    assert "unlabeled split: no frame of 'test' has a label" in [str(f) for f in report.warnings]


def test_disparity_becomes_depth() -> None:
    stereo = StereoCamera(PinholeCamera(2262.52, 2265.30, 1096.98, 513.137), 0.209313)
    values = np.array([[0, 1, 2, 257, 12801]], np.uint16)
    depth_m = disparity_to_depth_m(values, stereo)
    scale = 0.209313 * 2262.52
    assert np.allclose(depth_m, [[0, 0, scale * 256, scale, scale / 50]], rtol=1e-12)
    # beyond 256 m there is no reading, not a wall at 256 m
    assert depth_to_stored(depth_m).tolist() == [[0, 0, 0, 0, round(scale / 50 * 256)]]
    assert depth_to_stored(np.array([[65535.4 / 256, 65535.6 / 256]])).tolist() == [[65535, 0]]
    assert math.isclose(scale / 50, 9.47, abs_tol=0.01)


def test_label_ids_become_training_classes() -> None:
    assert [to_train_ids(np.array([[k]]), "x")[0, 0] for k in (0, 7, 9, 33)] == [255, 0, 255, 18]
    with pytest.raises(DataError, match=r"x holds the label ids 34, 255; expected 0\.\.33"):
        to_train_ids(np.array([[255, 34, 3]], np.uint8), "x")


def test_workers_and_repetitions_give_the_same_bytes(source: Path, prepared: Path, tmp_path: Path) -> None:
    again = prepare_cityscapes(source, tmp_path / "again", partial=True, workers=2)
    assert dict(again.counts) == {"train": 3, "val": 1, "test": 2}
    for path in sorted(p.relative_to(prepared) for p in prepared.rglob("*") if p.is_file()):
        assert (again.root / path).read_bytes() == (prepared / path).read_bytes(), path
    assert prepare_cityscapes(source, tmp_path / "again", partial=True).already_complete
    with pytest.raises(DataError, match="already holds another dataset"):
        prepare_cityscapes(source, tmp_path / "again", splits=["train"], partial=True)


def test_hha_constants_are_fitted_to_the_training_frames(source: Path, tmp_path: Path) -> None:
    result = prepare_cityscapes(source, tmp_path / "tree", splits=["val", "train"], partial=True, fit_hha=True)
    found = DatasetDescription.read(result.root).hha
    coarse = np.concatenate([expected_depth_m(name)[::8, ::8].ravel() for name in FRAMES["train"]])
    nearest_m = float(np.percentile(coarse[coarse > 0], 0.5))
    assert found.min_depth_cm / 100 == pytest.approx(nearest_m, abs=0.06)
    assert found.disparity_scale_cm == 255 * found.min_depth_cm
    assert found.missing_fill == OUTDOOR.missing_fill
    with pytest.raises(UsageError, match="fitted to the training frames"):
        prepare_cityscapes(source, tmp_path / "other", splits=["val"], partial=True, fit_hha=True)


def test_fitted_height_is_that_of_the_scene() -> None:
    # a road 1.5 m below the camera and a wall behind it, 12 m away and 6 m high
    camera = PinholeCamera(100, 100, 79.5, 59.5)
    v = np.arange(120)[:, None] + np.zeros((1, 160))
    road_m = np.where(v > camera.cy, 1.5 * 100 / np.maximum(v - camera.cy, 1e-6), np.inf)
    wall_top = camera.cy - 100 * (6 - 1.5) / 12
    depth_m = np.where(road_m < 12, road_m, np.where(v >= wall_top, 12, 0)).astype(np.float32)
    found = fit_outdoor_parameters([(depth_m, camera)])
    assert 255 / found.height_scale / 100 == pytest.approx(6, abs=0.15)
    assert found.min_depth_cm / 100 == pytest.approx(float(np.percentile(depth_m[depth_m > 0], 0.5)), abs=0.06)
    with pytest.raises(DataError, match="no depth reading"):
        fit_outdoor_parameters([(np.zeros((4, 4), np.float32), camera)])


def edit_camera(root: Path, **changes: object) -> None:
    path = root / "camera" / "val" / "munster" / "munster_000000_000019_camera.json"
    values = json.loads(path.read_text())
    for key, value in changes.items():
        section = "extrinsic" if key == "baseline" else "intrinsic"
        if value is None:
            del values[section][key]
        else:
            values[section][key] = value
    path.write_text(json.dumps(values))


def munster(root: Path, folder: str, ending: str) -> Path:
    return root / folder / "val" / "munster" / f"munster_000000_000019_{ending}.png"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "no disparity package": (
        lambda r: shutil.rmtree(r / "disparity"),
        r"has no folder disparity; unpack disparity_trainvaltest\.zip there",
    ),
    "no label": (
        lambda r: munster(r, "gtFine", "gtFine_labelIds").unlink(),
        r"munster_000000_000019_gtFine_labelIds\.png does not exist; unpack gtFine_trainvaltest\.zip",
    ),
    "no camera key": (lambda r: edit_camera(r, fx=None), r"_camera\.json: key 'intrinsic\.fx' is missing"),
    "baseline in millimeters": (
        lambda r: edit_camera(r, baseline=209.3),
        r"key 'extrinsic\.baseline' is 209\.3; expected the distance of the two cameras in meters",
    ),
    "focal length 0": (lambda r: edit_camera(r, fy=0), r"key 'intrinsic\.fy' is 0; expected a positive focal"),
    "8-bit disparity": (
        lambda r: write_png(munster(r, "disparity", "disparity"), np.ones(SIZE, np.uint8)),
        "holds uint8 values; expected the official disparity, 16 bits",
    ),
    "other size": (
        lambda r: write_png(munster(r, "disparity", "disparity"), np.ones((32, 64), np.uint16)),
        r"munster_000000_000019_disparity\.png is 32x64, expected 64x128 as the first image",
    ),
    "colored labels": (
        lambda r: write_png(
            munster(r, "gtFine", "gtFine_labelIds"), np.dstack([np.full(SIZE, k, np.uint8) for k in range(3)])
        ),
        "has 3 channels .*expected a label map of class values",
    ),
    "training ids": (
        lambda r: write_png(munster(r, "gtFine", "gtFine_labelIds"), np.full(SIZE, 255, np.uint8)),
        r"holds the label ids 255; expected 0\.\.33",
    ),
    "truncated image": (lambda r: truncate(munster(r, "leftImg8bit", "leftImg8bit")), r"damaged or truncated"),
    "truncated disparity": (lambda r: truncate(munster(r, "disparity", "disparity")), r"damaged or truncated"),
    "no images": (
        lambda r: shutil.rmtree(r / "leftImg8bit" / "val"),
        r"leftImg8bit/val has no images; expected CITY/\*_leftImg8bit\.png",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(source: Path, tmp_path: Path, name: str) -> None:
    change, message = BAD[name]
    root = Path(shutil.copytree(source, tmp_path / "source"))
    change(root)
    with pytest.raises(RGBDSegError, match=message):
        prepare_cityscapes(root, tmp_path / "tree", partial=True)
    assert not (tmp_path / "tree" / "dataset.json").exists()


def test_an_incomplete_source_must_be_meant(source: Path, tmp_path: Path) -> None:
    assert dict(OFFICIAL_FRAMES) == {"train": 2975, "val": 500, "test": 1525}
    with pytest.raises(DataError, match=r"train has 3 images; the official split has 2975; .* \(partial=True\)"):
        prepare_cityscapes(source, tmp_path / "tree")
    with pytest.raises(UsageError, match="unknown Cityscapes split 'valid'; did you mean 'val'"):
        prepare_cityscapes(source, tmp_path / "tree", splits=["valid"])
    with pytest.raises(DataError, match="nowhere does not exist; expected the folder with leftImg8bit"):
        prepare_cityscapes(tmp_path / "nowhere", tmp_path / "tree")


def test_the_command(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = tmp_path / "tree"
    assert main(["prepare", "cityscapes", str(source), str(tree), "--partial", "--workers", "0"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"cityscapes, 6 frames \(3 train, 1 val, 2 test\)", printed)
    assert "meters = value x 0.00390625; 0 = no reading" in printed
    assert "HHA: nearest depth 4.5 m, heights up to 8 m" in printed
