from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rgbdseg
from rgbdseg import models
from rgbdseg.errors import UsageError
from rgbdseg.models._registry import VARIANTS, Variant, get_variant, register_model
from rgbdseg.models.danet import DANet


def test_listing() -> None:
    assert rgbdseg.list_models("sagate_r*") == ["sagate_resnet101", "sagate_resnet18", "sagate_resnet50"]
    assert rgbdseg.list_models("none*") == []
    assert set(rgbdseg.list_models("sagate_*")) < set(rgbdseg.list_models())


def test_options_reach_the_model() -> None:
    model = rgbdseg.create_model("sagate_resnet18", 6, decoder_channels=24)
    assert model.decoder.classifier.weight.shape == (6, 24, 1, 1)
    assert model.decoder.low_level[0].out_channels == 32  # other options keep the builder's values


def test_options_of_a_part_go_with_it() -> None:
    """The options of a variant's decoder do not reach another decoder, those of its encoder no other encoder."""
    with torch.device("meta"):
        queries = rgbdseg.create_model("dinodepth_vit_pico", 5, decoder="eomt", queries=8)
        assert type(queries.decoder).__name__ == "EoMTHead"
        same = rgbdseg.create_model("dinodepth_vit_pico", 5, decoder="dpt", depth="none")
        own = rgbdseg.create_model("dinodepth_vit_pico", 5, depth="none")
        wide = rgbdseg.create_model("dinodepth_vit_pico", 5, depth="none", decoder_options={"channels": 64})
        other = rgbdseg.create_model("dinodepth_vitl16_dinov2_eomt", 5, encoder="vit_pico_patch16_dinov3")
    counts = [sum(p.numel() for p in model.decoder.parameters()) for model in (same, own, wide)]
    assert counts[0] == counts[1] < counts[2]
    assert other.encoder.name == "vit_pico_patch16_dinov3"


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
        ("deeplabv3plus_resnet18", 5, {"inputs": ["rbg"]}, "unknown inputs 'rbg'; did you mean 'rgb'?"),
        (
            "deeplabv3plus_resnet18",
            5,
            {"inputs": "rgb"},
            "inputs is 'rgb'; expected a list (one of: rgb, hha, noise each)",
        ),
        ("deeplabv3plus_resnet18", 5, {"inputs": ["rgb", "rgb"]}, "expected at least one name, and each once"),
        ("sagate", 5, {"encoder": "resnet5"}, "unknown encoder 'resnet5'; did you mean 'resnet50'?"),
        ("sagate", 5, {"encoder": "mixer_s32_224"}, "supported are the timm models of the families: convnext, "),
        ("sagate", 5, {"encoder": "test_resnet", "decoder": "hrnt"}, "unknown decoder 'hrnt'; did you mean 'hrnet'?"),
        ("sagate_resnet18", 5, {"fusion": "gates"}, "unknown fusion 'gates'; did you mean 'gate'?"),
        ("sagate_resnet18", 5, {"second_stream": "noises"}, "unknown second_stream 'noises'; did you mean 'noise'?"),
        (
            "deeplabv3plus_resnet18",
            5,
            {"inputs": ["rgb", "hha"], "depth_convolution": "plain"},
            "2.5D convolutions need inputs=('rgb',), got ('rgb', 'hha')",
        ),
        ("sagate_resnet18", 5, {"decoder": "psp"}, "unknown decoder psp option 'reduced_channels'"),
        ("sagate_resnet18", 5, {"encoder_options": {"dropp": 1}}, "unknown encoder resnet18 option 'dropp'"),
        (
            "sagate",
            5,
            {"encoder": "hrnet_w18", "output_stride": 16},
            "unknown encoder hrnet_w18 option 'output_stride'",
        ),
        (
            "sagate_resnet18",
            5,
            {"decoder_channels": None, "share_projections": None},
            "is None; expected true or false",
        ),
        ("no.such.module:thing", 5, {}, "there is no module 'no' to take the model 'thing' from"),
        ("rgbdseg.models.danet:danet_resnet102", 5, {}, "did you mean 'danet_resnet101'?"),
        (
            "sagate_resnet18",
            5,
            {"output_stride": 12},
            "output stride 12 of encoder 'resnet18' is not one of (8, 16, 32)",
        ),
        ("pap_resnet18", 5, {"iterations": 2.5}, "model option iterations is 2.5; expected an integer"),
        ("pap_resnet18", 5, {"beta": "0.05"}, "model option beta is '0.05'; expected a number"),
        ("pap_resnet18", 5, {"affinity": 1}, "affinity is 1; expected one of: softmax, exp_dist, relu_norm"),
        ("gnn3d_resnet18", 5, {"neighbors": True}, "model option neighbors is True; expected an integer"),
        ("acfnet_resnet18", 5, {"pyramid": "no"}, "model option pyramid is 'no'; expected true or false"),
        ("danet_resnet18", 5, {"dilations": 4}, "dilations is 4; expected a list (an integer each) or null"),
        (
            "padnet_resnet18",
            5,
            {"tasks": "depth"},
            "tasks is 'depth'; expected a list (one of: depth, normals, contours each)",
        ),
        ("padnet_resnet18", 5, {"tasks": ["depht"]}, "unknown tasks 'depht'; did you mean 'depth'?"),
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


