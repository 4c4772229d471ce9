"""Options of models as checkpoints and configurations of version 0.1 have them, in today's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ADDED_GROUP = "logging"
"""A group that the configurations of version 0.1 do not have, and all since do."""
_STACKED_OR_ALONE = {"rgb": ("rgb",), "geometry": ("hha",), "stacked": ("rgb", "hha")}


def current_options(model_name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `create_model` that build what ``options`` built in version 0.1.

    Names and values of today are left as they are.  Widths that a decoder does not have, and that were ignored, are
    left to the decoder.

    Args:
        model_name: of the checkpoint or configuration.
        options: stored beside it.
    """
    current = dict(options)
    family = model_name.partition("_")[0]
    if family == "gnn3d" and "neighbours" in current:
        current["neighbors"] = current.pop("neighbours")
    if family == "sagate" and "geometry" in current:
        current["second_stream"] = current.pop("geometry")
    if family == "deeplabv3plus":
        geometry = current.pop("geometry", "hha")
        if "modality" in current:
            inputs = _STACKED_OR_ALONE[current.pop("modality")]
            current["inputs"] = tuple(geometry if name == "hha" else name for name in inputs)
    if family in ("sagate", "deeplabv3plus"):
        current |= dict.fromkeys(_ignored_widths(model_name, current))
    return current


def current_config(values: dict[str, Any]) -> dict[str, Any]:
    """Return the plain values of a training configuration, those of version 0.1 in today's words.

    Args:
        values: as `rgbdseg.config.train.TrainConfig.to_dict` gives them, or a file that a user has written.
    """
    model = values.get("model")
    if ADDED_GROUP in values or not isinstance(model, dict) or not isinstance(model.get("options"), dict):
        return values
    options = current_options(str(model.get("name", "")), model["options"])
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    return {**values, "model": {**model, "options": plain}}


def _ignored_widths(model_name: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the options of width that the decoder of the model took no notice of."""
    several_branches = "hrnet" in model_name or str(options.get("encoder", "")).startswith("hrnet")
    decoder = options.get("decoder") or (
        "hrnet" if several_branches and model_name.startswith("sagate") else "deeplabv3plus"
    )
    if decoder == "hrnet":
        return ("decoder_channels", "reduced_channels")
    return () if decoder == "deeplabv3plus" else ("reduced_channels",)
