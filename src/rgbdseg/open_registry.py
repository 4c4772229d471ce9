"""Names that the modules of a package declare, and that other packages can add to.

A module declares them in a dictionary of one agreed name.  Keys that are written out are read from the text of the
module, so that listing names imports nothing heavy; a dictionary that is computed is read by importing its module.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar

from rgbdseg.errors import UsageError, unknown_name

Entry = TypeVar("Entry")


class OpenRegistry(Generic[Entry]):
    """Entries by name: those of a package's modules, of entry points, and those registered while running.

    Args:
        kind: what a name stands for, for messages, such as ``model``.
        package: its modules whose names do not start with an underscore are searched.
        variable: name of the dictionary.
        group: group of entry points, each a module of another package with such a dictionary.
        built_in: entries besides those of the package; with these, ``package`` may be empty.
    """

    def __init__(
        self, kind: str, package: str, variable: str, group: str, built_in: Mapping[str, Entry] | None = None
    ) -> None:
        self.kind = kind
        self.package = package
        self.variable = variable
        self.group = group
        self._registered: dict[str, Entry] = dict(built_in or {})

    def register(self, name: str, entry: Entry) -> None:
        """Add an entry under a new name; raises UsageError for one that is taken by another entry."""
        if self._registered.get(name) != entry and name in self:
            raise UsageError(f"a {self.kind} named '{name}' exists already; choose another name")
        self._registered[name] = entry

    def get(self, name: str) -> Entry:
        """Return what a name stands for; raises UsageError with a suggestion for an unknown one."""
        if name in self._registered:
            return self._registered[name]
        if name not in self.homes:
            raise unknown_name(self.kind, name, self)
        entry: Entry = getattr(importlib.import_module(self.homes[name]), self.variable)[name]
        return entry

    __getitem__ = get

    def __contains__(self, name: object) -> bool:
        return name in self._registered or name in self.homes

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self.homes, *self._registered}))

    @functools.cached_property
    def homes(self) -> dict[str, str]:
        """Return the module of every declared name."""
        spec = importlib.util.find_spec(self.package) if self.package else None
        folders = (spec.submodule_search_locations or ()) if spec else ()
        files = sorted(file for folder in folders for file in Path(folder).glob("[!_]*.py"))
        homes = {name: module for file in files for name, module in self._declared(f"{self.package}.{file.stem}", file)}
        for entry in importlib.metadata.entry_points(group=self.group):
            found = importlib.util.find_spec(entry.module)
            file = Path(found.origin) if found and found.origin else None
            homes.update(self._declared(entry.module, file))
        return homes

    def _declared(self, module: str, file: Path | None) -> Iterator[tuple[str, str]]:
        names = None
        if file is not None and file.suffix == ".py":
            names = declared_names(file.read_text(encoding="utf-8"), self.variable)
        if names is None:
            names = list(getattr(importlib.import_module(module), self.variable, {}))
        return ((name, module) for name in names)


def declared_names(source: str, variable: str) -> list[str] | None:
    """Return the keys of the dictionary that the text of a module assigns to ``variable``; none: an empty list.

    None where the keys are not written out.
    """
    # Most of a module stands before it, and parsing all of all modules would take longer than listing names may.
    for found in re.finditer(rf"^{re.escape(variable)}\b", source, re.MULTILINE):
        with contextlib.suppress(SyntaxError):
            if (value := _assigned(ast.parse(source[found.start() :]).body[:1], variable)) is not None:
                return _written_keys(value)
    value = _assigned(ast.parse(source).body, variable) if variable in source else None
    return [] if value is None else _written_keys(value)


def first_lines(source: str, variable: str) -> dict[str, str]:
    """Return what functions say of themselves in one line, by the keys of a dictionary that names them.

    Args:
        source: the text of a module.
        variable: the name of the dictionary; keys and values that are not names written out are left out.
    """
    body = ast.parse(source).body
    said = {node.name: ast.get_docstring(node) or "" for node in body if isinstance(node, ast.FunctionDef)}
    value = _assigned(body, variable)
    pairs = zip(value.keys, value.values, strict=True) if isinstance(value, ast.Dict) else ()
    return {
        str(key.value): said[function.id].partition("\n")[0]
        for key, function in pairs
        if isinstance(key, ast.Constant) and isinstance(function, ast.Name) and function.id in said
    }


def _assigned(body: Sequence[ast.stmt], variable: str) -> ast.expr | None:
    """Return what the first statement that assigns to ``variable`` assigns."""
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == variable for target in targets):
            value: ast.expr | None = getattr(node, "value", None)
            return value
    return None


def _written_keys(value: ast.expr) -> list[str] | None:
    keys = value.keys if isinstance(value, ast.Dict) else [None]
    names = [key.value if isinstance(key, ast.Constant) else None for key in keys]
    return None if None in names else [str(name) for name in names]


def import_module(name: str, wanted: str) -> ModuleType:
    """Import a module that a user names.

    Args:
        name: of the module.
        wanted: what is looked for in it, for the message.

    Raises:
        UsageError: when there is no such module.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there, but something that it needs is not
        raise UsageError(f"there is no module '{error.name}' to take {wanted} from") from None
    except Exception as error:  # code of the user's own
        raise UsageError(f"importing '{name}' fails: {type(error).__name__}: {error}") from error


def load_object(reference: str) -> object:
    """Import ``package.module:attribute``.

    Raises:
        UsageError: when the module or the attribute does not exist.
    """
    module_name, _, attribute = reference.partition(":")
    module = import_module(module_name, f"'{reference}'")
    try:
        return functools.reduce(getattr, attribute.split("."), module)
    except AttributeError:
        raise UsageError(f"module '{module_name}' has no '{attribute}'") from None
