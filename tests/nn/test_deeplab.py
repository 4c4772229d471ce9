from __future__ import annotations

import pytest
import torch
from torch import nn

from rgbdseg.nn.decoders.deeplab import AuxiliaryHead, DeepLabV3PlusDecoder
from rgbdseg.nn.init import init_head
from rgbdseg.nn.resize import resize_bilinear, resize_logits


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_of_the_released_decoder() -> None:
    decoder = DeepLabV3PlusDecoder(2048, 256, 40)
    parts = [count(decoder.aspp), count(decoder.low_level), count(decoder.fuse), count(decoder.classifier)]
    assert parts == [15_535_104, 12_384, 1_291_264, 10_280]
    assert count(AuxiliaryHead(2048, 40, 512)) == 9_458_728


def test_logits_have_the_size_of_the_low_level_feature() -> None:
    decoder = DeepLabV3PlusDecoder(8, 4, 5, channels=6, reduced_channels=3).eval()
    assert decoder([torch.randn(2, 4, 15, 20), torch.randn(2, 8, 4, 5)]).shape == (2, 5, 15, 20)


def test_context_comes_before_the_low_level_feature() -> None:
    # The released weights of the first 3x3 convolution see 256 context channels, then 48 low-level ones.
    decoder = DeepLabV3PlusDecoder(8, 4, 5, channels=6, reduced_channels=3).eval()
    with torch.no_grad():
        decoder.fuse[0].weight[:, 6:] = 0
        high = torch.randn(1, 8, 4, 5)
        torch.testing.assert_close(decoder([torch.randn(1, 4, 8, 8), high]), decoder([torch.randn(1, 4, 8, 8), high]))
        decoder.fuse[0].weight.normal_()
        decoder.fuse[0].weight[:, :6] = 0
        low = torch.randn(1, 4, 8, 8)
        torch.testing.assert_close(decoder([low, high]), decoder([low, torch.randn(1, 8, 4, 5)]))


def test_initialization_is_kaiming_over_fan_in() -> None:
    torch.manual_seed(0)
    head = AuxiliaryHead(64, 40, 128)
    nn.init.constant_(head[1].weight, 7.0)
    bias = head[4].bias.detach().clone()
    init_head(head)
    assert head[0].weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)  # over fan-out: 0.0416
    assert head[4].weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.05)
    assert torch.equal(head[1].weight, torch.ones(128))
    assert torch.equal(head[1].bias, torch.zeros(128))
    assert torch.equal(head[4].bias, bias)


def test_resize_conventions() -> None:
    row = torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2)
    aligned = resize_bilinear(row, (1, 4), align_corners=True).flatten()
    torch.testing.assert_close(aligned, torch.tensor([0, 1 / 3, 2 / 3, 1]))
    centered = resize_bilinear(row, (1, 4), align_corners=False).flatten()
    torch.testing.assert_close(centered, torch.tensor([0, 0.25, 0.75, 1]))


def test_half_precision_logits_are_resized_in_float32() -> None:
    row = torch.tensor([100.0, 101.0]).reshape(1, 1, 1, 2).bfloat16()  # steps of bfloat16 are 0.5 here
    resized = resize_logits(row, (1, 4), align_corners=False)
    assert resized.dtype == torch.float32
    torch.testing.assert_close(resized.flatten(), torch.tensor([100.0, 100.25, 100.75, 101.0]))
    assert resize_logits(row.double(), (1, 4), align_corners=False).dtype == torch.float64
