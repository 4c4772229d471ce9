"""Only the pixels of the evaluation area are counted, in evaluation and in validation."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.engine.evaluate import EvaluationTask
from rgbdseg.engine.task import SegmentationTask
from rgbdseg.errors import DataError
from rgbdseg.input_spec import InputSpec
from rgbdseg.labels import LabelSet, generic_palette
from rgbdseg.models._base import SegmentationOutput
from rgbdseg.recipes import get_recipe
from rgbdseg.sample import RGBDSample

LABELS = LabelSet("three", ("a", "b", "c"), generic_palette(3))
CROP = EvaluationProtocol(area="nyu-crop")
INTERIOR = EvaluationProtocol(margin=7)


class Brightest(nn.Module):
    """Predicts which of the colours is brightest."""

    def forward(self, rgb: Tensor, geometry: Tensor | None = None, camera: Tensor | None = None) -> SegmentationOutput:
        return SegmentationOutput(rgb)


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


def bundle() -> Any:
    spec = InputSpec(geometry="none", rgb_mean=(0, 0, 0), rgb_std=(1, 1, 1))
    return SimpleNamespace(model=Brightest().eval(), facts=SimpleNamespace(input_spec=spec, label_set=LABELS))


@pytest.mark.parametrize("protocol", [CROP, INTERIOR])
def test_evaluation_counts_the_area(protocol: EvaluationProtocol) -> None:
    task = EvaluationTask(bundle(), protocol, "32-true", None, LABELS, sensors={"7": None})
    task.test_step(frame(), 0)
    task.on_test_epoch_end()
    assert task.scores is not None
    assert task.scores.confusion.tolist() == expected(protocol).tolist()


@pytest.mark.parametrize("protocol", [CROP, INTERIOR])
def test_validation_counts_the_area(protocol: EvaluationProtocol) -> None:
    config = dataclasses.replace(get_recipe("sagate-nyuv2-480"), validation=protocol)
    task = SegmentationTask(bundle().model, config, bundle().facts)
    task.validation_step(frame(), 0)
    assert task.validation_metrics.compute().confusion.tolist() == expected(protocol).tolist()


def test_a_frame_of_another_size_is_refused() -> None:
    task = EvaluationTask(bundle(), CROP, "32-true", None, LABELS, sensors={"7": None})
    with pytest.raises(DataError, match="sample '7' is 48x64, but the evaluation area 'nyu-crop'"):
        task.test_step(frame(48, 64), 0)
