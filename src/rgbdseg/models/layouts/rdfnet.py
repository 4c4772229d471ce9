"""RDFNet of SeongjinPark/RDFNet: names of the Caffe layers, with ``.weight`` for their first and ``.bias`` for their
second blob.

Of a normalisation, ``running_mean`` and ``running_var`` are the first two blobs of the BatchNorm layer divided by the
third; weight and bias are those of the Scale layer that follows.
"""

from __future__ import annotations

import re

from rgbdseg.models.layouts.base import Layout, replace_prefix

_STREAMS = {"rgb_encoder": "RGB", "geometry_encoder": "DEP"}
_BRANCHES = {"1": "branch2a", "2": "branch2b", "3": "branch2c"}
_STRIDES = (4, 8, 16, 32)


def _units(ours: str, first: str, second: str) -> dict[str, str]:
    """Two convolutions of a residual unit."""
    return {f"{ours}.conv1.": f"{first}.", f"{ours}.conv2.": f"{second}."}


def _fusion(index: int) -> dict[str, str]:
    level = f"Fuse{_STRIDES[index]}"
    names = {f"fusions.{index}.pooling.convs.0.": f"relu{level}_crppool1_crpconv1."}
    for ours, theirs in (("rgb", f"{level}rgb"), ("geometry", f"{level}d")):
        path = f"fusions.{index}.{ours}"
        names |= {f"{path}.1.": f"{theirs}dim_conv.", f"{path}.4.": f"{theirs}_adapt_conv."}
        names |= _units(f"{path}.2", f"{theirs}_conv11", f"{theirs}_conv12")
        names |= _units(f"{path}.3", f"{theirs}_conv21", f"{theirs}_conv22")
    return names


def _refinement(index: int) -> dict[str, str]:
    path, fused, refined = f"refinements.{index}", f"F{_STRIDES[index]}", f"Refine{_STRIDES[index]}"
    second = "conv3" if index == 0 else "conv2"
    names = _units(f"{path}.units.0", f"{fused}_conv11", f"{fused}_conv12")
    names |= _units(f"{path}.units.1", f"{fused}_{second}1", f"{fused}_{second}2")
    if index == 3:
        names |= {f"{path}.pooling.convs.{i}.": f"reluF32_rcu2_crppool{i + 1}_crpconv{i + 1}." for i in range(2)}
        return names | _units(f"{path}.output", "F32_crp2_conv11", "F32_crp2_conv12")
    names |= {f"{path}.lateral.": f"{fused}_adapt_conv."}
    names |= {f"{path}.pooling.convs.{i}.": f"{refined}_crpconv{i + 1}." for i in range(2)}
    names |= _units(f"{path}.output", f"{refined}_conv11", f"{refined}_conv12")
    # What refines the coarser map is named after the level that it comes from.
    coarser = "F32_out" if index == 2 else f"Refine{_STRIDES[index + 1]}"
    names |= _units(f"{path}.coarse.0", f"{coarser}_conv21", f"{coarser}_conv22")
    names |= _units(f"{path}.coarse.1", f"{coarser}_conv31", f"{coarser}_conv32")
    return names | {f"{path}.coarse.2.": f"{coarser.removesuffix('_out')}_adapt_conv."}


_HEAD = {
    **{ours: theirs for index in range(4) for ours, theirs in (_fusion(index) | _refinement(index)).items()},
    **_units("classifier.0", "Refine4_out_conv21", "Refine4_out_conv22"),
    **_units("classifier.1", "Refine4_out_conv31", "Refine4_out_conv32"),
    "classifier.3.": "finalscore.",
}


def _encoder_key(rest: str) -> str:
    """Return the published name, without the stream, of an encoder's entry."""
    *path, leaf = rest.split(".")
    scaled = "scale" if leaf in ("weight", "bias") else "bn"
    if len(path) == 1:
        return f"conv1.{leaf}" if path[0] == "conv1" else f"{scaled}_conv1.{leaf}"
    stage, block, layer, *_ = path
    # Stages of three blocks count them by letters, longer ones by numbers after the first.
    long = stage in ("layer2", "layer3")
    place = f"{int(stage[-1]) + 1}" + ("a" if block == "0" else f"b{block}" if long else "abc"[int(block)])
    convolution = path[3] == "0" if layer == "downsample" else layer.startswith("conv")
    branch = "branch1" if layer == "downsample" else _BRANCHES[layer[-1]]
    return f"{'res' if convolution else scaled}{place}_{branch}.{leaf}"


def _rdfnet_key(name: str) -> str:
    part, _, rest = name.partition(".")
    return _STREAMS[part] + _encoder_key(rest) if part in _STREAMS else replace_prefix(name, _HEAD)


def _numbered(published: str) -> str:
    """Return the name that the larger networks have for an entry; the smallest counts all blocks by letters."""
    pattern = r"^(?P<before>(RGB|DEP)(res|bn|scale)[34])(?P<block>[b-f])(?=_)"
    return re.sub(pattern, lambda m: f"{m['before']}b{ord(m['block']) - ord('a')}", published)


LAYOUT = Layout(_rdfnet_key, spelling=_numbered)
