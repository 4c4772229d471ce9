from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rgbdseg.data.hha_cache import cache_hha
from rgbdseg.doctor.check import check_dataset
from rgbdseg.doctor.inspect_frame import DepthStatistics
from rgbdseg.doctor.report import CheckReport
from rgbdseg.errors import DataError
from rgbdseg.png import write_png
from tests.synthetic import make_scene, write_tree


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


def test_a_sound_tree_is_reported_in_numbers(prepared: Path) -> None:
    report = check_dataset(prepared)
    assert report.ok
    assert (report.problems, report.warnings) == ((), ())
    assert report.splits == {"train": 4, "test": 2}
    assert (report.frames_read, report.sizes) == (6, {"48x64": 6})
    scenes = [make_scene(i) for i in range(6)]
    labels = np.stack([scene.label for scene in scenes])
    assert [c.pixels for c in report.classes] == [int((labels == k).sum()) for k in range(4)]
    assert [c.frames for c in report.classes] == [int((labels == k).any((1, 2)).sum()) for k in range(4)]
    assert report.void_share == pytest.approx((labels == 255).mean())
    depths = np.stack([scene.depth_m for scene in scenes])
    for percent in (1, 50, 99):
        value = report.depth["depth_m"].percentiles_m[percent]
        assert value == pytest.approx(float(np.percentile(depths, percent)), rel=0.02)
    assert report.depth["depth_m"].missing_share == 0
    holes = np.stack([scene.hole for scene in scenes])
    assert report.depth["raw_depth_m"].missing_share == pytest.approx(holes.mean())


def test_the_report_is_text_and_json(prepared: Path) -> None:
    report = check_dataset(prepared)
    values = json.loads(json.dumps(report.to_dict()))
    assert values["ok"] is True
    assert values["classes"][1]["name"] == "wall"
    assert values["depth"]["depth_m"]["percentiles_m"]["50"] == report.depth["depth_m"].percentiles_m[50]
    lines = report.lines()
    assert "split train: 4 frames" in lines
    assert "frames read: 6; size 48x64 (6)" in lines
    assert any(line.strip().startswith("1 wall") for line in lines)
    assert lines[-1] == "nothing wrong"


def test_processes_and_limits(prepared: Path) -> None:
    assert check_dataset(prepared, workers=2) == check_dataset(prepared)
    calls: list[tuple[int, int]] = []
    report = check_dataset(prepared, limit=3, progress=lambda done, total: calls.append((done, total)))
    assert report.frames_read == 3
    assert calls == [(0, 3), (1, 3), (2, 3), (3, 3)]
    only_test = check_dataset(prepared, ["test"])
    assert (only_test.splits, only_test.warnings) == ({"test": 2}, ())


