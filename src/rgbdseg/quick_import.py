"""Importing torchvision and timm without PyTorch's compiler, which takes seconds and most runs never use."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

_COMPILER = ("torch._dynamo", "torch._dynamo.utils")


def import_quickly(package: str) -> None:
    """Import torchvision or timm; a package calls this before its modules import from them.

    They take one function each of the compiler, which is fetched when it is called.  A release that wants more of it
    is imported as usual, by whoever imports it next.

    Args:
        package: one of them, or a module in it.
    """
    if package in sys.modules or any(name in sys.modules for name in _COMPILER):
        return
    importlib.import_module("torch")
    compiler, utils = (types.ModuleType(name) for name in _COMPILER)
    vars(compiler).update(disable=_disable, utils=utils)
    vars(utils).update(is_compile_supported=_is_compile_supported)
    sys.modules.update(zip(_COMPILER, (compiler, utils), strict=True))
    with contextlib.suppress(ImportError, AttributeError):
        importlib.import_module(package)
    for name, stand_in in zip(_COMPILER, (compiler, utils), strict=True):
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]


def _is_compile_supported(device_type: str) -> bool:
    supported: bool = importlib.import_module("torch._dynamo.utils").is_compile_supported(device_type)
    return supported


def _disable(function: Callable[..., Any] | None = None, recursive: bool = True, **options: Any) -> Any:
    if function is None:
        return functools.partial(_disable, recursive=recursive, **options)

    @functools.wraps(function)
    def outside_of_graphs(*arguments: Any, **named: Any) -> Any:
        compiler = sys.modules.get("torch._dynamo")
        if compiler is None:  # nothing is being compiled
            return function(*arguments, **named)
        return compiler.disable(function, recursive=recursive, **options)(*arguments, **named)

    return outside_of_graphs
