from __future__ import annotations

import importlib

import pytest
import torch

import rgbdseg
from rgbdseg.errors import UsageError
from rgbdseg.models import _registry as catalog


def test_listing() -> None:
    assert rgbdseg.list_models("sagate_r*") == ["sagate_resnet101", "sagate_resnet18", "sagate_resnet50"]
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
        ("sagate", 5, {"encoder": "resnet5"}, "unknown encoder 'resnet5'; did you mean 'resnet50'?"),
        ("sagate", 5, {"encoder": "vit_tiny_patch16_224"}, "supported are the timm models of the families: convnext, "),
        ("sagate", 5, {"encoder": "test_resnet", "decoder": "hrnt"}, "unknown decoder 'hrnt'; did you mean 'hrnet'?"),
        ("sagate_resnet18", 5, {"fusion": "gates"}, "unknown fusion 'gates'; did you mean 'gate'?"),
        ("sagate_resnet18", 5, {"geometry": "noises"}, "unknown geometry input 'noises'; did you mean 'noise'?"),
        (
            "deeplabv3plus_resnet18",
            5,
            {"modality": "stacked", "depth_convolution": "plain"},
            "2.5D convolutions need the modality 'rgb', got 'stacked'",
        ),
        ("deeplabv3plus_resnet18", 5, {"encoder": "resnet50"}, "unknown deeplabv3plus_resnet18 option 'encoder'"),
        (
            "sagate_resnet18",
            5,
            {"output_stride": 12},
            "output stride 12 of encoder 'resnet18' is not one of (8, 16, 32)",
        ),
        ("pap_resnet18", 5, {"iterations": 2.5}, "model option iterations is 2.5; expected an integer"),
        ("pap_resnet18", 5, {"beta": "0.05"}, "model option beta is '0.05'; expected a number"),
        ("pap_resnet18", 5, {"affinity": 1}, "affinity is 1; expected one of: softmax, exp_dist, relu_norm"),
        ("gnn3d_resnet18", 5, {"neighbours": True}, "model option neighbours is True; expected an integer"),
        ("acfnet_resnet18", 5, {"pyramid": "no"}, "model option pyramid is 'no'; expected true or false"),
        ("danet_resnet18", 5, {"dilations": 4}, "dilations is 4; expected a list (an integer each) or null"),
        (
            "padnet_resnet18",
            5,
            {"tasks": "depth"},
            "tasks is 'depth'; expected a list (one of: depth, normals, contours each)",
        ),
        ("padnet_resnet18", 5, {"tasks": ["depht"]}, "unknown PAD-Net task 'depht'; did you mean 'depth'?"),
    ],
)
def test_errors(name: str, classes: int, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        rgbdseg.create_model(name, classes, **options)
    assert message in str(caught.value)


def test_integers_are_numbers_and_lists_are_sequences() -> None:
    with torch.device("meta"):
        assert rgbdseg.create_model("pap_resnet18", 5, beta=1).beta == 1
        assert rgbdseg.create_model("padnet_resnet18", 5, tasks=["depth"]).auxiliary_tasks == ("depth",)
        rgbdseg.create_model("danet_resnet18", 5, dilations=None)


def test_the_types_of_all_options_are_understood() -> None:
    for name, entry in catalog.CATALOG.items():
        module, builder = entry.split(":")
        for kind in catalog._option_types(getattr(importlib.import_module(module), builder)).values():
            assert not catalog._fits(object(), kind), name
            assert catalog._described(kind), name


def test_controls_have_the_parts_of_the_two_stream_models() -> None:
    for size in ("resnet18", "resnet50", "resnet101"):
        with torch.device("meta"):
            two, one = (rgbdseg.create_model(f"{family}_{size}", 7) for family in ("sagate", "deeplabv3plus"))
        expected = {n: v.shape for n, v in two.state_dict().items() if not n.startswith(("gates", "geometry_encoder"))}
        assert {n.replace("encoder.", "rgb_encoder.", 1): v.shape for n, v in one.state_dict().items()} == expected


@pytest.mark.parametrize("family", ["sagate", "deeplabv3plus", "malleable"])
def test_a_family_with_its_published_encoder_is_the_published_network(family: str) -> None:
    with torch.device("meta"):
        by_option, by_name = (rgbdseg.create_model(name, 7) for name in (family, f"{family}_resnet101"))
    assert {n: v.shape for n, v in by_option.state_dict().items()} == {
        n: v.shape for n, v in by_name.state_dict().items()
    }
    convolutions = [
        [(m.stride, m.dilation) for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
        for model in (by_option, by_name)
    ]
    assert convolutions[0] == convolutions[1]
    assert by_option.input_spec == by_name.input_spec


def test_input_specs() -> None:
    assert rgbdseg.create_model("sagate_resnet18", 5).input_spec.geometry == "hha"
    assert rgbdseg.create_model("sagate_resnet18", 5, geometry="noise").input_spec.geometry == "noise"
    assert rgbdseg.create_model("deeplabv3plus_resnet18", 5).input_spec.geometry == "none"
    control = rgbdseg.create_model("deeplabv3plus_resnet18", 5, modality="geometry")
    assert control.input_spec.geometry == "hha"
    with pytest.raises(UsageError, match="the model needs a geometry input besides rgb"):
        control.eval()(torch.zeros(1, 3, 32, 32))
