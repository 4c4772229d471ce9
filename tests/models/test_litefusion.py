"""LiteFusion: holes of the geometry, resolution, and what starts at zero."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rgbdseg.datasets.nyuv2 import NYU40
from rgbdseg.errors import UsageError
from rgbdseg.models._registry import create_model
from rgbdseg.models.litefusion import LiteFusion, _check_features
from rgbdseg.weights.checkpoint import load_bundle, save_bundle
from rgbdseg.weights.facts import ModelFacts


def small(**options: object) -> LiteFusion:
    torch.manual_seed(0)
    model = create_model("litefusion_lite0", 5, **options)
    assert isinstance(model, LiteFusion)
    return model.eval()


def frame(height: int = 64, width: int = 96, batch: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    rgb = torch.randn(batch, 3, height, width, generator=generator)
    hha = torch.rand(batch, 3, height, width, generator=generator) * 1.5 - 0.5
    return {"rgb": rgb, "hha": hha}


def connect(model: LiteFusion) -> None:
    """Give what starts at zero some weight."""
    for convolution in model.exchange.children():
        torch.nn.init.normal_(convolution.weight, std=0.05)  # type: ignore[arg-type]


@torch.no_grad()
@pytest.mark.parametrize("reduce", [2, 1.5])
@pytest.mark.parametrize("size", [(64, 96), (61, 47), (33, 130)])
def test_any_size(size: tuple[int, int], reduce: float) -> None:
    logits = small(reduce=reduce)(frame(*size)).logits
    assert logits.shape == (1, 5, *size)
    assert logits.isfinite().all()


def test_averages_over_one_pixel_and_a_half() -> None:
    image = torch.arange(12.0).view(1, 1, 3, 4)
    averaged = small(reduce=1.5)._average(image, 1.5)
    rows = torch.tensor([[2.0, 1, 0], [0, 1, 2]]) / 3  # how much of each row of pixels a cell covers
    columns = torch.tensor([[2.0, 1, 0, 0], [0, 1, 2, 0]]) / 3
    torch.testing.assert_close(averaged[0, 0, :, :2], rows @ image[0, 0] @ columns.T)
    assert averaged.shape[-2:] == (2, 3)


@pytest.mark.parametrize("size", [(6, 9), (7, 8), (8, 7), (1, 2)])
@pytest.mark.parametrize("side", [1.5, 2.5])
def test_averages_as_if_pixels_were_cut_in_halves(size: tuple[int, int], side: float) -> None:
    image = torch.randn(2, 3, *size)
    halves = image.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = torch.nn.functional.avg_pool2d(halves, int(2 * side), ceil_mode=True, count_include_pad=False)
    torch.testing.assert_close(small(reduce=side)._average(image, side), expected)


def test_averages_over_one_pixel_and_a_half_have_no_fixed_size_when_exported() -> None:
    class Averaged(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return model._average(image, 1.5)

    model = small(reduce=1.5)
    sizes = {"image": {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}}
    program = torch.export.export(Averaged(), (torch.randn(1, 3, 12, 16),), dynamic_shapes=sizes, strict=False)
    for size in ((7, 11), (9, 12), (8, 7)):
        other = torch.randn(1, 3, *size)
        torch.testing.assert_close(program.module()(other), model._average(other, 1.5))


@pytest.mark.parametrize("reduce", [0.5, 1.25, 17])
def test_a_reduction_that_is_none_is_refused(reduce: float) -> None:
    with pytest.raises(UsageError, match=r"reduce is .*; expected a multiple of 0\.5"):
        small(reduce=reduce)


@torch.no_grad()
def test_large_frames_cost_as_much_as_small_ones() -> None:
    """Each pixel doubled and averaged again gives the same scores, only enlarged."""
    model, images = small(reduce=1), frame()
    connect(model)
    doubled = {name: image.repeat_interleave(2, 2).repeat_interleave(2, 3) for name, image in images.items()}
    other = small(reduce=2)
    other.load_state_dict(model.state_dict())
    want = functional.avg_pool2d(other(doubled).logits, 2)
    # Both enlarge the same coarse map, at 2x and 4x the distance of the pixels; means over 2x2 of the finer one are not
    # quite its values at the coarser centers.
    difference = (want - model(images).logits).abs()
    assert float(difference.max()) < 0.15 * float(want.std())


def test_geometry_is_the_mean_of_the_readings() -> None:
    model = small(reduce=1)
    hha = torch.full((1, 3, 4, 4), -1.0)
    hha[..., 0, 0], hha[..., 1, 1] = 0.2, 0.6  # two readings of four in the first square
    hha[..., 2, 3] = 0.5  # one of four in the last
    made = model._geometry(hha)
    assert made.shape == (1, 4, 2, 2)
    torch.testing.assert_close(made[0, :, 0, 0], torch.tensor([0.4, 0.4, 0.4, 1.0]))
    torch.testing.assert_close(made[0, :, 1, 1], torch.tensor([0.5, 0.5, 0.5, 1.0]))
    assert (made[0, :, 0, 1] == 0).all()


@torch.no_grad()
def test_lost_readings_are_not_read() -> None:
    """The lowest level of a reading's height is the 0 of no reading, too: the angle tells them apart."""
    model = small(reduce=1)
    hha = torch.full((1, 3, 8, 8), 0.3)
    hha[:, 1] = -1
    assert (model._geometry(hha)[:, 3] == 1).all()
    hha[:, 2] = -1
    assert (model._geometry(hha) == 0).all()


