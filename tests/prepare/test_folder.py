from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rgbdseg.camera import PinholeCamera
from rgbdseg.cli.main import main
from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.data.description import DatasetDescription
from rgbdseg.data.tree import open_tree
from rgbdseg.datasets.nyuv2 import NYU40
from rgbdseg.depth import DepthUnit
from rgbdseg.doctor.check import check_dataset
from rgbdseg.errors import DataError, RGBDSegError, UsageError
from rgbdseg.geometry.hha import INDOOR, SENSOR
from rgbdseg.png import write_png
from rgbdseg.prepare.folder import RecordingOptions, prepare_folder, read_class_names
from rgbdseg.prepare.pairing import Pair, Stamped, pair_by_time, read_associations, read_stamps
from tests.synthetic import CLASSES, make_camera, make_scene

SIZE = (48, 64)
COUNT = 6
CAMERA = make_camera(SIZE)
NAMES = "# what is seen\n" + "\n".join(CLASSES) + "\n\n"
RGB_TIMES = [1305031102.175304 + 0.033 * k for k in range(COUNT)]
DEPTH_TIMES = [t + 0.004 for t in RGB_TIMES]


def millimeters(index: int) -> np.ndarray[Any, np.dtype[np.uint16]]:
    scene = make_scene(index, SIZE)
    return np.where(scene.hole, 0, np.rint(scene.depth_m * 1000)).astype(np.uint16)


def write_recording(root: Path, rgb: str = "rgb/{}.png", depth: str = "depth/{}.png", labels: bool = True) -> Path:
    for index in range(COUNT):
        write_png(root / rgb.format(index), make_scene(index, SIZE).rgb)
        write_png(root / depth.format(index), millimeters(index))
        if labels:
            write_png(root / "labels" / f"{index}.png", make_scene(index, SIZE).label)
    (root / "names.txt").write_text(NAMES)
    return root


def write_tum(root: Path, lost_depth: int | None = None) -> Path:
    """As the TUM RGB-D benchmark: files named by time stamp, lists with comments, 1/5000 m."""
    lists: dict[str, list[str]] = {"rgb": [], "depth": []}
    for index in range(COUNT):
        for kind, times in (("rgb", RGB_TIMES), ("depth", DEPTH_TIMES)):
            if kind == "depth" and index == lost_depth:
                continue
            name = f"{kind}/{times[index]:.6f}.png"
            pixels = make_scene(index, SIZE).rgb if kind == "rgb" else (millimeters(index) * 5).astype(np.uint16)
            write_png(root / name, pixels)
            lists[kind].append(f"{times[index]:.6f} {name}\n")
    for kind, lines in lists.items():
        (root / f"{kind}.txt").write_text(f"# {kind} images\n# timestamp filename\n" + "".join(lines))
    return root


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recording(tmp_path_factory.mktemp("recordings") / "my room")


def options(**changes: Any) -> RecordingOptions:
    return RecordingOptions(**{"meters_per_unit": 0.001, "camera": CAMERA, **changes})


def labeled(root: Path, **changes: Any) -> RecordingOptions:
    return options(label_set=read_class_names(root / "names.txt"), **changes)


def test_pairs_by_name_with_labels(recording: Path, tmp_path: Path) -> None:
    prepared = prepare_folder(recording, tmp_path / "tree", labeled(recording, test_share=0.34, seed=1))
    assert dict(prepared.result.counts) == {"train": 4, "test": 2}
    description = DatasetDescription.read(tmp_path / "tree")
    assert (description.name, description.size, description.camera) == ("my room", SIZE, CAMERA)
    assert description.label_set is not None
    assert (description.label_set.name, description.label_set.classes) == ("names", CLASSES)
    dataset = RGBDDataset(tmp_path / "tree", "all")
    assert dataset.ids == tuple(map(str, range(COUNT)))
    for index in range(COUNT):
        sample, scene = dataset[index], make_scene(index, SIZE)
        assert sample.depth_m is not None
        assert sample.label is not None
        assert np.array_equal(sample.rgb.permute(1, 2, 0), scene.rgb)
        assert np.allclose(sample.depth_m[0], millimeters(index) / 1000)
        assert np.array_equal(sample.label[0], scene.label)
        assert sample.camera == CAMERA
        original = recording / "depth" / f"{index}.png"
        assert (tmp_path / "tree" / "Depth" / f"{index}.png").read_bytes() == original.read_bytes()
    assert check_dataset(tmp_path / "tree").ok


