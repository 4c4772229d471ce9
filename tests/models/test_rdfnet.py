from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import rgbdseg
from rgbdseg.engine.optimizers import parameter_groups
from rgbdseg.errors import UsageError
from rgbdseg.losses import segmentation_loss
from rgbdseg.models.rdfnet import (
    ChainedResidualPooling,
    MultiModalFusion,
    RDFNet,
    Refinement,
    ResidualConvUnit,
)
from rgbdseg.nn.resize import resize_by_rule
from rgbdseg.recipes import get_recipe
from rgbdseg.sample import RGBDSample
from rgbdseg.transforms.pack import pack
from rgbdseg.weights.published import load_published, to_published
from tests.models.feed import feed
from tests.models.golden import assert_close, golden_arrays, golden_image, golden_weights


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def tiny(**options: object) -> RDFNet:
    torch.manual_seed(0)
    model = RDFNet(3, "test_resnet", width=8, **options)  # type: ignore[arg-type]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)  # residual branches start at zero
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return model


def images(batch: int = 2, height: int = 64, width: int = 96) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    rgb, hha = torch.randn(2, batch, 3, height, width, generator=generator)
    return rgb, hha


def identity(conv: nn.Conv2d, factor: float = 1.0) -> None:
    nn.init.zeros_(conv.weight)
    for channel in range(conv.out_channels):
        conv.weight.data[channel, channel, 1, 1] = factor


# The blocks


def test_residual_unit_carries_what_came_in() -> None:
    unit = ResidualConvUnit(2)
    for parameter in unit.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(1, 2, 4, 5)
    assert torch.equal(unit(x), x)  # negative values too
    identity(unit.conv1, -1.0)
    identity(unit.conv2, 10.0)
    unit.conv1.bias.data[:] = 3.0  # type: ignore[union-attr]
    before = x.clone()
    torch.testing.assert_close(unit(x), x + 10 * (3 - x.clamp(min=0)).clamp(min=0))
    assert torch.equal(x, before)
    assert unit.conv2.bias is None


def test_pooling_is_chained_and_starts_rectified() -> None:
    pooling = ChainedResidualPooling(1, stages=2)
    for conv in pooling.convs:
        identity(conv)
    x = torch.zeros(1, 1, 11, 11) - 5
    x[0, 0, 5, 5] = 2.0
    once = functional.max_pool2d(x.clamp(min=0), 5, 1, 2)
    widest = functional.max_pool2d(x.clamp(min=0), 9, 1, 4)  # a pooling of a pooling
    torch.testing.assert_close(pooling(x), x.clamp(min=0) + once + widest)
    assert pooling(x)[0, 0, 5, 9].item() == 2.0  # parallel pooling would not reach that far


def test_pooling_pads_with_nothing() -> None:
    """A negative map stays what it is at the border: zeros in the padding would win there."""
    pooling = ChainedResidualPooling(1, stages=2)
    identity(pooling.convs[0], -1.0)
    identity(pooling.convs[1])
    output = pooling(torch.full((1, 1, 6, 7), 3.0))
    torch.testing.assert_close(output, torch.full((1, 1, 6, 7), 3.0 - 3.0 - 3.0))