@torch.no_grad()
def test_without_depth_the_answer_is_finite_and_depends_on_color_only() -> None:
    model, images = small(), frame()
    connect(model)
    none = {**images, "hha": torch.full_like(images["hha"], -1)}
    with_depth, without = model(images).logits, model(none).logits
    assert without.isfinite().all()
    assert not torch.allclose(with_depth, without)
    assert not torch.allclose(without, model({**none, "rgb": -images["rgb"]}).logits)


@torch.no_grad()
def test_color_features_start_as_those_of_the_pretrained_encoder() -> None:
    model, images = small(reduce=1), frame()
    colors, _ = model._encode(images["rgb"], model._geometry(images["hha"]))
    for got, want in zip(colors, model.encoder(images["rgb"]), strict=True):
        torch.testing.assert_close(got, want)
    connect(model)
    colors, _ = model._encode(images["rgb"], model._geometry(images["hha"]))
    assert not torch.allclose(colors[3], model.encoder(images["rgb"])[3])


def test_gradients_reach_both_encoders_from_the_first_step() -> None:
    model = small().train()
    output = model(frame(batch=2))
    (output.logits.square().mean() + output.aux[0].value.square().mean()).backward()
    for name in ("encoder.conv_stem.weight", "depth_encoder.conv_stem.weight", "exchange.0.weight"):
        gradient = dict(model.named_parameters())[name].grad
        assert gradient is not None, name
        assert gradient.abs().sum() > 0, name


def test_an_encoder_without_the_four_features_is_refused() -> None:
    with pytest.raises(UsageError, match=r"features at 1/8, 1/16 of its input; LiteFusion needs 1/4, 1/8, 1/16, 1/32"):
        _check_features("some", (8, 16), (4, 8, 16, 32))


@torch.no_grad()
def test_half_precision_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model("litefusion_lite0", 40).eval()
    facts = ModelFacts("litefusion_lite0", {}, model.input_spec, NYU40)
    path = tmp_path / "half.safetensors"
    save_bundle(facts, {k: v.half() if v.ndim == 4 else v for k, v in model.state_dict().items()}, path)
    loaded = load_bundle(path).model
    assert next(loaded.parameters()).dtype == torch.float32
    want, got = model(frame()).logits, loaded(frame()).logits
    assert float((want - got).abs().max()) < 0.02 * float(want.std())


@torch.no_grad()
def test_attention_lets_a_corner_change_what_is_said_at_the_other() -> None:
    attention = small(attention_blocks=1).attention
    assert attention is not None
    cells = torch.randn(1, attention[0][0].in_channels, 8, 10, generator=torch.Generator().manual_seed(3))
    changed = cells.clone()
    changed[..., 0, 0] += 3
    difference = (attention(cells) - attention(changed)).abs().amax(1)[0]
    assert difference[-1, -1] > 1e-4  # seven cells away, with a single 3x3 convolution


def test_blocks_of_attention_are_counted() -> None:
    with pytest.raises(UsageError, match="attention_blocks is -1; expected 0 or more"):
        small(attention_blocks=-1)
    names = {name.split(".")[1] for name in small(attention_blocks=3).state_dict() if name.startswith("attention.")}
    assert names == {"0", "1", "2", "3", "4"}  # into 256 channels, three blocks, and back
    assert not any(name.startswith("attention") for name in small().state_dict())
