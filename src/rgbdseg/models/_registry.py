"""Model names and what builds them."""

from __future__ import annotations

import fnmatch
import importlib
import inspect
from collections.abc import Callable, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from rgbdseg.errors import UsageError, unknown_name
from rgbdseg.models._base import SegmentationModel

# name -> "module:builder"; a builder is called as builder(num_classes, **options).  Modules are imported on use.
CATALOG: dict[str, str] = {
    "acnet_resnet18": "rgbdseg.models.acnet:acnet_resnet18",
    "acnet_resnet50": "rgbdseg.models.acnet:acnet_resnet50",
    "gnn3d_resnet18": "rgbdseg.models.gnn3d:gnn3d_resnet18",
    "gnn3d_resnet101": "rgbdseg.models.gnn3d:gnn3d_resnet101",
    "gnn3d_vgg16": "rgbdseg.models.gnn3d:gnn3d_vgg16",
    "rdfnet_resnet18": "rgbdseg.models.rdfnet:rdfnet_resnet18",
    "rdfnet_resnet50": "rgbdseg.models.rdfnet:rdfnet_resnet50",
    "rdfnet_resnet101": "rgbdseg.models.rdfnet:rdfnet_resnet101",
    "rdfnet_resnet152": "rgbdseg.models.rdfnet:rdfnet_resnet152",
    "sagate": "rgbdseg.models.sagate:sagate",
    "sagate_resnet18": "rgbdseg.models.sagate:sagate_resnet18",
    "sagate_resnet50": "rgbdseg.models.sagate:sagate_resnet50",
    "sagate_resnet101": "rgbdseg.models.sagate:sagate_resnet101",
    "sagate_hrnet_w18": "rgbdseg.models.sagate:sagate_hrnet_w18",
    "sagate_hrnet_w48": "rgbdseg.models.sagate:sagate_hrnet_w48",
    "malleable": "rgbdseg.models.malleable:malleable",
    "malleable_resnet50": "rgbdseg.models.malleable:malleable_resnet50",
    "malleable_resnet101": "rgbdseg.models.malleable:malleable_resnet101",
    "conv2_5d_resnet101": "rgbdseg.models.malleable:conv2_5d_resnet101",
    "deeplabv3plus": "rgbdseg.models.deeplabv3plus:deeplabv3plus",
    "deeplabv3plus_resnet18": "rgbdseg.models.deeplabv3plus:deeplabv3plus_resnet18",
    "deeplabv3plus_resnet50": "rgbdseg.models.deeplabv3plus:deeplabv3plus_resnet50",
    "deeplabv3plus_resnet101": "rgbdseg.models.deeplabv3plus:deeplabv3plus_resnet101",
    "padnet_resnet18": "rgbdseg.models.padnet:padnet_resnet18",
    "padnet_resnet50": "rgbdseg.models.padnet:padnet_resnet50",
    "padnet_resnet101": "rgbdseg.models.padnet:padnet_resnet101",
    "pap_resnet18": "rgbdseg.models.pap:pap_resnet18",
    "pap_resnet50": "rgbdseg.models.pap:pap_resnet50",
    "danet_resnet18": "rgbdseg.models.danet:danet_resnet18",
    "danet_resnet50": "rgbdseg.models.danet:danet_resnet50",
    "danet_resnet101": "rgbdseg.models.danet:danet_resnet101",
    "gald_resnet18": "rgbdseg.models.gald:gald_resnet18",
    "gald_resnet50": "rgbdseg.models.gald:gald_resnet50",
    "gald_resnet101": "rgbdseg.models.gald:gald_resnet101",
    "acfnet_resnet18": "rgbdseg.models.acfnet:acfnet_resnet18",
    "acfnet_resnet101": "rgbdseg.models.acfnet:acfnet_resnet101",
}


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of all models that match a shell-style ``pattern``, sorted."""
    return sorted(fnmatch.filter(CATALOG, pattern))


def create_model(name: str, /, num_classes: int, **options: Any) -> SegmentationModel:
    """Build a model by name as a plain module with random weights: no file or network access.

    num_classes: number of classes of the logits.  options: fields of the family's builder.
    Raises UsageError for an unknown name (with a suggestion), option or option value.
    """
    if name not in CATALOG:
        raise unknown_name("model", name, CATALOG)
    if num_classes < 1:
        raise UsageError(f"num_classes is {num_classes}; expected at least 1")
    module_name, builder_name = CATALOG[name].split(":")
    builder = getattr(importlib.import_module(module_name), builder_name)
    known = _option_types(builder)
    for option, value in options.items():
        if option not in known:
            raise unknown_name(f"{name} option", option, known)
        if not _fits(value, known[option]):
            raise UsageError(f"model option {option} is {value!r}; expected {_described(known[option])}")
    model: SegmentationModel = builder(num_classes=num_classes, **options)
    return model


def _option_types(builder: Callable[..., SegmentationModel]) -> dict[str, Any]:
    """Return the types of the keywords a builder takes besides num_classes; a TypedDict types ``**options``."""
    hints = get_type_hints(builder)
    types: dict[str, Any] = {}
    for parameter in inspect.signature(builder).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            (options_type,) = get_args(hints[parameter.name])
            types |= get_type_hints(options_type)
        elif parameter.name != "num_classes":
            types[parameter.name] = hints[parameter.name]
    return types


def _fits(value: object, kind: Any) -> bool:
    """Whether a value, which may come from YAML, is of a kind of option: only that, its range is the model's matter."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is Sequence:
        return isinstance(value, list | tuple) and all(_fits(item, arguments[0]) for item in value)
    if origin is Literal:
        return type(value) in {type(argument) for argument in arguments}
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, kind)


def _described(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(_described(argument) for argument in arguments)
    if origin is Sequence:
        return f"a list ({_described(arguments[0])} each)"
    if origin is Literal:
        return f"one of: {', '.join(map(str, arguments))}"
    return {int: "an integer", float: "a number", bool: "true or false", str: "a name", NoneType: "null"}[kind]
