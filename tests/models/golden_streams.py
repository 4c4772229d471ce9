"""Golden cases of networks that see several inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import rgbdseg
from rgbdseg.models._base import SegmentationModel
from rgbdseg.weights.published import load_published, to_published
from tests.models.golden import Outputs, assert_close, golden_arrays, golden_image, golden_weights
from tests.shared_data import shared_path


class GoldenCase(NamedTuple):
    model: SegmentationModel
    images: dict[str, Tensor]
    outputs: Outputs
    weights: dict[str, Tensor]

    def run(self) -> Tensor:
        """Logits of all samples."""
        with torch.no_grad():
            logits: Tensor = self.model(self.images, None).logits
        return logits

    def assert_logits(self) -> Tensor:
        """The logits agree with the published network's, as closely as their precision allows."""
        logits = self.run()
        double = logits.dtype == torch.float64
        expected = self.outputs["logits_float64" if double else "logits"]
        assert_close(logits[:1, :, ::8, ::8], expected, 2e-6 if double else 1e-3)
        means = self.outputs["logits_class_mean"]
        assert np.abs(logits.double().mean((2, 3)).numpy() - means).max() < 1e-3 * expected.std()
        assert (logits[0].argmax(0).numpy() != self.outputs["logits_argmax"][0]).mean() < 1e-3
        return logits

    def assert_round_trip(self, without: str = "nothing") -> None:
        """What is written in the published layout is what was read, but for names that contain ``without``."""
        written = to_published(self.model)
        assert set(written) == {name for name in self.weights if without not in name}
        assert all(torch.equal(value, self.weights[name]) for name, value in written.items())


def load_case(
    case: str, name: str, streams: Mapping[str, str], dtype: torch.dtype = torch.float32, **options: Any
) -> GoldenCase:
    """Build a model with the case's weights and inputs.

    streams: from our name of an input to that of the case.
    """
    facts = json.loads(shared_path(f"golden/{case}.json").read_text())
    model = rgbdseg.create_model(name, facts["classes"], **options)
    weights = golden_weights(case)
    load_published(model, weights)
    stored = golden_arrays(case, "input")
    images = {
        ours: torch.from_numpy(stored[theirs])
        if theirs in stored
        else golden_image(theirs, tuple(facts["input_shape"]), facts["seed"])
        for ours, theirs in streams.items()
    }
    images = {stream: image.to(dtype) for stream, image in images.items()}
    return GoldenCase(model.eval().to(dtype), images, golden_arrays(case, "output"), weights)


def count(name: str, num_classes: int, **options: Any) -> int:
    """Parameters of a model, without making any."""
    with torch.device("meta"):
        return sum(p.numel() for p in rgbdseg.create_model(name, num_classes, **options).parameters())
