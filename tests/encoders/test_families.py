"""What holds for the encoders of every family, tried with small members at a size that is not square."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import timm.models
import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.encoders import StagedEncoder, State, create_encoder, list_encoders
from rgbdseg.encoders._registry import TIMM_MODULES
from rgbdseg.encoders.hrnet import HRNetEncoder
from rgbdseg.errors import UsageError
from rgbdseg.weights import imagenet as weights

SIZE = (64, 96)
# Members of every family, one for each thing that sets them apart.
MEMBERS = [
    "resnet18",
    "resnetaa34d",
    "hrnet_w18_small",
    "test_convnext",
    "convnext_zepto_rms_ols",
    "convnextv2_atto",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "pvt_v2_b0",
    "pvt_v2_b2_li",
    "efficientvit_b0",
    "efficientvit_l1",
    "efficientnet_lite0",
    "mobilenetv3_small_050",
    "tf_mobilenetv3_small_minimal_100",
    "mobilenetv4_conv_small_035",
    "mobilenetv4_conv_aa_medium",
    "vgg11",
    "vgg11_bn",
    "test_vit",
    "vit_tiny_patch16_dinov3_qkvb",
]
members = pytest.mark.parametrize("name", MEMBERS)


def randomize(module: nn.Module) -> None:
    """Make every branch count: scales and shifts of layers that start as nothing, statistics of normalizations."""
    generator = torch.Generator().manual_seed(3)
    for name, value in module.named_parameters():
        if value.ndim <= 1:
            low, high = (-0.2, 0.2) if name.endswith("bias") else (0.5, 1.0)
            value.data.uniform_(low, high, generator=generator)
    for name, value in module.named_buffers():
        if name.endswith("running_mean"):
            value.normal_(0, 0.1, generator=generator)


def is_plain_transformer(name: str) -> bool:
    return timm.models.is_model_in_modules(name, ["vision_transformer", "eva"])


def whole_network(name: str) -> nn.Module:
    """The timm network with its classifier, in the form that takes any image size."""
    options: dict[str, Any] = {}
    if name.startswith("swin"):
        options = {"strict_img_size": False, "always_partition": True}
    elif is_plain_transformer(name):
        options = {"dynamic_img_size": True}
    elif name.startswith("vgg"):
        options = {"mlp_ratio": 1 / 64}  # narrow layers between the features and the classifier
    network = timm.create_model(name, num_classes=5, **options).eval()
    randomize(network)
    return network


def timm_features(network: nn.Module, name: str, image: Tensor) -> list[Tensor]:
    """The features that the encoder has, as timm computes them."""
    if is_plain_transformer(name):
        quarters = [round(len(network.blocks) * share / 4) - 1 for share in (1, 2, 3, 4)]
        normed: list[Tensor] = network.forward_intermediates(image, quarters, norm=True, intermediates_only=True)
        return normed
    if name.startswith("hrnet"):
        network.incre_modules = None  # leaves the branches as they are
    features = network.forward_intermediates(image, intermediates_only=True)
    if name.startswith("vgg"):
        return [functional.max_pool2d(feature, 2) for feature in features[1:5]]
    return features[-4:]


def encoder_like(network: nn.Module, name: str) -> StagedEncoder:
    """An encoder that took the weights of the whole network as from a file; refused if a name or shape does not fit."""
    encoder = create_encoder(name).eval()
    model = SimpleNamespace(encoder_streams=lambda: [("rgb", encoder)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "read_state_dict", lambda path: network.state_dict())
        (report,) = weights.load_encoder_weights(model, "network.safetensors")  # type: ignore[arg-type]
    assert report.tensors == len(encoder.state_dict())
    assert any(entry.startswith(encoder.classifier) for entry in report.dropped)
    if isinstance(encoder, HRNetEncoder):
        encoder.resize = "nearest"  # as in the classification network
    return encoder


def change(state: State, function: Callable[[Tensor], Tensor]) -> State:
    return tuple(function(x) for x in state)


def test_every_family_has_a_member_here() -> None:
    covered = {m for m in TIMM_MODULES for name in MEMBERS if timm.models.is_model_in_modules(name, [m])}
    assert covered == set(TIMM_MODULES)


@members
def test_stage_by_stage_equals_timm(name: str) -> None:
    torch.manual_seed(0)
    network = whole_network(name)
    encoder = encoder_like(network, name)
    image = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        expected = timm_features(network, name, image)
        states, state = [], encoder.stem(image)
        for index in range(encoder.num_stages):
            before = change(state, torch.clone)
            following = encoder.stage(index, state)
            for kept, original in zip(state, before, strict=True):
                assert torch.equal(kept, original)  # a caller may use a state again
            state = following
            states.append(state)
            assert tuple(x.shape[1] for x in state) == encoder.state_channels(index)
        for features in (encoder.collect(states), encoder(image)):
            for feature, wanted in zip(features, expected, strict=True):
                assert wanted.std() > 1e-3
                torch.testing.assert_close(feature, wanted, rtol=1e-4, atol=1e-4)
    assert encoder.channels == tuple(feature.shape[1] for feature in expected)
    assert [tuple(f.shape[-2:]) for f in expected] == [(64 // r, 96 // r) for r in encoder.reductions]
    assert not encoder.rectified or min(f.min() for f in expected) >= 0


@members
def test_any_size_rounds_up(name: str) -> None:
    encoder = create_encoder(name).eval()
    assert encoder.size_divisor == 1
    with torch.no_grad():
        features = encoder(torch.randn(1, 3, 65, 43))
    assert [tuple(f.shape[-2:]) for f in features] == [(-(-65 // r), -(-43 // r)) for r in encoder.reductions]


@members
def test_a_replaced_state_influences_what_follows(name: str) -> None:
    encoder = create_encoder(name).eval()
    randomize(encoder)
    with torch.no_grad():
        plain = encoder.stem(torch.randn(1, 3, *SIZE))
        for index in range(encoder.num_stages):
            changed = encoder.stage(index, change(plain, lambda x: x + torch.randn_like(x)))
            plain = encoder.stage(index, plain)
            for one, other in zip(changed, plain, strict=True):
                assert (one - other).abs().max() > 1e-3


@members
def test_gradients_reach_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    encoder = create_encoder(name, in_chans=1).train()
    randomize(encoder)
    for module in encoder.modules():
        if type(module).__name__ == "DropPath":
            module.drop_prob = 0.0
    image = torch.randn(2, 1, *SIZE, requires_grad=True)
    features = encoder(image)
    sum((f * torch.randn_like(f)).mean() for f in features).backward()
    assert encoder.get_submodule(encoder.input_conv).weight.shape[1] == encoder.in_chans == 1
    assert image.grad is not None
    assert image.grad.abs().max() > 0
    assert [n for n, p in encoder.named_parameters() if p.grad is None] == []
    silent = [n for n, p in encoder.named_parameters() if not p.grad.abs().max() > 0]
    assert silent == []


@pytest.mark.parametrize("name", ["test_convnext", "mobilenetv4_conv_small_035"])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilation_computes_what_strides_leave_out(name: str, output_stride: int) -> None:
    encoder = create_encoder(name, output_stride=output_stride).eval()
    plain = create_encoder(name).eval()
    randomize(encoder)
    plain.load_state_dict(encoder.state_dict())
    assert encoder.reductions == tuple(min(reduction, output_stride) for reduction in (4, 8, 16, 32))
    image = torch.randn(1, 3, 64, 128)
    with torch.no_grad():
        for dense, coarse, reduction in zip(encoder(image), plain(image), plain.reductions, strict=True):
            # Every so many rows and columns of the dense feature are the coarse one; which of them depends on padding.
            step = max(1, reduction // output_stride)
            phases = [dense[..., start::step, start::step] for start in range(step)]
            assert min((phase - coarse).abs().max() for phase in phases) < 1e-5


@pytest.mark.parametrize("name", ["hrnet_w18", "swin_tiny_patch4_window7_224", "pvt_v2_b0", "efficientvit_b0", "vgg11"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_stride": 16}, "unknown encoder {} option 'output_stride'"),
        ({"dilations": (2, 4)}, "unknown encoder {} option 'dilations'"),
    ],
)
def test_families_without_dilation(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message.format(name)):
        create_encoder(name, **options)


def test_convnext_refuses_other_strides() -> None:
    with pytest.raises(UsageError, match=r"output stride 4 of encoder 'test_convnext' is not one of \(8, 16, 32\)"):
        create_encoder("test_convnext", output_stride=4)


@pytest.mark.parametrize("name", ["mixer_s32_224", "efficientvit_m0", "densenet121"])
def test_other_families_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"'{name}' cannot be run stage by stage; supported .* families: ") as error:
        create_encoder(name)
    assert all(family in str(error.value) for family in TIMM_MODULES)


def test_listed_encoders_are_all_of_the_families() -> None:
    assert {"hrnet_w48", "convnext_tiny", "swinv2_tiny_window8_256", "pvt_v2_b2", "vgg16_bn"} <= set(list_encoders())


def test_swin_shifts_every_second_block_of_every_stage() -> None:
    encoder = create_encoder("swin_tiny_patch4_window7_224")
    for layer in encoder.layers:
        assert [block.shift_size for block in layer.blocks] == [(0, 0), (3, 3)] * (len(layer.blocks) // 2)


def test_convnext_reads_the_last_pixels_of_sizes_that_do_not_divide() -> None:
    encoder = create_encoder("test_convnext").eval()
    image = torch.randn(1, 3, 33, 37)
    padded = functional.pad(image, (0, 27, 0, 31))  # to 64x64: the first features see the same zeros
    with torch.no_grad():
        (first,), (wanted,) = encoder.stem(image), encoder.stem(padded)
    assert first.shape[-2:] == (9, 10)
    torch.testing.assert_close(first, wanted[..., :9, :10])


def test_vgg_stages_end_with_pooling() -> None:
    encoder = create_encoder("vgg11").eval()
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        first = functional.max_pool2d(functional.conv2d(image, *encoder.features[0].parameters(), padding=1).relu(), 2)
        torch.testing.assert_close(encoder.stem(image), (first,))
        second = functional.max_pool2d(functional.conv2d(first, *encoder.features[3].parameters(), padding=1).relu(), 2)
        torch.testing.assert_close(encoder.stage(0, (first,)), (second,))


@pytest.mark.slow
@members
@pytest.mark.parametrize("training", [False, True])
def test_compile_without_graph_breaks(name: str, training: bool) -> None:
    encoder = create_encoder(name).train(training)
    for module in encoder.modules():
        if type(module).__name__ == "DropPath":
            module.drop_prob = 0.0
    reference = copy.deepcopy(encoder)
    torch._dynamo.reset()
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    image = torch.randn(2, 3, *SIZE)
    for feature, wanted in zip(compiled(image), reference(image), strict=True):
        torch.testing.assert_close(feature, wanted)


@pytest.mark.slow
@members
def test_export(name: str) -> None:
    encoder = create_encoder(name).eval()
    automatic = torch.export.Dim.AUTO
    # The arithmetic of windows takes too long with dynamic image sizes.
    dynamic = (0,) if name.startswith("swin") else (0, 2, 3)
    shapes = (dict.fromkeys(dynamic, automatic),)
    exported = torch.export.export(encoder, (torch.randn(2, 3, *SIZE),), dynamic_shapes=shapes).module()
    other = torch.randn(3, 3, *(SIZE if dynamic == (0,) else (97, 64)))
    for feature, wanted in zip(exported(other), encoder(other), strict=True):
        torch.testing.assert_close(feature, wanted)


def drop_path_rates(encoder: StagedEncoder) -> list[float]:
    return [module.drop_prob for module in encoder.modules() if type(module).__name__ == "DropPath"]


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "test_convnext",
        "swin_tiny_patch4_window7_224",
        "swinv2_tiny_window8_256",
        "pvt_v2_b0",
        "efficientnet_lite0",
        "mobilenetv3_small_050",
    ],
)
def test_drop_path_rate_rises_to_the_given_one(name: str) -> None:
    rates = drop_path_rates(create_encoder(name, drop_path_rate=0.4))
    assert rates == sorted(rates)
    assert 0.3 < rates[-1] < 0.4 + 1e-6
    default = 0.1 if name.startswith("swin") else 0.0
    assert max(drop_path_rates(create_encoder(name)), default=0.0) == pytest.approx(default)


def test_option_values_are_checked() -> None:
    name = "swin_tiny_patch4_window7_224"
    with pytest.raises(UsageError, match=rf"encoder {name} option drop_path_rate is '0\.1'; expected a number"):
        create_encoder(name, drop_path_rate="0.1")
    with pytest.raises(UsageError, match="unknown resize 'neares'; did you mean 'nearest'"):
        create_encoder("hrnet_w18_small", resize="neares")
