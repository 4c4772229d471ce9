"""The all-MLP decoder against the published order of operations."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from rgbdseg.errors import UsageError
from rgbdseg.nn.decoders import FeatureInfo, create_decoder
from rgbdseg.nn.decoders.mlp import MLPDecoder

FEATURES = FeatureInfo((4, 6, 8, 10), (4, 8, 16, 32))


@pytest.mark.parametrize("bias", [False, True])
def test_equals_resizing_and_joining_before_mixing(bias: bool) -> None:
    torch.manual_seed(0)
    decoder = create_decoder("mlp", FEATURES, 3, channels=5, mix_bias=bias, norm_eps=1e-3).double()
    assert isinstance(decoder, MLPDecoder)
    for tensor in (*decoder.parameters(), decoder.norm.running_mean, decoder.norm.running_var):
        assert tensor is not None
        nn.init.uniform_(tensor, 0.1, 1.0)
    decoder.eval()
    sizes = ((9, 13), (5, 7), (3, 4), (2, 2))
    maps = [torch.randn(2, c, *size, dtype=torch.float64) for c, size in zip(FEATURES.channels, sizes, strict=True)]
    embedded = []
    for x, layer in zip(maps, decoder.embeddings, strict=True):
        assert isinstance(layer, nn.Linear)
        y = torch.einsum("oc,bchw->bohw", layer.weight, x) + layer.bias[:, None, None]
        embedded.append(functional.interpolate(y, (9, 13), mode="bilinear", align_corners=False))
    mixed = functional.conv2d(torch.cat(embedded[::-1], 1), decoder.mix.weight, decoder.mix.bias)
    norm = decoder.norm
    mixed = functional.batch_norm(mixed, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-3)
    expected = functional.conv2d(mixed.clamp(min=0), decoder.classifier.weight, decoder.classifier.bias)
    torch.testing.assert_close(decoder(maps), expected)
    assert not decoder.align_corners


def test_unknown_option() -> None:
    with pytest.raises(UsageError, match="channels"):
        create_decoder("mlp", FEATURES, 3, chanels=5)
