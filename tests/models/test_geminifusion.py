"""GeminiFusion: its fusion by torch's own attention, the released networks, and what the paper promises of them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import rgbdseg
from rgbdseg.encoders import create_encoder
from rgbdseg.encoders._paired import PairedEncoder
from rgbdseg.errors import UsageError
from rgbdseg.models.geminifusion import GeminiFusion
from rgbdseg.nn.pixel_fusion import PixelAttention, PixelFusion
from rgbdseg.weights.building import without_first_values
from rgbdseg.weights.imagenet import load_encoder_weights
from rgbdseg.weights.published import load_published, to_published
from tests.models.golden import assert_close, golden_arrays, golden_image, golden_weights
from tests.shared_data import shared_path

COUNTS = {
    "geminifusion_mit_b3": 74_551_274,
    "geminifusion_mit_b5": 137_209_322,
    "geminifusion_swin_tiny": 51_950_180,
    "geminifusion_swin_small": 92_796_788,
    "geminifusion_swin_large": 369_012_926,
    "geminifusion_swin_large_window12": 369_215_966,
}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def random_fusion(channels: int = 32) -> PixelFusion:
    torch.manual_seed(0)
    fusion = PixelFusion(channels).double()
    for parameter in fusion.parameters():
        nn.init.normal_(parameter, std=0.3)
    return fusion


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    first, second = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return first, second


def small(encoder: str = "mit_b0", **options: Any) -> GeminiFusion:
    torch.manual_seed(0)
    model = rgbdseg.create_model("geminifusion", 5, encoder=encoder, decoder_channels=32, **options)
    assert isinstance(model, GeminiFusion)
    return model.eval()


def images(height: int = 64, width: int = 96, batch: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    rgb, depth = (torch.randn(batch, 3, height, width, generator=generator) for _ in range(2))
    return {"rgb": rgb, "depth": depth}


# The fusion


def test_fusion_equals_a_loop_over_samples_with_the_attention_of_torch() -> None:
    fusion = random_fusion()
    a_BNC, b_BNC = pair(2, 6, 32)
    expected = []
    for index, (own, other) in enumerate(((a_BNC, b_BNC), (b_BNC, a_BNC))):
        attention = nn.MultiheadAttention(32, 8).double()
        attention.load_state_dict(fusion.attentions[index].state_dict())
        results = []
        for x, y in zip(own, other, strict=True):  # a set of two for every pixel: the pixels are torch's batch
            hidden = functional.gelu(fusion.relation.fc1(torch.cat([x, y], -1)))
            relation = fusion.relation.fc2(hidden).softmax(-1)
            keys = torch.stack([x + fusion.key_noise[index], x * relation])
            values = torch.stack([x + fusion.value_noise[index], y])
            results.append(x + attention(x[None], keys, values)[0][0])
        expected.append(torch.stack(results))
    torch.testing.assert_close(fusion(torch.cat([a_BNC, b_BNC])), torch.cat(expected))


def test_attention_of_two_with_identities() -> None:
    """One head, no noise, a relation of 1 / C: the scores are a.a / sqrt(C) and a.a / (C sqrt(C))."""
    channels = 4
    attention = PixelAttention(channels, 1).double()
    attention.in_proj_weight.data = torch.eye(channels, dtype=torch.float64).repeat(3, 1)
    attention.out_proj.weight.data = torch.eye(channels, dtype=torch.float64)
    nn.init.zeros_(attention.out_proj.bias)
    a, b = pair(1, 5, channels)
    square = (a * a).sum(-1)
    share = torch.exp(square / 2) / (torch.exp(square / 2) + torch.exp(square / channels / 2))
    expected = share[..., None] * a + (1 - share[..., None]) * b
    torch.testing.assert_close(attention(a, (a, a / channels), (a, b)), expected)
    torch.testing.assert_close(attention(a, (a, a / channels), (a, a)), a)


def test_fusion_is_local() -> None:
    fusion = random_fusion()
    a, b = pair(1, 6, 32)
    changed = b.clone()
    changed[0, 4] += 1
    before, after = fusion(torch.cat([a, b])), fusion(torch.cat([a, changed]))
    touched = (before - after).abs().amax(-1) > 0
    assert touched.nonzero().tolist() == [[0, 4], [1, 4]]


@pytest.mark.parametrize("channels", [64, 320])
def test_parameters_of_a_fusion(channels: int) -> None:
    assert count(PixelFusion(channels)) == 11 * channels**2 + 14 * channels


def test_maps_and_tokens_are_fused_alike() -> None:
    fusion = random_fusion()
    x_BHWC = torch.cat(pair(1, 3, 4, 32))
    torch.testing.assert_close(fusion(x_BHWC).flatten(1, 2), fusion(x_BHWC.flatten(1, 2)))


# The released networks


@pytest.mark.parametrize("name", COUNTS)
def test_released_counts(name: str) -> None:
    with torch.device("meta"):
        model = rgbdseg.create_model(name, 40)
    assert count(model) == COUNTS[name]
    assert sum(p.numel() for p in model.parameters() if not p.requires_grad) == 2  # alpha


def test_released_names_and_shapes_of_the_large_network_with_small_windows() -> None:
    entries = json.loads(shared_path("golden/geminifusion_swin_large.json").read_text())["tensors"]
    with torch.device("meta"):
        ours = to_published(rgbdseg.create_model("geminifusion_swin_large", 40))
    expected = {e["name"]: e["shape"] for e in entries if not e["name"].endswith("relative_position_index")}
    assert {name: list(value.shape) for name, value in ours.items()} == expected


GOLDEN = [
    *(pytest.param(case, torch.float32) for case in ("geminifusion_mit_b3", "geminifusion_swin_tiny")),
    *(pytest.param(case, torch.float64) for case in ("geminifusion_mit_b3", "geminifusion_swin_tiny")),
    *(
        pytest.param(case, dtype, marks=pytest.mark.slow)
        for case in ("geminifusion_mit_b5", "geminifusion_swin_small", "geminifusion_swin_large_window12")
        for dtype in (torch.float32, torch.float64)
    ),
]


@pytest.mark.parametrize(("case", "dtype"), GOLDEN)
def test_released_network_is_reproduced(case: str, dtype: torch.dtype) -> None:
    weights = golden_weights(case)
    expected = golden_arrays(case, "output")
    with without_first_values():
        model = rgbdseg.create_model(case, 40).eval()
    assert isinstance(model, GeminiFusion)
    load_published(model, weights)
    model = model.to(dtype)
    depth = torch.from_numpy(golden_arrays(case, "input")["depth"])
    inputs = {"rgb": golden_image("rgb", (2, 3, 96, 128), 7).to(dtype), "depth": depth.to(dtype)}
    with torch.inference_mode():
        rgb, geometry = model.stream_scores(inputs)
        logits = model.ensemble(rgb, geometry)
        features = model.encoder(torch.cat(list(inputs.values())))
        full = model(inputs).logits
    for name, value in (("logits", logits), ("logits_rgb", rgb), ("logits_depth", geometry)):
        assert_close(value[:1, :, ::2, ::2], expected[name], 1e-3)
    if dtype == torch.float64:
        assert_close(logits[:1, :, ::2, ::2], expected["logits_float64"], 2e-6)
    assert_close(logits.mean((2, 3)), expected["logits_class_mean"], 1e-3)
    for index, feature in enumerate(features):
        for stream, row in (("rgb", 0), ("depth", 2)):
            mean = feature[row : row + 1].mean((2, 3))
            assert_close(mean, expected[f"{stream}_stage{index + 1}_channel_mean"].reshape(1, -1), 1e-3)
    assert full.shape == (2, 40, 96, 128)
    torch.testing.assert_close(
        full, functional.interpolate(logits, size=(96, 128), mode="bilinear", align_corners=False)
    )


@pytest.mark.parametrize("encoder", ["mit_b0", "swin_tiny_patch4_window7_224"])
def test_published_layout_round_trip_as_a_file(encoder: str, tmp_path: Path) -> None:
    model = small(encoder)
    state = {f"module.{name}": value for name, value in to_published(model).items()}
    torch.save({"segmenter": state, "epoch_start": 10, "best_val": 0.5}, tmp_path / "model-best.pth.tar")
    other = small(encoder)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    load_published(other, tmp_path / "model-best.pth.tar")
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)


# What the streams share


@pytest.mark.parametrize("encoder", ["mit_b0", "swin_tiny_patch4_window7_224"])
def test_equal_streams_stay_equal(encoder: str) -> None:
    model = small(encoder)
    for fusion in model.modules():
        if isinstance(fusion, PixelFusion):
            fusion.attentions[1].load_state_dict(fusion.attentions[0].state_dict())
            fusion.key_noise.data[1] = fusion.key_noise.data[0]
            fusion.value_noise.data[1] = fusion.value_noise.data[0]
    image = images()["rgb"]
    rgb, geometry = model.stream_scores({"rgb": image, "depth": image})
    torch.testing.assert_close(rgb, geometry)
    rgb, geometry = model.stream_scores(images())
    assert not torch.allclose(rgb, geometry, atol=1e-2)


def disable_fusions(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, PixelAttention):
            nn.init.zeros_(module.out_proj.weight)
            nn.init.zeros_(module.out_proj.bias)


@pytest.mark.parametrize("name", ["mit_b0", "swin_tiny_patch4_window7_224"])
def test_published_weights_of_the_single_encoder_reach_both_streams(name: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {} if name.startswith("swin") else {"norm_eps": 1e-6, "embedding_norm_eps": 1e-6}
    if name.startswith("swin"):
        options["padding"] = "before_shift"
    torch.manual_seed(2)
    single = create_encoder(name, **options).eval()
    for parameter in single.parameters():
        nn.init.normal_(parameter, 0.5 if parameter.ndim == 1 else 0.0, 0.05)
    if name.startswith("swin"):  # the released code starts this norm anew, as its name finds no counterpart
        patch_norm = single.get_submodule("patch_embed.norm")
        nn.init.ones_(patch_norm.weight)
        nn.init.zeros_(patch_norm.bias)
    torch.save(single.state_dict(), tmp_path / "encoder.pth")
    model = small(name)
    own = copy.deepcopy(model.encoder.state_dict())
    (loaded,) = load_encoder_weights(model, tmp_path / "encoder.pth")
    assert loaded.stream == "rgb"
    assert loaded.tensors == len(own)
    after = model.encoder.state_dict()
    assert all(torch.equal(after[key], value) for key, value in own.items() if ".fusion." in key)
    disable_fusions(model)
    both = images(64, 96)
    features = model.encoder(torch.cat(list(both.values())))
    for index, stream in enumerate(both.values()):
        alone = single(stream)
        if name.startswith("swin"):
            tokens = [x.permute(0, 2, 3, 1) for x in alone]
            alone = [functional.layer_norm(x, x.shape[-1:], eps=1e-6).permute(0, 3, 1, 2) for x in tokens]
        for feature, expected in zip(features, alone, strict=True):
            torch.testing.assert_close(feature.chunk(2)[index], expected, rtol=1e-3, atol=1e-3)


def test_fusion_comes_after_the_projection_of_windows() -> None:
    """Without projection both streams enter the fusion as zeros, so that every pixel comes out alike."""
    model = small("swin_tiny_patch4_window7_224")
    block = model.encoder.shared.get_submodule("layers.0.blocks.1")
    nn.init.zeros_(block.attn.proj.weight)
    nn.init.zeros_(block.attn.proj.bias)
    fused: list[Tensor] = []
    block.drop_path1.register_forward_hook(lambda module, args, output: fused.append(output))
    model(images())
    torch.testing.assert_close(fused[0], fused[0][:, :1, :1].expand_as(fused[0]))
    first, second = fused[0].chunk(2)
    assert not torch.allclose(first, second)  # noise of each stream's own


def test_fusion_comes_before_the_projection_of_mix_transformers() -> None:
    model = small()
    attention = model.encoder.shared.get_submodule("block2.0.attn")
    nn.init.zeros_(attention.proj.module.weight)
    nn.init.constant_(attention.proj.module.bias, 0.25)
    outputs: list[Tensor] = []
    attention.register_forward_hook(lambda module, args, output: outputs.append(output))
    model(images())
    torch.testing.assert_close(outputs[0], torch.full_like(outputs[0], 0.25))


def test_norms_of_the_streams() -> None:
    doubled = sum(isinstance(m, nn.LayerNorm) for m in small().encoder.modules())
    assert doubled == 2 * sum(isinstance(m, nn.LayerNorm) for m in create_encoder("mit_b0").modules())
    model = small("swin_tiny_patch4_window7_224")
    eps = {name: m.eps for name, m in model.encoder.named_modules() if isinstance(m, nn.LayerNorm)}
    per_stream = {name for name in eps if name.startswith(("shared.patch_embed", "output_norms"))}
    assert len(per_stream) == 2 * 5
    assert {eps[name] for name in per_stream} == {1e-6}
    assert {value for name, value in eps.items() if name not in per_stream} == {1e-5}


# The output


def test_logits_train_nothing_and_alpha_stays() -> None:
    model = small(drop_path_rate=0.0).train()
    output = model(images())
    assert [a.name for a in output.aux] == ["rgb", "geometry"]
    assert [a.task for a in output.aux] == ["segmentation", "segmentation"]
    assert not output.logits.requires_grad
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    sum(a.value.square().mean() for a in output.aux).backward()  # type: ignore[union-attr]
    optimizer.step()
    torch.testing.assert_close(model.alpha.softmax(0), torch.tensor([0.5, 0.5]))
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_weights_of_the_ensemble() -> None:
    model = small()
    model.alpha.data = torch.tensor([1.0, 0.0])
    rgb, geometry = model.stream_scores(images())
    share = 1 / (1 + torch.exp(torch.tensor(-1.0)))
    torch.testing.assert_close(model.ensemble(rgb, geometry), share * rgb + (1 - share) * geometry)


def test_batch_norm_keeps_its_statistics_as_released_unless_told_otherwise() -> None:
    for freeze in (True, False):
        model = small(freeze_batch_norm=freeze).train()
        before = model.decoder.get_buffer("norm.running_mean").clone()
        model(images())
        assert torch.equal(model.decoder.get_buffer("norm.running_mean"), before) is freeze


@pytest.mark.parametrize(
    ("name", "channels"),
    [("geminifusion_mit_b3", (64, 128, 320, 512)), ("geminifusion_swin_large_window12", (192, 384, 768, 1536))],
)
def test_sizes(name: str, channels: tuple[int, ...]) -> None:
    with torch.device("meta"):
        model = rgbdseg.create_model(name, 40).eval()
        both = {key: torch.empty(1, 3, 480, 640) for key in ("rgb", "depth")}
        features = model.encoder(torch.cat(list(both.values())))
        rgb, _ = model.stream_scores(both)
    sizes = [(120, 160), (60, 80), (30, 40), (15, 20)]
    assert [tuple(f.shape) for f in features] == [(2, c, *s) for c, s in zip(channels, sizes, strict=True)]
    assert rgb.shape == (1, 40, 120, 160)


@pytest.mark.parametrize("encoder", ["mit_b0", "swin_tiny_patch4_window7_224"])
def test_sizes_that_nothing_divides(encoder: str) -> None:
    model = small(encoder)
    maps = model.encoder(torch.cat(list(images(120, 152, 1).values())))
    assert [tuple(m.shape[-2:]) for m in maps] == [(30, 38), (15, 19), (8, 10), (4, 5)]
    assert model(images(61, 83, 1)).logits.shape == (1, 5, 61, 83)


def test_another_decoder() -> None:
    model = small(decoder="deeplabv3plus")
    assert model.layout is None
    assert model(images()).logits.shape == (2, 5, 64, 96)


# What the second stream sees


@pytest.mark.parametrize(
    ("geometry", "raster", "stored", "seen"),
    [
        ("depth", "depth_m", 2.0, 10_000 / 255),
        ("raw_depth", "raw_depth_m", 2.0, 10_000 / 255),
        ("depth_picture", "depth_m", 51.0, 0.2),
        ("hha", "hha", 51.0, 0.2),
        ("thermal", "thermal", 51.0, 0.2),
    ],
)
def test_second_stream(geometry: str, raster: str, stored: float, seen: float) -> None:
    _, stream = small(geometry=geometry).input_spec.streams
    assert stream.raster == raster
    assert stream.channels == 3
    assert stream.stretch == ("image" if geometry == "depth_picture" else "none")
    assert (stored / stream.divide_by - stream.mean[0]) / stream.std[0] == pytest.approx(seen)


def test_wrong_options() -> None:
    with pytest.raises(UsageError, match=r"thermall.*thermal"):
        small(geometry="thermall")
    with pytest.raises(UsageError, match="no blocks in which two streams can be fused"):
        small("resnet18")
    with pytest.raises(UsageError, match="fusion_heads is 7"):
        small(fusion_heads=7)
    with pytest.raises(UsageError, match="no blocks"):
        PairedEncoder(create_encoder("vgg11"), nn.Linear)
