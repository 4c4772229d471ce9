"""Depth on a plain transformer: the published queries, the equality of twins, and every way of adding depth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rgbdseg
from rgbdseg.config.loss import LossConfig
from rgbdseg.errors import CheckpointError, UsageError
from rgbdseg.input_spec import IMAGENET_MEAN, IMAGENET_STD
from rgbdseg.losses import segmentation_loss
from rgbdseg.models.dinodepth import DinoDepth
from rgbdseg.nn.decoders.eomt import EoMTHead
from rgbdseg.weights.published import load_published, to_published
from tests.models.feed import feed
from tests.models.golden import assert_close, golden_arrays, golden_weights

CASE = "eomt_tiny_vit"
DEPTHS = ("none", "inject", "geometry_prior", "prompts")
PICO = ("vit_pico_patch16_dinov2", "vit_pico_patch16_dinov3")


def model(**options: object) -> DinoDepth:
    torch.manual_seed(0)
    given = {"decoder_options": {}} if options.get("decoder") == "eomt" else {}
    built = rgbdseg.create_model("dinodepth_vit_pico", 5, **{"queries": 7, **given, **options})
    assert isinstance(built, DinoDepth)
    return built


def wake(module: nn.Module) -> None:
    """Give what starts at zero a value, and layer scales one that shows."""
    for name, parameter in module.named_parameters():
        if "gamma" in name or not parameter.abs().max():
            nn.init.normal_(parameter, std=0.3)


def images(height: int = 48, width: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(2, 3, height, width, generator=generator),
        torch.randn(2, 1, height, width, generator=generator),
    )


# ---- the published queries


@pytest.fixture(scope="module")
def published() -> tuple[DinoDepth, Tensor]:
    weights = golden_weights(CASE)
    built = rgbdseg.create_model(
        "dinodepth",
        40,
        encoder="vit_pico_patch16_dinov2",
        depth="none",
        decoder="eomt",
        queries=20,
        query_blocks=4,
        encoder_options={"image_size": (96, 128)},
    )
    load_published(built, weights)
    rgb = torch.from_numpy(golden_arrays(CASE, "input")["rgb"]).double()
    # The released network holds them in single precision.
    mean, std = (torch.tensor(values)[:, None, None].double() for values in (IMAGENET_MEAN, IMAGENET_STD))
    assert isinstance(built, DinoDepth)
    return built.eval(), (rgb - mean) / std


def test_equals_the_released_queries(published: tuple[DinoDepth, Tensor]) -> None:
    built, rgb = published
    expected = golden_arrays(CASE, "output")
    assert sum(p.numel() for p in built.parameters()) == 861_161
    assert sum(p.numel() for p in built.decoder.parameters()) == 109_865
    rgb = rgb.float()
    with torch.no_grad():
        scores = feed(built, rgb).logits.exp()
        (last,) = built.predict_queries(rgb, rgb, masked=False)
    assert_close(scores[:1, :, ::4, ::4], expected["logits"], 1e-3)
    assert_close(scores.mean((2, 3)), expected["logits_class_mean"], 1e-4)
    assert (scores[0].argmax(0).numpy() == expected["logits_argmax"][0]).mean() > 0.999
    assert_close(last.mask_logits[:1, :, ::2, ::2], expected["mask_logits"], 1e-4)
    assert_close(last.class_logits, expected["class_logits"], 1e-4)


def test_equals_the_released_queries_with_masks(published: tuple[DinoDepth, Tensor]) -> None:
    built, rgb = published
    rgb = rgb.float()
    expected = golden_arrays(CASE, "output")
    head = built.decoder
    assert isinstance(head, EoMTHead)
    with torch.no_grad():
        predictions = built.predict_queries(rgb, rgb, masked=True)
        allowed = torch.stack([head.allowed_patches(p.mask_logits, (6, 8)) for p in predictions[:-1]])
        assert np.array_equal(allowed.unflatten(3, (6, 8)).numpy(), expected["attention_allowed"])
        masks = torch.stack([p.mask_logits[:1, :, ::4, ::4] for p in predictions])
        assert_close(masks, expected["masked_mask_logits"], 1e-4)
        assert_close(torch.stack([p.class_logits for p in predictions]), expected["masked_class_logits"], 1e-4)
        # Once all masks are given up, the last prediction is that of the network without masks.
        head.mask_shares.zero_()
        annealed = built.predict_queries(rgb, rgb, masked=True)[-1]
        (plain,) = built.predict_queries(rgb, rgb, masked=False)
        head.mask_shares.fill_(1)
    torch.testing.assert_close(annealed.mask_logits, plain.mask_logits)


def test_equals_the_released_queries_in_double_precision(published: tuple[DinoDepth, Tensor]) -> None:
    built, rgb = published
    with torch.no_grad():
        scores = feed(built.double(), rgb).logits.exp()
    built.float()
    assert_close(scores[:1, :, ::4, ::4], golden_arrays(CASE, "output")["logits_float64"], 2e-6)


def test_layout_round_trip(published: tuple[DinoDepth, Tensor]) -> None:
    built, _ = published
    weights = golden_weights(CASE)
    written = to_published(built)
    normalization = {"encoder.pixel_mean", "encoder.pixel_std"}
    assert set(written) == set(weights) - normalization
    assert all(torch.equal(value, weights[name]) for name, value in written.items())
    # Files of the trainer have a prefix, and its loss and metrics beside.
    trained = {f"network.{name}": value for name, value in weights.items()}
    trained |= {"criterion.empty_weight": torch.ones(41), "metrics.0.confmat": torch.zeros(1)}
    load_published(built, {"state_dict": trained})
    assert all(torch.equal(value, weights[name]) for name, value in to_published(built).items())


def test_only_the_published_network_has_a_layout() -> None:
    for depth, decoder in itertools.product(DEPTHS, ("dpt", "eomt")):
        assert (model(depth=depth, decoder=decoder).layout is None) is not (depth == "none" and decoder == "eomt")
    with pytest.raises(CheckpointError, match="no published checkpoint layout"):
        to_published(model())


# ---- twins and guides


@pytest.mark.parametrize("decoder", ["dpt", "eomt"])
@pytest.mark.parametrize("encoder", PICO)
def test_injection_starts_bit_equal_to_the_rgb_twin(encoder: str, decoder: str) -> None:
    twin = model(encoder=encoder, decoder=decoder, depth="none")
    injected = model(encoder=encoder, decoder=decoder, depth="inject")
    wake(twin)
    injected.load_state_dict(twin.state_dict(), strict=False)
    rgb, depth = images()
    for mode in (False, True):
        twin.train(mode), injected.train(mode)
        for module in (*twin.modules(), *injected.modules()):
            if isinstance(module, nn.Dropout2d):
                module.p = 0.0
        torch.manual_seed(1)
        expected = feed(twin, rgb)
        torch.manual_seed(1)
        output = feed(injected, rgb, depth)
        assert torch.equal(output.logits, expected.logits)
        for own, other in zip(output.aux, expected.aux, strict=True):
            assert torch.equal(own.value, other.value)
    wake(injected.guide)
    assert not torch.equal(feed(injected.eval(), rgb, depth).logits, feed(twin.eval(), rgb).logits)


@pytest.mark.parametrize("encoder", ["tf_efficientnet_lite0", "test_resnet", "hrnet_w18_small"])
def test_injection_into_other_encoders_starts_bit_equal_to_the_rgb_twin(encoder: str) -> None:
    decoder = "hrnet" if encoder.startswith("hrnet") else "dpt"
    twin = rgbdseg.create_model("dinodepth", 5, encoder=encoder, decoder=decoder, depth="none").eval()
    injected = rgbdseg.create_model("dinodepth", 5, encoder=encoder, decoder=decoder, depth_channels=4).eval()
    injected.load_state_dict(twin.state_dict(), strict=False)
    rgb, depth = images(50, 70)
    assert torch.equal(feed(injected, rgb, depth).logits, feed(twin, rgb).logits)
    wake(injected.guide)  # type: ignore[arg-type]
    assert not torch.equal(feed(injected, rgb, depth).logits, feed(twin, rgb).logits)


@pytest.mark.parametrize("depth", ["geometry_prior", "prompts"])
@pytest.mark.parametrize("encoder", PICO)
def test_prior_and_prompts_start_as_the_rgb_twin(encoder: str, depth: str) -> None:
    twin = model(encoder=encoder, depth="none")
    wake(twin)
    guided = model(encoder=encoder, depth=depth)
    guided.load_state_dict(twin.state_dict(), strict=False)
    rgb, second = images(33, 47)
    torch.testing.assert_close(
        feed(guided.eval(), rgb, second).logits, feed(twin.eval(), rgb).logits, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("depth", DEPTHS[1:])
@pytest.mark.parametrize("decoder", ["dpt", "eomt"])
def test_depth_counts_once_awake(depth: str, decoder: str) -> None:
    built = model(depth=depth, decoder=decoder).eval()
    wake(built)
    rgb, second = images()
    logits = feed(built, rgb, second).logits
    assert not torch.allclose(logits, feed(built, rgb, second.flip(3)).logits)
    assert not torch.allclose(logits, feed(built, rgb.flip(1), second).logits)


@pytest.mark.parametrize(
    ("encoder", "depth", "decoder", "trainable"),
    [
        *((PICO[1], depth, decoder, "all") for depth in DEPTHS for decoder in ("dpt", "eomt")),
        *((PICO[0], depth, "dpt", "frozen") for depth in DEPTHS),
        *((PICO[1], depth, "eomt", "low_rank") for depth in DEPTHS),
    ],
)
def test_gradient_reaches_all_that_is_trained_and_nothing_else(
    encoder: str, depth: str, decoder: str, trainable: str
) -> None:
    built = model(encoder=encoder, depth=depth, decoder=decoder, encoder_options={"trainable": trainable}).train()
    wake(built)
    rgb, second = images(40, 70)
    output = feed(built, rgb, *([second] if depth != "none" else []))
    label = torch.randint(0, 5, (2, 40, 70))
    config = LossConfig(main_weight=0.0 if decoder == "eomt" else 1.0, auxiliary_weight=1.0)
    segmentation_loss(output, label, config).total.backward()
    for name, parameter in built.named_parameters():
        learned = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        assert learned is parameter.requires_grad, name
    frozen = [n for n, p in built.named_parameters() if not p.requires_grad]
    assert all(name.startswith("encoder.") for name in frozen)
    assert bool(frozen) is (trainable != "all")


@pytest.mark.parametrize(("height", "width"), [(48, 64), (33, 47), (61, 96)])
@pytest.mark.parametrize("decoder", ["dpt", "eomt"])
@pytest.mark.parametrize("depth", DEPTHS)
def test_any_size(depth: str, decoder: str, height: int, width: int) -> None:
    built = model(depth=depth, decoder=decoder).eval()
    rgb, second = images(height, width)
    logits = feed(built, rgb, *([second] if depth != "none" else [])).logits
    assert logits.shape == (2, 5, height, width)
    assert logits.isfinite().all()


def test_patch_of_14() -> None:
    built = model(encoder="vit_pico_patch16_dinov2", encoder_options={"patch_size": 14}).eval()
    assert feed(built, *images(50, 70)).logits.shape == (2, 5, 50, 70)
    queries = model(encoder="vit_pico_patch16_dinov2", encoder_options={"patch_size": 14}, decoder="eomt").train()
    output = feed(queries, *images(50, 70))
    assert output.logits.shape == (2, 5, 50, 70)
    assert output.aux[0].value.shape == (2, 7, 8, 10)  # twice the grid of 4 x 5


# ---- queries in training


def test_queries_predict_before_their_blocks_and_after_the_last() -> None:
    built = model(decoder="eomt").train()
    output = feed(built, *images())
    names = [f"{kind}{i}" for i in range(4) for kind in ("masks", "queries")]
    assert [auxiliary.name for auxiliary in output.aux] == names
    assert [auxiliary.task for auxiliary in output.aux] == ["query_masks", "query_classes"] * 4
    assert output.aux[0].value.shape == (2, 7, 12, 16)
    assert output.aux[1].value.shape == (2, 7, 6)
    assert len(feed(model(decoder="eomt", masked_attention=False).train(), *images()).aux) == 2
    assert feed(built.eval(), *images()).aux == ()


def test_queries_change_patches() -> None:
    """Patches attend to queries as well: with other queries, the features of patches are others."""
    built = model(decoder="eomt", depth="none").eval()
    wake(built)
    rgb, _ = images()
    head = built.decoder
    assert isinstance(head, EoMTHead)
    tokens, grid, _ = built._run_blocks(built.encoder, rgb, rgb, head)  # type: ignore[arg-type]
    nn.init.normal_(head.queries.weight)
    others, _, _ = built._run_blocks(built.encoder, rgb, rgb, head)  # type: ignore[arg-type]
    patches = grid[0] * grid[1]
    assert not torch.allclose(tokens[-1][:, -patches:], others[-1][:, -patches:])
    assert torch.equal(tokens[0], others[0])


def test_order_of_queries_does_not_matter() -> None:
    built = model(decoder="eomt", depth="geometry_prior").eval()
    wake(built)
    logits = feed(built, *images()).logits
    head = built.decoder
    assert isinstance(head, EoMTHead)
    head.queries.weight.data = head.queries.weight.data[[4, 1, 0, 6, 5, 3, 2]]
    torch.testing.assert_close(feed(built, *images()).logits, logits, rtol=1e-4, atol=1e-4)


def test_masks_are_annealed_by_step() -> None:
    built = model(decoder="eomt", mask_annealing=((0, 10), (5, 10), (10, 20)))
    head = built.decoder
    assert isinstance(head, EoMTHead)
    assert head.mask_shares.tolist() == [1, 1, 1]
    built.after_optimizer_step(5)
    torch.testing.assert_close(head.mask_shares, torch.tensor([0.5**0.9, 1, 1]))
    built.after_optimizer_step(15)
    torch.testing.assert_close(head.mask_shares, torch.tensor([0, 0, 0.5**0.9]))
    built.after_optimizer_step(99)
    assert head.mask_shares.tolist() == [0, 0, 0]
    kept = model(decoder="eomt")
    kept.after_optimizer_step(99)
    assert kept.decoder.mask_shares.tolist() == [1, 1, 1]  # type: ignore[union-attr]
    model().after_optimizer_step(3)  # other heads have no masks


# ---- options


def test_streams() -> None:
    assert model(depth="none").input_spec.names == ("rgb",)
    depth = model().input_spec.stream("depth")
    assert (depth.raster, depth.missing, depth.channels) == ("depth_m", "mean", 1)
    assert model(second_stream="noise").input_spec.names == ("rgb", "noise")
    rgb, _ = images()
    for way in DEPTHS[1:]:
        hha = model(second_stream="hha", depth=way).eval()
        assert feed(hha, rgb, rgb.flip(1)).logits.shape == (2, 5, 48, 64)


def test_places_of_injection_can_be_chosen() -> None:
    built = model(inject_before=(0, 2))
    assert sorted(built.guide.project) == ["0", "2"]  # type: ignore[union-attr, arg-type]
    with pytest.raises(UsageError, match="one or more of the stages 0 to 3"):
        model(inject_before=(4,))


def test_what_does_not_fit_is_refused() -> None:
    for options in ({"depth": "prompts"}, {"depth": "geometry_prior"}, {"decoder": "eomt", "decoder_options": {}}):
        with pytest.raises(UsageError, match="needs a plain transformer"):
            rgbdseg.create_model("dinodepth", 5, encoder="test_resnet", **options)
    with pytest.raises(UsageError, match="'eomt' has none"):
        rgbdseg.create_model("dinodepth_vit_pico", 5, decoder="eomt", decoder_options={"channels": 16})
    # Options of the variant's own decoder are not those of another one.
    assert isinstance(rgbdseg.create_model("dinodepth_vit_pico", 5, decoder="eomt").decoder, EoMTHead)
    with pytest.raises(UsageError, match="the encoder has 6 blocks"):
        model(decoder="eomt", query_blocks=7)
    with pytest.raises(UsageError, match="did you mean 'geometry_prior'"):
        model(depth="geometry_priors")


@pytest.mark.parametrize(
    ("name", "blocks", "width"),
    [
        ("dinodepth_vits16_dinov3_eomt", 3, 384),
        ("dinodepth_vitb16_dinov3_eomt", 3, 768),
        ("dinodepth_vitl16_dinov2_eomt", 4, 1024),
    ],
)
def test_real_sizes(name: str, blocks: int, width: int) -> None:
    with torch.device("meta"):
        built = rgbdseg.create_model(name, 40)
    head = built.decoder
    assert isinstance(head, EoMTHead)
    assert (head.blocks, head.queries.weight.shape) == (blocks, (100, width))
    if name == "dinodepth_vitl16_dinov2_eomt":
        published = to_published(built)
        assert published["encoder.backbone.pos_embed"].shape == (1, 32 * 32, 1024)
        assert published["encoder.backbone.patch_embed.proj.weight"].shape == (1024, 3, 16, 16)


def test_queries_of_a_model_without_any() -> None:
    model = rgbdseg.create_model("dinodepth_vit_pico", 3)
    assert isinstance(model, DinoDepth)
    image = torch.zeros(1, 3, 64, 64)
    with pytest.raises(UsageError, match="decoder='eomt'"):
        model.predict_queries(image, image, masked=False)
