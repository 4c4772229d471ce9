from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rgbdseg.cli.main import main
from rgbdseg.doctor.check import check_dataset
from rgbdseg.doctor.inspect_frame import DepthStatistics
from rgbdseg.doctor.report import DepthSummary
from rgbdseg.doctor.report_html import PICTURE_WIDTH, write_html
from rgbdseg.visualize import depth_image
from tests.synthetic import make_scene, write_tree


class Page(HTMLParser):
    """Collects what a page loads and checks that its tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[Image.Image] = []
        self.open: list[str] = []
        self.text = ""
        self.bars = 0
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        assert not {"href", "srcset", "onload"} & values.keys()
        assert tag not in ("script", "link", "iframe")
        if tag == "img":
            kind, data = (values["src"] or "").split(",", 1)
            assert kind == "data:image/png;base64"
            self.images.append(Image.open(io.BytesIO(base64.b64decode(data))))
        self.bars += tag == "rect"
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "a <b> & c", count=8, hha=True)


def page(root: Path) -> Page:
    write_html(check_dataset(root), root.parent / "report.html")
    return Page((root.parent / "report.html").read_text(encoding="utf-8"))


def test_every_frame_of_a_short_split_is_shown_once(tmp_path: Path) -> None:
    found = page(write_tree(tmp_path / "tree", count=4, train=2))
    assert len(found.images) == 4 * 3  # image, depth, label
    for index in range(4):
        assert np.array_equal(np.asarray(found.images[3 * index]), make_scene(index).rgb)


def test_a_sound_tree(root: Path) -> None:
    found = page(root)
    assert "nothing wrong" in found.text
    assert "a <b> & c" in found.text  # escaped, or the parser would have taken it for a tag
    assert len(found.images) == 6 * 4  # three frames of each split: image, depth, HHA, label
    assert np.array_equal(np.asarray(found.images[0]), make_scene(0).rgb)
    millimeters = np.rint(make_scene(0).depth_m * 1000) / 1000
    assert np.array_equal(np.asarray(found.images[1]), depth_image(millimeters.astype(np.float32)))
    assert "1wall" in found.text.replace(" ", "")
    assert found.bars > 10


def test_faults_are_shown_and_damaged_files_do_not_stop_it(root: Path) -> None:
    image = root / "RGB" / "0.png"
    image.write_bytes(image.read_bytes()[:300])
    (root / "Label" / "1.png").unlink()
    shutil.copy(root / "RGB" / "2.png", root / "RGB" / "7.png")
    found = page(root)
    assert "problem: unreadable file" in found.text
    assert "RGB/0.png is damaged or truncated" in found.text
    assert re.search(r"Pictures in two splits", found.text)
    assert all(image.width <= PICTURE_WIDTH for image in found.images)
    assert check_dataset(root).leaks == (("2", "7"),)


def test_unlabeled_trees_and_trees_without_lists(root: Path) -> None:
    path = root / "dataset.json"
    values = json.loads(path.read_text())
    for key in ("label_set", "first_label", "void_label", "splits", "depth"):
        del values[key]
    path.write_text(json.dumps(values))
    found = page(root)
    assert "Label/0.png" in found.text
    assert "its classes are not stated" in found.text
    assert "its unit is not stated" in found.text
    assert len(found.images) == 3 * 2  # of three frames image and HHA


def test_the_depth_histogram_holds_nearly_all_readings() -> None:
    depth = np.random.default_rng(0).uniform(1, 4, (200, 300)).astype(np.float32)
    histogram = DepthSummary.of(DepthStatistics.of(depth)).histogram
    assert 24 <= len(histogram) <= 50
    assert sum(share for _, _, share in histogram) >= 0.998
    assert histogram[0][0] == pytest.approx(1, rel=0.03)
    assert histogram[-1][1] == pytest.approx(4, rel=0.06)
    below_two = sum(share for _, high, share in histogram if high <= 2.01)
    assert below_two == pytest.approx(1 / 3, abs=0.03)
    assert DepthSummary.of(DepthStatistics.empty()).histogram == ()


def test_the_command_writes_it(root: Path, tmp_path: Path) -> None:
    report = tmp_path / "out" / "report.html"
    assert main(["check", str(root), "--workers", "0", "--report", str(report)]) == 0
    assert Page(report.read_text(encoding="utf-8")).images
