from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from rgbdseg.sample import RGBDSample
from rgbdseg.segmenter import training_size
from rgbdseg.training_size import seen_size, shrunk, size_note
from rgbdseg.transforms.spatial import resize, resize_raster
from rgbdseg.weights.facts import ModelFacts
from tests.specs import PLAIN_RGB, RGB_HHA
from tests.synthetic import make_camera
from tests.test_segmenter import ABC, segmenter


def test_the_rule() -> None:
    assert seen_size((1440, 1920), (120, 160)) == (120, 160)
    assert seen_size((1440, 1920), (480, 640)) == (480, 640)
    assert seen_size((1000, 1000), (400, 625)) == (500, 500)  # as many pixels, the image's own shape
    assert seen_size((1440, 1920), None) == (1440, 1920)
    for size in ((480, 640), (700, 940), (120, 160)):  # not much larger, and smaller
        assert seen_size(size, (480, 640)) == size
    note = str(size_note((1440, 1920), (120, 160)))
    assert "1440x1920 are looked at as 120x160" in note
    assert "scales=(1,)" in note
    assert "--" not in note
    assert "WARNING images are 120x160" in str(size_note((120, 160), (480, 640)))
    assert size_note((480, 640), (480, 640)) is None
    assert size_note((480, 640), None) is None


def test_colors_are_means_and_depth_stays_a_reading() -> None:
    rgb = torch.zeros(3, 8, 8, dtype=torch.uint8)
    rgb[:, :, ::2] = 200
    depth_m = torch.ones(1, 8, 8)
    depth_m[..., ::2] = 3.0
    small = shrunk(RGBDSample(rgb, depth_m=depth_m, camera=make_camera((8, 8))), (2, 2))
    assert small.depth_m is not None
    assert small.camera == make_camera((8, 8)).resized((8, 8), (2, 2))
    assert (small.rgb.int() - 100).abs().max() < 30  # stripes would survive if single pixels were taken
    assert set(small.depth_m.unique().tolist()) <= {1.0, 3.0}


def test_a_model_sees_a_large_image_as_it_was_trained_and_labels_have_its_size() -> None:
    rgb = np.zeros((240, 320, 3), np.uint8)
    rgb[:, :160, 0], rgb[:, 160:, 1] = 200, 200
    seen: list[tuple[int, int]] = []
    model = segmenter(training_size=(24, 32))
    model.model.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0]["rgb"].shape[-2:])))
    result = model(rgb)
    assert seen == [(24, 32)]
    assert result.labels.shape == (240, 320)
    assert result.sample.size == (240, 320)
    assert (result.labels[:, :155] == 0).all()
    assert (result.labels[:, 165:] == 1).all()
    assert segmenter(PLAIN_RGB)(rgb).labels.shape == (240, 320)


def test_hha_is_computed_at_the_size_that_is_seen() -> None:
    size = (96, 128)
    depth_m = np.full(size, 2.0, np.float32)
    model = segmenter(RGB_HHA, training_size=(24, 32))
    seen: list[torch.Tensor] = []
    model.model.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]["hha"]))
    result = model(np.zeros((*size, 3), np.uint8), depth_m, make_camera(size))
    assert seen[0].shape[-2:] == (24, 32)
    assert result.point_cloud()[0].shape == (96 * 128, 3)
    assert result.point_cloud()[0][:, 2] == pytest.approx(2.0)


def test_the_training_size_is_kept_and_known_of_benchmarks() -> None:
    facts = ModelFacts("sagate_resnet18", {}, PLAIN_RGB, ABC, "mine", image_size=(120, 160))
    again = ModelFacts.from_dict(facts.to_dict())
    assert again == facts
    assert training_size(again) == (120, 160)
    older = {key: value for key, value in facts.to_dict().items() if key != "image_size"}
    assert training_size(ModelFacts.from_dict(older)) is None
    assert training_size(ModelFacts.from_dict({**older, "dataset": "nyuv2"})) == (480, 640)


@pytest.mark.parametrize("size", [(12, 16), (7, 25), (48, 64)])
def test_colors_are_resized_once(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    rgb, hha = (torch.randint(256, (3, 48, 64), generator=generator, dtype=torch.uint8) for _ in range(2))
    sample = RGBDSample(
        rgb,
        hha=hha,
        depth_m=torch.rand(1, 48, 64, generator=generator),
        camera=make_camera((48, 64)),
    )
    means = functional.interpolate(sample.rgb[None].float(), size, mode="bilinear", antialias=True)[0]
    wanted = resize(sample, size).replace(rgb=means.round().clamp(0, 255).to(torch.uint8))
    resized: list[torch.Tensor] = []

    def seen(raster: torch.Tensor, *arguments: Any) -> torch.Tensor:
        resized.append(raster)
        return resize_raster(raster, *arguments)

    monkeypatch.setattr("rgbdseg.transforms.spatial.resize_raster", seen)
    monkeypatch.setattr("rgbdseg.training_size.resize_raster", seen, raising=False)
    small = shrunk(sample, size)
    assert small.camera == wanted.camera
    assert [name for name, _ in small.rasters()] == [name for name, _ in sample.rasters()]
    assert all(torch.equal(raster, wanted.raster(name)) for name, raster in small.rasters())
    assert resized
    assert not any(raster is sample.rgb for raster in resized)
