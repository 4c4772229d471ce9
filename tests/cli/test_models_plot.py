"""``rgbdseg models --plot``: which numbers are shown, and that every name can be read."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
from PIL import Image

from rgbdseg.cli.main import main
from rgbdseg.cli.models_plot import PlottedModel, place_labels, plot_accuracy, plotted_models, read_latencies
from rgbdseg.errors import UsageError
from rgbdseg.models._registry import get_variant

PAGE = """# Latencies

Written by `rgbdseg models --latency FILE`; do not edit.

One image of 480x640 pixels. Latency is that of one run in float32 on 2 CPU threads (x86_64), PyTorch 2.14.1.

| model | latency |
| --- | --- |
| esanet_r18_nbt1d | 0.25 s |
| sagate_resnet50 | 1.60 s |
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    (tmp_path / "latency.md").write_text(PAGE)
    return tmp_path / "latency.md"


def test_every_model_with_its_highest_number_on_nyu_depth() -> None:
    names = ("cmx_mit_b2", "cmx_mit_b0", "rdfnet_resnet50", "esanet_r18_nbt1d", "danet_resnet101", "dplnet_mit_b5")
    costs = [(name, get_variant(name).model.card, 10.0) for name in names]  # type: ignore[attr-defined]
    points = plotted_models(costs, {"cmx_mit_b2": 2.5})
    assert [(p.name, p.mean_iou, p.several_scales, p.latency_s) for p in points] == [
        ("cmx_mit_b2", 54.4, True, 2.5),
        ("rdfnet_resnet50", 47.7, True, None),
        ("esanet_r18_nbt1d", 48.17, False, None),
        ("dplnet_mit_b5", 59.3, True, None),
    ]


def test_latencies_are_read_as_they_were_written(page: Path, tmp_path: Path) -> None:
    latencies = read_latencies(page)
    assert latencies.seconds == {"esanet_r18_nbt1d": 0.25, "sagate_resnet50": 1.6}
    assert latencies.measured.startswith("One image of 480x640 pixels. Latency is that of one run")
    page.write_text(PAGE.replace(" s |", " s | 310 MiB |").replace("latency |", "latency | memory |"))
    assert read_latencies(page) == latencies
    (tmp_path / "other.md").write_text("# Something else\n")
    for file in ("other.md", "none.md"):
        with pytest.raises(UsageError, match=rf"{file}.*write it with rgbdseg models --latency"):
            read_latencies(tmp_path / file)


def test_picture_and_page(page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    plot, methods = tmp_path / "images" / "accuracy.png", tmp_path / "methods.md"
    wanted = ("models", "esanet_r18*", "--size", "64", "64", "--plot", str(plot))
    assert main([*wanted, "--latency-from", str(page), "--markdown", str(methods)]) == 0, capsys.readouterr().err
    assert "1 models over operations, 1 over latency" in capsys.readouterr().out
    assert "![Published mIoU over operations and latency](images/accuracy.png)" in methods.read_text()
    both = Image.open(plot).size
    assert main(list(wanted)) == 0
    one = Image.open(plot).size
    assert (one[0], 2 * one[1]) == both
    assert main([*wanted, "--latency", str(tmp_path / "l.md"), "--repeats", "1"]) == 0
    assert Image.open(plot).size == both


def test_mistakes(page: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (("--plot", "a.txt"), "--plot a.txt does not end in .png, .svg or .pdf"),
        (("--latency-from", str(page)), "--latency-from is read for --plot"),
        (("danet_resnet18", "--plot", str(tmp_path / "a.png")), "none of the models has a published number"),
    ):
        assert main(["models", *arguments]) != 0
        assert message in capsys.readouterr().err


def crowded() -> list[PlottedModel]:
    """As many as there are models, in as little room."""
    return [
        PlottedModel(
            f"family{i % 7}_swin_large_{i}", f"family {i % 7}", 45 + (i * 7 % 45) / 3, i % 2 == 0, 1.17**i * 10
        )
        for i in range(45)
    ]


def test_names_cover_neither_points_nor_each_other(tmp_path: Path) -> None:
    figures = pytest.importorskip("matplotlib.figure")
    points = crowded()
    figure = figures.Figure(figsize=(11, 7), dpi=110)
    axes = figure.subplots()
    x, y = [point.gflops for point in points], [point.mean_iou for point in points]
    axes.scatter(x, y)
    axes.set_xscale("log")
    figure.draw_without_rendering()
    texts = place_labels(axes, [point.name for point in points], x, y)
    figure.draw_without_rendering()  # which moves annotations to their places
    extent = pytest.importorskip("matplotlib.text").Text.get_window_extent  # of the name, without its line
    boxes = [extent(text, figure.canvas.get_renderer()) for text in texts]
    assert [text.get_text() for text in texts] == [point.name for point in points]
    assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    centers = axes.transData.transform(list(zip(x, y, strict=True)))
    assert not [1 for box in boxes for center in centers if box.contains(*center)]
    frame = axes.get_window_extent()
    assert all(frame.contains(box.x0, box.y0) and frame.contains(box.x1, box.y1) for box in boxes)


def test_pictures_are_the_same_every_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("a.png", "b.png"):
        plot_accuracy(crowded()[:5], (480, 640), "", tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
