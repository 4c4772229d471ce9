"""Recipes of ESANet, EMSANet and depth on plain transformers."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from lightning.fabric import Fabric

import rgbdseg
from rgbdseg.config.train import TrainConfig
from rgbdseg.engine.step import make_state, training_step
from rgbdseg.losses import segmentation_loss
from rgbdseg.models._base import AuxiliaryOutput, SegmentationOutput
from rgbdseg.nn.decoders.eomt import mask_share
from rgbdseg.recipes.dinodepth import RECIPES as DINODEPTH
from rgbdseg.recipes.dinodepth import eomt_nyuv2
from rgbdseg.recipes.esanet import RECIPES as ESANET
from rgbdseg.recipes.esanet import emsanet_r34_nbt1d_nyuv2, esanet_r34_nbt1d_nyuv2
from rgbdseg.sample import RGBDBatch


@pytest.mark.parametrize("name", [*ESANET, *DINODEPTH])
def test_configs_build_what_they_name(name: str) -> None:
    config = {**ESANET, **DINODEPTH}[name]()
    with torch.device("meta"):
        model = rgbdseg.create_model(config.model.name, 40, **config.model.options)
    assert model.input_spec.needs_depth is (not name.endswith(("rgb", "noise")))
    if config.loss.class_weights is not None:
        assert len(config.loss.class_weights) == 40


def test_class_weights_are_balanced_about_their_median() -> None:
    weights = torch.tensor(esanet_r34_nbt1d_nyuv2().loss.class_weights)
    # The median of the frequencies over the frequency: half of the classes are above, half below.
    assert (weights > 1).sum() == 20
    assert float((1 / weights).sort().values[19:21].mean()) == pytest.approx(1, abs=1e-3)


def test_emsanet_divides_the_sum_over_all_scales_by_all_their_pixels() -> None:
    config = dataclasses.replace(emsanet_r34_nbt1d_nyuv2().loss, class_weights=(0.5, 2.0, 1.0))
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 3, (2, 64, 64), generator=generator)
    scales = {1: label, 8: label[:, 4::8, 4::8], 16: label[:, 8::16, 8::16], 32: label[:, 16::32, 16::32]}
    logits = {s: torch.randn(2, 3, 64 // s, 64 // s, generator=generator) for s in scales}
    side = tuple(AuxiliaryOutput(f"side{s}", "segmentation", logits[s]) for s in (8, 16, 32))
    loss = segmentation_loss(SegmentationOutput(logits[1], side), label, config).total
    weight = torch.tensor([0.5, 2.0, 1.0])
    summed, pixels = torch.zeros(()), 0
    for scale, target in scales.items():
        surprise = -logits[scale].log_softmax(1).gather(1, target[:, None])[:, 0]
        summed += (weight[target] * surprise).sum()
        pixels += target.numel()
    torch.testing.assert_close(loss, summed / pixels)


def test_masks_are_annealed_over_the_published_shares_of_training() -> None:
    config = eomt_nyuv2()
    total = config.schedule.iterations
    intervals = config.model.options["mask_annealing"]
    assert [round(12 * start / total) for start, _ in intervals] == [2, 5, 8]  # of twelfths: 1/6, 2.5/6, 4/6
    assert [round(12 * end / total) for _, end in intervals] == [4, 7, 10]
    assert mask_share(total // 4, *intervals[0]) == pytest.approx(0.5**0.9, abs=1e-3)


def tiny_eomt(depth: str) -> TrainConfig:
    config = eomt_nyuv2()
    options = {
        "encoder": "vit_pico_patch16_dinov3",
        "decoder": "eomt",
        "depth": depth,
        "queries": 8,
        "mask_annealing": [[0, 2], [1, 3], [2, 4]],
    }
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, name="dinodepth_vit_pico", options=options),
        hardware=dataclasses.replace(config.hardware, precision="32-true", accumulate=1),
    )


@pytest.mark.parametrize("depth", ["inject", "none"])
def test_training_anneals_masks(depth: str) -> None:
    config = tiny_eomt(depth)
    torch.manual_seed(0)
    model = rgbdseg.create_model(config.model.name, 3, **config.model.options)
    state = make_state(model, config, Fabric(accelerator="cpu", devices=1))
    label = torch.randint(0, 3, (2, 4, 4)).repeat_interleave(16, 1).repeat_interleave(16, 2)
    images = {stream.name: torch.randn(2, stream.channels, 64, 64) for stream in model.input_spec.streams}
    batch = RGBDBatch(images=images, label=label, sample_ids=("a", "b"))
    shares = []
    for _ in range(4):
        losses = training_step(state, [batch], config)
        shares.append(model.decoder.mask_shares.tolist())  # type: ignore[union-attr, operator]
    half = 0.5**0.9
    assert shares == [pytest.approx(row) for row in ([half, 1, 1], [0, half, 1], [0, 0, half], [0, 0, 0])]
    assert {f"queries{i}" for i in range(4)} <= set(losses)
    assert all(value.isfinite() for value in losses.values())
