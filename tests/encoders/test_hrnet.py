from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.encoders import create_encoder
from rgbdseg.encoders.hrnet import HRNetEncoder, HRNetOptions
from tests.shared_data import seeded, shared_path


def hrnet(name: str, **options: Any) -> HRNetEncoder:
    return HRNetEncoder(name, 3, HRNetOptions(**options))


def states_of(encoder: HRNetEncoder, image: Tensor) -> list[tuple[Tensor, ...]]:
    states, state = [], encoder.stem(image)
    for index in range(encoder.num_stages):
        state = encoder.stage(index, state)
        states.append(state)
    return states


def enlarged(feature: Tensor, like: Tensor) -> Tensor:
    return functional.interpolate(feature, like.shape[-2:], mode="bilinear", align_corners=True)


def test_golden_published_network() -> None:
    module = seeded()
    golden = np.load(shared_path("golden/hrnet_w18.npz"), allow_pickle=False)
    weights = {k: torch.as_tensor(v).double() for k, v in module.state_dict("hrnet_w18").items()}
    encoder = hrnet("hrnet_w18").eval().double()
    encoder.load_state_dict({k: v for k, v in weights.items() if not k.startswith("last_layer.")})
    image = torch.from_numpy(module.image("rgb", (2, 3, 96, 128), 7)).double()
    with torch.no_grad():
        states = states_of(encoder, image)

    def check(name: str, value: Tensor) -> None:
        torch.testing.assert_close(value, torch.from_numpy(golden[f"output:{name}"]).double(), rtol=0, atol=3e-5)

    check("layer1_channel_mean", states[0][0][:1].mean((2, 3)))
    for stage in (2, 3, 4):
        for branch, feature in enumerate(states[stage - 1]):
            check(f"stage{stage}_branch{branch}_channel_mean", feature[:1].mean((2, 3)))

    features = encoder.collect(states)
    joint = torch.cat([features[0], *(enlarged(f, features[0]) for f in features[1:])], 1)
    x = functional.conv2d(joint, weights["last_layer.0.weight"], weights["last_layer.0.bias"])
    statistics = (weights["last_layer.1.running_mean"], weights["last_layer.1.running_var"])
    x = functional.batch_norm(x, *statistics, weights["last_layer.1.weight"], weights["last_layer.1.bias"]).relu()
    logits = functional.conv2d(x, weights["last_layer.3.weight"], weights["last_layer.3.bias"])
    check("logits_float64", logits[:1, :, ::2, ::2])
    check("logits_class_mean", logits.mean((2, 3)))
    assert torch.equal(logits[:1].argmax(1), torch.from_numpy(golden["output:logits_argmax"]).long())


def test_parameters_of_the_published_backbones() -> None:
    with torch.device("meta"):
        for name, parameters in {"hrnet_w18": 9_562_260, "hrnet_w48": 65_325_120}.items():
            assert sum(p.numel() for p in hrnet(name).parameters()) == parameters


def test_states_grow_by_a_branch_per_stage() -> None:
    encoder = create_encoder("hrnet_w18_small")
    assert [encoder.state_channels(i) for i in range(4)] == [(128,), (16, 32), (16, 32, 64), (16, 32, 64, 128)]
    assert encoder.channels == (16, 32, 64, 128)
    states = states_of(encoder, torch.randn(2, 3, 65, 41))
    for index, state in enumerate(states):
        assert tuple(f.shape[1] for f in state) == encoder.state_channels(index)
    # Every halving rounds up, and the exchange fits all branches to these sizes.
    assert [tuple(f.shape[-2:]) for f in states[-1]] == [(17, 11), (9, 6), (5, 3), (3, 2)]


def identity_on_first_channels(convolution: nn.Conv2d) -> None:
    nn.init.zeros_(convolution.weight)
    middle = convolution.kernel_size[0] // 2
    for channel in range(min(convolution.weight.shape[:2])):
        convolution.weight.data[channel, channel, middle, middle] = 1


def test_exchange_sums_over_branches() -> None:
    encoder = hrnet("hrnet_w18_small").eval()
    exchange = encoder.stage4[0]
    for block in exchange.branches.modules():
        if hasattr(block, "bn2"):
            nn.init.zeros_(block.bn2.weight)  # leaves the shortcut alone
    for convolution in exchange.fuse_layers.modules():
        if isinstance(convolution, nn.Conv2d):
            identity_on_first_channels(convolution)
    sizes = [(9, 7), (5, 4), (3, 2), (2, 1)]
    values = (1.0, 10.0, 100.0, 1000.0)
    maps = tuple(
        torch.full((1, c, *size), v) for c, size, v in zip(encoder.state_channels(3), sizes, values, strict=True)
    )
    with torch.no_grad():
        fused = encoder._run_module(exchange, maps)
    for target, feature in enumerate(fused):
        # A channel sums up the branches that have it: finer branches have fewer channels.
        for channel in (0, encoder.channels[target] - 1):
            expected = sum(v for c, v in zip(encoder.channels, values, strict=True) if channel < c)
            # Every normalization on the way divides by sqrt(1 + 1e-5).
            torch.testing.assert_close(feature[0, channel], torch.full(sizes[target], expected), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("resize", "fits"), [("aligned", True), ("bilinear", False), ("nearest", False)])
def test_resize_rule_of_the_exchange(resize: str, fits: bool) -> None:
    encoder = hrnet("hrnet_w18_small", resize=resize).eval()
    coarse = torch.tensor([[[[0.0, 3.0]]]])
    enlarged_row = encoder._enlarge(coarse, (1, 4)).flatten()
    assert torch.allclose(enlarged_row, torch.tensor([0.0, 1.0, 2.0, 3.0])) == fits
    if resize == "nearest":
        assert enlarged_row.tolist() == [0, 0, 3, 3]
    elif resize == "bilinear":
        torch.testing.assert_close(enlarged_row, torch.tensor([0.0, 0.75, 2.25, 3.0]))


def test_equals_the_classification_network_with_nearest_resizing() -> None:
    torch.manual_seed(1)
    reference = timm.create_model("hrnet_w18_small", head="").eval()
    encoder = hrnet("hrnet_w18_small", resize="nearest").eval()
    encoder.load_state_dict(reference.state_dict())
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = reference.forward_intermediates(image, intermediates_only=True)[1:]
        for feature, wanted in zip(encoder(image), expected, strict=True):
            torch.testing.assert_close(feature, wanted)
        encoder.resize = "aligned"
        assert (encoder(image)[0] - expected[0]).abs().max() > 1e-3


def test_shared_projection() -> None:
    first, second = create_encoder("hrnet_w18_small"), create_encoder("hrnet_w18_small")
    second.share_projections(first)
    shared = {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}
    assert len(shared) == 3  # the weight and the two normalization vectors of layer1.0.downsample