def test_fusion_is_a_sum_with_one_pooling() -> None:
    torch.manual_seed(2)
    fusion = MultiModalFusion(6, 4).double().eval()
    swapped = copy.deepcopy(fusion)
    swapped.rgb, swapped.geometry = fusion.geometry, fusion.rgb
    rgb, geometry = torch.randn(2, 2, 6, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(swapped(geometry, rgb), fusion(rgb, geometry))
    total = (fusion.rgb(rgb) + fusion.geometry(geometry)).clamp(min=0)
    expected = total + fusion.pooling.convs[0](functional.max_pool2d(total, 5, 1, 2))
    torch.testing.assert_close(fusion(rgb, geometry), expected)
    assert count(fusion) == 2 * (6 * 4 + 5 * 9 * 16 + 2 * 4) + 9 * 16


def test_refinement_takes_the_size_of_the_finer_map() -> None:
    step = Refinement(4, 6, "bicubic").double()
    torch.manual_seed(3)
    for parameter in step.parameters():
        nn.init.normal_(parameter, std=0.2)
    fused, coarser = torch.randn(1, 4, 29, 39).double(), torch.randn(1, 6, 15, 20).double()
    raised = functional.interpolate(step.coarse(coarser), (29, 39), mode="bicubic", align_corners=False)
    expected = step.output(step.pooling(step.lateral(step.units(fused)) + raised))
    torch.testing.assert_close(step(fused, coarser), expected)


def test_bicubic_coefficient() -> None:
    """Twice as large, the weights at a quarter pixel are those of a = -0.75."""
    impulse = torch.zeros(1, 1, 1, 8)
    impulse[..., 4] = 1.0
    t = torch.tensor([1.25, 0.75, 0.25, 0.25, 0.75, 1.25])
    a = -0.75
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
    expected = torch.where(t <= 1, near, far)
    torch.testing.assert_close(resize_by_rule(impulse, (1, 16), "bicubic")[0, 0, 0, 6:12], expected)


# The encoders


def test_original_strides_and_pooling() -> None:
    with torch.device("meta"):
        caffe = rgbdseg.create_model("rdfnet_resnet50", 40)
        modern = rgbdseg.create_model("rdfnet_resnet50", 40, conventions="torchvision")
        shapes = {}
        for size in ((480, 640), (466, 626)):
            fused = caffe.eval().encode(torch.empty(1, 3, *size), torch.empty(1, 3, *size))
            shapes[size] = [tuple(f.shape[1:]) for f in fused]
            assert caffe.classify(fused).shape == (1, 40, *fused[0].shape[-2:])
    assert shapes[480, 640] == [(256, 120, 160), (256, 60, 80), (256, 30, 40), (512, 15, 20)]
    assert shapes[466, 626] == [(256, 116, 156), (256, 58, 78), (256, 29, 39), (512, 15, 20)]
    for model, first, second in ((caffe, 2, 1), (modern, 1, 2)):
        for stage in ("layer2", "layer3", "layer4"):
            block = model.rgb_encoder.get_submodule(f"{stage}.0")
            assert (block.conv1.stride[0], block.conv2.stride[0], block.downsample[0].stride[0]) == (first, second, 2)
    pools = [(m.rgb_encoder.maxpool.padding, m.rgb_encoder.maxpool.ceil_mode) for m in (caffe, modern)]
    assert pools == [(0, True), (1, False)]


def test_frozen_normalization_keeps_its_statistics_and_learns_its_weights() -> None:
    model = tiny()
    before = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    output = feed(model, *images())  # as built, without a call to train()
    output.logits.square().mean().backward()
    feed(model.train(), *images())
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    assert model.rgb_encoder.layer1[0].bn1.weight.grad.abs().max() > 0
    assert all(m.training for m in model.modules() if isinstance(m, nn.Dropout))
    thawed = tiny(freeze_norm=False)
    feed(thawed.train(), *images())
    assert any(not torch.equal(thawed.state_dict()[k], v) for k, v in before.items())
    assert not tiny(conventions="torchvision").freeze_norm


def test_input_of_caffe() -> None:
    rgb = torch.tensor([10, 128, 255], dtype=torch.uint8).view(3, 1, 1)
    hha = torch.tensor([0, 100, 255], dtype=torch.uint8).view(3, 1, 1)
    with torch.device("meta"):
        spec = rgbdseg.create_model("rdfnet_resnet18", 2).input_spec
    batch = pack([RGBDSample(rgb, hha=hha)], spec)
    assert batch.images["rgb"][0, :, 0, 0].tolist() == pytest.approx([127, 0, -118], abs=1e-4)
    assert set(batch.images) == {"rgb", "hha"}
    assert batch.images["hha"][0, :, 0, 0].tolist() == pytest.approx([-132.431, 5.924, 136.523], abs=1e-4)


# Training


def test_recipe_asks_at_a_quarter_of_the_image_only() -> None:
    model = tiny().train()
    output = feed(model, *images())
    assert [(a.name, tuple(a.value.shape)) for a in output.aux] == [("stride4", (2, 3, 16, 24))]
    label = torch.randint(0, 3, (2, 64, 96), generator=torch.Generator().manual_seed(4))
    label[:, :9] = 255
    loss = segmentation_loss(output, label, get_recipe("rdfnet-nyuv2").loss).total
    expected = functional.cross_entropy(output.aux[0].value, label[:, 2::4, 2::4], ignore_index=255)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(output.logits, resize_by_rule(output.aux[0].value, (64, 96), "bicubic"))


def test_recipe_gives_the_encoders_a_tenth_of_the_rate() -> None:
    with torch.device("meta"):
        model = rgbdseg.create_model("rdfnet_resnet101", 40)
    groups = parameter_groups(model, get_recipe("rdfnet-nyuv2").optimizer)
    rates: dict[float, int] = {}
    for group in groups:
        assert group["weight_decay"] == 5e-4  # biases and normalization decay, too
        rate = round(group["lr"], 9)  # type: ignore[call-overload]
        rates[rate] = rates.get(rate, 0) + sum(p.numel() for p in group["params"])  # type: ignore[attr-defined]
    assert rates == {1e-5: 85_000_320, 1e-4: 102_126_888}


def test_new_layers_start_small() -> None:
    torch.manual_seed(0)
    model = rgbdseg.create_model("rdfnet_resnet18", 2)
    weights = torch.cat([m.weight.flatten() for m in model.refinements.modules() if isinstance(m, nn.Conv2d)])
    assert weights.std().item() == pytest.approx(0.01, rel=0.02)
    assert all(not m.bias.any() for m in model.classifier.modules() if isinstance(m, nn.Conv2d) and m.bias is not None)


# The network


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("rdfnet_resnet50", 149_142_952),
        ("rdfnet_resnet101", 187_127_208),
        ("rdfnet_resnet152", 218_414_504),
    ],
)
def test_parameters(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = rgbdseg.create_model(name, 40)
    assert isinstance(model, RDFNet)
    assert count(model) == parameters
    assert [count(f) for f in model.fusions] == [6_620_160, 6_751_232, 7_013_376, 28_051_456]
    # The units that refine the coarser map count here; in the paper they end the coarser step.
    assert count(model.refinements) + count(model.classifier) == 53_690_664
    assert count(model.classifier) == 4 * 9 * 256**2 + 2 * 256 + 40 * 257


def spelled_by_letters(name: str) -> str:
    """The name in the release with ResNet-50."""
    return re.sub(r"([34])b(\d)_", lambda m: f"{m[1]}{chr(ord('a') + int(m[2]))}_", name)


def test_published_names_of_resnet50() -> None:
    def make() -> RDFNet:
        model = rgbdseg.create_model("rdfnet_resnet50", 2, width=4)
        assert isinstance(model, RDFNet)
        return model.eval()

    source, target = make(), make()
    for name, value in source.state_dict().items():
        if value.is_floating_point():
            value.uniform_(0.5, 1.0) if "running" in name else value.normal_(std=0.05)
    weights = {spelled_by_letters(name): value for name, value in to_published(source).items()}
    assert {"RGBres3d_branch2a.weight", "DEPbn4f_branch2c.running_var", "RGBscale5c_branch2b.bias"} < set(weights)
    assert not [name for name in weights if re.search(r"\db\d", name)]
    without = {name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}
    load_published(target, without)  # Caffe counts no batches
    assert torch.equal(feed(source, *images(1)).logits, feed(target, *images(1)).logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "model option width is 0"),
        ({"conventions": "cafe"}, "unknown conventions 'cafe'; did you mean 'caffe'"),
        ({"resize": "bicubik"}, "unknown resize 'bicubik'; did you mean 'bicubic'"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        rgbdseg.create_model("rdfnet_resnet18", 3, **options)


# Parity with the published definition


@pytest.fixture(scope="module")
def golden() -> tuple[RDFNet, Tensor, Tensor, dict[str, np.ndarray]]:
    """The released network with the weights of the golden case, and its inputs and outputs."""
    with torch.device("meta"):
        model = rgbdseg.create_model("rdfnet_resnet101", 40)
    model.to_empty(device="cpu")
    load_published(model, golden_weights("rdfnet_resnet101"))
    rgb, hha = (golden_image(name, (2, 3, 96, 128), 7) for name in ("rgb", "hha"))
    assert isinstance(model, RDFNet)
    return model.eval(), rgb, hha, golden_arrays("rdfnet_resnet101", "output")


def test_parity_float32(golden: tuple[RDFNet, Tensor, Tensor, dict[str, np.ndarray]]) -> None:
    model, rgb, hha, expected = golden
    with torch.no_grad():
        fused = model.encode(rgb, hha)
        logits = model.classify(fused)
        torch.testing.assert_close(feed(model, rgb, hha).logits, resize_by_rule(logits, (96, 128), "bicubic"))
    assert_close(logits[:1, :, ::2, ::2], expected["logits"], 1e-3)
    assert_close(logits.mean((2, 3)), expected["logits_class_mean"], 1e-3)
    assert np.array_equal(logits[:1].argmax(1).numpy(), expected["logits_argmax"])
    for index, feature in enumerate(fused):
        assert_close(feature[:1].mean((2, 3)), expected[f"Fuse{4 * 2**index}_feat_channel_mean"], 1e-3)


@pytest.mark.parametrize("rule", ["bilinear", "bilinear_aligned"])
def test_parity_of_the_other_resize_rules(
    golden: tuple[RDFNet, Tensor, Tensor, dict[str, np.ndarray]], rule: str
) -> None:
    model, rgb, hha, expected = golden
    for refinement in model.refinements:
        refinement.resize = rule
    with torch.no_grad():
        logits = model.classify(model.encode(rgb[:1], hha[:1]))
    for refinement in model.refinements:
        refinement.resize = "bicubic"
    assert_close(logits[:, :, ::2, ::2], expected[f"logits_{rule}"], 1e-3)


@pytest.mark.slow
def test_parity_float64(golden: tuple[RDFNet, Tensor, Tensor, dict[str, np.ndarray]]) -> None:
    model, rgb, hha, expected = golden
    with torch.no_grad():
        wide = copy.deepcopy(model).double()
        logits = wide.classify(wide.encode(rgb.double(), hha.double()))
    assert_close(logits[:1, :, ::2, ::2], expected["logits_float64"], 1e-6)


def test_a_refinement_asks_for_the_coarser_features() -> None:
    with pytest.raises(UsageError, match="coarser is missing"):
        Refinement(4, 6, "bicubic")(torch.zeros(1, 4, 3, 3))
