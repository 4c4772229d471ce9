from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rgbdseg
from rgbdseg.encoders import StagedEncoder, create_encoder
from rgbdseg.encoders.depth_conv import use_depth_convolutions
from rgbdseg.engine.optimizers import parameter_groups
from rgbdseg.errors import UsageError
from rgbdseg.models.malleable import Conv2_5dNet, Malleable
from rgbdseg.nn.conv2_5d.operator import Conv2_5d, DepthConv2d, MalleableConv2_5d
from rgbdseg.recipes import get_recipe
from rgbdseg.weights.imagenet import load_encoder_weights
from rgbdseg.weights.published import load_published, to_published
from tests.models.feed import feed
from tests.models.golden import assert_close, golden_arrays, golden_image, golden_weights

FOCAL_PX = 518.8579011745019


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def depth_convolutions(module: nn.Module) -> dict[str, DepthConv2d]:
    return {name: m for name, m in module.named_modules() if isinstance(m, DepthConv2d)}


def tiny(**options: object) -> Malleable:
    torch.manual_seed(0)
    model = Malleable(3, "test_resnet", decoder_channels=8, **options)  # type: ignore[arg-type]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 0.7)  # residual branches start at zero
    return model


def frame(batch: int = 2, size: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    rgb = torch.randn(batch, 3, size, size, generator=generator)
    depth_m = 1 + 0.3 * torch.rand(batch, 1, size, size, generator=generator)
    depth_m[:, :, : size // 8] = 0
    return rgb, depth_m, torch.tensor([[60.0, 60.0, 32.0, 32.0]]).repeat(batch, 1)


# The network


@pytest.mark.parametrize(
    ("name", "parameters", "entries"),
    [
        ("malleable_resnet101", 100_622_004, 786),
        ("malleable_resnet50", 81_629_876, None),
        ("conv2_5d_resnet101", 100_621_968, None),
    ],
)
def test_parameter_counts(name: str, parameters: int, entries: int | None) -> None:
    with torch.device("meta"):
        model = rgbdseg.create_model(name, 40)
    assert count(model) == parameters
    if entries is not None:
        assert len(model.state_dict()) == entries


def test_parts_and_places_of_the_released_network() -> None:
    with torch.device("meta"):
        model = rgbdseg.create_model("malleable_resnet101", 40)
    assert isinstance(model, Malleable)
    decoder = model.decoder
    parts = (model.encoder, decoder.upsample_1, decoder.embed, decoder.aspp, decoder.merge_module, decoder.task_module)
    assert [count(p) for p in parts] == [48_890_852, 9_438_720, 9_438_720, 4_460_032, 17_700_864, 9_191_424]
    found = depth_convolutions(model.encoder)
    assert list(found) == [f"layer{i}.0.conv2" for i in range(1, 5)]
    assert [(c.window.stride, c.window.dilation, c.pixel_size) for c in found.values()] == [
        (1, 1, 4), (2, 1, 8), (2, 1, 16), (1, 2, 16),
    ]  # fmt: skip
    assert all(isinstance(c, MalleableConv2_5d) and c.fix_center for c in found.values())
    assert [count(c) for c in found.values()] == [110_601, 442_377, 1_769_481, 7_077_897]
    assert [m.dilation for m in (decoder.task_module.layer_1.conv2, decoder.task_module.layer_2.conv2)] == [
        (16, 16)
    ] * 2


def test_pixel_size_of_the_paper_is_the_spacing_of_the_input() -> None:
    with torch.device("meta"):
        model = rgbdseg.create_model("malleable_resnet50", 40, compat="paper", depth_kernels=1)
    found = depth_convolutions(model).values()
    assert [(c.pixel_size, c.depth_kernels, c.compat) for c in found] == [(s, 1, "paper") for s in (4, 4, 8, 16)]


def test_untrained_kernels_are_those_of_the_plain_encoder() -> None:
    """With equal kernels and no depth the masks are 1/5 each: the guided stage is 0.6 times the plain convolution."""
    torch.manual_seed(0)
    plain = create_encoder("test_resnet", output_stride=16)
    guided = copy.deepcopy(plain)
    guide = use_depth_convolutions(guided, "plain", compat="paper")
    rgb, _, camera = frame()
    # Without any reading every pixel belongs to the middle kernel, which is the plain one.
    for ours, theirs in zip(guide.run(guided, rgb, torch.zeros(2, 1, 64, 64), camera[:, 0]), plain(rgb), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_depth_is_taken_at_the_size_of_each_stage() -> None:
    model = tiny().eval()
    rgb, depth_m, camera = frame()
    seen: list[Tensor] = []
    for conv in depth_convolutions(model).values():
        original = conv.masks
        conv.masks = lambda d, f, original=original: (seen.append(d), original(d, f))[1]  # type: ignore[method-assign]
    feed(model, rgb, depth_m, camera)
    # Inputs of the four stages lie at 1/4, 1/4, 1/8 and 1/16.
    assert all(torch.equal(d, depth_m[:, :, ::s, ::s]) for d, s in zip(seen, (4, 4, 8, 16), strict=True))


def test_focal_length_follows_the_camera_unless_fixed() -> None:
    rgb, depth_m, camera = frame()
    last: list[Tensor] = []
    free, fixed = tiny().eval(), tiny(fixed_focal_px=60.0).eval()
    for model, factor in ((free, 1), (free, 2), (fixed, 2)):
        with model.encoder.register_forward_hook(lambda _m, _i, out: last.append(out[-1])):
            feed(model, rgb, depth_m, factor * camera)
    assert (last[0] - last[1]).abs().max() > 1e-3 * last[0].std()
    assert torch.equal(last[0], last[2])


def test_runs_without_data() -> None:
    with torch.device("meta"):
        model = tiny().train()
    output = feed(model, *(v.to("meta") for v in frame()))
    assert output.logits.shape == (2, 3, 64, 64)
    output.logits.sum().backward()


def test_depth_is_scaled_in_training_only() -> None:
    rgb, depth_m, camera = frame()
    scaled, plain = tiny(training_depth_scale=0.5), tiny()
    assert torch.equal(
        feed(scaled.eval(), rgb, depth_m, camera).logits, feed(plain.eval(), rgb, depth_m, camera).logits
    )
    expected = feed(plain.train(), rgb, depth_m * 0.5, camera).logits
    assert torch.equal(feed(scaled.train(), rgb, depth_m, camera).logits, expected)


def test_gradient_reaches_every_parameter() -> None:
    model = tiny().train()
    output = feed(model, *frame())
    (output.logits.square().mean() + output.aux[0].value.square().mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_depth_without_a_reading(bad: float) -> None:
    rgb, depth_m, camera = frame()
    assert feed(tiny().eval(), rgb, torch.full_like(depth_m, bad), camera).logits.isfinite().all()


def test_missing_inputs() -> None:
    rgb, depth_m, camera = frame()
    model = tiny()
    with pytest.raises(UsageError, match=r"needs a camera besides the images: expected intrinsics \(B, 4\)"):
        feed(model, rgb, depth_m)
    with pytest.raises(UsageError, match=r"the camera has shape \(1, 4\)"):
        feed(model, rgb, depth_m, camera[:1])
    with pytest.raises(UsageError, match=r"needs images\['depth'\]: expected a tensor \(B, 1, H, W\); got rgb"):
        model({"rgb": rgb}, camera)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fixed_focal_px": 0.0}, "fixed_focal_px is 0.0; expected a positive number of pixels"),
        ({"training_depth_scale": -1.0}, "training_depth_scale is -1.0; expected a positive number"),
        ({"norm_momentum": 0.0}, "norm_momentum is 0.0; expected a number above 0 and at most 1"),
        ({"depth_kernels": 4}, "depth_kernels is 4; expected an odd integer"),
        ({"compat": "papre"}, "unknown compat 'papre'; did you mean 'paper'?"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        tiny(**options)
    assert message in str(caught.value)


# 2.5D convolutions in other models


def test_option_of_another_family() -> None:
    model = rgbdseg.create_model("deeplabv3plus_resnet18", 3, depth_convolution="plain")
    depth = model.input_spec.stream("depth")
    assert (depth.raster, depth.divide_by, depth.mean, depth.std) == ("depth_m", 1.0, (0.0,), (1.0,))
    assert model.input_spec.needs_camera
    found = depth_convolutions(model)
    assert list(found) == [f"encoder.layer{i}.0.conv1" for i in range(1, 5)]
    assert all(isinstance(c, Conv2_5d) for c in found.values())
    assert not depth_convolutions(rgbdseg.create_model("deeplabv3plus_resnet18", 3))
    with pytest.raises(UsageError, match=r"need inputs=\('rgb',\), got \('hha',\)"):
        rgbdseg.create_model("deeplabv3plus_resnet18", 3, depth_convolution="plain", inputs=["hha"])
    with pytest.raises(UsageError, match="unknown depth_convolution 'malleabel'; did you mean 'malleable'"):
        rgbdseg.create_model("deeplabv3plus_resnet18", 3, depth_convolution="malleabel")


def test_encoder_that_cannot_take_them() -> None:
    with pytest.raises(UsageError, match=r"'resnext50_32x4d' cannot take 2\.5D convolutions: layer1\.0\.conv2"):
        use_depth_convolutions(create_encoder("resnext50_32x4d"))
    encoder = create_encoder("test_resnet")
    encoder.stage_name = lambda index: StagedEncoder.stage_name(encoder, index)  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="the stages of encoder 'test_resnet' are not submodules"):
        use_depth_convolutions(encoder)


# Weights


def test_imagenet_weights_go_to_every_kernel(tmp_path: Path) -> None:
    source = create_encoder("test_resnet")
    for parameter in source.parameters():
        nn.init.normal_(parameter)
    torch.save(source.state_dict(), tmp_path / "imagenet.pth")
    model = tiny()
    nn.init.constant_(model.encoder.get_parameter("layer2.0.conv1.temperature"), 0.4)
    (report,) = load_encoder_weights(model, tmp_path / "imagenet.pth")
    assert report.stream == "rgb"
    for name, conv in depth_convolutions(model.encoder).items():
        for weight in conv.weights:
            assert torch.equal(weight, source.get_parameter(f"{name}.weight"))
    assert float(model.encoder.get_parameter("layer2.0.conv1.temperature").detach()) == pytest.approx(0.4)
    assert torch.equal(model.encoder.get_parameter("conv1.0.weight"), source.get_parameter("conv1.0.weight"))


def test_published_layout_round_trip() -> None:
    model, other = tiny(), tiny()
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    published = to_published(model)
    assert {"backbone.layer1.0.conv1.weight_0", "aspp.map_convs.3.weight", "task_module.downsample.0.weight"} <= set(
        published
    )
    load_published(other, published)
    for value, expected in zip(other.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(value, expected)


@pytest.fixture(scope="module")
def golden() -> tuple[Malleable, tuple[Tensor, Tensor, Tensor], dict[str, np.ndarray]]:
    depth_m = torch.from_numpy(golden_arrays("malleable_resnet101", "input")["depth"])
    model = rgbdseg.create_model("malleable_resnet101", 40)
    load_published(model, golden_weights("malleable_resnet101"))
    assert isinstance(model, Malleable)
    rgb = golden_image("rgb", (2, 3, 96, 128), 11)
    camera = torch.tensor([[FOCAL_PX, FOCAL_PX, 64.0, 48.0]]).repeat(2, 1)
    return model.eval(), (rgb, depth_m, camera), golden_arrays("malleable_resnet101", "output")


def test_golden_network(golden: tuple[Malleable, tuple[Tensor, Tensor, Tensor], dict[str, np.ndarray]]) -> None:
    model, (rgb, depth_m, camera), expected = golden
    stages: list[Tensor] = []
    hooks = [
        model.encoder.get_submodule(f"layer{i}").register_forward_hook(lambda _m, _i, out: stages.append(out))
        for i in range(1, 5)
    ]
    with torch.no_grad():
        logits = feed(model, rgb, depth_m, camera).logits
    for hook in hooks:
        hook.remove()
    assert_close(logits[:1, :, ::8, ::8], expected["logits"], 1e-3)
    assert_close(logits.mean((2, 3)), expected["logits_class_mean"], 1e-3)
    for index, stage in enumerate(stages):
        assert_close(stage[:1].mean((2, 3)), expected[f"stage{index + 1}_channel_mean"], 1e-3)
    # As many differ between float32 and float64 in the published code itself.
    assert (logits[:1].argmax(1).numpy() != expected["logits_argmax"]).mean() < 3e-4


@pytest.mark.slow
def test_golden_network_float64(golden: tuple[Malleable, tuple[Tensor, Tensor, Tensor], dict[str, np.ndarray]]) -> None:
    model, inputs, expected = golden
    with torch.no_grad():
        logits = feed(copy.deepcopy(model).double(), *(v.double() for v in inputs)).logits
    assert_close(logits[:1, :, ::8, ::8], expected["logits_float64"], 1e-5)


# Recipes


def test_recipe_is_the_released_one() -> None:
    config = get_recipe("malleable-nyuv2")
    assert config.schedule.iterations == 39_200
    assert config.schedule.warmup_epochs == 0
    assert config.augmentation.scales == (0.75, 1.0, 1.25, 1.5, 1.75)
    assert (config.loss.auxiliary_weight, config.loss.loss_scale) == (0.4, 1 / 8)
    assert (config.evaluation.combination, config.evaluation.crop_size) == ("malleable", (480, 480))
    plain = get_recipe("conv2_5d-nyuv2")
    assert plain.model.name == "conv2_5d_resnet101"
    model = dataclasses.replace(plain, recipe=config.recipe, model=config.model)
    assert model == config
    with torch.device("meta"):
        network = rgbdseg.create_model(plain.model.name, 40, **plain.model.options)
    assert isinstance(network, Conv2_5dNet)
    assert {m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {0.01}


def test_assignment_parameters_do_not_decay() -> None:
    config = get_recipe("malleable-nyuv2").optimizer
    model = tiny()
    groups = {str(group["name"]): group for group in parameter_groups(model, config)}
    assert groups["backbone_no_decay"]["weight_decay"] == 0
    free = {id(p) for p in groups["backbone_no_decay"]["params"]}  # type: ignore[attr-defined]
    for conv in depth_convolutions(model).values():
        assert isinstance(conv, MalleableConv2_5d)
        assert {id(conv.depth_anchor), id(conv.temperature), id(conv.kernel_weight)} <= free
        assert not {id(w) for w in conv.weights} & free
