"""ACNet of anheidelonghu/ACNet."""

from __future__ import annotations

import re

from rgbdseg.models.layouts.base import Layout, replace_prefix

_ENCODERS = {"rgb_encoder": "", "depth_encoder": "_d", "merge_encoder": "_m"}
_HEAD = {
    "decoder.refinement.": "final_conv.",
    "decoder.classifier.": "final_deconv.",
    **{f"decoder.laterals.{i}.": f"agant{i}." for i in range(5)},
    **{f"decoder.doublings.{i}.": f"deconv{i + 1}." for i in range(4)},
    **{f"auxiliary_heads.{i}.": f"out{i + 2}_conv." for i in range(4)},
    **{f"{ours}_attention.{i}.score.": f"atten_{ours}_{i}.1." for ours in ("rgb", "depth") for i in range(5)},
}


def _acnet_key(name: str) -> str:
    """Three encoders side by side, told apart by a suffix of their first component."""
    part, _, rest = name.partition(".")
    if part in _ENCODERS:
        return re.sub(r"^[^.]+", rf"\g<0>{_ENCODERS[part]}", rest)
    return replace_prefix(name, _HEAD).replace(".shortcut.", ".upsample.")


LAYOUT = Layout(_acnet_key)
