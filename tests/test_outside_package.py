"""What another package adds through its entry points is found by name, and works in every command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import rgbdseg
from rgbdseg.cli.main import main
from rgbdseg.datasets import DATASETS, find_facts
from rgbdseg.encoders import create_encoder
from rgbdseg.encoders._registry import ENCODERS
from rgbdseg.models._registry import VARIANTS
from rgbdseg.nn.decoders import FeatureInfo, create_decoder
from rgbdseg.nn.decoders._registry import DECODERS
from rgbdseg.prepare._sources import SOURCES
from rgbdseg.recipes import RECIPES, get_recipe
from rgbdseg.sample import RASTERS

REGISTRIES = (VARIANTS, ENCODERS, DECODERS, RECIPES, DATASETS, SOURCES, RASTERS)
ENTRY_POINTS = {
    "tests.outside.network": ("models", "encoders", "decoders"),
    "tests.outside.dataset": ("recipes", "datasets", "prepare", "rasters"),
}


def _forget_homes() -> None:
    for registry in REGISTRIES:
        registry.__dict__.pop("homes", None)  # found once for a process, which packages do not join later


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package as pip would install it: its metadata lie in a folder that Python searches."""
    metadata = tmp_path / "site" / "outside-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    lines = [f"[rgbdseg.{group}]\nany = {module}\n" for module, groups in ENTRY_POINTS.items() for group in groups]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path / "site")
    _forget_homes()
    yield
    monkeypatch.undo()
    _forget_homes()


def test_everything_is_found_by_name() -> None:
    assert rgbdseg.list_models("outside*") == ["outside_net"]
    model = rgbdseg.create_model("outside_net", 3)
    assert sum(p.numel() for p in model.parameters()) == (4 * 9 * 8 + 8) + (8 * 9 * 16 + 16) + (24 * 3 + 3)
    assert create_encoder("outside_halving", in_chans=1, width=3).channels == (3, 6)
    decoder = create_decoder("outside_linear", FeatureInfo((3, 6), (2, 4)), 5)
    assert decoder([torch.zeros(1, 3, 4, 4), torch.zeros(1, 6, 2, 2)]).shape == (1, 5, 4, 4)
    assert rgbdseg.get_label_set("outside3").classes == ("near", "middle", "far")
    facts = find_facts("outside")
    assert facts is not None
    assert facts.splits == {"train": 6, "test": 2}
    assert get_recipe("outside-quick").model.name == "outside_net"
    assert RASTERS["radar"].folder == "Radar"
    assert "outside" in SOURCES


def test_its_dataset_is_prepared_and_its_recipe_trained_scored_and_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree, run = tmp_path / "tree", tmp_path / "run"
    assert main(["prepare", "outside", "8", str(tree), "--workers", "0"]) == 0
    assert "6 frames to learn from" in capsys.readouterr().out
    assert main(["check", str(tree), "--workers", "0"]) == 0
    assert main(["train", "outside-quick", "--data", str(tree), "--out", str(run)]) == 0
    out = tmp_path / "scores"
    assert main(["evaluate", str(run), "--data", str(tree), "--workers", "0", "--out", str(out)]) == 0
    scores = [json.loads(file.read_text()) for file in out.rglob("*.json")]
    assert any(score.get("mean_iou", 0) > 0.6 for score in scores)  # only the radar tells the classes apart
    network = rgbdseg.load(run, device="cpu")
    radar = torch.full((1, 24, 32), 200, dtype=torch.uint8)
    result = network(torch.full((3, 24, 32), 128, dtype=torch.uint8), images={"radar": radar})
    assert result.shares["far"] > 0.9


def test_without_it_the_names_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    _forget_homes()
    assert rgbdseg.list_models("outside*") == []
    assert "outside" not in SOURCES
