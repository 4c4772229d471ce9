"""What a published checkpoint layout is."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping

from torch import Tensor


def _unchanged(name: str, value: Tensor) -> Tensor:
    return value


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a family's state dict is named in the checkpoints of its published code.

    Args:
        key: from the name of an entry of our state dict to its published name.
        unused: regular expressions that match, from the start, published entries which the published network never
            uses, or which belong to tasks that are not built here.
        spelling: from a name in a checkpoint to the one that ``key`` gives, where published files name an entry in
            several ways.
        read: from a published name and the value stored under it to our value, where they differ.
        write: the way back.
    """

    key: Callable[[str], str]
    unused: tuple[str, ...] = ()
    spelling: Callable[[str], str] = str
    read: Callable[[str, Tensor], Tensor] = _unchanged
    write: Callable[[str, Tensor], Tensor] = _unchanged

    def is_unused(self, published: str) -> bool:
        """Whether the published network never uses the entry of this name."""
        return any(re.match(pattern, published) for pattern in self.unused)


def replace_prefix(name: str, prefixes: Mapping[str, str]) -> str:
    """Return ``name`` with the first of ``prefixes`` (ours: published) that it starts with exchanged."""
    for ours, theirs in prefixes.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise AssertionError(f"no published name is known for '{name}'")


ASPP_PREFIXES = {
    "decoder.aspp.branches.": "aspp.map_convs.",
    "decoder.aspp.branch_norm.": "aspp.map_bn.",
    "decoder.aspp.reduce.": "aspp.red_conv.",
    "decoder.aspp.image_conv.": "aspp.global_pooling_conv.",
    "decoder.aspp.image_norm.": "aspp.global_pooling_bn.",
    "decoder.aspp.image_reduce.": "aspp.pool_red_conv.",
    "decoder.aspp.norm.": "aspp.red_bn.",
}
"""The ASPP of RGBD_Semantic_Segmentation_PyTorch, which both of its methods share."""
