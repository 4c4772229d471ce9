"""Small networks whose answer depends on every input, on the place in the image and on the camera."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rgbdseg.input_spec import InputSpec
from rgbdseg.labels import LabelSet
from rgbdseg.models._base import SegmentationModel, SegmentationOutput

ABC = LabelSet("abc", ("a", "b", "c"), ((255, 0, 0), (0, 255, 0), (0, 0, 255)))


class Mixing(SegmentationModel):
    """Two convolutions over all streams, and the rays of the camera where the spec asks for it."""

    def __init__(self, spec: InputSpec, num_classes: int = 3) -> None:
        super().__init__(num_classes, spec)
        generator = torch.Generator().manual_seed(0)
        channels = sum(stream.channels for stream in spec.streams)
        self.first = nn.Conv2d(channels, 8, 5, padding=2)
        self.second = nn.Conv2d(8, num_classes, 3, padding=1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)

    def forward(self, images: Mapping[str, Tensor], camera: Tensor | None = None) -> SegmentationOutput:
        image = torch.cat(self.check_images(images), dim=1)
        logits = self.second(self.first(image).relu())
        if self.input_spec.needs_camera:
            fx, _, cx, _ = self.check_camera(image, camera)[:, :, None, None, None].unbind(1)
            ray = (torch.arange(image.shape[-1], device=image.device) - cx) / fx
            logits = torch.cat((logits[:, :1] + ray, logits[:, 1:]), dim=1)
        return SegmentationOutput(logits)
