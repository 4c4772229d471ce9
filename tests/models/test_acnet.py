from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

import rgbdseg
from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.engine.optimizers import learning_rate_factor, parameter_groups
from rgbdseg.errors import DataError, UsageError
from rgbdseg.losses import segmentation_loss
from rgbdseg.models._base import AuxiliaryOutput, SegmentationOutput
from rgbdseg.models.acnet import ACNet, ChannelAttention, UpBlock
from rgbdseg.recipes import get_recipe
from rgbdseg.recipes.acnet import NYU40_CLASS_WEIGHTS
from rgbdseg.sample import RGBDSample
from rgbdseg.transforms.pack import pack
from rgbdseg.weights.imagenet import load_encoder_weights
from rgbdseg.weights.published import load_published, to_published
from tests.models.feed import feed
from tests.models.golden import assert_close, golden_arrays, golden_image, golden_weights
from tests.shared_data import shared_path

WIDTHS = {"decoder_channels": (24, 16, 12, 8, 8), "decoder_blocks": (2, 1, 1, 1, 2)}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def tiny(classes: int = 3) -> ACNet:
    torch.manual_seed(0)
    model = ACNet(classes, "test_resnet", **WIDTHS)  # type: ignore[arg-type]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)  # residual branches start at zero
    return model


def images(batch: int = 2, height: int = 64, width: int = 96) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, 3, height, width, generator=generator),
        torch.randn(batch, 1, height, width, generator=generator),
    )


# The attention


def test_attention_without_weights_halves() -> None:
    attention = ChannelAttention(4)
    nn.init.zeros_(attention.score.weight)
    nn.init.zeros_(attention.score.bias)
    x = torch.randn(2, 4, 3, 5)
    torch.testing.assert_close(attention(x), x / 2)


def test_attention_scores_every_channel_from_the_means_of_all() -> None:
    attention = ChannelAttention(2)
    attention.score.weight.data = torch.tensor([[0.0, 2.0], [1.0, 0.0]]).view(2, 2, 1, 1)
    attention.score.bias.data = torch.tensor([0.5, -1.0])
    x = torch.stack([torch.full((2, 2), 3.0), torch.tensor([[0.0, 1.0], [2.0, 1.0]])])[None]  # means 3 and 1
    weights = 1 / (1 + torch.exp(-torch.tensor([2.0 * 1 + 0.5, 1.0 * 3 - 1.0])))
    torch.testing.assert_close(attention(x), x * weights.view(1, 2, 1, 1))


# The encoders


def test_first_merged_feature_is_the_attended_sum() -> None:
    model = tiny().eval()
    for attention in (model.rgb_attention[0], model.depth_attention[0]):
        nn.init.zeros_(attention.score.weight)
        nn.init.zeros_(attention.score.bias)
    model.depth_encoder.conv1[0].weight.data = model.rgb_encoder.conv1[0].weight.data.sum(1, keepdim=True)
    for name in ("conv1", "bn1"):
        own = model.depth_encoder.get_submodule(name).state_dict()
        other = model.rgb_encoder.get_submodule(name).state_dict()
        kept = {key: value for key, value in other.items() if key != "0.weight"}
        model.depth_encoder.get_submodule(name).load_state_dict(own | kept)
    _, depth = images()
    rgb = depth.expand(-1, 3, -1, -1)  # both stems then see the same, and half and half is the whole
    stem = model.rgb_encoder.act1(model.rgb_encoder.bn1(model.rgb_encoder.conv1(rgb)))
    torch.testing.assert_close(model.encode(rgb, depth)[0], stem)


