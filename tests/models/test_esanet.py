"""ESANet and EMSANet against the released networks, and their parts against formulations of their own."""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import rgbdseg
from rgbdseg.config.loss import LossConfig
from rgbdseg.encoders import create_encoder
from rgbdseg.errors import CheckpointError, UsageError
from rgbdseg.losses.segmentation import cross_entropy
from rgbdseg.models._base import SegmentationModel
from rgbdseg.nn.decoders import create_decoder
from rgbdseg.nn.decoders.nbt1d import NBt1DDecoderOptions, PyramidContext
from rgbdseg.nn.factorized import FactorizedBlock, FactorizedBlockOptions, LearnedUpsampling
from rgbdseg.nn.squeeze_excite import SqueezeExciteSum
from rgbdseg.weights.published import load_published, to_published
from tests.models.feed import feed
from tests.models.golden import Outputs, assert_close, golden_arrays, golden_image, golden_weights

SHAPE = (2, 3, 96, 128)
CASES = {
    "esanet_r34_nbt1d": ("esanet_r34_nbt1d", {}, 40, 46_955_840),
    "esanet_r18_nbt1d": ("esanet_r18_nbt1d", {}, 40, 33_458_496),
    "esanet_r34_nbt1d_appm": ("esanet_r34_nbt1d_cityscapes", {"training_size": (64, 96)}, 19, 46_912_328),
    "emsanet_r34_nbt1d": ("emsanet_r34_nbt1d", {}, 40, 46_935_360),
}


class Golden(NamedTuple):
    case: str
    weights: dict[str, Tensor]
    model: SegmentationModel
    parameters: int


