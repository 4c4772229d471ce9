"""Options by name, and registries that other packages can add to."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from rgbdseg.errors import UsageError
from rgbdseg.open_registry import OpenRegistry, declared_names
from rgbdseg.options import check_choice, check_options, make_options, option_types

Kind = Literal["near", "far"]


@dataclasses.dataclass(frozen=True)
class Example:
    width: int = 4
    share: float | None = None
    deep: bool = False
    kind: Kind = "near"
    kinds: Sequence[Kind] = ()
    rates: Sequence[int] | Literal["published"] | None = "published"
    pair: tuple[int, int] = (1, 2)
    further: Mapping[str, Any] | None = None
    anything: Any = None


@pytest.mark.parametrize(
    ("option", "fitting", "unfitting"),
    [
        ("width", [3], ["3", 3.0, True, None, [3]]),
        ("share", [0.5, 1, None], ["0.5", True, "x"]),
        ("deep", [True, False], ["yes", 1, None]),
        ("kind", ["far"], [1, None, ["far"]]),
        ("kinds", [["far"], ("near", "far"), []], ["far", [1], None]),
        ("rates", [[1, 2], (3,), None, "published"], [3, [1.5], ["1"]]),
        ("pair", [(1, 2), [3, 4]], [(1, 2, 3), 1, ("1", 2)]),
        ("further", [{"a": 1}, {}, None], [3, ["a"]]),
        ("anything", [None, object, "x"], []),
    ],
)
def test_types(option: str, fitting: list[object], unfitting: list[object]) -> None:
    types = option_types(Example)
    assert types is not None
    for value in fitting:
        check_options("example", types, {option: value})
        assert getattr(make_options("example", Example, {option: value}), option) is value  # not converted
    for value in unfitting:
        with pytest.raises(UsageError, match=f"^example option {option} is .*; expected "):
            check_options("example", types, {option: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widht": 3}, "unknown example option 'widht'; did you mean 'width'?"),
        ({"width": 2.5}, "example option width is 2.5; expected an integer"),
        ({"share": "a"}, "example option share is 'a'; expected a number or null"),
        ({"kind": "fra"}, "unknown kind 'fra'; did you mean 'far'?"),
        ({"kinds": ["near", "nera"]}, "unknown kinds 'nera'; did you mean 'near'?"),
        ({"kinds": "near"}, "example option kinds is 'near'; expected a list (one of: near, far each)"),
        ({"rates": "publishd"}, "unknown rates 'publishd'; did you mean 'published'?"),
        ({"rates": 3}, "expected a list (an integer each) or one of: published or null"),
        ({"further": 3}, "expected a mapping or null"),
    ],
)
def test_messages(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_options("example", Example, options)
    assert message in str(caught.value)


def test_types_of_a_function() -> None:
    def build(count: int, /, name: str, *, flag: bool = False) -> None: ...
    def open_build(**options: Any) -> None: ...

    assert option_types(build) == {"name": str, "flag": bool}
    assert option_types(build, without=("name",)) == {"flag": bool}
    assert option_types(open_build) is None
    with pytest.raises(UsageError, match="unknown gate 'neer'; did you mean 'near'"):
        check_choice("gate", "neer", Kind)


def test_declared_names() -> None:
    assert declared_names("A = {'x': 1, 'y': f(2)}\nB = 3", "A") == ["x", "y"]
    assert declared_names("A: dict[str, int] = {'x': 1}", "A") == ["x"]
    assert declared_names("A = {name: 1 for name in B}", "A") is None
    assert declared_names("A = {**B, 'x': 1}", "A") is None
    assert declared_names("def f():\n    A = {'x': 1}", "A") == []


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with names that are written out, names that are computed, and a module of another package."""
    folder = tmp_path / "things_of_a_test"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "written.py").write_text("import no_such_module\nTHINGS = {'a': 1}\n")  # not imported to be listed
    (folder / "computed.py").write_text("THINGS = {f'b{i}': i for i in range(2)}\n")
    (folder / "_hidden.py").write_text("THINGS = {'hidden': 1}\n")
    (tmp_path / "other_package_of_a_test.py").write_text("THINGS = {'c': 3}\n")
    monkeypatch.syspath_prepend(tmp_path)

    def entry_points(group: str) -> list[importlib.metadata.EntryPoint]:
        assert group == "group.of.things"
        return [importlib.metadata.EntryPoint("any name", "other_package_of_a_test", group)]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    return folder.name


def test_registry(package: str) -> None:
    registry: OpenRegistry[int] = OpenRegistry("thing", package, "THINGS", "group.of.things")
    assert list(registry) == ["a", "b0", "b1", "c"]
    assert (registry.get("b1"), registry.get("c")) == (1, 3)
    registry.register("d", 4)
    registry.register("d", 4)
    assert (registry.get("d"), "d" in registry, "hidden" in registry) == (4, True, False)
    with pytest.raises(UsageError, match="a thing named 'b0' exists already; choose another name"):
        registry.register("b0", 7)
    with pytest.raises(UsageError, match="unknown thing 'b2'; did you mean 'b"):
        registry.get("b2")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        registry.get("a")
