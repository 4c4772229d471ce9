from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rgbdseg
from rgbdseg.errors import UsageError
from rgbdseg.models.sagate import SAGate, SeparationAggregationGate
from rgbdseg.weights.published import load_published
from tests.models.feed import feed
from tests.models.golden import assert_close, golden_arrays, golden_image, golden_weights


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def make_gate(channels: int = 32) -> SeparationAggregationGate:
    torch.manual_seed(0)
    return SeparationAggregationGate(channels).double()


def features(channels: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    shape = (2, channels, 3, 4)
    return (
        torch.randn(shape, generator=generator, dtype=torch.float64),
        torch.randn(shape, generator=generator, dtype=torch.float64),
    )


# The gate


def test_gate_equals_the_equations() -> None:
    gate = make_gate()
    rgb, geometry = features()
    p = {name: value.detach() for name, value in gate.named_parameters()}

    def separated(own: Tensor, other: Tensor, name: str) -> Tensor:
        means = torch.cat([other.mean((2, 3)), own.mean((2, 3))], 1)
        hidden = (means @ p[f"{name}.squeeze.weight"].T + p[f"{name}.squeeze.bias"]).clamp(min=0)
        weight = 1 / (1 + torch.exp(-(hidden @ p[f"{name}.excite.weight"].T + p[f"{name}.excite.bias"])))
        return own + torch.einsum("bc,bchw->bchw", weight, other)

    joint = torch.cat([separated(rgb, geometry, "separate_rgb"), separated(geometry, rgb, "separate_geometry")], 1)
    score_rgb = torch.einsum("oc,bchw->bohw", p["score_rgb.weight"][:, :, 0, 0], joint) + p["score_rgb.bias"]
    score_geometry = torch.einsum("oc,bchw->bohw", p["score_geometry.weight"][:, :, 0, 0], joint)
    score_geometry = score_geometry + p["score_geometry.bias"]
    share_rgb = torch.exp(score_rgb) / (torch.exp(score_rgb) + torch.exp(score_geometry))
    fused = share_rgb * rgb + (1 - share_rgb) * geometry
    expected = (fused, ((rgb + fused) / 2).clamp(min=0), ((geometry + fused) / 2).clamp(min=0))
    for value, wanted in zip(gate(rgb, geometry), expected, strict=True):
        torch.testing.assert_close(value, wanted)


def test_equal_scores_share_equally() -> None:
    gate = make_gate()
    for score in (gate.score_rgb, gate.score_geometry):
        nn.init.zeros_(score.weight)
        nn.init.zeros_(score.bias)
    rgb, geometry = features()
    fused, rgb_out, geometry_out = gate(rgb, geometry)
    torch.testing.assert_close(fused, (rgb + geometry) / 2)
    torch.testing.assert_close(rgb_out, torch.relu(0.75 * rgb + 0.25 * geometry))
    torch.testing.assert_close(geometry_out, torch.relu(0.25 * rgb + 0.75 * geometry))


def test_swapping_streams_and_weights_swaps_outputs() -> None:
    gate = make_gate()
    swapped = copy.deepcopy(gate)
    swapped.separate_rgb, swapped.separate_geometry = gate.separate_geometry, gate.separate_rgb
    swapped.score_rgb, swapped.score_geometry = copy.deepcopy(gate.score_geometry), copy.deepcopy(gate.score_rgb)
    for score in (swapped.score_rgb, swapped.score_geometry):
        score.weight.data = score.weight.data.roll(32, dims=1)
    rgb, geometry = features()
    fused, rgb_out, geometry_out = gate(rgb, geometry)
    fused_s, rgb_s, geometry_s = swapped(geometry, rgb)
    torch.testing.assert_close(fused_s, fused)
    torch.testing.assert_close(rgb_s, geometry_out)
    torch.testing.assert_close(geometry_s, rgb_out)


@pytest.mark.parametrize(("bias", "weight"), [(50.0, 1.0), (-50.0, 0.0)])
def test_saturated_separation(bias: float, weight: float) -> None:
    gate = make_gate()
    nn.init.zeros_(gate.separate_rgb.excite.weight)
    nn.init.constant_(gate.separate_rgb.excite.bias, bias)
    means = [feature.mean((2, 3)) for feature in features()]
    torch.testing.assert_close(gate.separate_rgb(*means), torch.full((2, 32), weight).double(), rtol=0, atol=1e-12)


def test_fused_feature_is_made_of_the_inputs_not_of_the_recalibrated_ones() -> None:
    gate = make_gate()
    nn.init.constant_(gate.score_rgb.bias, 50.0)
    rgb, geometry = features()
    fused, _, geometry_out = gate(rgb, geometry)
    torch.testing.assert_close(fused, rgb)
    torch.testing.assert_close(geometry_out, torch.relu((geometry + rgb) / 2))


@pytest.mark.parametrize(
    ("channels", "parameters"), [(256, 26_146), (512, 101_442), (1024, 399_490), (2048, 1_585_410)]
)
def test_gate_parameters(channels: int, parameters: int) -> None:
    assert count(SeparationAggregationGate(channels)) == parameters


def test_signed_features_pass_a_gate_that_does_not_rectify() -> None:
    gate = make_gate()
    rgb, geometry = features()
    released = gate(rgb, geometry)
    gate.rectify = False
    fused, rgb_out, geometry_out = gate(rgb, geometry)
    torch.testing.assert_close(fused, released[0])
    torch.testing.assert_close(rgb_out, (rgb + fused) / 2)
    torch.testing.assert_close(geometry_out, (geometry + fused) / 2)
    assert rgb_out.min() < 0 <= released[1].min()


@pytest.mark.parametrize(("channels", "min_width", "width"), [(24, 1, 1), (24, 8, 8), (320, 8, 20)])
def test_least_width_of_the_bottleneck(channels: int, min_width: int, width: int) -> None:
    gate = SeparationAggregationGate(channels, min_width=min_width)
    assert gate.separate_rgb.squeeze.weight.shape == (width, 2 * channels)
    assert gate.separate_geometry.excite.weight.shape == (channels, width)


# The network


def test_released_network_resnet101() -> None:
    model = rgbdseg.create_model("sagate_resnet101", 40)
    assert isinstance(model, SAGate)
    assert count(model) == 110_875_160
    assert len(model.state_dict()) == 1370
    assert [count(g) for g in model.gates] == [26_146, 101_442, 399_490, 1_585_410]
    assert count(model.auxiliary_head) == 9_458_728
    blocks = [model.rgb_encoder.get_submodule(f"layer{i}.0.downsample") for i in range(1, 5)]
    assert sum(map(count, blocks)) == 2_792_960
    names = [n for n, _ in model.named_parameters() if "downsample" in n]
    assert len(names) == 12  # four projections, each named once, of one stream
    assert [b.conv2.dilation for b in model.geometry_encoder.layer4] == [(2, 2), (4, 4), (8, 8)]


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [("sagate_resnet50", 40, 72_890_904), ("sagate_resnet101", 19, 110_858_990), ("sagate_resnet18", 40, 23_681_936)],
)
def test_parameter_counts(name: str, classes: int, parameters: int) -> None:
    with torch.device("meta"):
        assert count(rgbdseg.create_model(name, classes)) == parameters


