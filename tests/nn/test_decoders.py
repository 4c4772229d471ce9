from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from rgbdseg.errors import UsageError
from rgbdseg.nn.decoders import (
    Decoder,
    DecoderEntry,
    FeatureInfo,
    create_decoder,
    decoder_option_names,
    list_decoders,
    register_decoder,
)
from rgbdseg.nn.decoders._registry import DECODERS
from rgbdseg.nn.decoders.deeplab import DeepLabV3PlusDecoder
from rgbdseg.nn.decoders.hrnet import HRNetHead, HRNetHeadOptions

FEATURES = FeatureInfo((8, 12, 16, 20), (4, 8, 16, 32))


@pytest.mark.parametrize("name", list_decoders())
def test_every_decoder_turns_features_into_logits(name: str) -> None:
    narrow = {"channels": 32} if "channels" in decoder_option_names(name) else {}
    decoder = create_decoder(name, FEATURES, 5, **narrow).eval()
    features = [torch.randn(2, c, -(-65 // r), -(-97 // r)) for c, r in zip(*FEATURES, strict=True)]
    logits = decoder(features)
    assert logits.shape[:2] == (2, 5)
    for position in (0, 1):  # what one image is shown changes nothing in the other
        alone = decoder([feature[position : position + 1] for feature in features])
        torch.testing.assert_close(logits[position : position + 1], alone, rtol=1e-4, atol=1e-5)
    changed = [*features[:-1], features[-1] + 1]
    assert not torch.allclose(decoder(changed), logits)
    assert decoder.upsample(logits, (65, 97)).shape == (2, 5, 65, 97)


def test_widths_reach_the_decoder() -> None:
    decoder = create_decoder("deeplabv3plus", FEATURES, 5, channels=24, reduced_channels=6)
    assert isinstance(decoder, DeepLabV3PlusDecoder)
    assert decoder.low_level[0].weight.shape == (6, 8, 1, 1)
    assert decoder.classifier.weight.shape == (5, 24, 1, 1)


def test_further_options_reach_the_decoder() -> None:
    decoder = create_decoder("denseaspp", FEATURES, 5, channels=16, rates=[3, 7])
    assert [branch[3].dilation for branch in decoder.get_submodule("head").branches] == [(3, 3), (7, 7)]
    gald = create_decoder("gald", FEATURES, 5, channels=16, aggregation="nonlocal")
    assert type(gald.get_submodule("head").block.aggregation).__name__ == "PositionAttention"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("deeplabv3", {}, "unknown decoder 'deeplabv3'; did you mean 'deeplabv3plus'?"),
        ("hrnet", {"channels": 64}, "unknown decoder hrnet option 'channels'; expected one of: (none)"),
        ("psp", {"reduced_channels": 48}, "unknown decoder psp option 'reduced_channels'; did you mean 'channels'?"),
        ("psp", {"channels": 2.5}, "decoder psp option channels is 2.5; expected an integer"),
        ("gald", {"aggregation": "cgln"}, "unknown aggregation 'cgln'; did you mean 'cgnl'?"),
    ],
)
def test_errors(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        create_decoder(name, FEATURES, 5, **options)
    assert message in str(caught.value)


@dataclasses.dataclass(frozen=True)
class PlainOptions:
    kernel_size: int = 1


class Plain(Decoder):
    """A convolution on the last feature, whose scores are enlarged without aligned corners."""

    align_corners = False

    def __init__(self, features: FeatureInfo, num_classes: int, options: PlainOptions) -> None:
        super().__init__()
        self.classify = nn.Conv2d(features.channels[-1], num_classes, options.kernel_size, padding="same")

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        logits: torch.Tensor = self.classify(features[-1])
        return logits


def test_decoder_of_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DECODERS, "_registered", {})
    entry = DecoderEntry(Plain, PlainOptions)
    register_decoder("plain", entry)
    register_decoder("plain", entry)  # the same again is no contradiction
    with pytest.raises(UsageError, match="a decoder named 'plain' exists already"):
        register_decoder("plain", DecoderEntry(Plain, HRNetHeadOptions))
    with pytest.raises(UsageError, match="a decoder named 'psp' exists already"):
        register_decoder("psp", entry)
    assert "plain" in list_decoders()
    decoder = create_decoder("plain", FEATURES, 3, kernel_size=3)
    logits = torch.tensor([[[[0.0, 1.0]]]])
    torch.testing.assert_close(decoder.upsample(logits, (1, 4)).flatten(), torch.tensor([0, 0.25, 0.75, 1]))
    half = decoder.upsample(logits.bfloat16(), (1, 4))
    assert half.dtype == torch.float32


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
    mixed = (mixed / (1 + head.mix[1].eps) ** 0.5).clamp(min=0)  # fresh normalization in evaluation
    expected = torch.einsum("oc,bchw->bohw", head.classifier.weight[:, :, 0, 0], mixed)
    torch.testing.assert_close(head([fine, coarse]), expected + head.classifier.bias[:, None, None])