def test_the_split_follows_the_seed(recording: Path, tmp_path: Path) -> None:
    def test_ids(seed: int, name: str, workers: int = 0) -> list[str]:
        prepare_folder(recording, tmp_path / name, options(test_share=0.5, seed=seed), workers=workers)
        return [frame.sample_id for frame in open_tree(tmp_path / name).frames("test")]

    splits = [test_ids(seed, f"s{seed}") for seed in range(5)]
    assert all(len(split) == 3 for split in splits)
    assert len({tuple(split) for split in splits}) > 1
    assert test_ids(2, "again", workers=2) == splits[2]
    for path in sorted(p.relative_to(tmp_path / "s2") for p in (tmp_path / "s2").rglob("*") if p.is_file()):
        assert (tmp_path / "again" / path).read_bytes() == (tmp_path / "s2" / path).read_bytes()


def test_listed_splits(recording: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("0\nrgb/2.png\n\n5.png\n")
    (tmp_path / "b.txt").write_text("1\n")
    lists = {"train": tmp_path / "a.txt", "test": tmp_path / "b.txt"}
    prepare_folder(recording, tmp_path / "tree", options(lists=lists))
    tree = open_tree(tmp_path / "tree")
    assert [f.sample_id for f in tree.frames("train")] == ["0", "2", "5"]
    assert [f.sample_id for f in tree.frames("test")] == ["1"]
    (tmp_path / "b.txt").write_text("1\n2\n")
    with pytest.raises(DataError, match=r"b\.txt line 2: frame '2' is in a\.txt line 2 already"):
        prepare_folder(recording, tmp_path / "other", options(lists=lists))
    (tmp_path / "b.txt").write_text("9\n")
    with pytest.raises(DataError, match=r"b\.txt line 1: there is no frame '9'; expected e\.g\. '0'"):
        prepare_folder(recording, tmp_path / "other", options(lists=lists))


def test_a_list_without_frames(recording: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match=r"empty\.txt lists no frames; expected names of frames"):
        prepare_folder(recording, tmp_path / "tree", options(lists={"train": tmp_path / "empty.txt"}))


def test_unlabeled_and_without_a_split(recording: Path, tmp_path: Path) -> None:
    prepare_folder(recording, tmp_path / "tree", options(every=4, camera=None), name="corridor")
    tree = open_tree(tmp_path / "tree")
    assert (tree.description.name, tree.description.label_set, tree.description.camera) == ("corridor", None, None)
    assert tree.split_names == ()
    assert [frame.sample_id for frame in tree.frames("all")] == ["0", "4"]
    assert not (tmp_path / "tree" / "Label").exists()


def test_names_may_say_what_a_file_is(tmp_path: Path) -> None:
    root = write_recording(tmp_path / "r", "color/frame-{}.color.png", "depth/frame-{}.depth.png", labels=False)
    prepare_folder(root, tmp_path / "tree", options())
    assert [f.sample_id for f in open_tree(tmp_path / "tree").frames("all")] == [f"frame-{k}" for k in range(COUNT)]
    root = write_recording(tmp_path / "s", "left/{}.png", "z/{}.png", labels=False)
    with pytest.raises(
        DataError, match=r"no folder of images; expected one of rgb, color, colour, image, images in any case"
    ):
        prepare_folder(root, tmp_path / "other", options())
    prepare_folder(root, tmp_path / "other", options(rgb_folder="left", depth_folder="z"))
    (root / "rgb").mkdir()
    (root / "image").mkdir()
    with pytest.raises(DataError, match="several folders of images: image, rgb"):
        prepare_folder(root, tmp_path / "third", options(depth_folder="z"))


def test_pairs_by_time_stamp(tmp_path: Path) -> None:
    root = write_tum(tmp_path / "tum", lost_depth=3)
    prepared = prepare_folder(root, tmp_path / "tree", options(meters_per_unit=0.0002))
    assert (prepared.result.frames, prepared.without_depth) == (COUNT - 1, 1)
    dataset = RGBDDataset(tmp_path / "tree", "all", needs={"rgb", "depth_m"})
    kept = [0, 1, 2, 4, 5]
    assert dataset.ids == tuple(f"{RGB_TIMES[k]:.6f}" for k in kept)
    for position, index in enumerate(kept):
        sample = dataset[position]
        assert sample.depth_m is not None
        assert np.array_equal(sample.rgb.permute(1, 2, 0), make_scene(index, SIZE).rgb)
        assert np.allclose(sample.depth_m[0], millimeters(index) / 1000)
    write_png(root / "labels" / f"{RGB_TIMES[2]:.6f}.png", make_scene(2, SIZE).label)  # named as the image
    (root / "names.txt").write_text(NAMES)
    prepared = prepare_folder(root, tmp_path / "labeled", labeled(root, meters_per_unit=0.0002))
    assert (prepared.result.frames, prepared.without_depth, prepared.without_label) == (1, 1, COUNT - 2)
    label = RGBDDataset(tmp_path / "labeled", "all")[0].label
    assert label is not None
    assert np.array_equal(label[0], make_scene(2, SIZE).label)
    with pytest.raises(DataError, match=r"no depth map lies within 0\.001 s of an image"):
        prepare_folder(root, tmp_path / "other", options(max_difference_s=0.001))


def test_time_stamps_in_file_names(tmp_path: Path) -> None:
    root = write_tum(tmp_path / "tum")
    (root / "rgb.txt").unlink()
    with pytest.raises(DataError, match="has no depth map of the same name"):
        prepare_folder(root, tmp_path / "tree", options(pairing="name"))
    for pairing in ("time", "auto"):
        prepared = prepare_folder(root, tmp_path / pairing, options(pairing=pairing, meters_per_unit=0.0002))
        assert prepared.result.frames == COUNT
        assert [frame.sample_id for frame in open_tree(tmp_path / pairing).frames("all")] == [
            f"{t:.6f}" for t in RGB_TIMES
        ]
    (root / "rgb" / "late.png").write_bytes((root / "rgb" / f"{RGB_TIMES[0]:.6f}.png").read_bytes())
    with pytest.raises(DataError, match=r"rgb/late\.png is not named by a time stamp"):
        prepare_folder(root, tmp_path / "other", options(pairing="time", meters_per_unit=0.0002))


@pytest.mark.parametrize("depth_first", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_association_files(tmp_path: Path, depth_first: bool, inside: bool) -> None:
    root = write_tum(tmp_path / "tum")
    lines = []
    for rgb, depth in zip(RGB_TIMES[:3], DEPTH_TIMES[:3], strict=True):
        fields = [f"{rgb:.6f} rgb/{rgb:.6f}.png", f"{depth:.6f} depth/{depth:.6f}.png"]
        lines.append(" ".join(fields[::-1] if depth_first else fields))
    for name in ("rgb.txt", "depth.txt"):
        (root / name).unlink()
    file = (root if inside else tmp_path) / "associations.txt"
    file.write_text("\n".join(lines) + "\n")
    prepared = prepare_folder(
        root, tmp_path / "tree", options(meters_per_unit=0.0002, associations=None if inside else file)
    )
    assert prepared.result.frames == 3
    sample = RGBDDataset(tmp_path / "tree", needs={"rgb", "depth_m"})[2]
    assert sample.depth_m is not None
    assert np.allclose(sample.depth_m[0], millimeters(2) / 1000)
    (root / "depth" / f"{DEPTH_TIMES[1]:.6f}.png").unlink()
    listed = options(associations=file)
    with pytest.raises(DataError, match=r"depth/1305031102\.\d+\.png does not exist; .*associations\.txt lists it"):
        prepare_folder(root, tmp_path / "other", listed)


def test_the_other_usual_name_of_an_association_file(tmp_path: Path) -> None:
    root = write_tum(tmp_path / "tum")
    for name in ("rgb.txt", "depth.txt"):
        (root / name).unlink()
    (root / "associate.txt").write_text(
        f"{RGB_TIMES[1]:.6f} rgb/{RGB_TIMES[1]:.6f}.png {DEPTH_TIMES[1]:.6f} depth/{DEPTH_TIMES[1]:.6f}.png\n"
    )
    assert prepare_folder(root, tmp_path / "tree", options(meters_per_unit=0.0002)).result.frames == 1


def test_the_closest_pairs_are_made_first_and_files_used_once() -> None:
    rgb = [Stamped(t, f"rgb/{k}.png") for k, t in enumerate((1.00, 1.02, 2.0, 3.0))]
    depth = [Stamped(t, f"depth/{k}.png") for k, t in enumerate((3.015, 1.015, 1.99, 5.0))]
    assert pair_by_time(rgb, depth, 0.02) == [
        Pair("1", "rgb/1.png", "depth/1.png", 1.02),  # nearer to it than image 0, which is left without
        Pair("2", "rgb/2.png", "depth/2.png", 2.0),
        Pair("3", "rgb/3.png", "depth/0.png", 3.0),
    ]
    assert pair_by_time(rgb, depth, 0.001) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.0 a.png b.png\n", r"line 1: '1\.0 a\.png b\.png' has 3 fields; expected time path"),
        ("# only\n", "lists no files"),
        ("1.0 a.png\nsoon b.png\n", "line 2: 'soon' is not a time stamp"),
        ("nan a.png\n", "line 1: 'nan' is not a time stamp"),
        ("1.0 ../a.png\n", r"line 1: \.\./a\.png lies outside of the recording"),
        ("1.0 /a.png\n", r"line 1: /a\.png lies outside"),
    ],
)
def test_unusable_lists(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "rgb.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_stamps(tmp_path / "rgb.txt")


def test_associations_of_two_images_are_refused(recording: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1 rgb/0.png 1 rgb/1.png\n")
    with pytest.raises(DataError, match=r"line 1: 0\.png and 1\.png are both color images; expected one of each"):
        read_associations(tmp_path / "a.txt", recording)


def relabel(root: Path) -> None:
    write_png(root / "labels" / "2.png", np.full(SIZE, 4, np.uint8))


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "depth missing": (
        lambda r: (r / "depth" / "2.png").unlink(),
        r"rgb/2\.png has no depth map of the same name; pair by time stamp",
    ),
    "images missing": (
        lambda r: [(r / "rgb" / f"{k}.png").unlink() for k in (0, 1)],
        r"depth/0\.png has no image of the same name \(and 1 more\)",
    ),
    "label without image": (
        lambda r: shutil.copy(r / "labels" / "0.png", r / "labels" / "77.png"),
        r"labels/77\.png has no image with depth of the same name",
    ),
    "depth of another size": (
        lambda r: write_png(r / "depth" / "3.png", np.ones((24, 32), np.uint16)),
        r"depth/3\.png is 24x32, expected 48x64 as the first image; align depth to color",
    ),
    "image of another size": (
        lambda r: write_png(r / "rgb" / "4.png", np.ones((24, 32, 3), np.uint8)),
        r"rgb/4\.png is 24x32, expected 48x64 as the first image",
    ),
    "unreadable depth": (
        lambda r: (r / "depth" / "1.png").write_bytes((r / "depth" / "1.png").read_bytes()[:400]),
        r"depth/1\.png is damaged or truncated",
    ),
    "colored depth": (
        lambda r: write_png(r / "depth" / "1.png", np.ones((*SIZE, 3), np.uint8)),
        r"depth/1\.png has 3 channels .*is it a colored rendering of depth",
    ),
    "unknown label": (relabel, r"2\.png: unknown label value 4; expected 0\.\.3, void 255"),
    "two files": (
        lambda r: shutil.copy(r / "rgb" / "0.png", r / "rgb" / "0-color.png"),
        "are both of frame '0'; expected one file",
    ),
    "no class names": (lambda r: (r / "names.txt").write_text("# nothing\n"), r"names\.txt holds no class names"),
    "class twice": (lambda r: (r / "names.txt").write_text("a\nb\na\n"), r"names\.txt names 'a' twice"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(recording: Path, tmp_path: Path, name: str) -> None:
    change, message = BAD[name]
    root = Path(shutil.copytree(recording, tmp_path / "recording"))
    change(root)
    with pytest.raises(RGBDSegError, match=message):
        prepare_folder(root, tmp_path / "tree", labeled(root))
    assert not (tmp_path / "tree" / "dataset.json").exists()


def test_frames_without_a_label_are_left_out_and_counted(recording: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(recording, tmp_path / "recording"))
    (root / "labels" / "1.png").unlink()
    prepared = prepare_folder(root, tmp_path / "tree", labeled(root))
    assert (prepared.result.frames, prepared.without_label) == (COUNT - 1, 1)


def test_another_recording_does_not_continue_a_tree(recording: Path, tmp_path: Path) -> None:
    assert not prepare_folder(recording, tmp_path / "tree", options()).result.already_complete
    assert prepare_folder(recording, tmp_path / "tree", options()).result.already_complete
    other = Path(shutil.copytree(recording, tmp_path / "my room"))
    Image.fromarray(make_scene(9, SIZE).rgb).save(other / "rgb" / "0.png")
    with pytest.raises(DataError, match="already holds another dataset"):
        prepare_folder(other, tmp_path / "tree", options())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"meters_per_unit": None}, r"unit is not known; state it \(meters_per_unit\), e\.g\. 0\.001 \(RealSense"),
        ({"meters_per_unit": 0.0}, r"depth unit 0\.0: expected meters per unit"),
        ({"intrinsics": Path("a.json")}, "camera and intrinsics are both given"),
        ({"test_share": 1.0}, r"test share 1\.0, .*: expected 1 or more, 0 to below 1"),
        ({"every": 0}, "every 0"),
        ({"max_difference_s": float("nan")}, "maximal difference nan s"),
        ({"lists": {"train": Path("a")}, "test_share": 0.5}, "lists and a test share are both given"),
        ({"label_folder": "labels"}, "label folder labels without class names"),
        ({"label_set": NYU40, "void_labels": (0,)}, r"void label \[0\], first label 0: the 40 classes take .* 0\.\.39"),
    ],
)
def test_options_that_do_not_fit(recording: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        prepare_folder(recording, tmp_path / "tree", options(**changes))


def test_label_sets_by_name_or_file(tmp_path: Path) -> None:
    assert read_class_names("nyu40") == NYU40
    with pytest.raises(
        DataError, match=r"names\.txt does not exist; expected a file of class names, or one of cityscapes19, "
    ):
        read_class_names(tmp_path / "names.txt")


def test_the_command(recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    intrinsics = {"fx": 50.0, "fy": 51.0, "ppx": 31.0, "ppy": 24.0, "width": 64, "height": 48, "depth_scale": 0.001}
    (tmp_path / "i.json").write_text(json.dumps(intrinsics))
    arguments = ["prepare", "folder", str(recording), str(tmp_path / "tree"), "--workers", "0"]
    arguments += ["--labels", str(recording / "names.txt"), "--intrinsics", str(tmp_path / "i.json")]
    assert main([*arguments, "--test-share", "0.5", "--seed", "3"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"my room, 6 frames \(3 train, 3 test\)", printed)
    assert "camera fx 50.00 fy 51.00 cx 31.00 cy 24.00 px" in printed
    assert "neighboring frames of one recording look alike" in printed
    description = DatasetDescription.read(tmp_path / "tree")
    assert description.camera == PinholeCamera(50, 51, 31, 24)
    assert description.depth is not None
    assert description.depth.meters_per_unit == 0.001
    assert main(["prepare", "folder", str(recording), str(tmp_path / "x"), "--void-label", "all"]) != 0


# --- what cannot be right, and depth as sensors write it


def test_units_and_cameras_that_cannot_be_right_are_refused_before_anything_is_written(
    recording: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"depth/0\.png and 5 more files: .* 0\.001 m for each unit \(millimeters\)"):
        prepare_folder(recording, tmp_path / "tree", options(meters_per_unit=1))
    with pytest.raises(
        DataError, match=r"my room: camera fx 518\.86 .* the center lies outside the 48x64 image.* 480x640"
    ):
        prepare_folder(recording, tmp_path / "tree", options(camera=PinholeCamera(518.86, 519.47, 324.58, 252.74)))
    with pytest.raises(DataError, match="these are intrinsics of another resolution than 48x64"):
        prepare_folder(recording, tmp_path / "tree", options(camera=CAMERA.resized(SIZE, (24, 32))))
    assert not (tmp_path / "tree").exists()
    far = prepare_folder(recording, tmp_path / "tree", options(meters_per_unit=0.003, largest_m=65.0))
    assert far.result.description.depth == DepthUnit(0.003, missing=(0.0, 65535.0), largest_m=65.0)


def test_sensor_depth_gets_robust_defaults_that_can_be_changed(recording: Path, tmp_path: Path) -> None:
    prepared = prepare_folder(recording, tmp_path / "tree", options(camera=CAMERA.cropped(0, -18)))
    assert "the center is far from the middle" in str(prepared.camera_oddity)
    assert prepared.depth.line().startswith("depth: uint16 in millimeters (stated), median 4.5 m over 6 files")
    description = DatasetDescription.read(tmp_path / "tree")
    assert description.hha == SENSOR
    assert description.depth == DepthUnit(0.001, missing=(0.0, 65535.0))
    command = [
        "prepare", "folder", str(recording), str(tmp_path / "other"), "--meters-per-unit", "0.001", "--workers", "0",
        "--missing", "0,7", "--largest-depth", "4", "--hha", "indoor,floor_percentile=2",
    ]  # fmt: skip
    assert main(command) == 0
    description = DatasetDescription.read(tmp_path / "other")
    assert description.hha == dataclasses.replace(INDOOR, floor_percentile=2)
    assert description.depth == DepthUnit(0.001, missing=(0.0, 7.0), largest_m=4.0)
    depth_m = RGBDDataset(tmp_path / "other", "all", needs={"depth_m"})[0].depth_m
    assert depth_m is not None
    assert np.array_equal(depth_m[0] > 0, (millimeters(0) > 0) & (millimeters(0) <= 4000))
