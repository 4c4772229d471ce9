from __future__ import annotations

import pytest
import torch

import rgbdseg
from rgbdseg.errors import UsageError


def test_listing() -> None:
    assert rgbdseg.list_models("sagate_*") == ["sagate_resnet101", "sagate_resnet18", "sagate_resnet50"]
    assert rgbdseg.list_models("none*") == []
    assert set(rgbdseg.list_models("sagate_*")) < set(rgbdseg.list_models())


def test_options_reach_the_model() -> None:
    model = rgbdseg.create_model("sagate_resnet18", 6, decoder_channels=24)
    assert model.decoder.classifier.weight.shape == (6, 24, 1, 1)
    assert model.decoder.low_level[0].out_channels == 32  # other options keep the builder's values


@pytest.mark.parametrize(
    ("name", "classes", "options", "message"),
    [
        ("sagate_resnet110", 40, {}, "unknown model 'sagate_resnet110'; did you mean 'sagate_resnet101'?"),
        ("sagate_resnet18", 0, {}, "num_classes is 0; expected at least 1"),
        (
            "sagate_resnet18",
            5,
            {"decoder_chanels": 8},
            "unknown sagate_resnet18 option 'decoder_chanels'; did you mean 'decoder_channels'?",
        ),
        ("deeplabv3plus_resnet18", 5, {"modality": "rbg"}, "unknown modality 'rbg'; did you mean 'rgb'?"),
        ("deeplabv3plus_resnet18", 5, {"encoder": "resnet50"}, "unknown deeplabv3plus_resnet18 option 'encoder'"),
        (
            "sagate_resnet18",
            5,
            {"output_stride": 12},
            "output stride 12 of encoder 'resnet18' is not one of (8, 16, 32)",
        ),
    ],
)
def test_errors(name: str, classes: int, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        rgbdseg.create_model(name, classes, **options)
    assert message in str(caught.value)


def test_controls_have_the_parts_of_the_two_stream_models() -> None:
    for size in ("resnet18", "resnet50", "resnet101"):
        with torch.device("meta"):
            two, one = (rgbdseg.create_model(f"{family}_{size}", 7) for family in ("sagate", "deeplabv3plus"))
        expected = {n: v.shape for n, v in two.state_dict().items() if not n.startswith(("gates", "geometry_encoder"))}
        assert {n.replace("encoder.", "rgb_encoder.", 1): v.shape for n, v in one.state_dict().items()} == expected


def test_input_specs() -> None:
    assert rgbdseg.create_model("sagate_resnet18", 5).input_spec.geometry == "hha"
    assert rgbdseg.create_model("deeplabv3plus_resnet18", 5).input_spec.geometry == "none"
    control = rgbdseg.create_model("deeplabv3plus_resnet18", 5, modality="geometry")
    assert control.input_spec.geometry == "hha"
    with pytest.raises(UsageError, match="the model needs a geometry input besides rgb"):
        control.eval()(torch.zeros(1, 3, 32, 32))
