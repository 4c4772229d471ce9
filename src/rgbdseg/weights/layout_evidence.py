"""From what the names and shapes of each published file are known.

None of the files has been opened.  A golden case is a complete list of names and shapes of a state dict, most with
logits, that was written by the published code itself, in the configuration of the file; the tests load it as a user
loads the file.
"""

from __future__ import annotations

import dataclasses

from rgbdseg.weights.zoo_table import ZooEntry


@dataclasses.dataclass(frozen=True, slots=True)
class LayoutEvidence:
    """What is known of a file's layout.

    Args:
        case: golden case with all of its names and shapes, but for the number of classes; empty where there is none.
        inferred: what had to be concluded from something else, and from what; empty where nothing had to.
    """

    case: str = ""
    inferred: str = ""

    @property
    def exact(self) -> bool:
        """Whether every name and shape was written by the published code."""
        return bool(self.case) and not self.inferred


def layout_evidence(entry: ZooEntry) -> LayoutEvidence:
    """Return what is known of the layout of a published file."""
    by_name = _OF_ENTRY.get(entry.name)
    if by_name is not None:
        return by_name
    if entry.kind == "encoder":
        return _OF_ENCODER[entry.name.partition("_")[0]]
    return _OF_MODEL.get(entry.model, LayoutEvidence(entry.model))


_ESANET_START = LayoutEvidence(
    inferred="names of the encoder in the golden cases, and of the classifier in the published code for ImageNet"
)
_DFORMER_START = LayoutEvidence(
    inferred="names of the encoder in the golden cases, without 'backbone.'; all other entries of the file are left out"
)
_OF_ENCODER = {
    "mit": LayoutEvidence(
        inferred="code of the transformers library for the hub's files; for the release's own, names in the golden "
        "cases of CMX"
    ),
    "dformer": _DFORMER_START,
    "dformerv2": _DFORMER_START,
    "esanet": _ESANET_START,
    "emsanet": _ESANET_START,
}
"""By the beginning of the entry's name."""

_OF_MODEL = {
    "cmnext_mit_b4": LayoutEvidence(
        "cmnext_mit_b2", "more blocks of the same names; the published code counts as many parameters"
    ),
    "sigma_small": LayoutEvidence("sigma_tiny", "more blocks of the same names; as many parameters as published"),
    "esanet_r34_nbt1d_cityscapes": LayoutEvidence("esanet_r34_nbt1d_appm"),
}
"""Of models that have no golden case of their own name."""

_DECODER_WIDTH = "the decoder has 1024 channels in the released settings, the golden case 512; all names are the same"
_CMX_WIDTH = (
    "an earlier version of the released settings for this dataset has another width of the decoder, 768, for {}"
)
_SUBSET = (
    "names and shapes of the cases with one and with three further modalities; the published code counts as many "
    "parameters"
)

_OF_ENTRY = {
    "dformerv2_small-sunrgbd": LayoutEvidence("dformerv2_small", _DECODER_WIDTH),
    "dformerv2_base-sunrgbd": LayoutEvidence("dformerv2_base", _DECODER_WIDTH),
    "cmx_mit_b2-mfnet": LayoutEvidence("cmx_mit_b2", _CMX_WIDTH.format("MiT-B4")),
    "cmx_mit_b4-eventscape": LayoutEvidence("cmx_mit_b4", "the width of the decoder, 512 as for all other datasets"),
    "cmnext_mit_b2-deliver": LayoutEvidence("cmnext_mit_b2_rgbdel"),
    "cmnext_mit_b2-deliver-rgb": LayoutEvidence("", _SUBSET),
    "cmnext_mit_b2-deliver-depth-event": LayoutEvidence("", _SUBSET),
    "cmnext_mit_b2-deliver-depth-lidar": LayoutEvidence("", _SUBSET),
}
