"""Encoder names and what builds them.

A file of this folder declares encoders by name in ``ENCODERS``, or in ``TIMM_MODULES`` by the module of timm whose
models it builds.  Packages outside add theirs with `register_encoder` or the entry-point group ``rgbdseg.encoders``.
timm is imported when a name is none of the others: it takes seconds.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Literal

from rgbdseg.encoders._base import EncoderEntry, StagedEncoder
from rgbdseg.errors import UsageError, unknown_name
from rgbdseg.open_registry import OpenRegistry
from rgbdseg.options import dataclass_types, make_options
from rgbdseg.quick_import import import_quickly

ENCODERS: OpenRegistry[EncoderEntry] = OpenRegistry("encoder", "rgbdseg.encoders", "ENCODERS", "rgbdseg.encoders")
TIMM_MODULES: OpenRegistry[EncoderEntry] = OpenRegistry("module of timm", "rgbdseg.encoders", "TIMM_MODULES", "")

PUBLISHED_DILATIONS = (2, 4, 8)
"""Of the last stage of DeepLab-like networks."""


def register_encoder(name: str, entry: EncoderEntry) -> None:
    """Add an encoder from outside this package; raises UsageError for a name that is taken."""
    ENCODERS.register(name, entry)


def list_encoders() -> list[str]:
    """Return the names of all encoders, sorted."""
    timm = _timm()
    return sorted({*ENCODERS, *(name for module in TIMM_MODULES for name in timm.list_models(module=module))})


def create_encoder(name: str, in_chans: int = 3, **options: Any) -> StagedEncoder:
    """Build a staged encoder with random weights.

    Args:
        name: one of `list_encoders`.  A tag of weights (``resnet50.a1_in1k``) says which weights of timm will be
            loaded, and so decides about ``mean`` and ``std``; without one they are those of timm's default weights.
        in_chans: channels of the input.
        **options: of the encoder's family, such as ``output_stride``, ``dilations`` and ``drop_path_rate``.

    Returns:
        StagedEncoder: with features as its ``channels`` and ``reductions`` say.

    Raises:
        UsageError: for an unknown name (with a suggestion), a network that cannot be run stage by stage, and options
            and values that the family does not have.
    """
    plain_name, entry = _find(name)
    if in_chans < 1:
        raise UsageError(f"in_chans is {in_chans}; expected at least 1")
    encoder = entry.build(plain_name, in_chans, make_options(f"encoder {plain_name}", entry.options, options))
    encoder.weights = entry.weights
    if entry.weights == "timm":
        importlib.import_module("rgbdseg.encoders._timm").use_facts(encoder, name)
    return encoder


def encoder_option_names(name: str) -> tuple[str, ...]:
    """Return the options that `create_encoder` takes for an encoder; raises UsageError as it does for names."""
    return tuple(dataclass_types(_find(name)[1].options))


def stride_options(output_stride: int) -> dict[str, Any]:
    """Return the options of an encoder with this output stride; 32 needs none, as every stage keeps its stride."""
    return {} if output_stride == 32 else {"output_stride": output_stride}


def deeplab_options(
    name: str, output_stride: int | None = None, dilations: Sequence[int] | Literal["published"] | None = "published"
) -> dict[str, Any]:
    """Return the options that make an encoder one of a DeepLab-like network.

    Args:
        name: of the encoder.
        output_stride: None: 16 as published where the encoder can be dilated, 32 elsewhere.
        dilations: of the last stage's blocks; ``published``: 2, 4 and 8 where the encoder lets them be set; None: one
            dilation as ``output_stride`` has it.  Without meaning at output stride 32.

    Raises:
        UsageError: as `create_encoder` for names.
    """
    known = encoder_option_names(name)
    stride = output_stride or (16 if "output_stride" in known else 32)
    if dilations == "published":
        dilations = PUBLISHED_DILATIONS if "dilations" in known else None
    options = stride_options(stride)
    return options if stride == 32 or dilations is None else {**options, "dilations": tuple(dilations)}


def _timm() -> ModuleType:
    """Return timm, imported without PyTorch's compiler and only here: networks that are not timm's do without it."""
    import_quickly("timm")
    return importlib.import_module("timm")


def _find(name: str) -> tuple[str, EncoderEntry]:
    """Return the name without the tag of weights, and what builds it."""
    if name in ENCODERS:
        return name, ENCODERS.get(name)
    name = name.partition(".")[0]
    timm = _timm()
    if not timm.is_model(name):
        raise unknown_name("encoder", name, list_encoders())
    for module in TIMM_MODULES:
        if timm.models.is_model_in_modules(name, [module]):
            return name, TIMM_MODULES.get(module)
    raise UsageError(
        f"encoder '{name}' cannot be run stage by stage; supported are the timm models of the families: "
        f"{', '.join(TIMM_MODULES)}; and {', '.join(ENCODERS)}"
    )
