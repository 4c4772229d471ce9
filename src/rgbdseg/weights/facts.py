"""What a checkpoint says beside its weights; free of torch, so that it can be read in an instant."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from rgbdseg.errors import CheckpointError
from rgbdseg.input_spec import InputSpec
from rgbdseg.labels import LabelSet, LabelValues
from rgbdseg.weights.earlier_options import current_options

FACTS_KEY = "rgbdseg"
FACTS_FORMAT = 2
STATE_PREFIX = "model."
"""Of the weights in the checkpoint of a run."""


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """Everything beside the weights that prediction, evaluation and resuming need.

    Args:
        model_name: a name that `create_model` takes.
        model_options: its options.
        input_spec: what the model was fed in training.
        label_set: names and colors of the classes.
        dataset: name of the dataset it was trained on.
        hha: parameters of the HHA encoding of its input, or None.
        config: the resolved training config as plain values, or None for converted checkpoints.
        label_values: numbers of the classes in the label files it was trained on, or None where they are not known.
        image_size: (height, width) of the images it was trained on, None where the file does not say.
    """

    model_name: str
    model_options: dict[str, Any]
    input_spec: InputSpec
    label_set: LabelSet
    dataset: str = ""
    hha: dict[str, Any] | None = None
    config: dict[str, Any] | None = None
    label_values: LabelValues | None = None
    image_size: tuple[int, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON or a checkpoint."""
        return {
            "format": FACTS_FORMAT,
            "model_name": self.model_name,
            "model_options": dict(self.model_options),
            "input_spec": self.input_spec.to_dict(),
            "label_set": self.label_set.to_dict(),
            "dataset": self.dataset,
            "hha": self.hha,
            "config": self.config,
            **({} if self.label_values is None else {"label_values": self.label_values.to_dict()}),
            "image_size": None if self.image_size is None else list(self.image_size),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelFacts:
        """Rebuild from `to_dict`, of this version or of 0.1; raises CheckpointError for anything else."""
        if not isinstance(values, Mapping):
            raise CheckpointError(f"checkpoint facts are {values!r:.80}; expected a mapping")
        if values.get("format") not in (1, FACTS_FORMAT):
            raise CheckpointError(
                f"checkpoint facts have format {values.get('format')!r}; this version reads up to {FACTS_FORMAT}; "
                "upgrade rgbdseg"
            )
        try:
            json.dumps(values)  # a .ckpt could hold tensors and loops in the place of plain values
            name, options = str(values["model_name"]), dict(values["model_options"])
            hha, config = values.get("hha"), values.get("config")
            if not all(part is None or isinstance(part, dict) for part in (hha, config)):
                raise TypeError("hha and config are mappings, or null")
            return cls(
                model_name=name,
                model_options=current_options(name, options) if values["format"] == 1 else options,
                input_spec=InputSpec.from_dict(values["input_spec"]),
                label_set=LabelSet.from_dict(values["label_set"]),
                dataset=str(values.get("dataset", "")),
                hha=hha,
                config=config,
                label_values=LabelValues.from_dict(stored) if (stored := values.get("label_values")) else None,
                image_size=_image_size(values.get("image_size")),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise CheckpointError(f"checkpoint facts are not understood: {error!r}") from None


def _image_size(value: object) -> tuple[int, int] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(type(v) is int and v > 0 for v in value):
        raise ValueError(f"image_size {value!r}")
    return (value[0], value[1])