def test_separate_projections() -> None:
    with torch.device("meta"):
        model = rgbdseg.create_model("sagate_resnet101", 40, share_projections=False)
    assert count(model) == 113_668_120


def test_shared_normalization_is_updated_by_rgb_then_geometry() -> None:
    model = rgbdseg.create_model("sagate_resnet18", 3).train()
    norm = model.rgb_encoder.layer2[0].downsample[1]
    seen: list[Tensor] = []
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    stage_inputs: list[Tensor] = []
    model.rgb_encoder.layer2.register_forward_pre_hook(lambda _, inputs: stage_inputs.append(inputs[0].detach()))
    feed(model, torch.randn(2, 3, 64, 64), torch.randn(2, 3, 64, 64) + 1)
    assert len(seen) == 2
    torch.testing.assert_close(seen[0], model.rgb_encoder.layer2[0].downsample[0](stage_inputs[0]))  # RGB first
    mean_rgb, mean_geometry = (x.mean((0, 2, 3)) for x in seen)
    assert (mean_rgb - mean_geometry).abs().max() > 1e-3
    torch.testing.assert_close(norm.running_mean, 0.9 * (0.1 * mean_rgb) + 0.1 * mean_geometry)
    assert norm.num_batches_tracked == 2
    assert model.rgb_encoder.bn1.num_batches_tracked == 1


@pytest.mark.parametrize("how", ["deepcopy", "synchronized", "channels last"])
def test_projections_stay_shared(how: str) -> None:
    model = rgbdseg.create_model("sagate_resnet18", 3)
    if how == "deepcopy":
        model = copy.deepcopy(model)
    elif how == "synchronized":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        assert isinstance(model.geometry_encoder.layer2[0].downsample[1], nn.SyncBatchNorm)
    else:
        model = model.to(memory_format=torch.channels_last).double()
    for index in (2, 3, 4):
        ours, theirs = (e.get_submodule(f"layer{index}.0.downsample") for _, e in model.encoder_streams())
        assert ours is theirs
    with torch.device("meta"):
        assert count(model) == count(rgbdseg.create_model("sagate_resnet18", 3))


