"""Lists as people and other programs write them."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from rgbdseg.data.text_files import NameFinder, plain_path, read_text
from rgbdseg.data.tree import open_tree
from rgbdseg.errors import DataError
from tests.synthetic import write_tree

PLAIN = "RGB/0.png\tLabel/0.png\nRGB/1.png\tLabel/1.png\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tree", 3, (24, 32))


def rename(root: Path, name: str) -> None:
    for folder in ("RGB", "Depth", "Label"):
        (root / folder / "0.png").rename(root / folder / f"{name}.png")


def ids(root: Path, data: bytes) -> list[str]:
    (root / "train.txt").write_bytes(data)
    return [frame.sample_id for frame in open_tree(root).frames("train")]


@pytest.mark.parametrize(
    "data",
    [
        PLAIN.encode(),
        PLAIN.encode("utf-8-sig"),
        PLAIN.encode("utf-16"),
        PLAIN.encode("utf-16-be"),
        PLAIN.encode("utf-16-le"),
        PLAIN.encode("utf-32"),
        PLAIN.replace("/", "\\").encode(),
        PLAIN.replace("\n", "\t\r\n").encode(),
        (f"# train\n{PLAIN}  # end\n").encode(),
        PLAIN.replace("\t", " ").encode(),
        b"./RGB/0.png\n1\n",
    ],
)
def test_every_way_of_writing_a_list(root: Path, data: bytes) -> None:
    assert ids(root, data) == ["0", "1"]


def test_absolute_paths_inside_the_tree(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = PLAIN.replace("RGB/", f"{root}/RGB/").replace("Label/", f"{root}/Label/")
    assert ids(root, lines.encode()) == ["0", "1"]
    monkeypatch.chdir(root.parent)
    assert [frame.sample_id for frame in open_tree("tree").frames("train")] == ["0", "1"]
    with pytest.raises(DataError, match=r"line 1: /elsewhere/RGB/0\.png does not exist"):
        ids(root, b"/elsewhere/RGB/0.png\n")


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
@pytest.mark.parametrize("listed", ["NFC", "NFD"])
def test_composed_and_decomposed_letters_are_the_same(root: Path, stored: str, listed: str) -> None:
    name = unicodedata.normalize(stored, "küche")
    rename(root, name)
    lines = f"RGB/{unicodedata.normalize(listed, 'küche')}.png\nRGB/1.png\n"
    assert ids(root, lines.encode()) == [name, "1"]


@pytest.mark.parametrize(
    ("name", "encoding"), [("küche", "latin-1"), ("厨房", "gbk"), ("台所", "shift_jis"), ("кухня", "cp1251")]
)
def test_regional_encodings_are_told_by_the_files_that_there_are(root: Path, name: str, encoding: str) -> None:
    rename(root, name)
    assert ids(root, f"RGB/{name}.png\tLabel/{name}.png\nRGB/1.png\n".encode(encoding)) == [name, "1"]
    with pytest.raises(DataError, match=r"train\.txt is not UTF-8 text, .*save it as UTF-8, e\.g\. iconv"):
        ids(root, f"RGB/{name}.png\nRGB/missing-{name}.png\n".encode(encoding))


def test_a_text_that_cannot_be_checked_must_be_unicode(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes("küche".encode("latin-1"))
    with pytest.raises(DataError, match="its encoding cannot be told for sure"):
        read_text(tmp_path / "names.txt")


def test_two_files_that_differ_in_composition_are_not_confused() -> None:
    both = {unicodedata.normalize(form, "é"): form for form in ("NFC", "NFD")}
    assert [NameFinder(both).find(name) for name in both] == list(both)
    assert NameFinder({unicodedata.normalize("NFD", "é1"): 0}).find("é2") is None


def test_plain_paths() -> None:
    assert plain_path("RGB\\a b.png", Path("x")) == "RGB/a b.png"
    assert plain_path("x/RGB/0.png", Path("x")) == "RGB/0.png"
    assert plain_path("/data/other/RGB/0.png", Path("/data/tree")) == "/data/other/RGB/0.png"
    assert plain_path("/data/tree2/RGB/0.png", Path("/data/tree")) == "/data/tree2/RGB/0.png"
