"""Building a model for weights that are there already."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

_KEPT = ("requires_grad_", "share_memory_", "register_hook")


class _SkipFillingParameters(TorchFunctionMode):
    """Leave out what changes parameters in place, which is how they get their first values."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__") and name not in _KEPT:
            target = args[0] if args else (kwargs or {}).get("tensor")
            if isinstance(target, nn.Parameter):
                return target
        return func(*args, **(kwargs or {}))


@contextmanager
def without_first_values() -> Iterator[None]:
    """Build modules whose parameters hold whatever was in memory: for weights that replace all of them.

    Drawing first values takes most of the time that a large network needs to be built.  Everything else is as always:
    modules share what they share, and buffers that no checkpoint holds are computed, which they would not be on the
    meta device.
    """
    with _SkipFillingParameters():
        yield
