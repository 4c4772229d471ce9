"""Plain transformers as staged encoders, against timm's own way of running them."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import Tensor, nn

from rgbdseg.encoders import create_encoder, list_encoders
from rgbdseg.encoders.dino import ViTEncoder
from rgbdseg.errors import UsageError
from rgbdseg.nn.low_rank import LowRankLinear
from rgbdseg.weights import imagenet

PICO = ["vit_pico_patch16_dinov2", "vit_pico_patch16_dinov3"]
pico = pytest.mark.parametrize("name", PICO)


def stirred(module: nn.Module) -> nn.Module:
    """Layer scales of 1e-5 would hide what blocks do, and zeros what tokens and biases do."""
    for name, parameter in module.named_parameters():
        if "gamma" in name or "token" in name or name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    return module


def build(name: str, **options: object) -> ViTEncoder:
    torch.manual_seed(0)
    encoder = stirred(create_encoder(name, **options)).eval()
    assert isinstance(encoder, ViTEncoder)
    return encoder


@pytest.mark.parametrize(
    "name",
    [
        "test_vit",
        "vit_tiny_patch16_224",
        "vit_small_patch14_dinov2",
        "vit_small_patch14_reg4_dinov2",
        "vit_small_patch16_dinov3",
        "eva02_tiny_patch14_224",
    ],
)
def test_features_are_those_of_timm(name: str) -> None:
    torch.manual_seed(0)
    network = stirred(timm.create_model(name, num_classes=10, dynamic_img_size=True)).eval()
    encoder = create_encoder(name).eval()
    assert isinstance(encoder, ViTEncoder)
    left_out = tuple(f"{prefix}." for prefix in (encoder.classifier, *encoder.dropped))
    weights = encoder.rename_weights(network.state_dict())
    encoder.load_state_dict({key: value for key, value in weights.items() if not key.startswith(left_out)})
    image = torch.randn(2, 3, 3 * encoder.patch_size, 5 * encoder.patch_size)
    indices = [level - 1 for level in encoder.levels]
    if isinstance(network.norm, nn.Identity):
        network.norm = network.fc_norm
    with torch.no_grad():
        expected = network.forward_intermediates(image, indices=indices, norm=True, intermediates_only=True)
        features = encoder(image)
    assert len(features) == encoder.num_stages == min(4, len(encoder.blocks))
    for feature, reference in zip(features, expected, strict=True):
        assert feature.shape == (2, encoder.width, 3, 5)
        torch.testing.assert_close(feature, reference)


def test_networks_that_are_no_row_of_blocks_are_refused() -> None:
    with torch.device("meta"), pytest.raises(UsageError, match="not a plain row"):
        create_encoder("vit_small_patch16_18x2_224")


@pico
def test_stages_are_groups_of_blocks(name: str) -> None:
    whole = build(name)
    assert whole.levels == (2, 3, 4, 6)
    assert [list(whole.stage_blocks(i)) for i in range(4)] == [[0, 1], [2], [3], [4, 5]]
    part = build(name, levels=(1, 4))
    assert part.channels == (96, 96)
    assert part.reductions == (16, 16)
    assert len(part.blocks) == 4
    assert "blocks.4" in part.dropped
    assert "blocks.5" in part.dropped
    part.load_state_dict({k: v for k, v in whole.state_dict().items() if not k.startswith(("blocks.4", "blocks.5"))})
    image = torch.randn(1, 3, 48, 64)
    torch.testing.assert_close(part(image)[1], whole(image)[2])
    for levels in ((), (2, 2), (3, 1), (0, 2), (2, 7)):
        with pytest.raises(UsageError, match="ascending ones from 1 to 6"):
            create_encoder(name, levels=levels)


@pico
def test_sizes_beside_multiples_of_the_patch_are_padded_at_the_lower_right(name: str) -> None:
    encoder = build(name)
    image = torch.randn(1, 3, 33, 47)
    padded = torch.zeros(1, 3, 48, 48)
    padded[..., :33, :47] = image
    for feature, reference in zip(encoder(image), encoder(padded), strict=True):
        assert feature.shape == (1, 96, 3, 3)
        assert torch.equal(feature, reference)


@pico
def test_state_holds_patches_and_the_tokens_before(name: str) -> None:
    encoder = build(name)
    state = encoder.stem(torch.randn(2, 3, 48, 64))
    assert [tuple(part.shape) for part in state] == [(2, 96, 3, 4), (2, 96, 5, 1)]
    assert encoder.state_channels(2) == (96, 96)
    tokens, grid = encoder.to_tokens(state)
    assert grid == (3, 4)
    assert torch.equal(tokens[:, 5 + 4 * 1 + 2], state[0][:, :, 1, 2])
    assert all(torch.equal(a, b) for a, b in zip(encoder.to_state(tokens, grid), state, strict=True))


def test_learned_positions_are_resampled() -> None:
    """A constant gradient of positions stays one on a grid of another size; the grid it is stored for is untouched."""
    encoder = build("vit_pico_patch16_dinov2", image_size=(64, 96))
    assert encoder.pos_embed is not None
    assert encoder.pos_embed.shape == (1, 24, 96)
    nn.init.zeros_(encoder.patch_embed.proj.weight)
    nn.init.zeros_(encoder.patch_embed.proj.bias)
    ramp = torch.arange(6.0).expand(4, 6).flatten()
    encoder.pos_embed.data.copy_(ramp[None, :, None].expand_as(encoder.pos_embed))
    own = encoder.stem(torch.randn(1, 3, 64, 96))[0]
    assert torch.equal(own[0, 0], ramp.view(4, 6))
    twice = encoder.stem(torch.randn(1, 3, 64, 192))[0][0, 0]
    torch.testing.assert_close(twice[:, 4:8], torch.tensor([1.75, 2.25, 2.75, 3.25]).expand(4, 4), atol=0.02, rtol=0)


def test_weights_are_resampled_to_another_grid_and_patch_size() -> None:
    source = build("vit_pico_patch16_dinov2")
    target = create_encoder("vit_pico_patch16_dinov2", image_size=(64, 96), patch_size=8)
    renamed = target.rename_weights(source.state_dict())
    assert {k: v.shape for k, v in renamed.items()} == {k: v.shape for k, v in target.state_dict().items()}
    # A patch embedding of constant kernels sums what it sees; one of half the size sees a quarter of it.
    constant = {**source.state_dict(), "patch_embed.proj.weight": torch.ones(96, 3, 16, 16)}
    kernel = target.rename_weights(constant)["patch_embed.proj.weight"]
    torch.testing.assert_close(kernel.sum((2, 3)), torch.full((96, 3), 256.0), rtol=0.01, atol=0)


@pico
def test_a_token_without_position_in_front(name: str) -> None:
    """Order and number of tokens in front do not matter to patches, if they say the same; no rotation reaches them."""
    encoder = build(name)
    encoder.expect_tokens(3, 2)
    tokens, grid = encoder.embed(torch.randn(2, 3, 48, 64))
    extra = torch.randn(2, 3, 96)
    forward = encoder.run_block(2, torch.cat([extra, tokens], 1), grid)
    reverse = encoder.run_block(2, torch.cat([extra.flip(1), tokens], 1), grid)
    torch.testing.assert_close(forward[:, 3:], reverse[:, 3:])
    torch.testing.assert_close(forward[:, :3], reverse[:, :3].flip(1))
    # Hidden from all others, they change nothing.
    visible = torch.ones(2, 1, 3 + tokens.shape[1], 3 + tokens.shape[1], dtype=torch.bool)
    visible[..., 3:, :3] = False
    hidden = encoder.run_block(2, torch.cat([extra, tokens], 1), grid, visible)[:, 3:]
    encoder.expect_tokens(0, 2)
    torch.testing.assert_close(hidden, encoder.run_block(2, tokens, grid), rtol=1e-4, atol=1e-5)


@pico
def test_what_stands_beside_attention_is_added_to_it(name: str) -> None:
    encoder = build(name)
    tokens, grid = encoder.embed(torch.randn(2, 3, 48, 64))
    block = encoder.blocks[1]
    plain = encoder.run_block(1, tokens, grid)
    torch.testing.assert_close(encoder.run_block(1, tokens, grid, branch=lambda x, q: torch.zeros_like(x)), plain)
    seen: list[Tensor] = []

    def branch(normed: Tensor, queries: Tensor) -> Tensor:
        seen.append(queries)
        return torch.ones_like(normed)

    changed = encoder.run_block(1, tokens, grid, branch=branch)
    gamma = block.ls1.gamma if hasattr(block, "ls1") else block.gamma_1
    middle = changed - plain  # attention's part, and what the MLP makes of it
    assert middle.abs().max() > gamma.abs().max() / 2
    queries = block.attn.qkv(block.norm1(tokens))[..., :96]
    torch.testing.assert_close(seen[0], queries)


def test_queries_include_a_separate_bias() -> None:
    encoder = build("vit_tiny_patch16_dinov3_qkvb")
    attention = encoder.blocks[0].attn
    assert attention.qkv.bias is None
    tokens, grid = encoder.embed(torch.randn(1, 3, 32, 32))
    seen: list[Tensor] = []

    def branch(normed: Tensor, queries: Tensor) -> Tensor:
        seen.extend((normed, queries))
        return torch.zeros_like(normed)

    encoder.run_block(0, tokens, grid, branch=branch)
    expected = seen[0] @ attention.qkv.weight[: encoder.width].T + attention.q_bias
    torch.testing.assert_close(seen[1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*PICO, "vit_tiny_patch16_dinov3_qkvb"])
def test_narrow_updates_start_without_effect_and_are_all_that_learns(name: str) -> None:
    plain = build(name)
    adapted = build(name, trainable="low_rank", low_rank=2)
    fresh = adapted.rename_weights(plain.state_dict())
    adapted.load_state_dict(fresh)
    image = torch.randn(2, 3, 32, 48)
    assert torch.equal(adapted(image)[-1], plain(image)[-1])
    learned = [key for key, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert len(learned) == 4 * len(adapted.blocks)
    assert all(key.rpartition(".")[2].startswith("low_rank_") for key in learned)
    for key, parameter in adapted.named_parameters():
        if key.endswith("low_rank_up"):
            nn.init.normal_(parameter)
    adapted(image)[-1].square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapted.parameters() if p.requires_grad)
    # Merged into the weights, they give the same network.
    merged, image = copy.deepcopy(plain).double(), image.double()
    adapted.double()
    for own, other in zip(merged.blocks, adapted.blocks, strict=True):
        for layer in ("qkv", "proj"):
            source = getattr(other.attn, layer)
            assert isinstance(source, LowRankLinear)
            getattr(own.attn, layer).weight.data.copy_(source.merged_weight().data)
    torch.testing.assert_close(adapted(image)[-1], merged(image)[-1])


def test_narrow_updates_stay_fresh_when_a_file_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = build("vit_pico_patch16_dinov3")
    file = {**plain.state_dict(), "head.weight": torch.zeros(10, 96), "fc_norm.weight": torch.ones(96)}
    monkeypatch.setattr(imagenet, "read_state_dict", lambda path: file)
    adapted = create_encoder("vit_pico_patch16_dinov3", trainable="low_rank")
    streams = SimpleNamespace(encoder_streams=lambda: [("rgb", adapted)])
    (report,) = imagenet.load_encoder_weights(streams, "file.safetensors")  # type: ignore[arg-type]
    assert set(report.dropped) == {"head.weight", "fc_norm.weight"}
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(adapted.eval()(image)[-1], plain(image)[-1])


def test_frozen_encoders_pass_gradients_on() -> None:
    encoder = build("vit_pico_patch16_dinov3", trainable="frozen")
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    image = torch.randn(1, 3, 32, 32, requires_grad=True)
    encoder(image)[-1].sum().backward()
    assert image.grad is not None
    with pytest.raises(UsageError, match="did you mean 'low_rank'"):
        create_encoder("vit_pico_patch16_dinov3", trainable="lowrank")
    with pytest.raises(UsageError, match="at least 1"):
        create_encoder("vit_pico_patch16_dinov3", trainable="low_rank", low_rank=0)


def test_blocks_are_left_out_at_a_rising_rate() -> None:
    encoder = create_encoder("vit_pico_patch16_dinov3", drop_path_rate=0.3)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in encoder.blocks]  # type: ignore[union-attr]
    assert rates == pytest.approx([0, 0.06, 0.12, 0.18, 0.24, 0.3])


def test_names() -> None:
    names = list_encoders()
    assert {"vit_small_patch14_dinov2", "vit_base_patch16_dinov3", *PICO} <= set(names)
    encoder = create_encoder("vit_small_patch14_reg4_dinov2.lvd142m")
    assert (encoder.weights, encoder.pretrained_name) == ("timm", "vit_small_patch14_reg4_dinov2.lvd142m")
    assert encoder.mean == (0.485, 0.456, 0.406)
