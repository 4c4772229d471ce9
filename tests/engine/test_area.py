"""Only the pixels of the evaluation area are counted, in evaluation and in validation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rgbdseg.config.disturbance import InputFaults
from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.config.train import HardwareConfig
from rgbdseg.engine.evaluate import evaluate
from rgbdseg.engine.hardware import make_fabric
from rgbdseg.engine.loop import _validate
from rgbdseg.errors import DataError
from rgbdseg.labels import LabelSet, generic_palette
from rgbdseg.models._base import SegmentationOutput
from rgbdseg.recipes import get_recipe
from rgbdseg.sample import RGBDSample
from tests.specs import PLAIN_RGB

LABELS = LabelSet("three", ("a", "b", "c"), generic_palette(3))
CROP = EvaluationProtocol(area="nyu-crop")
INTERIOR = EvaluationProtocol(margin=7)


class Brightest(nn.Module):
    """Predicts which of the colors is brightest."""

    def forward(self, images: Mapping[str, Tensor], camera: Tensor | None = None) -> SegmentationOutput:
        return SegmentationOutput(images["rgb"])


INSIDE = {CROP: np.s_[39:471, 40:601], INTERIOR: np.s_[7:473, 7:633]}


def frame(height: int = 480, width: int = 640) -> RGBDSample:
    generator = torch.Generator().manual_seed(height)
    label = torch.randint(0, 4, (1, height, width), generator=generator).to(torch.uint8)
    label[label == 3] = 255
    # Right more often inside the area than outside, so that a wrong area would change the counts.
    rgb = torch.randint(0, 200, (3, height, width), generator=generator, dtype=torch.uint8)
    inside = torch.zeros(height, width, dtype=torch.bool)
    inside[39:471, 40:601] = True
    for index in range(3):
        rgb[index][(label[0] == index) & inside] += 50
    return RGBDSample(rgb=rgb, label=label, sample_id="7")


def expected(protocol: EvaluationProtocol) -> np.ndarray:
    sample, inside = frame(), INSIDE[protocol]
    assert sample.label is not None
    prediction, label = sample.rgb.numpy().argmax(0)[inside], sample.label[0].numpy()[inside]
    return np.array([[int(((label == t) & (prediction == p)).sum()) for p in range(3)] for t in range(3)])


CPU = HardwareConfig(accelerator="cpu")


def bundle() -> Any:
    facts = SimpleNamespace(input_spec=PLAIN_RGB, label_set=LABELS, model_name="brightest")
    return SimpleNamespace(model=Brightest().eval(), facts=facts, path="", epoch=None, iteration=None)


class OneFrame(list[RGBDSample]):
    """Stands for a dataset."""

    ids, needs, label_set, split = ("7",), {"label"}, LABELS, "test"
    description = SimpleNamespace(name="one frame", label_values=None)
    root = "one frame"
    faults = InputFaults()

    def sensor(self, index: int) -> None:
        return None


@pytest.mark.parametrize("protocol", [CROP, INTERIOR])
def test_evaluation_counts_the_area(protocol: EvaluationProtocol) -> None:
    dataset: Any = OneFrame([frame()])
    scores = evaluate(bundle(), dataset, protocol, hardware=CPU, workers=0).scores
    assert scores.confusion.tolist() == expected(protocol).tolist()


@pytest.mark.parametrize("protocol", [CROP, INTERIOR])
def test_validation_counts_the_area(protocol: EvaluationProtocol) -> None:
    config = dataclasses.replace(get_recipe("sagate-nyuv2-480"), validation=protocol)
    model = bundle().model
    model.num_classes, model.input_spec = 3, bundle().facts.input_spec
    state: Any = SimpleNamespace(evaluated=model)
    data: Any = SimpleNamespace(validation_samples=lambda rank, processes: [frame()])
    scores = _validate(state, data, config, make_fabric(CPU))
    assert scores.confusion.tolist() == expected(protocol).tolist()
    assert model.training  # on with the next epoch


def test_a_frame_of_another_size_is_refused() -> None:
    dataset: Any = OneFrame([frame(48, 64)])
    with pytest.raises(DataError, match="sample '7' is 48x64, but the evaluation area 'nyu-crop'"):
        evaluate(bundle(), dataset, CROP, hardware=CPU, workers=0)
