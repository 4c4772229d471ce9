"""Batch normalizations put into the convolutions before them, for inference."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator

import torch
from torch import nn

_RESNET = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))
_TIMM_BLOCKS = {
    "timm.models.resnet.BasicBlock": _RESNET,
    "timm.models.resnet.Bottleneck": _RESNET,
    "timm.models._efficientnet_blocks.InvertedResidual": (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
    "timm.models._efficientnet_blocks.DepthwiseSeparableConv": (("conv_dw", "bn1"), ("conv_pw", "bn2")),
}
"""Which normalization takes what a convolution returns, and nobody else does, by class."""


def fold_batch_norms(model: nn.Module) -> list[nn.Conv2d]:
    """Put batch normalizations into the weights of the convolutions before them, in place.

    These are the ones that follow a convolution in a `torch.nn.Sequential`, in blocks of timm, and in classes that name
    them as pairs in ``conv_norm_pairs``.  In evaluation mode the model computes the same with one pass less over each
    map; scores differ by rounding.  It cannot be trained any more, and its state has other names than a checkpoint.

    Args:
        model: in evaluation mode.

    Returns:
        list: the convolutions that have a normalization in them now.
    """
    uses = collections.Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    folded: list[nn.Conv2d] = []
    for owner in list(model.modules()):
        for conv_name, norm_name in _pairs(owner):
            if not hasattr(owner, conv_name):  # a block of two convolutions instead of three
                continue
            place, conv = _last(owner, conv_name)
            norm = getattr(owner, norm_name)
            if not isinstance(conv, nn.Conv2d) or not _foldable(conv, norm) or uses[id(conv)] != uses[id(place)]:
                continue
            _fold(conv, norm)
            folded.append(conv)
            # timm's normalization has the activation in it.
            setattr(owner, norm_name, getattr(norm, "act", None) or nn.Identity())
    return folded


def _pairs(owner: nn.Module) -> Iterator[tuple[str, str]]:
    """Return the names of a module's convolutions with those of their normalizations."""
    if type(owner).forward is nn.Sequential.forward:
        yield from itertools.pairwise(_own_names(owner))
    yield from getattr(owner, "conv_norm_pairs", ())
    yield from _TIMM_BLOCKS.get(_full_name(owner), ())


def _own_names(owner: nn.Module) -> list[str]:
    """Return the names of a module's own modules, also of one that is there twice."""
    return [name for name, _ in owner.named_modules(remove_duplicate=False) if name and "." not in name]


def _full_name(module: nn.Module | None) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _last(owner: nn.Module, name: str) -> tuple[nn.Module, nn.Module]:
    """Return the owner of the last module of what may be a sequence, and that module."""
    module: nn.Module = getattr(owner, name)
    while type(module) is nn.Sequential and len(module):
        owner, name = module, _own_names(module)[-1]
        module = getattr(owner, name)
    return owner, module


def _foldable(conv: nn.Conv2d, norm: nn.Module | None) -> bool:
    if type(conv) is not nn.Conv2d and _full_name(conv) != "timm.layers.conv2d_same.Conv2dSame":
        return False
    if type(norm) is not nn.BatchNorm2d and _full_name(norm) != "timm.layers.norm_act.BatchNormAct2d":
        return False
    assert isinstance(norm, nn.BatchNorm2d)
    known = norm.running_mean is not None and conv.out_channels == norm.num_features
    return known and not conv.training and not norm.training


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Give a convolution new weights, since others may share the present ones."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight
    bias = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
    bias = bias * scale + (norm.bias if norm.affine else 0)
    weight = conv.weight * scale.to(conv.weight.dtype)[:, None, None, None]
    conv.weight, conv.bias = (
        nn.Parameter(values.to(conv.weight.dtype), requires_grad=False) for values in (weight, bias)
    )