def test_decoder_reads_only_the_first_and_last_fused_feature() -> None:
    model = rgbdseg.create_model("sagate_resnet18", 3).eval()
    rgb, geometry = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 64, 64)
    fused = model.encode(rgb, geometry)
    assert [tuple(f.shape[1:]) for f in fused] == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]
    small = model.decoder(fused)
    expected = nn.functional.interpolate(small, (64, 64), mode="bilinear", align_corners=True)
    torch.testing.assert_close(feed(model, rgb, geometry).logits, expected)


@pytest.mark.parametrize(
    ("hha", "message"),
    [
        ({}, r"the model needs images\['hha'\]: expected a tensor \(B, 3, H, W\); got rgb"),
        ({"hha": torch.zeros(2, 1, 64, 64)}, r"has shape \(2, 1, 64, 64\); expected a tensor \(B, 3, H, W\)"),
        ({"hha": torch.zeros(2, 3, 64, 60)}, r"has \(64, 60\) pixels and images\['rgb'\] \(64, 64\)"),
    ],
)
def test_unfit_hha(hha: dict[str, Tensor], message: str) -> None:
    model = rgbdseg.create_model("sagate_resnet18", 3)
    with pytest.raises(UsageError, match=message):
        model({"rgb": torch.zeros(2, 3, 64, 64), **hha})


def test_bad_widths() -> None:
    with pytest.raises(UsageError, match="model option decoder_channels is 0; expected an integer of at least 1"):
        rgbdseg.create_model("sagate_resnet18", 3, decoder_channels=0)


def test_overfits_one_batch() -> None:
    torch.manual_seed(0)
    model = SAGate(2, "test_resnet", decoder_channels=16, auxiliary_channels=16).train()
    rgb, geometry = torch.randn(2, 3, 64, 64), torch.randn(2, 3, 64, 64)
    rgb[:, :, :, 32:] += 2  # the left half is told by color, the upper half by geometry
    geometry[:, :, 32:] += 2
    row, column = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    label = ((row < 32) ^ (column < 32)).long().expand(2, -1, -1)  # neither input alone tells the class
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for _ in range(30):
        optimizer.zero_grad()
        output = feed(model, rgb, geometry)
        loss = nn.functional.cross_entropy(output.logits, label)
        loss = loss + 0.2 * nn.functional.cross_entropy(output.aux[0].value, label)
        loss.backward()
        optimizer.step()
    assert (feed(model, rgb, geometry).logits.argmax(1) == label).float().mean() > 0.9


# Other encoders and the controls


def tiny(**options: object) -> SAGate:
    torch.manual_seed(0)
    return SAGate(3, "test_resnet", decoder_channels=8, auxiliary_channels=8, **options).eval()  # type: ignore[arg-type]


def test_sum_adds_what_two_separate_encoders_say() -> None:
    model = tiny(fusion="sum", share_projections=False)
    rgb, geometry = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 64, 64)
    pairs = zip(model.rgb_encoder(rgb), model.geometry_encoder(geometry), strict=True)
    expected = [a + b for a, b in pairs]
    for value, wanted in zip(model.encode(rgb, geometry), expected, strict=True):
        torch.testing.assert_close(value, wanted)
    assert count(model.gates) == 0


def test_sum_has_the_parameters_of_the_gated_network_without_gates() -> None:
    gated, summed = tiny(), tiny(fusion="sum")
    assert count(gated) - count(gated.gates) == count(summed)


def test_gates_rectify_where_the_encoder_does() -> None:
    for name, rectified in (("resnet18", True), ("hrnet_w18_small", True), ("tf_efficientnet_lite0", False)):
        with torch.device("meta"):
            model = rgbdseg.create_model("sagate", 3, encoder=name)
        gates = [m for m in model.modules() if isinstance(m, SeparationAggregationGate)]
        assert {gate.rectify for gate in gates} == {rectified}


def test_every_stage_of_any_encoder_exchanges() -> None:
    model = rgbdseg.create_model("sagate", 3, encoder="tf_efficientnet_lite0", decoder_channels=8).eval()
    rgb, geometry = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        state_rgb, state_geometry = model.rgb_encoder.stem(rgb), model.geometry_encoder.stem(geometry)
        for index, fused in enumerate(model.encode(rgb, geometry)):
            state_rgb = model.rgb_encoder.stage(index, state_rgb)
            state_geometry = model.geometry_encoder.stage(index, state_geometry)
            merged, *following = model.gates[index](*state_rgb, *state_geometry)
            state_rgb, state_geometry = ((x,) for x in following)
            torch.testing.assert_close(fused, merged)


