"""Costs of models whose numbers can be worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rgbdseg.input_spec import InputSpec, Stream, metric_depth_stream, rgb_stream
from rgbdseg.models._base import SegmentationModel, SegmentationOutput
from rgbdseg.models._measure import example_inputs, measure_model


class Toy(SegmentationModel):
    """A 3x3 convolution and, in training only, an auxiliary one."""

    def __init__(self) -> None:
        super().__init__(2, InputSpec((rgb_stream(),)))
        self.main = nn.Conv2d(3, 2, 3, padding=1, bias=False)
        self.again = self.main  # shared: to be counted once
        self.auxiliary = nn.Conv2d(3, 2, 1)

    def forward(self, images: Mapping[str, Tensor], camera: Tensor | None = None) -> SegmentationOutput:
        (rgb,) = self.check_images(images)
        if self.training:
            self.auxiliary(rgb)
        return SegmentationOutput(self.main(rgb))


def test_costs_by_hand() -> None:
    model = Toy().train()
    cost = measure_model(model, (5, 7), repeats=1)
    assert cost.parameters == 3 * 2 * 9 + 3 * 2 + 2
    assert cost.flops == 2 * 5 * 7 * 3 * 2 * 9
    assert cost.latency_s is not None
    assert 0 < cost.latency_s < 60
    assert model.training
    assert model.main.weight.device.type == "cpu"
    counted = measure_model(model, (5, 7))
    assert (counted.latency_s, counted.memory_bytes) == (None, None)


class Held(Toy):
    """A network that holds so many MiB for a moment, and passes half of it on."""

    def forward(self, images: Mapping[str, Tensor], camera: Tensor | None = None) -> SegmentationOutput:
        held = torch.ones(120 * 2**18)
        kept = held[: len(held) // 2] * 2
        del held
        return SegmentationOutput(super().forward(images).logits + kept[0])


def test_memory_is_the_peak_of_one_image_beside_what_was_held() -> None:
    before = torch.ones(300 * 2**18)
    memory_bytes = measure_model(Held(), (5, 7), repeats=1).memory_bytes
    assert memory_bytes is not None
    assert 170 * 2**20 < memory_bytes < 230 * 2**20
    del before


def test_example_inputs_follow_the_spec() -> None:
    infrared = Stream("infrared", "infrared", (0.5, 0.5), (1.0, 1.0))
    spec = InputSpec((rgb_stream(), metric_depth_stream(), infrared), needs_camera=True)
    images, camera = example_inputs(spec, 2, (4, 6))
    assert {name: tuple(image.shape) for name, image in images.items()} == {
        "rgb": (2, 3, 4, 6),
        "depth": (2, 1, 4, 6),
        "infrared": (2, 2, 4, 6),
    }
    assert images["depth"].min() >= 1
    assert camera is not None
    torch.testing.assert_close(camera, torch.tensor([[5.4, 5.4, 2.5, 1.5]] * 2))
    assert example_inputs(InputSpec((rgb_stream(),)), 1, (4, 6))[1] is None