def truncate(root: Path) -> None:
    content = (root / "RGB" / "2.png").read_bytes()
    (root / "RGB" / "2.png").write_bytes(content[: len(content) // 2])


def unknown_label(root: Path) -> None:
    label = np.array(Image.open(root / "Label" / "1.png"))
    label[3, 4] = 9
    write_png(root / "Label" / "1.png", label)


def small_depth(root: Path) -> None:
    write_png(root / "Depth" / "1.png", np.full((24, 32), 2000, np.uint16))


def small_frame(root: Path) -> None:
    for folder, kind in (("RGB", (24, 32, 3)), ("Depth", (24, 32)), ("RawDepth", (24, 32)), ("Label", (24, 32))):
        write_png(root / folder / "1.png", np.full(kind, 1, np.uint8))


def listed_twice(root: Path) -> None:
    with open(root / "train.txt", "a") as file:
        file.write("RGB/1.png\tLabel/1.png\n")


def leak(root: Path) -> None:
    with open(root / "test.txt", "a") as file:
        file.write("RGB/1.png\tLabel/1.png\n")


def bad_line(root: Path) -> None:
    with open(root / "test.txt", "a") as file:
        file.write("RGB/77.png\tLabel/77.png\n")


def color_labels(root: Path) -> None:
    write_png(root / "Label" / "0.png", np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3))


def empty_depth(root: Path) -> None:
    write_png(root / "Depth" / "0.png", np.zeros((48, 64), np.uint16))


def extra_depth(root: Path) -> None:
    shutil.copy(root / "Depth" / "0.png", root / "Depth" / "50.png")


def two_depths(root: Path) -> None:
    np.save(root / "Depth" / "0.npy", np.array(Image.open(root / "Depth" / "0.png")))


def all_void(root: Path) -> None:
    for path in (root / "Label").iterdir():
        write_png(path, np.zeros((48, 64), np.uint8))


def stale_hha(root: Path) -> None:
    cache_hha(root)
    record = json.loads((root / "HHA" / "hha.json").read_text())
    record["depth"]["meters_per_unit"] = 0.0011
    (root / "HHA" / "hha.json").write_text(json.dumps(record))


FAULTS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "truncated image": (truncate, "unreadable file", r"RGB/2\.png is damaged or truncated"),
    "colored labels": (color_labels, "unreadable file", r"Label/0\.png has 3 channels"),
    "unknown label": (unknown_label, "unknown label values", r"Label/1\.png holds 9; expected 1\.\.4, void 0"),
    "depth of another size": (small_depth, "size mismatch", r"Depth/1\.png is 24x32, but RGB/1\.png is 48x64"),
    "frame of another size": (small_frame, "size other than stated", r"RGB/1\.png is 24x32, not 48x64"),
    "missing depth": (
        lambda r: (r / "Depth" / "1.png").unlink(),
        "missing depth_m",
        r"Depth/1\.\* of train\.txt line 2",
    ),
    "missing raw depth": (lambda r: (r / "RawDepth" / "4.png").unlink(), "missing raw_depth_m", r"test\.txt line 1"),
    "missing label": (lambda r: (r / "Label" / "1.png").unlink(), "list", r"train\.txt line 2: Label/1\.png does not"),
    "unpaired depth": (extra_depth, "file without image", r"Depth/50\.png has no image in RGB"),
    "two depth files": (two_depths, "several files of one frame", r"Depth/0\.npy, Depth/0\.png; keep one"),
    "listed twice": (listed_twice, "frame listed twice", r"'1' 2 times, again in train\.txt line 5"),
    "leak": (leak, "frame in two splits", r"'1' in train\.txt line 2 and test\.txt line 3"),
    "bad line": (bad_line, "list", r"test\.txt line 3: RGB/77\.png does not exist"),
    "empty list": (lambda r: (r / "test.txt").write_text("") and None, "empty split", "split 'test' has no frames"),
    "missing list": (lambda r: (r / "test.txt").unlink(), "list", r"test\.txt does not exist"),
    "frame without depth": (empty_depth, "no depth reading", r"Depth/0\.png has no depth_m reading"),
    "all void": (all_void, "labels all void", "check first_label and void_label"),
    "millimeters as meters": (
        lambda r: describe(r, depth={"meters_per_unit": 1}),
        "implausible depth unit",
        r"depth_m: the median depth is \d+ m .* as meters, expected 0\.1\.\.100 m; .*: 0\.001 m for each unit \(milli",
    ),
    "meters as millimeters": (
        lambda r: describe(r, raw_depth={"meters_per_unit": 1e-6}),
        "implausible depth unit",
        r"raw_depth_m: the median depth is 0\.00\d+ m when .*: 0\.001 m for each unit",
    ),
    "labels off by one": (lambda r: describe(r, first_label=0, void_label=255), "unknown label values", r"holds 4;"),
    "HHA of another unit": (
        stale_hha,
        "HHA of another origin",
        r"hha\.json: .* computed with depth\.meters_per_unit 0\.0011, expected 0\.001",
    ),
    "center outside": (
        lambda r: describe(r, camera={"fx": 50, "fy": 50, "cx": 320, "cy": 24}),
        "implausible camera",
        "the center lies outside the 48x64 image",
    ),
    "camera of a larger image": (
        lambda r: describe(r, camera={"fx": 518, "fy": 519, "cx": 32, "cy": 24}),
        "implausible camera",
        "sees 7 degrees across 64 pixels, expected 20..150",
    ),
}


def only_problem(report: CheckReport, kind: str) -> str:
    assert not report.ok
    assert [finding.kind for finding in report.problems] == [kind]
    return str(report.problems[0])


