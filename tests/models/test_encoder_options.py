"""Options of encoders through `create_model`: every family whose encoder is chosen by name takes them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import rgbdseg
from rgbdseg.encoders import encoder_option_names
from rgbdseg.errors import UsageError
from rgbdseg.models._registry import get_variant, model_options

# The encoder of these is one of a few, and what can be said of it is said in options of the model.
ONLY_DROP_PATH = {"AsymFormer", "DPLNet", "Sigma"}
NAMES = rgbdseg.list_models()
SMALL = [name for name in NAMES if get_variant(name).small]


def parts(name: str) -> list[str]:
    """Options that name an encoder."""
    return [option for option in model_options(name) or {} if option == "encoder" or option.endswith("_encoder")]


TAKING = [name for name in SMALL if parts(name) and get_variant(name).model.__name__ not in ONLY_DROP_PATH]


@pytest.mark.parametrize("name", NAMES)
def test_who_takes_an_encoder_takes_options_of_it(name: str) -> None:
    types = model_options(name)
    assert types is not None
    lacking = {f"{part}_options" for part in parts(name)} - set(types)
    if get_variant(name).model.__name__ in ONLY_DROP_PATH:
        assert lacking
        assert "drop_path_rate" in types
    else:
        assert not lacking


@pytest.mark.parametrize(("name", "part"), [(name, part) for name in TAKING for part in parts(name)])
def test_an_unknown_option_is_an_error_that_names_the_known_ones(name: str, part: str) -> None:
    options = {**get_variant(name).options, **get_variant(name).tiny}
    encoder = options.get(part) or get_variant(name).model.__init__.__kwdefaults__.get(part) or options["encoder"]
    known = ", ".join(sorted(encoder_option_names(encoder)))
    with pytest.raises(UsageError, match=rf"unknown encoder {encoder} option 'zzz'; expected one of: {known}$"):
        rgbdseg.create_model(name, 5, **{**get_variant(name).tiny, f"{part}_options": {"zzz": 1}})


def chances(encoder: nn.Module) -> set[float]:
    kinds = nn.Dropout | nn.Dropout2d
    return {m.p if isinstance(m, kinds) else getattr(m, "drop_prob", 0.0) or 0.0 for m in encoder.modules()}


@pytest.mark.parametrize("name", [name for name in TAKING if not name.startswith("dinodepth")])
def test_options_reach_every_encoder(name: str) -> None:
    tiny = get_variant(name).tiny
    given: dict[str, Any] = {}
    for part in parts(name):
        if part == "depth_encoder" and name.startswith("esanet"):
            continue  # as the encoder, unless another is named
        given[f"{part}_options"] = {"dropout" if "_nbt1d" in name else "drop_path_rate": 0.75}
    encoders = list(rgbdseg.create_model(name, 5, **{**tiny, **given}).encoder_streams())
    assert encoders
    for _, encoder in encoders:
        assert max(chances(encoder)) == pytest.approx(0.75, abs=0.13)


def test_a_depth_encoder_of_its_own_has_options_of_its_own() -> None:
    options: dict[str, Any] = {"encoder": "test_resnet", "decoder_widths": (16, 8, 8), "decoder_blocks": 1}
    given = {**options, "depth_encoder": "test_resnet", "encoder_options": {"drop_path_rate": 0.5}}
    for further, expected in (({}, [0.5, 0.0]), ({"depth_encoder_options": {"drop_path_rate": 0.25}}, [0.5, 0.25])):
        model = rgbdseg.create_model("esanet_r10_nbt1d", 5, **given, **further)
        assert [max(chances(encoder)) for _, encoder in model.encoder_streams()] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("acnet_resnet18", {"encoder_options": {"output_stride": 16}}, "'test_resnet' ends at 1/16 .* needs 1/32"),
        ("gnn3d_resnet18", {"encoder_options": {"output_stride": 16}}, "'test_resnet' ends at 1/16 .* needs 1/8"),
        ("litefusion_lite0", {"depth_encoder_options": {"output_stride": 32}}, "1/16, 1/32 .* needs 1/4, 1/8, 1/16, "),
        (
            "esanet_r10_nbt1d",
            {"encoder": "test_resnet", "depth_encoder_options": {"output_stride": 16}},
            "features of different channels or sizes",
        ),
    ],
)
def test_options_that_a_family_has_no_use_for(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        rgbdseg.create_model(name, 5, **{**get_variant(name).tiny, **options})


@pytest.mark.parametrize("name", ["acfnet_resnet18", "gald_resnet18", "danet_resnet18", "malleable_resnet18"])
def test_output_stride_of_a_dilated_network(name: str) -> None:
    """It takes the place of the family's, and the dilation that goes with that one is gone."""
    tiny = get_variant(name).tiny
    model = rgbdseg.create_model(name, 5, **tiny, encoder_options={"output_stride": 32, "dilations": None})
    ((_, encoder),) = model.encoder_streams()
    assert encoder.reductions == (4, 8, 16, 32)
    assert {m.dilation for m in encoder.modules() if isinstance(m, nn.Conv2d)} == {(1, 1)}


def test_padding_of_a_swin_transformer_in_hdbformer() -> None:
    images = {name: torch.randn(1, 3, 64, 96) for name in ("rgb", "depth")}
    torch.manual_seed(0)
    plain = rgbdseg.create_model("hdbformer", 5, encoder="swin_tiny_patch4_window7_224").eval()
    other = rgbdseg.create_model(
        "hdbformer", 5, encoder="swin_tiny_patch4_window7_224", encoder_options={"padding": "after_shift"}
    ).eval()
    other.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert not torch.allclose(plain(images).logits, other(images).logits, atol=1e-3)


@pytest.mark.parametrize("key", ["name", "in_chans"])
@pytest.mark.parametrize("name", ["acnet_resnet18", "litefusion_lite0", "deeplabv3plus_resnet18"])
def test_what_the_model_decides_is_no_option(name: str, key: str) -> None:
    with pytest.raises(UsageError, match=f"^encoder_options has '{key}', which the model itself decides about"):
        rgbdseg.create_model(name, 5, encoder_options={key: 1})
