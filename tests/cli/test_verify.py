"""``rgbdseg verify``: the authors' number beside the one measured here."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest

from rgbdseg.cli.main import main
from rgbdseg.cli.verify import HEADER, write_row
from rgbdseg.data.tree import PreparedTree, open_tree
from rgbdseg.rooms import write_rooms
from rgbdseg.weights import zoo
from rgbdseg.weights.zoo_table import ByHand, Url, ZooEntry
from tests.weights.test_zoo import OPTIONS, published_file

ENTRY = ZooEntry(
    "tiny-rooms",
    "sagate",
    "rooms",
    "rooms",
    ByHand("a page"),
    "MIT",
    recipe="demo",
    mean_iou=(("one scale", 90.0),),
    options=OPTIONS,
)


@pytest.fixture
def rooms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset and a zoo with one entry, whose file is in its place."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(zoo, "ENTRIES", (ENTRY,))
    place = zoo.by_hand_path(ENTRY)
    place.parent.mkdir(parents=True)
    published_file(place, classes=18)
    write_rooms(tmp_path / "rooms", train=1, test=2, size=(48, 64))
    return tmp_path / "rooms"


def test_both_numbers_and_a_row(rooms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "zoo.md"
    page.write_text("# Zoo\n\nwords\n")
    arguments = ["verify", "tiny-rooms", "--data", str(rooms), "--row", str(page), "--loader.workers", "0"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "authors, one scale" in printed
    assert "90.00" in printed
    ours = float(page.read_text().splitlines()[-1].split(" | ")[5])
    assert f"{ours:.2f}" in printed
    assert f"{ours - 90:+.2f}" in printed
    assert main(arguments) == 0  # the same again replaces its row
    lines = page.read_text().splitlines()
    assert lines[:3] == ["# Zoo", "", "words"]
    assert lines[4:6] == list(HEADER)
    assert len(lines) == 7


def test_some_frames_verify_nothing(rooms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["verify", "tiny-rooms", "--data", str(rooms), "--limit", "1", "--loader.workers", "0"]
    assert main(arguments) == 0
    assert "only some of the frames" in capsys.readouterr().out
    assert main([*arguments, "--row", str(tmp_path / "zoo.md")]) == 1
    assert not (tmp_path / "zoo.md").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"recipe": ""}, "protocol of the authors"), ({"kind": "encoder", "source": Url("x")}, "nothing can be scored")],
)
def test_entries_that_cannot_be_verified(
    changes: dict[str, object], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(zoo, "ENTRIES", (dataclasses.replace(ENTRY, **changes),))  # type: ignore[arg-type]
    assert main(["verify", "tiny-rooms", "--data", "nowhere"]) == 1
    assert words in capsys.readouterr().err


def test_rows_are_sorted_and_what_follows_stays(tmp_path: Path) -> None:
    page = tmp_path / "zoo.md"
    rest = "| 1 | all | {} | 2 | 3 | today |"
    for name, protocol in (("b", "whole"), ("a", "whole"), ("b", "sliding"), ("b", "whole")):
        write_row(page, f"| {name} {rest.format(protocol)}")
        if name == "a":
            page.write_text(page.read_text() + "\nafter\n")
    lines = page.read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| a", "| b", "| b"]
    assert lines[5:] == ["", "after"]


def test_the_dataset_is_opened_once(rooms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []

    def seen(root: str | Path) -> PreparedTree:
        opened.append(root)
        return open_tree(root)

    monkeypatch.setattr("rgbdseg.data.tree.open_tree", seen)
    monkeypatch.setattr("rgbdseg.data.dataset.open_tree", seen)
    monkeypatch.setattr("rgbdseg.data.hha_audit.audit_hha", lambda tree, ids: SimpleNamespace(fault=None))
    assert main(["verify", "tiny-rooms", "--data", str(rooms), "--limit", "1", "--loader.workers", "0"]) == 0
    assert opened == [str(rooms)]
