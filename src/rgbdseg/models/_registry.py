"""Model names and what builds them: every family file lists its own variants, and packages outside can add some.

Names are read from the family files as text, so that listing them needs no torch.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rgbdseg.errors import UsageError, unknown_name
from rgbdseg.open_registry import OpenRegistry, import_module
from rgbdseg.options import check_options, option_types

if TYPE_CHECKING:
    from rgbdseg.models._base import SegmentationModel


@dataclasses.dataclass(frozen=True)
class Variant:
    """One name of a family.

    Args:
        model: the family's class, or a function that is called in the same way.
        options: keyword arguments besides ``num_classes``; a caller may override each.
        note: one line for the table of models.
        small: whether the contract tests train and export it: each family has one, with few parameters.
        tiny: options that shrink the small variant further, for tests that take long.
    """

    model: Callable[..., SegmentationModel]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    note: str = ""
    small: bool = False
    tiny: Mapping[str, Any] = dataclasses.field(default_factory=dict)


VARIANTS: OpenRegistry[Variant] = OpenRegistry("model", "rgbdseg.models", "VARIANTS", "rgbdseg.models")


def register_model(name: str, variant: Variant) -> None:
    """Add a model from outside this package.

    Args:
        name: by which `create_model` knows it.
        variant: the class, with options.

    Raises:
        UsageError: for a name that is taken.
    """
    VARIANTS.register(name, variant)


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of all models that match a shell-style ``pattern``, sorted."""
    return fnmatch.filter(VARIANTS, pattern)


def get_variant(name: str) -> Variant:
    """Return what is behind a model's name.

    Args:
        name: one of `list_models`, or ``module:NAME`` for a key of ``VARIANTS`` in any module that can be imported, or
            for a variant or a model class in it.

    Raises:
        UsageError: for an unknown name, with a suggestion.
    """
    module, colon, attribute = name.partition(":")
    return _from_module(module, attribute) if colon else VARIANTS.get(name)


def create_model(name: str, /, num_classes: int, **options: Any) -> SegmentationModel:
    """Build a model by name as a plain module with random weights: no file or network access.

    Args:
        name: one of `list_models`, or ``module:NAME``, see `get_variant`.
        num_classes: number of classes of the logits.
        **options: keyword options of the family's class; they take the place of those of the variant.  Another decoder
            or encoder than the variant's comes without the variant's ``decoder_options`` or ``encoder_options``.

    Returns:
        SegmentationModel: in training mode, on the CPU or the device of PyTorch's context.

    Raises:
        UsageError: for an unknown name (with a suggestion), option or option value.
    """
    variant = get_variant(name)
    if num_classes < 1:
        raise UsageError(f"num_classes is {num_classes}; expected at least 1")
    types = model_options(name)
    if types is not None:
        if unknown := [option for option in options if option not in types]:
            raise unknown_name(f"{name} option", unknown[0], types)
        check_options("model", types, options)
    _check_encoder_options(options)
    return variant.model(num_classes, **{**_fitting(variant, options), **options})


def _check_encoder_options(options: Mapping[str, Any]) -> None:
    """Raise UsageError where options of an encoder hold what the model decides about."""
    for option in ("encoder_options", "depth_encoder_options"):
        if decided := sorted({"name", "in_chans"} & set(options.get(option) or ())):
            raise UsageError(f"{option} has '{decided[0]}', which the model itself decides about; leave it out")


def _fitting(variant: Variant, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variant's options, without those of a part that ``options`` exchange for another one."""
    parameters = inspect.signature(variant.model).parameters

    def exchanged(part: str) -> bool:
        own = variant.options[part] if part in variant.options else getattr(parameters.get(part), "default", None)
        return part in options and options[part] != own

    suffix = "_options"
    return {
        name: value
        for name, value in variant.options.items()
        if not (name.endswith(suffix) and exchanged(name.removesuffix(suffix)))
    }


def model_options(name: str) -> dict[str, Any] | None:
    """Return the annotation of every option of a model; None where it takes any keyword."""
    return option_types(get_variant(name).model, without=("num_classes",))


def _from_module(module_name: str, attribute: str) -> Variant:
    module = import_module(module_name, f"the model '{attribute}'")
    variants: dict[str, Variant] = getattr(module, "VARIANTS", {})
    found = variants.get(attribute, getattr(module, attribute, None))
    if isinstance(found, Variant):
        return found
    if isinstance(found, type):
        return Variant(found)
    raise unknown_name(f"model of {module_name}", attribute, variants)
