from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from rgbdseg.encoders import create_encoder, list_encoders
from rgbdseg.errors import UsageError

# One name for each thing that sets members apart: block, stem, shortcut, attention, anti-aliasing, groups.
FAMILY_MEMBERS = ["resnet18", "resnet26", "resnet50s", "resnet18d", "seresnet18", "resnetblur18", "resnext50_32x4d"]


def randomize(module: nn.Module) -> None:
    """Give normalization layers weights and statistics that make every branch count."""
    generator = torch.Generator().manual_seed(3)
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.weight.data.uniform_(0.5, 1.0, generator=generator)
            child.running_mean.normal_(0, 0.1, generator=generator)


@pytest.mark.parametrize(
    ("name", "output_stride"), [*((name, 32) for name in FAMILY_MEMBERS), ("resnet18", 16), ("resnet50s", 16)]
)
def test_stage_by_stage_equals_timm(name: str, output_stride: int) -> None:
    reference = timm.create_model(name, num_classes=7, output_stride=output_stride).eval()
    randomize(reference)
    encoder = create_encoder(name, output_stride=output_stride).eval()
    weights = {k: v for k, v in reference.state_dict().items() if not k.startswith("fc.")}
    encoder.load_state_dict(weights)  # strict: names are timm's and nothing of the classifier is left
    image = torch.randn(1, 3, 65, 90)
    with torch.no_grad():
        expected = reference.forward_intermediates(image, intermediates_only=True)[1:]
        state = encoder.stem(image)
        for index in range(encoder.num_stages):
            state = encoder.stage(index, state)
            torch.testing.assert_close(state, (expected[index],))
        for feature, stage_output in zip(encoder(image), expected, strict=True):
            torch.testing.assert_close(feature, stage_output)
    assert encoder.channels == tuple(f.shape[1] for f in expected)
    assert encoder.reductions == ((4, 8, 16, 32) if output_stride == 32 else (4, 8, 16, 16))
    sizes = [(-(-65 // r), -(-90 // r)) for r in encoder.reductions]
    assert [tuple(f.shape[-2:]) for f in expected] == sizes


def test_deep_stem_is_the_128_channel_one() -> None:
    encoder = create_encoder("resnet101s")
    assert [tuple(m.weight.shape) for m in encoder.conv1 if isinstance(m, nn.Conv2d)] == [
        (64, 3, 3, 3),
        (64, 64, 3, 3),
        (128, 64, 3, 3),
    ]
    # ResNet-101 has 44,549,160 parameters, 2,049,000 of them in the classifier.
    plain_stem, deep_stem = 9408 + 128, 1728 + 36864 + 73728 + 2 * (64 + 64 + 128)
    first_block_inputs = 64 * 64 + 64 * 256  # the first block reads 128 instead of 64 channels
    expected = 44_549_160 - 2_049_000 - plain_stem + deep_stem + first_block_inputs
    assert sum(p.numel() for p in encoder.parameters()) == expected
    assert encoder.input_conv == "conv1.0"


def test_last_stage_dilations() -> None:
    encoder = create_encoder("resnet50s", output_stride=16, dilations=(2, 4, 8))
    assert [b.conv2.dilation for b in encoder.layer4] == [(2, 2), (4, 4), (8, 8)]
    assert [b.conv2.padding for b in encoder.layer4] == [(2, 2), (4, 4), (8, 8)]
    assert {m.stride for m in encoder.layer4.modules() if isinstance(m, nn.Conv2d)} == {(1, 1)}
    assert encoder.layer4[0].downsample[0].dilation == (1, 1)
    assert {b.conv2.dilation for b in encoder.layer3} == {(1, 1)}


def test_multi_grid_at_output_stride_8() -> None:
    encoder = create_encoder("resnet50", output_stride=8, dilations=(4, 8, 16))
    assert [b.conv2.dilation[0] for b in encoder.layer3] == [1, 2, 2, 2, 2, 2]
    assert [b.conv2.dilation[0] for b in encoder.layer4] == [4, 8, 16]
    assert encoder.reductions == (4, 8, 8, 8)


def test_basic_blocks_dilate_both_convolutions() -> None:
    encoder = create_encoder("resnet18", output_stride=16, dilations=(2, 4, 8)).eval()
    assert [(b.conv1.dilation[0], b.conv2.dilation[0]) for b in encoder.layer4] == [(2, 2), (4, 4)]
    assert encoder(torch.randn(1, 3, 64, 64))[3].shape == (1, 512, 4, 4)


def test_shared_projections_are_the_same_modules() -> None:
    first, second = create_encoder("resnet18"), create_encoder("resnet18")
    second.share_projections(first)
    shared = set(map(id, first.parameters())) & set(map(id, second.parameters()))
    # Stages 2 to 4 have a projection (weight, norm weight, norm bias); stage 1 of a ResNet-18 has none.
    assert len(shared) == 9
    assert second.layer2[0].downsample is first.layer2[0].downsample


@pytest.mark.parametrize(("name", "other"), [("resnet18", "resnet26"), ("hrnet_w18_small", "hrnet_w18_small_v2")])
def test_projections_of_another_encoder_are_refused(name: str, other: str) -> None:
    encoder = create_encoder(name)
    before = list(map(id, encoder.parameters()))
    with pytest.raises(UsageError, match=f"encoder '{name}' .* with '{other}'; expected one of the same name"):
        encoder.share_projections(create_encoder(other))
    assert list(map(id, encoder.parameters())) == before


def test_input_channels() -> None:
    encoder = create_encoder("resnet18", in_chans=1).eval()
    assert encoder.get_submodule(encoder.input_conv).weight.shape == (64, 1, 7, 7)
    assert encoder(torch.randn(1, 1, 32, 32))[0].shape == (1, 64, 8, 8)


def test_weight_tags_are_ignored() -> None:
    assert create_encoder("resnet18.a1_in1k").name == "resnet18"
    assert {"resnet18", "resnet101s"} <= set(list_encoders())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet101x"}, "unknown encoder 'resnet101x'; did you mean 'resnet101"),
        ({"name": "mixer_s32_224"}, "cannot be run stage by stage; supported .* families: convnext, .*resnet"),
        (
            {"name": "resnet18", "output_stride": 4},
            r"output stride 4 of encoder 'resnet18' is not one of \(8, 16, 32\)",
        ),
        ({"name": "resnet18", "dilations": (2,)}, "need an output stride of 8 or 16, got 32"),
        ({"name": "resnet18", "output_stride": 16, "dilations": ()}, "must be one or more positive integers"),
        ({"name": "resnet18", "output_stride": 16, "dilations": (2, 0)}, r"dilations \(2, 0\) of the last stage"),
        ({"name": "resnet18", "in_chans": 0}, "in_chans is 0; expected at least 1"),
    ],
)
def test_errors(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create_encoder(**arguments)