@pytest.mark.parametrize(
    ("name", "parameters", "gates"),
    [
        ("sagate_hrnet_w48", 131_312_162, 129_418),
        ("sagate_hrnet_w18", 2 * 9_562_260 - 16_896 + 41_768 + 84_550, 41_768),
    ],
)
def test_hrnet_parameters(name: str, parameters: int, gates: int) -> None:
    with torch.device("meta"):
        model = rgbdseg.create_model(name, 40)
    assert count(model) - count(model.auxiliary_head) == parameters
    assert count(model.gates) == gates
    assert [len(branches) for branches in model.gates] == [1, 2, 3, 4]
    width = model.rgb_encoder.channels[0]
    assert count(model.auxiliary_head) == 4 * width * 40 + 40
    blocks = [encoder.layer1[0].downsample for _, encoder in model.encoder_streams()]
    assert blocks[0] is blocks[1]


def hrnet() -> SAGate:
    torch.manual_seed(0)
    model = rgbdseg.create_model("sagate", 3, encoder="hrnet_w18_small")
    assert isinstance(model, SAGate)
    return model.eval()


def test_every_branch_has_its_own_gate() -> None:
    model = hrnet()
    # The scores of stage 4, branch 2 prefer geometry, those of all other branches RGB.
    for stage, branches in enumerate(model.gates):
        for branch, gate in enumerate(branches):
            for score in (gate.score_rgb, gate.score_geometry):
                nn.init.zeros_(score.weight)
                nn.init.zeros_(score.bias)
            nn.init.constant_((gate.score_geometry if (stage, branch) == (3, 2) else gate.score_rgb).bias, 60.0)
    rgb, geometry = torch.randn(1, 3, 65, 97), torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        fused = model.encode(rgb, geometry)
        # With M = RGB everywhere before, the RGB stream runs as it would alone: (r + r) / 2 = r.
        alone = model.rgb_encoder(rgb)
    assert [tuple(f.shape[1:]) for f in fused] == [(16, 17, 25), (32, 9, 13), (64, 5, 7), (128, 3, 4)]
    for branch in (0, 1, 3):
        torch.testing.assert_close(fused[branch], alone[branch])
    assert (fused[2] - alone[2]).abs().max() > 1e-2


def test_auxiliary_classifier_of_hrnet_reads_the_last_branch_of_stage_3() -> None:
    model = hrnet().train()
    seen: list[Tensor] = []
    model.auxiliary_head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    fused: list[Tensor] = []
    model.gates[2][2].register_forward_hook(lambda _, inputs, outputs: fused.append(outputs[0]))
    output = feed(model, torch.randn(2, 3, 64, 64), torch.randn(2, 3, 64, 64))
    assert seen[0] is fused[0]
    assert output.aux[0].value.shape == (2, 3, 64, 64)


# Parity with the published code


@pytest.fixture(scope="module")
def golden() -> tuple[SAGate, Tensor, Tensor, dict[str, np.ndarray]]:
    """The released network with the weights of the golden case, and its inputs and outputs."""
    weights = {f"module.{name}": value for name, value in golden_weights("sagate_resnet101").items()}
    model = rgbdseg.create_model("sagate_resnet101", 40)
    load_published(model, {"model": weights, "epoch": 300, "iteration": 0})
    rgb, hha = (golden_image(name, (2, 3, 96, 128), 7) for name in ("rgb", "hha"))
    assert isinstance(model, SAGate)
    return model.eval(), rgb, hha, golden_arrays("sagate_resnet101", "output")


def test_parity_float32(golden: tuple[SAGate, Tensor, Tensor, dict[str, np.ndarray]]) -> None:
    model, rgb, hha, expected = golden
    with torch.no_grad():
        logits = feed(model, rgb, hha).logits
        fused = model.encode(rgb, hha)
        auxiliary = model.auxiliary_head(fused[-1])
    assert_close(logits[:1, :, ::8, ::8], expected["logits"], 1e-3)
    assert_close(logits.mean((2, 3)), expected["logits_class_mean"], 1e-3)
    assert_close(auxiliary[:1], expected["aux_stride16"], 1e-3)
    for index, feature in enumerate(fused):
        assert_close(feature[:1].mean((2, 3)), expected[f"fused_stage{index + 1}_channel_mean"], 1e-3)
    assert np.array_equal(logits[:1].argmax(1).numpy(), expected["logits_argmax"])


@pytest.mark.slow
def test_parity_float64(golden: tuple[SAGate, Tensor, Tensor, dict[str, np.ndarray]]) -> None:
    model, rgb, hha, expected = golden
    with torch.no_grad():
        logits = feed(copy.deepcopy(model).double(), rgb.double(), hha.double()).logits
    assert_close(logits[:1, :, ::8, ::8], expected["logits_float64"], 1e-6)
