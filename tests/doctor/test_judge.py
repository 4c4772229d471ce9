from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from rgbdseg.datasets import BANDS, class_shares
from rgbdseg.datasets.cityscapes import CITYSCAPES19
from rgbdseg.datasets.nyuv2 import NYU13, NYU40
from rgbdseg.datasets.sunrgbd import SUN37
from rgbdseg.doctor.check import check_dataset
from rgbdseg.doctor.fingerprints import MAX_SHIFT, correlate, depth_edges, gray_of, label_bands, picture_edges
from rgbdseg.doctor.judge import likeness
from rgbdseg.png import write_png
from rgbdseg.prepare.nyuv2 import class_table
from tests.shared_data import shared_path
from tests.synthetic import make_scene, write_tree

SIZE = (96, 128)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve frames, named nyuv2 with NYU-40 classes whose labels are drawn from the known frequencies."""
    root = write_tree(tmp_path_factory.mktemp("trees") / "tree", count=12, size=SIZE, raw_depth=True)
    describe(root, name="made", label_set="nyu40")
    shares = class_shares(NYU40)
    assert shares is not None
    random = np.random.default_rng(0)
    for path in sorted((root / "Label").iterdir()):
        blocks = [random.choice(40, (4, 32), p=band / band.sum()) + 1 for band in shares]
        write_png(path, np.kron(np.vstack(blocks), np.ones((6, 4))).astype(np.uint8))
    # rooms hold more red than blue
    each(root, "RGB", lambda rgb: np.clip(rgb * np.array([1.2, 1, 0.6]), 0, 255).astype(np.uint8))
    return root


@pytest.fixture
def root(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "copy"))


def describe(root: Path, **changes: Any) -> None:
    path = root / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def each(root: Path, folder: str, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> None:
    for path in sorted((root / folder).iterdir()):
        pixels = np.ascontiguousarray(change(np.array(Image.open(path))))
        if path.suffix == ".jpg":
            Image.fromarray(pixels).save(path, quality=95)
        else:
            write_png(path, pixels)


def findings(root: Path) -> dict[str, str]:
    report = check_dataset(root)
    return {finding.kind: str(finding) for finding in (*report.problems, *report.warnings)}


def new_findings(root: Path, before: Path) -> dict[str, str]:
    known = findings(before)
    return {kind: text for kind, text in findings(root).items() if kind not in known}


def copy_of_a_training_picture(root: Path) -> None:
    first = (root / "train.txt").read_text().split()[0]
    image = Image.open(root / first)
    image.resize((image.width * 2, image.height * 2)).resize(image.size).save(root / "RGB" / "9999.jpg", quality=80)
    for folder in ("Depth", "RawDepth", "Label"):
        if (root / folder).exists():
            number = Path(first).stem
            shutil.copy(root / folder / f"{number}.png", root / folder / "9999.png")
    with open(root / "test.txt", "a") as file:
        file.write("RGB/9999.jpg\tLabel/9999.png\n")


def lower_labels(label: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.where(label > 0, label - 1, 0).astype(np.uint8)


def raise_labels(label: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.where((label > 0) & (label < 40), label + 1, 0).astype(np.uint8)


def other_depth(root: Path) -> None:
    random = np.random.default_rng(0)

    def blocks(depth: npt.NDArray[Any]) -> npt.NDArray[Any]:
        low, high = np.quantile(depth[depth > 0], (0.1, 0.9))
        coarse = random.uniform(low, high, (24, 32)).repeat(20, axis=0).repeat(20, axis=1)
        coarse = np.roll(coarse, random.integers(0, 20, 2), axis=(0, 1))
        return coarse[: depth.shape[0], : depth.shape[1]].astype(depth.dtype)

    each(root, "Depth", blocks)


Plant = Callable[[Path], None]

FAULTS: dict[str, tuple[Plant, str, str]] = {
    "leak": (copy_of_a_training_picture, "picture in two splits", r"'\d+' of train and '9999' of test show the same"),
    "labels one too low": (
        lambda r: each(r, "Label", lower_labels),
        "labels shifted",
        r"call class k of nyu40 looks like class k\+1: frequencies and places agree 0\.\d\d then",
    ),
    "labels one too high": (lambda r: each(r, "Label", raise_labels), "labels shifted", "looks like class k-1: "),
    "depth to the right": (
        lambda r: each(r, "Depth", lambda d: np.roll(d, d.shape[1] // 32, 1)),
        "depth_m misaligned",
        r"lies 3\.\d% of the width too far right: its edges correlate 0\.\d\d with theirs, 0\.\d\d in place",
    ),
    "depth too high": (
        lambda r: each(r, "Depth", lambda d: np.roll(d, -d.shape[0] // 24, 0)),
        "depth_m misaligned",
        r"lies 4\.\d% of the height too high: ",
    ),
    "mirrored depth": (
        lambda r: each(r, "Depth", lambda d: d[:, ::-1]),
        "depth_m misaligned",
        "fits the images when it is mirrored left to right",
    ),
    "depth upside down": (
        lambda r: each(r, "Depth", lambda d: d[::-1]),
        "depth_m misaligned",
        "when it is upside down",
    ),
    "constant depth": (
        lambda r: each(r, "Depth", lambda d: np.full_like(d, 80 if d.dtype == np.uint8 else 2000)),
        "constant depth",
        r"Depth/\d+\.png has the one value (80|2000) only",
    ),
    "saturated depth": (
        lambda r: each(
            r,
            "Depth",
            lambda d: np.clip(d * (3.0 if d.dtype == np.uint8 else 18.0), 0, np.iinfo(d.dtype).max).astype(d.dtype),
        ),
        "saturated depth",
        r"\d\d% of the depth_m readings are exactly .* the largest value that the files can hold",
    ),
    "depth of other frames": (other_depth, "depth_m unlike the images", r"correlate at most 0\.0\d with those of"),
    "blue before red": (
        lambda r: each(r, "RGB", lambda rgb: rgb[..., ::-1]),
        "unusual colors",
        r"100% of the images hold more blue than red, .* BGR order",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_found(prepared: Path, root: Path, name: str) -> None:
    plant, kind, message = FAULTS[name]
    plant(root)
    found = new_findings(root, prepared)
    assert kind in found, found
    assert re.search(message, found[kind]), found[kind]


def test_a_sound_tree_raises_no_suspicion(prepared: Path) -> None:
    assert findings(prepared) == {}


def test_units_of_rooms_are_judged_closer_than_others(root: Path) -> None:
    unit = {"meters_per_unit": 0.005}  # as if 1/5000 m had been read as millimeters
    describe(root, depth=unit, raw_depth=unit)
    found = findings(root)
    assert re.search(r"median depth_m is 22\.5 m; .* nyu40 have 0\.7\.\.8 m", found["implausible depth"])
    describe(root, label_set={"name": "mine", "classes": [str(k) for k in range(40)]})
    assert "implausible depth" not in findings(root)


def test_single_frames_in_another_unit(root: Path) -> None:
    path = root / "Depth" / "3.png"
    write_png(path, (np.array(Image.open(path)) // 100).astype(np.uint16))
    found = findings(root)
    assert list(found) == ["depth in another unit"]
    assert re.search(r"Depth/3\.png has the median 0\.0\d+ m, the dataset [34]\.\d+ m", found["depth in another unit"])


def test_the_same_depth_for_two_images(root: Path) -> None:
    shutil.copy(root / "Depth" / "3.png", root / "Depth" / "7.png")
    assert findings(root) == {
        "same depth twice": "same depth twice: Depth/3.png and Depth/7.png are equal, their images are not"
    }


def test_clipped_depth_is_a_warning(root: Path) -> None:
    for folder in ("Depth", "RawDepth"):
        each(root, folder, lambda d: np.minimum(d, 3000))
    found = findings(root)
    assert re.search(r"\d\d% of the depth_m readings are exactly 3 m \(stored 3000\)", found["clipped depth"])


def test_frames_without_labels_and_pictures_that_repeat_are_warnings(root: Path) -> None:
    write_png(root / "Label" / "5.png", np.zeros(SIZE, np.uint8))
    for folder in ("RGB", "Depth", "RawDepth"):
        shutil.copy(root / folder / "0.png", root / folder / "1.png")
    report = check_dataset(root)
    assert report.ok
    assert [str(finding) for finding in report.warnings] == [
        "same picture twice: '0' and '1' hold the same pixels",
        "frame without labels: Label/5.png is void throughout",
    ]


def test_split_sizes_are_compared_with_the_official_ones(root: Path) -> None:
    describe(root, name="nyuv2")
    assert findings(root) == {
        "split size": "split size (2): 'train' has 8 frames; the official split has 795; "
        "'test' has 4 frames; the official split has 654"
    }


def test_few_frames_say_nothing(root: Path) -> None:
    each(root, "Label", lower_labels)
    each(root, "Depth", lambda d: d[:, ::-1])
    report = check_dataset(root, limit=7)
    assert [finding.kind for finding in report.problems] == []


def test_known_frequencies() -> None:
    nyu, sun = class_shares(NYU40), class_shares(SUN37)
    assert nyu is not None
    assert sun is not None
    assert nyu.shape == (BANDS, 40)
    assert sun.shape == (BANDS, 37)
    assert nyu.sum() == pytest.approx(1)
    assert sun.sum() == pytest.approx(1)
    assert nyu.sum(0)[0] == pytest.approx(0.262, abs=0.001)  # wall
    assert (nyu[0, 1] / nyu[3, 1], nyu[3, 21]) == (pytest.approx(0.003, abs=0.001), 0)  # floor, ceiling
    assert class_shares(CITYSCAPES19) is None
    thirteen = class_shares(NYU13)
    assert thirteen is not None
    table = class_table()
    of_40 = {int(a): int(b) for a, b in zip(table.to_40, table.to_13, strict=True) if a}
    for k in range(1, 14):
        members = [c - 1 for c, small in of_40.items() if small == k]
        assert np.allclose(thirteen[:, k - 1], nyu[:, members].sum(1)), k


def test_likeness_is_one_for_equal_distributions_only() -> None:
    assert likeness(np.array([[1, 3]]), np.array([[0.25, 0.75]])) == pytest.approx(1)
    assert likeness(np.array([[0, 4]]), np.array([[1.0, 0.0]])) == 0
    assert likeness(np.array([[1, 1]]), np.array([[0.1, 0.9]])) == pytest.approx(np.sqrt(0.05) + np.sqrt(0.45))
    assert likeness(np.array([[0, 0]]), np.array([[0.5, 0.5]])) == 0


def test_label_bands_count_every_fourth_pixel() -> None:
    classes = np.full((16, 8), 255, np.uint8)
    classes[:4], classes[12:, :4] = 2, 0
    assert label_bands(classes, 3).tolist() == [[0, 0, 2], [0, 0, 0], [0, 0, 0], [1, 0, 0]]


def test_correlation_peaks_at_the_shift() -> None:
    scene = make_scene(3, (480, 640))
    edges = picture_edges(gray_of(np.ascontiguousarray(scene.rgb.transpose(2, 0, 1))))
    down, right = 3, -5  # cells of 4 pixels
    moved = np.roll(scene.depth_m, (down * 4, right * 4), axis=(0, 1))
    surface = correlate(edges, depth_edges(moved))
    assert surface is not None
    assert surface.shape == (4, 2 * MAX_SHIFT + 1, 2 * MAX_SHIFT + 1)
    best = np.unravel_index(int(surface.argmax()), surface.shape)
    assert [int(i) for i in best] == [0, MAX_SHIFT - down, MAX_SHIFT - right]
    assert correlate(edges, depth_edges(np.full((480, 640), 2, np.float32))) is None


def test_missing_readings_make_no_edges() -> None:
    depth = np.full((120, 160), 2, np.float32)
    depth[40:80, 40:80] = 0
    assert not depth_edges(depth).any()


NYU_FRAMES = 7


@pytest.fixture(scope="module")
def nyu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, root = shared_path("nyuv2"), tmp_path_factory.mktemp("nyu") / "nyuv2"
    for split in ("train", "test"):
        lines = (source / f"{split}.txt").read_text().splitlines()
        lines = [lines[k * len(lines) // NYU_FRAMES] for k in range(NYU_FRAMES)]
        for name in (name for line in lines for name in (*line.split(), line.split()[1].replace("Label", "Depth"))):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, root / name)
        (root / f"{split}.txt").write_text("".join(f"{line}\n" for line in lines))
    shutil.copyfile(source / "dataset.json", root / "dataset.json")
    describe(root, name="some of nyuv2")
    return root


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_found_in_real_frames(nyu: Path, tmp_path: Path, name: str) -> None:
    plant, kind, message = FAULTS[name]
    root = Path(shutil.copytree(nyu, tmp_path / "copy"))
    plant(root)
    found = findings(root)
    assert kind in found, found
    assert re.search(message, found[kind]), found[kind]
    # Depth at the end of its range is the nearest or the farthest that HHA can show, too.
    beside = {"absent classes", "implausible depth"} | ({"saturated HHA"} if name == "saturated depth" else set())
    wrong = [k for k in found if k != kind and k not in beside]
    assert not wrong, found


def test_real_frames_raise_no_suspicion(nyu: Path) -> None:
    report = check_dataset(nyu)
    assert report.ok
    assert [finding.kind for finding in report.warnings] in ([], ["absent classes"])
