from __future__ import annotations

import pytest
import torch
from torch import nn

from rgbdseg.errors import UsageError
from rgbdseg.nn.decoders._registry import DECODERS, create_decoder
from rgbdseg.nn.decoders.deeplab import DeepLabV3PlusDecoder
from rgbdseg.nn.decoders.hrnet import HRNetHead

CHANNELS, REDUCTIONS = (8, 12, 16, 20), (4, 8, 16, 32)


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_every_decoder_turns_features_into_logits(name: str) -> None:
    decoder = create_decoder(name, CHANNELS, REDUCTIONS, 5, width=32, reduced_width=8).eval()
    features = [torch.randn(2, c, -(-65 // r), -(-97 // r)) for c, r in zip(CHANNELS, REDUCTIONS, strict=True)]
    logits = decoder(features)
    assert logits.shape[:2] == (2, 5)
    for position in (0, 1):  # what one image is shown changes nothing in the other
        alone = decoder([feature[position : position + 1] for feature in features])
        torch.testing.assert_close(logits[position : position + 1], alone, rtol=1e-4, atol=1e-5)
    changed = [*features[:-1], features[-1] + 1]
    assert not torch.allclose(decoder(changed), logits)


def test_widths_reach_the_decoder() -> None:
    decoder = create_decoder("deeplabv3plus", CHANNELS, REDUCTIONS, 5, width=24, reduced_width=6)
    assert isinstance(decoder, DeepLabV3PlusDecoder)
    assert decoder.low_level[0].weight.shape == (6, 8, 1, 1)
    assert decoder.classifier.weight.shape == (5, 24, 1, 1)


def test_unknown_decoder() -> None:
    with pytest.raises(UsageError, match=r"unknown decoder 'deeplabv3'; did you mean 'deeplabv3plus'\?"):
        create_decoder("deeplabv3", CHANNELS, REDUCTIONS, 5)


def test_hrnet_head_parameters() -> None:
    # HRNetV2-W48 with 19 classes: 65,859,379 parameters, 65,325,120 of them in the backbone.
    head = HRNetHead((48, 96, 192, 384), 19)
    assert sum(p.numel() for p in head.parameters()) == 65_859_379 - 65_325_120


def test_hrnet_head_joins_the_features_at_the_size_of_the_finest() -> None:
    head = HRNetHead((2, 3), 4).eval()
    fine, coarse = torch.randn(1, 2, 9, 13), torch.randn(1, 3, 5, 7)
    enlarged = nn.functional.interpolate(coarse, (9, 13), mode="bilinear", align_corners=True)
    joined = torch.cat([fine, enlarged], dim=1)
    mixed = torch.einsum("oc,bchw->bohw", head.mix[0].weight[:, :, 0, 0], joined) + head.mix[0].bias[:, None, None]
    mixed = (mixed / (1 + head.mix[1].eps) ** 0.5).clamp(min=0)  # fresh normalisation in evaluation
    expected = torch.einsum("oc,bchw->bohw", head.classifier.weight[:, :, 0, 0], mixed)
    torch.testing.assert_close(head([fine, coarse]), expected + head.classifier.bias[:, None, None])
