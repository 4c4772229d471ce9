from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rgbdseg
from rgbdseg.errors import UsageError
from rgbdseg.models.published import load_published
from rgbdseg.models.sagate import SAGate, SeparationAggregationGate
from tests.shared_data import seeded, shared_path


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
    rgb, geometry = features()
    torch.testing.assert_close(gate.separate_rgb(rgb, geometry), rgb + weight * geometry)


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


def test_shared_normalisation_is_updated_by_rgb_then_geometry() -> None:
    model = rgbdseg.create_model("sagate_resnet18", 3).train()
    norm = model.rgb_encoder.layer2[0].downsample[1]
    seen: list[Tensor] = []
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    stage_inputs: list[Tensor] = []
    model.rgb_encoder.layer2.register_forward_pre_hook(lambda _, inputs: stage_inputs.append(inputs[0].detach()))
    model(torch.randn(2, 3, 64, 64), torch.randn(2, 3, 64, 64) + 1)
    assert len(seen) == 2
    torch.testing.assert_close(seen[0], model.rgb_encoder.layer2[0].downsample[0](stage_inputs[0]))  # RGB first
    mean_rgb, mean_geometry = (x.mean((0, 2, 3)) for x in seen)
    assert (mean_rgb - mean_geometry).abs().max() > 1e-3
    torch.testing.assert_close(norm.running_mean, 0.9 * (0.1 * mean_rgb) + 0.1 * mean_geometry)
    assert norm.num_batches_tracked == 2
    assert model.rgb_encoder.bn1.num_batches_tracked == 1


@pytest.mark.parametrize("how", ["deepcopy", "synchronised", "channels last"])
def test_projections_stay_shared(how: str) -> None:
    model = rgbdseg.create_model("sagate_resnet18", 3)
    if how == "deepcopy":
        model = copy.deepcopy(model)
    elif how == "synchronised":
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
    small = model.decoder(fused[0], fused[3])
    expected = nn.functional.interpolate(small, (64, 64), mode="bilinear", align_corners=True)
    torch.testing.assert_close(model(rgb, geometry).logits, expected)


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        (None, r"expected a tensor of kind 'hha' \(B, 3, H, W\), got None"),
        (torch.zeros(2, 1, 64, 64), r"has shape \(2, 1, 64, 64\); expected a tensor of kind 'hha'"),
        (torch.zeros(2, 3, 64, 60), r"is \(64, 60\) and rgb \(64, 64\) pixels"),
    ],
)
def test_unfit_geometry(geometry: Tensor | None, message: str) -> None:
    model = rgbdseg.create_model("sagate_resnet18", 3)
    with pytest.raises(UsageError, match=message):
        model(torch.zeros(2, 3, 64, 64), geometry)


def test_bad_widths() -> None:
    with pytest.raises(UsageError, match="model option decoder_channels is 0; expected an integer of at least 1"):
        rgbdseg.create_model("sagate_resnet18", 3, decoder_channels=0)


def test_overfits_one_batch() -> None:
    torch.manual_seed(0)
    model = SAGate(2, "test_resnet", decoder_channels=16, auxiliary_channels=16).train()
    rgb, geometry = torch.randn(2, 3, 64, 64), torch.randn(2, 3, 64, 64)
    rgb[:, :, :, 32:] += 2  # the left half is told by colour, the upper half by geometry
    geometry[:, :, 32:] += 2
    row, column = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    label = ((row < 32) ^ (column < 32)).long().expand(2, -1, -1)  # neither input alone tells the class
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for _ in range(30):
        optimizer.zero_grad()
        output = model(rgb, geometry)
        loss = nn.functional.cross_entropy(output.logits, label)
        loss = loss + 0.2 * nn.functional.cross_entropy(output.aux[0].value, label)
        loss.backward()
        optimizer.step()
    assert (model(rgb, geometry).logits.argmax(1) == label).float().mean() > 0.9


# Parity with the published code


@pytest.fixture(scope="module")
def golden() -> tuple[SAGate, Tensor, Tensor, dict[str, np.ndarray]]:
    """The released network with the weights of the golden case, and its inputs and outputs."""
    module = seeded()
    with np.load(shared_path("golden/sagate_resnet101.npz"), allow_pickle=False) as stored:
        outputs = {k.removeprefix("output:"): stored[k] for k in stored.files if k.startswith("output:")}
    weights = {f"module.{k}": torch.from_numpy(np.asarray(v)) for k, v in module.state_dict("sagate_resnet101").items()}
    model = rgbdseg.create_model("sagate_resnet101", 40)
    load_published(model, {"model": weights, "epoch": 300, "iteration": 0})
    images = [torch.from_numpy(module.image(name, (2, 3, 96, 128), 7)) for name in ("rgb", "hha")]
    assert isinstance(model, SAGate)
    return model.eval(), images[0], images[1], outputs


def assert_close(value: Tensor, expected: np.ndarray, tolerance: float) -> None:
    difference = np.abs(value.detach().double().numpy() - expected)
    assert difference.max() < tolerance * expected.std()


def test_parity_float32(golden: tuple[SAGate, Tensor, Tensor, dict[str, np.ndarray]]) -> None:
    model, rgb, hha, expected = golden
    with torch.no_grad():
        logits = model(rgb, hha).logits
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
        logits = copy.deepcopy(model).double()(rgb.double(), hha.double()).logits
    assert_close(logits[:1, :, ::8, ::8], expected["logits_float64"], 1e-6)