@pytest.mark.parametrize("name", FAULTS)
def test_each_planted_fault_is_found_and_nothing_else(root: Path, name: str) -> None:
    plant, kind, message = FAULTS[name]
    plant(root)
    report = check_dataset(root)
    text = only_problem(report, kind)
    assert re.search(message, text), text
    assert any(line.startswith(f"PROBLEM {kind}") for line in report.lines())
    count, word = report.lines()[-1].split()[:2]
    assert int(count) >= 1
    assert word.strip(",") in ("problem", "problems")
    assert ("warning" in report.lines()[-1]) == bool(report.warnings)


def test_a_missing_image_leaves_its_other_files_unpaired(root: Path) -> None:
    (root / "RGB" / "1.png").unlink()
    problems = [str(finding) for finding in check_dataset(root).problems]
    assert problems == [
        f"list: {root}/train.txt line 2: RGB/1.png does not exist in {root}/RGB",
        "file without image (3): Depth/1.png has no image in RGB; RawDepth/1.png has no image in RGB; "
        "Label/1.png has no image in RGB",
    ]


def test_what_may_be_meant_is_a_warning(root: Path) -> None:
    (root / "train.txt").write_text("RGB/0.png\tLabel/0.png\nRGB/2.png\tLabel/2.png\n")
    write_png(root / "HHA" / "0.png", np.zeros((48, 64, 3), np.uint8))
    describe(root, camera=None, raw_depth=None)
    report = check_dataset(root)
    assert report.ok
    assert {finding.kind: str(finding) for finding in report.warnings} == {
        "image in no split": "image in no split (2): RGB/1.png; RGB/3.png",
        "HHA incomplete": "HHA incomplete: 3 of 4 frames have none; theirs is computed when read",
        "no camera": "no camera: 3 frames have none; HHA cannot be computed for them",
        "undescribed folder": "undescribed folder: RawDepth/ is there, but dataset.json has no 'raw_depth'",
    }


def test_absent_classes_and_much_void_are_warnings(root: Path) -> None:
    for path in (root / "Label").iterdir():
        label = np.zeros((48, 64), np.uint8)
        label[:10] = 2
        write_png(path, label)
    warnings = [str(finding) for finding in check_dataset(root).warnings]
    assert warnings == [
        "much void: 79% of the label pixels are void",
        "absent classes: 3 of 4 classes never occur: floor, box, board",
    ]


def test_a_split_that_holds_another_by_name_is_no_leak(root: Path) -> None:
    (root / "trainval.txt").write_text("".join(f"RGB/{i}.png\n" for i in range(4)))
    describe(root, splits={"train": "train.txt", "test": "test.txt", "trainval": "trainval.txt"})
    assert check_dataset(root).ok


def test_thousands_of_faults_stay_short(root: Path) -> None:
    with open(root / "test.txt", "a") as file:
        file.writelines(f"RGB/{i}.png\tLabel/{i}.png\n" for i in range(1000, 4000))
    report = check_dataset(root)
    assert report.problems[0].count == 3000
    assert len(report.problems[0].examples) == 5
    assert str(report.problems[0]).endswith("; and 2995 more")
    assert report.lines()[-1] == "3000 problems"


def test_unlabeled_trees_without_lists(root: Path) -> None:
    describe(root, label_set=None, first_label=None, void_label=None, splits=None)
    report = check_dataset(root)
    assert [finding.kind for finding in report.warnings] == ["undescribed folder"]
    assert (report.ok, report.splits, report.classes, report.void_share) == (True, {"all": 6}, (), None)
    assert "labels: none" in report.lines()


def test_a_folder_that_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        check_dataset(tmp_path / "nowhere")


def test_depth_percentiles_of_sums_are_those_of_all_readings() -> None:
    random = np.random.default_rng(0)
    frames = [random.uniform(low, low + 1, (30, 40)).astype(np.float32) for low in (0.5, 3.0, 8.0)]
    frames[0][:10] = 0
    total = DepthStatistics.empty()
    for frame in frames:
        total.add(DepthStatistics.of(frame))
    readings = np.concatenate([frame[frame > 0] for frame in frames])
    assert (total.pixels, total.readings) == (3600, 3200)
    for percent in (0, 1, 20, 50, 80, 100):
        assert total.percentile_m(percent) == pytest.approx(float(np.percentile(readings, percent)), rel=0.015)
    assert DepthStatistics.of(np.full((2, 2), 1e6, np.float32)).percentile_m(50) == pytest.approx(1e6, rel=0.015)
    assert DepthStatistics.empty().percentile_m(50) is None
