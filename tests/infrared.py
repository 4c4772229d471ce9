"""A modality, and a network that looks at it, as another package would add them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rgbdseg.input_spec import InputSpec, Stream, rgb_stream
from rgbdseg.models._base import SegmentationModel, SegmentationOutput
from rgbdseg.models._card import MethodCard
from rgbdseg.models._registry import Variant
from rgbdseg.png import write_png
from rgbdseg.sample import RasterRule
from tests.synthetic import make_scene, write_tree

RASTER = "infrared"
RULE = RasterRule(1, torch.float32, "bilinear", suffixes=(".npy", ".png"))
STREAM = Stream("heat", RASTER, mean=(300.0,), std=(10.0,), divide_by=1.0)


class InfraredNet(SegmentationModel):
    """The smallest network that needs both streams."""

    card = MethodCard("InfraredNet", 2026, "none", "RGB + infrared", "none", (), "nothing", "all")

    def __init__(self, num_classes: int, width: int = 4) -> None:
        super().__init__(num_classes, InputSpec((rgb_stream(), STREAM)))
        self.first = nn.Conv2d(4, width, 3, padding=1)
        self.last = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: Mapping[str, Tensor], camera: Tensor | None = None) -> SegmentationOutput:
        rgb, heat = self.check_images(images)
        return SegmentationOutput(self.last(self.first(torch.cat((rgb, heat), dim=1)).relu()))


VARIANT = Variant(InfraredNet, {"width": 6})


def write_infrared_tree(root: Path, count: int = 6) -> Path:
    """A prepared tree in which only the temperature, 290 K + 10 K for each class, tells the classes apart."""
    write_tree(root, count)
    (root / "Infrared").mkdir()
    for index in range(count):
        label = make_scene(index).label
        write_png(root / "RGB" / f"{index}.png", np.full((*label.shape, 3), 128, np.uint8))
        np.save(
            root / "Infrared" / f"{index}.npy", np.where(label == 255, 285.0, 290.0 + 10 * label).astype(np.float32)
        )
    file = root / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "folders": {"infrared": "Infrared"}}))
    return root