def test_names_are_listed_without_torch_and_families_built_without_timm() -> None:
    code = (
        "import sys, rgbdseg; names = rgbdseg.list_models(); assert len(names) > 30; assert 'torch' not in sys.modules;"
        "import rgbdseg.encoders, rgbdseg.models.sagate, rgbdseg.models.danet, rgbdseg.weights.checkpoint;"
        "assert not {'timm', 'torchvision', 'lightning', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_model_of_another_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_models.py").write_text(
        "from rgbdseg.models._registry import Variant\n"
        "from rgbdseg.models.danet import DANet as Mine\n"
        "VARIANTS = {'narrow': Variant(Mine, {'encoder': 'test_resnet', 'channels': 8})}\n"
        "WIDE = Variant(Mine, {'encoder': 'test_resnet', 'channels': 24})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert rgbdseg.create_model("my_models:narrow", 3).decoder.classifier[1].in_channels == 8
    assert rgbdseg.create_model("my_models:narrow", 3, channels=16).decoder.classifier[1].in_channels == 16
    assert rgbdseg.create_model("my_models:WIDE", 3).decoder.classifier[1].in_channels == 24
    assert isinstance(rgbdseg.create_model("my_models:Mine", 3, encoder="test_resnet"), DANet)
    with pytest.raises(UsageError, match="unknown my_models:narrow option 'chanels'; did you mean 'channels'"):
        rgbdseg.create_model("my_models:narrow", 3, chanels=16)


def test_registering_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VARIANTS, "_registered", {})
    register_model("danet_tiny", Variant(DANet, {"encoder": "test_resnet", "channels": 8}))
    assert rgbdseg.list_models("danet_t*") == ["danet_tiny"]
    assert rgbdseg.create_model("danet_tiny", 3).num_classes == 3
    with pytest.raises(UsageError, match="a model named 'danet_tiny' exists already; choose another name"):
        register_model("danet_tiny", get_variant("danet_resnet18"))
    with pytest.raises(UsageError, match="a model named 'danet_resnet18' exists already"):
        register_model("danet_resnet18", Variant(DANet, {"encoder": "test_resnet"}))


def test_options_of_the_encoder_reach_it() -> None:
    model = rgbdseg.create_model("sagate", 3, encoder="test_convnext", encoder_options={"drop_path_rate": 0.3})
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.3)
    gald = rgbdseg.create_model(
        "deeplabv3plus", 3, encoder="test_resnet", decoder="gald", decoder_options={"aggregation": "psp"}
    )
    assert gald.decoder.head.block.aggregation[0].bins == (1, 2, 3, 6)


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
    assert rgbdseg.create_model("sagate_resnet18", 5).input_spec.names == ("rgb", "hha")
    assert rgbdseg.create_model("sagate_resnet18", 5, second_stream="noise").input_spec.names == ("rgb", "noise")
    assert rgbdseg.create_model("deeplabv3plus_resnet18", 5).input_spec.names == ("rgb",)
    control = rgbdseg.create_model("deeplabv3plus_resnet18", 5, inputs=["hha"])
    assert control.input_spec.names == ("hha",)
    with pytest.raises(UsageError, match=r"the model needs images\['hha'\]: expected .* \(B, 3, H, W\); got rgb"):
        control.eval()({"rgb": torch.zeros(1, 3, 32, 32)})
    with pytest.raises(UsageError, match=r"called with tensors by name, such as \{'hha': image\}; got a Tensor"):
        control.eval()(torch.zeros(1, 3, 32, 32))


def test_no_family_imports_another() -> None:
    families = sorted(Path(models.__file__).parent.glob("[!_]*.py"))
    assert len(families) > 20
    for family in families:
        for node in ast.walk(ast.parse(family.read_text())):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            if module.startswith("rgbdseg.models."):
                assert module.startswith("rgbdseg.models._"), f"{family.name} imports {module}"