# Of module scope, so that a network is drawn once for all tests that look at it.
@pytest.fixture(scope="module", params=CASES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return load(request.param)


def load(case: str) -> Golden:
    name, options, classes, parameters = CASES[case]
    weights = golden_weights(case)
    model = rgbdseg.create_model(name, classes, **options)
    load_published(model, weights)
    return Golden(case, weights, model.eval(), parameters)


def images(case: str) -> tuple[Tensor, Tensor]:
    return golden_image("rgb", SHAPE, 7), torch.from_numpy(golden_arrays(case, "input")["depth"])


class Recorder:
    """Keeps what chosen modules return."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.outputs: dict[str, Tensor] = {}
        for name, module in modules.items():
            module.register_forward_hook(self.hook(name))

    def hook(self, name: str):  # type: ignore[no-untyped-def]
        def keep(module: nn.Module, inputs: object, output: object) -> None:
            self.outputs[name] = output[0] if isinstance(output, tuple) else output  # type: ignore[assignment]

        return keep


def check_stages(recorder: Recorder, expected: Outputs) -> None:
    for name, value in recorder.outputs.items():
        assert_close(value[:1].mean((2, 3)), expected[f"{name}_channel_mean"], 1e-4)


def test_equals_the_released_network(golden: Golden) -> None:
    model = golden.model
    assert sum(p.numel() for p in model.parameters()) == golden.parameters
    expected = golden_arrays(golden.case, "output")
    recorder = Recorder(
        {
            **{f"fused_stage{i}": module for i, module in enumerate(model.encoders.fusions)},
            **{f"decoder{i + 1}": module for i, module in enumerate(model.decoder.steps)},
            "context": model.decoder.context,
        }
    )
    with torch.no_grad():
        logits = feed(model, *images(golden.case)).logits
    check_stages(recorder, expected)
    assert_close(logits[:1, :, ::8, ::8], expected["logits"], 1e-3)
    assert_close(logits.mean((2, 3)), expected["logits_class_mean"], 1e-4)
    assert (logits[0].argmax(0).numpy() == expected["logits_argmax"][0]).mean() > 0.999


def test_side_heads_equal_the_released_ones(golden: Golden) -> None:
    expected = golden_arrays(golden.case, "output")
    steps = golden.model.decoder.steps
    for step in steps:
        step.training = True  # runs the side heads; normalization and dropout stay in evaluation
    with torch.no_grad():
        aux = {auxiliary.name: auxiliary.value for auxiliary in feed(golden.model, *images(golden.case)).aux}
    golden.model.eval()
    assert list(aux) == ["side8", "side16", "side32"]
    assert_close(aux["side8"][:1, :, ::2, ::2], expected["side_stride8"], 1e-3)
    assert_close(aux["side16"][:1], expected["side_stride16"], 1e-3)
    assert_close(aux["side32"][:1], expected["side_stride32"], 1e-3)


def test_layout_round_trip(golden: Golden) -> None:
    layout = golden.model.layout
    assert layout is not None
    used = {key: value for key, value in golden.weights.items() if not layout.is_unused(key)}
    written = to_published(golden.model)
    assert set(written) == set(used)
    assert all(torch.equal(written[key], value) for key, value in used.items())
    counts = {"esanet_r34_nbt1d": 898, "esanet_r34_nbt1d_appm": 910, "emsanet_r34_nbt1d": 1056}
    assert len(golden.weights) == counts.get(golden.case, len(used))


@pytest.mark.slow
def test_equals_the_released_network_in_double_precision(golden: Golden) -> None:
    model = copy.deepcopy(golden.model).double()
    rgb, depth = images(golden.case)
    with torch.no_grad():
        logits = feed(model, rgb.double(), depth.double()).logits
    assert_close(logits[:1, :, ::8, ::8], golden_arrays(golden.case, "output")["logits_float64"], 2e-6)


@pytest.mark.parametrize(
    ("case", "name", "raster", "unit_m"),
    [
        ("esanet_r34_nbt1d", "esanet_r10_nbt1d", "depth_mm", 0.001),
        ("emsanet_r34_nbt1d", "emsanet_r10_nbt1d", "depth_mm", 0.001),
        ("esanet_r34_nbt1d_appm", "esanet_r34_nbt1d_cityscapes", "depth_m", 1.0),
    ],
)
def test_depth_is_normalized_as_released(case: str, name: str, raster: str, unit_m: float) -> None:
    arrays = golden_arrays(case, "input")
    depth_m = arrays[raster].astype(np.float64) * unit_m
    assert (depth_m == 0).any()
    with torch.device("meta"):
        stream = rgbdseg.create_model(name, 5).input_spec.stream("depth")
    assert (stream.raster, stream.divide_by, stream.channel_order) == ("depth_m", 1, "stored")
    normalized = (depth_m - stream.mean[0]) / stream.std[0]
    if stream.missing == "mean":
        normalized[depth_m == 0] = 0
    else:
        assert stream.missing is None
    np.testing.assert_allclose(normalized, arrays["depth"][:, 0], atol=2e-6)


def test_missing_depth_and_statistics_are_options() -> None:
    with torch.device("meta"):
        spec = rgbdseg.create_model("esanet_r10_nbt1d", 5, missing_depth="mean", depth_statistics="sunrgbd").input_spec
        noise = rgbdseg.create_model("esanet_r10_nbt1d", 5, second_stream="noise").input_spec
    assert spec.stream("depth").missing == "mean"
    # The released statistics are those of sixteen-bit files, in eighths of a millimeter.
    assert spec.stream("depth").mean[0] * 8000 == pytest.approx(19025.14930492213)
    assert noise.names == ("rgb", "noise")
    with pytest.raises(UsageError, match="did you mean 'nyuv2'"):
        rgbdseg.create_model("esanet_r10_nbt1d", 5, depth_statistics="nyu2")


def test_parts_of_other_tasks_are_recognized_in_any_spelling() -> None:
    _, weights, model, _ = load("emsanet_r34_nbt1d")
    assert model.layout is not None
    left_out = [key for key in weights if model.layout.is_unused(key)]
    assert len(weights) - len(left_out) == 816
    prefixes = ("decoders.panoptic_helper.instance_decoder.", "decoders.scene_decoder.")
    assert all(key.startswith(prefixes) for key in left_out)
    # A later file, of a network of the semantic task and normals.
    later = {
        key.replace("fused_encoders.", "encoder.").replace("decoders.panoptic_helper.semantic", "decoders.semantic"): v
        for key, v in weights.items()
        if key not in left_out
    }
    later["decoders.normal_decoder._task_head.conv.weight"] = torch.zeros(3, 128, 3, 3)
    reference = {key: value.clone() for key, value in model.state_dict().items()}
    for value in model.state_dict().values():
        value.zero_()
    load_published(model, {"state_dict": later, "epoch": 3})
    assert all(torch.equal(value, reference[key]) for key, value in model.state_dict().items())
    with pytest.raises(CheckpointError, match="unexpected"):
        load_published(model, {**weights, "decoders.semantic_decoder.more.weight": torch.zeros(1)})


def test_emsanet_is_esanet_with_these_differences() -> None:
    """Zeros for the absent biases, one epsilon and bilinear averages make the one network the other."""
    torch.manual_seed(0)
    new = rgbdseg.create_model("emsanet_r10_nbt1d", 5).eval()
    old = rgbdseg.create_model("esanet_r10_nbt1d", 5).eval()
    for name, parameter in new.named_parameters():
        if name.endswith("norm2.weight"):
            nn.init.uniform_(parameter, 0.2, 0.4)
    state = {name: torch.zeros_like(value) for name, value in old.state_dict().items()}
    assert {name.rsplit(".", 2)[-2] for name in set(state) - set(new.state_dict())} == {"horizontal1", "horizontal2"}
    old.load_state_dict({**state, **new.state_dict()})
    arguments = torch.randn(2, 3, 64, 96), torch.randn(2, 1, 64, 96)
    assert not torch.allclose(feed(old, *arguments).logits, feed(new, *arguments).logits, rtol=1e-3)
    for module in old.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-5
    old.decoder.context.options = new.decoder.context.options
    torch.testing.assert_close(feed(old, *arguments).logits, feed(new, *arguments).logits, rtol=1e-4, atol=1e-5)


def test_norm_eps_and_biases() -> None:
    with torch.device("meta"):
        old, new = (rgbdseg.create_model(f"{name}_r10_nbt1d", 5) for name in ("esanet", "emsanet"))
    for model, inside, bias in ((old, 1e-3, True), (new, 1e-5, False)):
        blocks = [module for module in model.modules() if isinstance(module, FactorizedBlock)]
        assert len(blocks) == 11
        inner = {id(norm) for block in blocks for norm in (block.norm1, block.norm2)}
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.eps == (inside if id(module) in inner else 1e-5)
        assert all((block.horizontal1.bias is not None) is bias for block in blocks)
        assert all(block.vertical2.bias is not None for block in blocks)
    dropouts = {b.dropout.p for b in new.encoders.modules() if isinstance(b, FactorizedBlock)}
    assert dropouts == {0.1}
    assert {b.dropout.p for b in new.decoder.modules() if isinstance(b, FactorizedBlock)} == {0.2}


@pytest.mark.parametrize(("name", "biases"), [("esanet", 4), ("emsanet", 2)])
def test_parameters_of_a_block(name: str, biases: int) -> None:
    width = 12
    block = FactorizedBlock(width, width, options=FactorizedBlockOptions(horizontal_bias=biases == 4))
    assert sum(p.numel() for p in block.parameters()) == 4 * 3 * width**2 + biases * width + 4 * width


def test_block_convolves_rows_and_columns_apart() -> None:
    """Two 3x1 and 1x3 kernels in sequence without a non-linearity between see a 3x3 window; strides halve both."""
    block = FactorizedBlock(2, 4, stride=2).eval()
    x = torch.randn(1, 2, 9, 8)
    assert block(x).shape == (1, 4, 5, 4)
    assert (block(x) >= 0).all()
    assert block.vertical1.weight.shape == (4, 2, 3, 1)
    assert block.horizontal1.weight.shape == (4, 4, 1, 3)
    assert block.downsample is not None
    assert FactorizedBlock(4, 4).downsample is None


def test_fresh_doubling_is_bilinear_inside_and_pads_with_zeros() -> None:
    x = torch.randn(2, 3, 5, 7)
    doubled = LearnedUpsampling(3)(x)
    bilinear = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(doubled[..., 1:-1, 1:-1], bilinear[..., 1:-1, 1:-1])
    constant = LearnedUpsampling(1)(torch.ones(1, 1, 3, 3))
    assert constant[0, 0, 2, 2] == 1
    assert constant[0, 0, 0, 2] == 0.75
    assert constant[0, 0, 0, 0] == 0.75**2


def test_fusion_with_silent_weights_is_the_mean() -> None:
    fusion = SqueezeExciteSum(32)
    for branch in (fusion.rgb, fusion.depth):
        nn.init.zeros_(branch[2].weight)
        nn.init.zeros_(branch[2].bias)
    rgb, depth = torch.randn(2, 2, 32, 3, 4)
    torch.testing.assert_close(fusion(rgb, depth), (rgb + depth) / 2)


def test_fusion_against_its_formula() -> None:
    fusion = SqueezeExciteSum(96)
    rgb, depth = torch.randn(2, 2, 96, 3, 4)
    expected = torch.zeros_like(rgb)
    for branch, x in ((fusion.rgb, rgb), (fusion.depth, depth)):
        hidden = torch.relu(x.mean((2, 3)) @ branch[0].weight[:, :, 0, 0].T + branch[0].bias)
        assert hidden.shape == (2, 6)  # a sixteenth of the channels
        expected += x * torch.sigmoid(hidden @ branch[2].weight[:, :, 0, 0].T + branch[2].bias)[:, :, None, None]
    torch.testing.assert_close(fusion(rgb, depth), expected)


def test_fused_map_goes_on_in_the_rgb_encoder_only() -> None:
    model = rgbdseg.create_model("esanet_r10_nbt1d", 5).eval()
    depth_maps: list[Tensor] = []
    for index in range(4):
        layer = model.encoders.depth.get_submodule(f"layer{index + 1}")
        layer.register_forward_hook(lambda m, i, out: depth_maps.append(out))
    depth = torch.randn(1, 1, 64, 64)
    for rgb in torch.randn(2, 1, 3, 64, 64):
        feed(model, rgb, depth)
    for first, second in zip(depth_maps[:4], depth_maps[4:], strict=True):
        assert torch.equal(first, second)
    rgb = torch.randn(1, 3, 64, 64)
    assert not torch.equal(feed(model, rgb, depth).logits, feed(model, rgb, depth.flip(3)).logits)


def test_first_fusion_comes_before_the_pooling() -> None:
    model = rgbdseg.create_model("esanet_r10_nbt1d", 5).eval()
    shapes: list[torch.Size] = []
    for fusion in model.encoders.fusions:
        fusion.register_forward_hook(lambda m, i, out: shapes.append(out.shape))
    feed(model, torch.randn(1, 3, 64, 96), torch.randn(1, 1, 64, 96))
    assert [tuple(shape[1:]) for shape in shapes] == [
        (16, 32, 48), (16, 16, 24), (32, 8, 12), (64, 4, 6), (128, 2, 3)
    ]  # fmt: skip


def test_context_repeats_cells_on_small_maps() -> None:
    """On a 3x4 map the grid of 5x5 repeats cells; nearest then takes rows 0, 1 and 3, columns 0 to 3."""
    context = PyramidContext(4, 6, NBt1DDecoderOptions()).eval()
    x = torch.randn(2, 4, 3, 4)
    fine = context.branches[1](functional.adaptive_avg_pool2d(x, 5))[:, :, [0, 1, 3]][:, :, :, [0, 1, 2, 3]]
    coarse = context.branches[0](x.mean((2, 3), keepdim=True)).expand(-1, -1, 3, 4)
    torch.testing.assert_close(context(x), context.join(torch.cat([x, coarse, fine], 1)))


def test_adaptive_context_counts_cells_by_the_training_size() -> None:
    fixed = PyramidContext(4, 6, NBt1DDecoderOptions(bins=(1, 2)))
    adaptive = PyramidContext(4, 6, NBt1DDecoderOptions(bins=(1, 2), context_reference=(4, 6)))
    adaptive.load_state_dict(fixed.state_dict())
    fixed.eval(), adaptive.eval()
    x = torch.randn(1, 4, 4, 6)
    assert torch.equal(fixed(x), adaptive(x))
    large = torch.randn(1, 4, 8, 12)
    pooled = [adaptive.branches[0](functional.adaptive_avg_pool2d(large, 2)),
              adaptive.branches[1](functional.adaptive_avg_pool2d(large, 4))]  # fmt: skip
    enlarged = [functional.interpolate(p, (8, 12)) for p in pooled]
    torch.testing.assert_close(adaptive(large), adaptive.join(torch.cat([large, *enlarged], 1)))
    small = torch.randn(1, 4, 1, 6)  # the published rule fails below half the training size
    torch.testing.assert_close(adaptive(small), fixed(small))


def test_decoder_takes_other_encoders_and_odd_sizes() -> None:
    encoder = create_encoder("test_resnet").eval()
    decoder = create_decoder("nbt1d", encoder.feature_info, 5, widths=(24, 16, 8), blocks=1).eval()
    assert not any("side" in name for name, _ in decoder.named_parameters())
    logits = decoder.upsample(decoder(encoder(torch.randn(1, 3, 70, 97))), (70, 97))
    assert logits.shape == (1, 5, 70, 97)
    with pytest.raises(UsageError, match="1/4, 1/8, 1/16 and 1/32"):
        create_decoder("nbt1d", encoder.feature_info._replace(reductions=(4, 8, 16, 16)), 5)


def test_other_encoders_can_be_fused() -> None:
    model = rgbdseg.create_model("esanet_r10_nbt1d", 5, encoder="test_efficientnet", depth_encoder="test_efficientnet")
    assert feed(model.eval(), torch.randn(1, 3, 64, 64), torch.randn(1, 1, 64, 64)).logits.shape == (1, 5, 64, 64)


def test_resnet50_has_the_released_names() -> None:
    """The released layer list with bottlenecks: names of torchvision, and 1x1 convolutions that widen."""
    with torch.device("meta"):
        model = rgbdseg.create_model("esanet_r50", 40)
    written = {name: tuple(value.shape) for name, value in to_published(model).items()}
    assert written["encoder_rgb.layer4.2.conv3.weight"] == (2048, 512, 1, 1)
    assert written["encoder_depth.conv1.weight"] == (64, 1, 7, 7)
    assert written["encoder_depth.layer1.0.downsample.1.running_var"] == (256,)
    assert written["se_layer4.se_depth.fc.0.weight"] == (128, 2048, 1, 1)
    assert written["context_module.features.0.1.conv.weight"] == (1024, 2048, 1, 1)
    assert written["skip_layer3.0.conv.weight"] == (512, 1024, 1, 1)
    assert written["decoder.decoder_module_1.conv3x3.bn.weight"] == (512,)


def test_classifiers_of_the_authors_fit_the_encoder() -> None:
    encoder = create_encoder("resnet10_nbt1d")
    reference = encoder.state_dict()
    for pairs in (
        {"vertical1": "conv3x1_1", "horizontal1": "conv1x3_1", "vertical2": "conv3x1_2", "horizontal2": "conv1x3_2",
         "norm1": "bn1", "norm2": "bn2", "": "encoder."},
        {"vertical1": "conv1_1", "horizontal1": "conv1_2", "vertical2": "conv2_1", "horizontal2": "conv2_2",
         "": "_orig_mod.backbone."},
    ):  # fmt: skip
        file = {"fc.weight": torch.zeros(1000, 128), "encoder.fc.bias": torch.zeros(1000)}
        for name, value in reference.items():
            spelled = name
            for ours, theirs in pairs.items():
                spelled = ".".join(theirs if ours and part == ours else part for part in spelled.split("."))
            file[pairs[""] + spelled] = value
        renamed = encoder.rename_weights(file)
        assert {name for name in renamed if not name.startswith("fc.")} == set(reference)
        assert all(torch.equal(renamed[name], value) for name, value in reference.items())


def test_loss_is_divided_as_released() -> None:
    """One pixel of a class and any number of void ones: ESANet's loss ignores the weight, EMSANet's is multiplied."""
    logits = torch.randn(1, 2, 4, 4)
    label = torch.full((1, 4, 4), 255)
    label[0, 1, 2] = 1
    surprise = -float(logits.log_softmax(1)[0, 1, 1, 2])
    for weight in (3.0, 6.0):
        esanet = LossConfig(class_weights=(1.0, weight), class_weights_mean="weights")
        emsanet = LossConfig(class_weights=(1.0, weight), class_weights_mean="pixels")
        assert math.isclose(float(cross_entropy(logits, label, esanet)), surprise, rel_tol=1e-5)
        assert math.isclose(float(cross_entropy(logits, label, emsanet)), weight * surprise, rel_tol=1e-5)


def test_imagenet_weights_of_bottlenecks_are_those_of_timm() -> None:
    encoder = create_encoder("resnet18_late_pool")
    plain = create_encoder("resnet18").eval()
    assert (encoder.weights, encoder.pretrained_name) == ("timm", "resnet18")
    encoder.load_state_dict(plain.state_dict())
    image = torch.randn(1, 3, 64, 96)
    for late, early in zip(encoder.eval()(image), plain(image), strict=True):
        assert torch.equal(late, early)
    assert encoder.stem(image)[0].shape == (1, 64, 32, 48)