def test_streams_are_not_told_of_each_other() -> None:
    model = tiny().eval()
    seen: dict[str, list[Tensor]] = {"rgb": [], "depth": []}
    for kind, attentions in (("rgb", model.rgb_attention), ("depth", model.depth_attention)):
        for attention in attentions:
            attention.register_forward_hook(lambda module, args, out, kind=kind: seen[kind].append(args[0].clone()))
    rgb, depth = images()
    first = model.encode(rgb, depth)
    second = model.encode(rgb, depth + 1)
    assert all(torch.equal(a, b) for a, b in zip(seen["rgb"][:5], seen["rgb"][5:], strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(seen["depth"][:5], seen["depth"][5:], strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert [tuple(f.shape[-2:]) for f in first] == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]


def test_merged_features_follow_the_recurrence() -> None:
    """Merged i = stage i of merged i - 1, plus both attended features of that level."""
    model = tiny().eval()
    rgb, depth = images()
    merged = model.encode(rgb, depth)
    rgb_features, depth_features = model.rgb_encoder(rgb), model.depth_encoder(depth)
    state = functional.max_pool2d(merged[0], 3, 2, 1)
    for i in range(4):
        (state,) = model.merge_encoder.stage(i, (state,))
        state = state + model.rgb_attention[i + 1](rgb_features[i]) + model.depth_attention[i + 1](depth_features[i])
        torch.testing.assert_close(merged[i + 1], state)


def test_imagenet_weights_reach_all_three_streams(tmp_path: Path) -> None:
    state = timm.create_model("test_resnet", num_classes=10).state_dict()
    state = {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in state.items()}
    torch.save(state, tmp_path / "weights.pth")
    model = tiny()
    reports = load_encoder_weights(model, tmp_path / "weights.pth")
    assert [(r.stream, r.adapted_from) for r in reports] == [("rgb", None), ("depth", 3), ("merge", None)]
    stem = state["conv1.0.weight"]
    assert torch.equal(model.rgb_encoder.conv1[0].weight, stem)
    # The mean, not the sum, so that the response is a third of that to a gray image.
    torch.testing.assert_close(model.depth_encoder.conv1[0].weight, stem.mean(1, keepdim=True))
    for encoder in (model.rgb_encoder, model.depth_encoder, model.merge_encoder):
        assert torch.equal(encoder.layer3[0].conv2.weight, state["layer3.0.conv2.weight"])
    assert not [name for name in model.merge_encoder.state_dict() if name.startswith(("conv1", "bn1"))]


# The decoder


def test_doubling_block_by_hand() -> None:
    """With one channel, identity normalization and one tap per kernel, every output pixel can be told."""
    block = UpBlock(1, 1, double=True).eval()
    for name, parameter in block.named_parameters():
        nn.init.constant_(parameter, 1.0 if name.startswith(("bn", "shortcut.1")) and "weight" in name else 0.0)
    for norm in (block.bn1, block.bn2, block.shortcut[1]):  # type: ignore[index]
        norm.eps = 0.0
    block.conv1.weight.data[0, 0, 1, 1] = -1.0
    block.conv2.weight.data[0, 0, 1, 1] = 10.0  # the center tap hits the even positions
    block.shortcut[0].weight.data[:] = 1.0  # type: ignore[index]
    x = torch.tensor([[[[1.0, -2.0]]]])
    # rectified -x is (0, 2), so 20 lands at (0, 2); the shortcut repeats x fourfold; then ReLU.
    assert block(x).tolist() == [[[[1.0, 1.0, 18.0, 0.0], [1.0, 1.0, 0.0, 0.0]]]]


def test_auxiliary_outputs_are_taken_before_the_skip() -> None:
    model = tiny().train()
    decoder = model.decoder
    merged = [torch.randn(2, lateral[0].in_channels, 64 >> i, 64 >> i) for i, lateral in enumerate(decoder.laterals, 1)]
    _, doubled = decoder(merged)
    changed = [torch.zeros_like(merged[0]), *merged[1:]]
    _, again = decoder(changed)
    assert [tuple(d.shape[1:]) for d in doubled] == [(8, 32, 32), (8, 16, 16), (12, 8, 8), (16, 4, 4)]
    assert all(torch.equal(a, b) for a, b in zip(doubled, again, strict=True))  # the finest skip is added after all
    _, again = decoder([merged[0], torch.zeros_like(merged[1]), *merged[2:]])
    assert not torch.equal(doubled[0], again[0])
    assert torch.equal(doubled[1], again[1])


def test_auxiliary_names_and_sizes() -> None:
    output = feed(tiny().train(), *images())
    assert [(a.name, tuple(a.value.shape)) for a in output.aux] == [
        ("stride2", (2, 3, 32, 48)),
        ("stride4", (2, 3, 16, 24)),
        ("stride8", (2, 3, 8, 12)),
        ("stride16", (2, 3, 4, 6)),
    ]
    assert output.logits.shape == (2, 3, 64, 96)


# What it is fed and trained with


def test_input_is_meters_and_a_missing_reading_is_no_distance() -> None:
    depth_m = torch.tensor([[[0.0, 2.8424503515351494, 4.0]]])
    sample = RGBDSample(torch.full((3, 1, 3), 255, dtype=torch.uint8), depth_m=depth_m)
    spec = rgbdseg.create_model("acnet_resnet18", 2).input_spec
    with pytest.raises(DataError, match="size 1x3 is not divisible by 32; pad to 32x32"):
        pack([sample], spec)
    batch = pack([sample], spec, (32, 32))
    assert batch.images["depth"].shape[1] == 1
    row = batch.images["depth"][0, 0, 15, 14:17].tolist()
    assert row == pytest.approx([-2.8617, 0.0, 1.1654], abs=1e-4)
    assert batch.images["rgb"][0, :, 15, 14].tolist() == pytest.approx([1.9496, 2.1394, 2.1257], abs=1e-4)
    assert batch.images["depth"][0, 0, 0, 0] == 0


def test_recipe_sums_five_losses_over_labeled_pixels() -> None:
    config = get_recipe("acnet-nyuv2").loss
    assert config.class_weights is not None
    generator = torch.Generator().manual_seed(3)
    label = torch.randint(0, 40, (2, 32, 32), generator=generator)
    label[:, :5] = 255
    maps = [torch.randn(2, 40, 32 >> i, 32 >> i, generator=generator) for i in range(5)]
    aux = tuple(AuxiliaryOutput(f"stride{2**i}", "segmentation", maps[i]) for i in range(1, 5))
    expected = torch.zeros(())
    weights = torch.tensor(config.class_weights)
    for i, logits in enumerate(maps):
        # The pixel at the center of each block, or the one right below the center.
        step = 2**i
        small = label[:, step // 2 :: step, step // 2 :: step]
        each = functional.cross_entropy(logits, small, weights, ignore_index=255, reduction="none")
        expected = expected + each.sum() / (small != 255).sum()
    torch.testing.assert_close(segmentation_loss(SegmentationOutput(maps[0], aux), label, config).total, expected)


@pytest.mark.slow
def test_class_weights_are_those_of_the_training_images() -> None:
    dataset = RGBDDataset(shared_path("nyuv2/dataset.json").parent, "train", needs={"label"})
    counts = torch.zeros(len(dataset), 41, dtype=torch.float64)
    for index in range(len(dataset)):
        label = dataset[index].label
        assert label is not None
        counts[index] = torch.bincount(label.flatten().clamp(max=40).long(), minlength=41)
    frequency = counts.sum(0) / ((counts > 0) * counts.sum(1, keepdim=True)).sum(0)
    # The middle one of 41: void is counted as a class.
    expected = frequency.median() / frequency[:40]
    torch.testing.assert_close(torch.tensor(NYU40_CLASS_WEIGHTS).double(), expected, rtol=0, atol=6e-5)


def test_recipe_lowers_the_rate_by_steps() -> None:
    config = get_recipe("acnet-nyuv2")
    per_epoch = 159  # 795 images by 5
    for epoch, factor in ((0, 1.0), (99, 1.0), (100, 0.8), (1195, 0.8**11)):
        assert learning_rate_factor(epoch * per_epoch, config.schedule) == pytest.approx(factor)
        assert learning_rate_factor((epoch + 1) * per_epoch - 1, config.schedule) == pytest.approx(factor)
    assert {g["weight_decay"] for g in parameter_groups(tiny(), config.optimizer)} == {1e-4}


# The network


def test_released_network() -> None:
    with torch.device("meta"):
        model = rgbdseg.create_model("acnet_resnet50", 40)
    assert isinstance(model, ACNet)
    assert count(model) == 116_628_168
    assert len(model.state_dict()) == 1260
    assert count(model.merge_encoder) == 23_498_496
    assert [count(a) for a in model.rgb_attention] == [4_160, 65_792, 262_656, 1_049_600, 4_196_352]
    assert count(model.rgb_attention) + count(model.depth_attention) == 11_157_120
    assert {"conv1_d.weight", "layer1_m.0.conv1.weight", "atten_depth_4.1.bias", "agant0.1.running_var"} < set(
        to_published(model)
    )


def test_published_names_round_trip() -> None:
    source, target = tiny().eval(), tiny().eval()
    for value in source.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.2, 0.4)
    weights = {f"module.{name}": value.clone() for name, value in to_published(source).items()}
    load_published(target, {"state_dict": weights, "epoch": 1195, "global_step": 0, "optimizer": {}})
    assert torch.equal(feed(source, *images()).logits, feed(target, *images()).logits)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 80)])
