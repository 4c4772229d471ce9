"""Families that take any picture beside RGB take rasters of other packages, and nothing that is no picture."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import rgbdseg
from rgbdseg.errors import UsageError
from rgbdseg.sample import RASTERS, RasterRule

FAMILIES: list[tuple[str, str, dict[str, Any]]] = [
    ("cmx", "modality", {"encoder": "test_resnet"}),
    ("cmnext", "modalities", {"encoder": "test_resnet"}),
    ("geminifusion_mit_b0", "geometry", {}),
    ("sigma_tiny", "modality", {"decoder_blocks": 1}),
]


def streams(name: str, option: str, options: dict[str, Any], modality: str) -> list[str]:
    value = (modality,) if option == "modalities" else modality
    model = rgbdseg.create_model(name, 3, **{option: value}, **options)
    return [stream.raster for stream in model.input_spec.streams]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family[0])
def test_a_picture_of_another_package(family: tuple[str, str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RASTERS._registered, "polarization", RasterRule(1, torch.uint8, "bilinear"))
    assert streams(*family, "polarization") == ["rgb", "polarization"]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family[0])
@pytest.mark.parametrize(
    ("modality", "message"),
    [
        ("thermall", "unknown modality 'thermall'; did you mean 'thermal'"),
        ("label", "unknown modality 'label'"),  # or the truth would be learned from itself
        ("depth_m", "unknown modality 'depth_m'"),  # meters divided by 255 show nothing
    ],
)
def test_what_is_no_picture(family: tuple[str, str, dict[str, Any]], modality: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        streams(*family, modality)