def test_sizes_that_do_not_fit_are_refused(height: int, width: int) -> None:
    with pytest.raises(DataError, match=f"size {height}x{width} is not divisible by 32; pad to 64x"):
        feed(tiny(), *images(1, height, width))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder_channels": (8, 8)}, r"decoder_channels is \(8, 8\); expected 5 positive integers"),
        ({"decoder_blocks": (1, 1, 0, 1, 1)}, r"decoder_blocks is \(1, 1, 0, 1, 1\); expected 5 positive integers"),
    ],
)
def test_bad_options(options: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        rgbdseg.create_model("acnet_resnet18", 3, **options)


def test_only_resnets() -> None:
    with pytest.raises(UsageError, match="is not a ResNet"):
        ACNet(3, "vgg11_bn")


# Parity with the published code


@pytest.fixture(scope="module")
def golden() -> tuple[ACNet, Tensor, Tensor, dict[str, np.ndarray]]:
    """The released network with the weights of the golden case, and its inputs and outputs."""
    depth = torch.from_numpy(golden_arrays("acnet_resnet50", "input")["depth"])
    weights = {f"module.{name}": value for name, value in golden_weights("acnet_resnet50").items()}
    with torch.device("meta"):
        model = rgbdseg.create_model("acnet_resnet50", 40)
    model.to_empty(device="cpu")
    load_published(model, {"state_dict": weights, "epoch": 1195.0, "global_step": 0})
    assert isinstance(model, ACNet)
    return model.eval(), golden_image("rgb", (2, 3, 96, 128), 7), depth, golden_arrays("acnet_resnet50", "output")


def test_parity_float32(golden: tuple[ACNet, Tensor, Tensor, dict[str, np.ndarray]]) -> None:
    model, rgb, depth, expected = golden
    with torch.no_grad():
        merged = model.encode(rgb, depth)
        logits, doubled = model.decoder(merged)
        auxiliary = [head(x) for head, x in zip(model.auxiliary_heads, doubled, strict=True)]
        assert torch.equal(feed(model, rgb, depth).logits, logits)
    assert_close(logits[:1, :, ::8, ::8], expected["logits"], 1e-3)
    assert_close(logits.mean((2, 3)), expected["logits_class_mean"], 1e-3)
    assert np.array_equal(logits[:1].argmax(1).numpy(), expected["logits_argmax"])
    for index, step in enumerate((4, 2, 1, 1)):
        assert_close(auxiliary[index][:1, :, ::step, ::step], expected[f"aux_out{index + 2}"], 1e-3)
    for index, feature in enumerate(merged):
        assert_close(feature[:1].mean((2, 3)), expected[f"merge{index}_channel_mean"], 1e-3)


@pytest.mark.slow
def test_parity_float64(golden: tuple[ACNet, Tensor, Tensor, dict[str, np.ndarray]]) -> None:
    model, rgb, depth, expected = golden
    with torch.no_grad():
        logits = feed(copy.deepcopy(model).double(), rgb.double(), depth.double()).logits
    assert_close(logits[:1, :, ::8, ::8], expected["logits_float64"], 1e-6)


def test_a_block_that_does_not_double_keeps_its_channels() -> None:
    with pytest.raises(UsageError, match="out_channels is 8; expected 16"):
        UpBlock(16, 8, double=False)
