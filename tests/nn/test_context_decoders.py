from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rgbdseg.nn.decoders import Decoder, FeatureInfo, create_decoder
from rgbdseg.nn.decoders.attention import DualAttentionHead
from rgbdseg.nn.decoders.context import DECODERS, DenseASPPHead, JointPyramidDecoder, ObjectContextHead

FEATURES = FeatureInfo((4, 6, 8, 12), (4, 8, 16, 16))


def features(batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randn(batch, c, -(-72 // r), -(-96 // r), generator=generator) for c, r in zip(*FEATURES, strict=True)
    ]


def make(name: str) -> Decoder:
    torch.manual_seed(0)
    decoder = create_decoder(name, FEATURES, 5, channels=16)
    for parameter_name, parameter in decoder.named_parameters():
        if parameter_name.endswith("gamma"):
            nn.init.constant_(parameter, 0.7)
    return decoder


@pytest.mark.parametrize("name", list(DECODERS))
def test_every_parameter_is_learned_and_only_some_features_are_read(name: str) -> None:
    decoder = make(name).train()
    inputs = [feature.requires_grad_() for feature in features()]
    logits = decoder(inputs)
    assert logits.shape == ((2, 5, 9, 12) if name == "fastfcn" else (2, 5, 5, 6))
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(4))).sum().backward()
    assert [n for n, p in decoder.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []
    read = [feature.grad is not None for feature in inputs]
    assert read == ([False, True, True, True] if name == "fastfcn" else [False, False, False, True])


def test_danet_decoder_is_its_head_without_the_branches() -> None:
    decoder = make("danet").eval()
    head = DualAttentionHead(12, 5, 16).eval()
    missing = head.load_state_dict(decoder.get_submodule("head").state_dict(), strict=False).missing_keys
    assert {name.partition(".")[0] for name in missing} == {"branch_classifiers"}
    assert torch.equal(decoder(features()), head(features()[-1])[0])


def test_acfnet_decoder_returns_the_fine_logits() -> None:
    decoder = make("acfnet").eval()
    pyramid, head = decoder.get_submodule("head").children()
    fine, coarse = head(pyramid(features()[-1]))
    assert torch.equal(decoder(features()), fine)
    assert not torch.equal(fine, coarse)


def test_branches_of_dense_aspp_see_all_before() -> None:
    head = DenseASPPHead(2, 3, channels=8, rates=(3, 6)).eval()
    assert [branch[0].in_channels for branch in head.branches] == [8, 10]
    assert head.classifier[1].in_channels == 12
    for parameter in head.parameters():
        if parameter.ndim == 4:
            nn.init.ones_(parameter)
    impulse = torch.zeros(1, 2, 41, 41)
    impulse[..., 20, 20] = 1.0
    rows = (head(impulse) - head(0 * impulse))[0, 0].abs().amax(1).nonzero()[:, 0] - 20
    assert rows.tolist() == [-9, -6, -3, 0, 3, 6, 9]  # 3, 6 and both after one another


def test_object_context_by_hand() -> None:
    torch.manual_seed(0)
    head = ObjectContextHead(3, 2, channels=8).double().eval()
    x = torch.randn(1, 3, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    reduced = head.reduce(x)
    query, value = head.query(reduced).flatten(2)[0], head.value(reduced).flatten(2)[0]
    share = (query.T @ query / 4**0.5).softmax(1)  # 4 wide queries
    context = (value @ share.T).reshape(1, 4, 2, 3)
    expected = head.classifier(head.fuse(torch.cat([head.project(context), reduced], 1)))
    torch.testing.assert_close(head(x), expected)


def test_joint_pyramid_looks_at_three_sizes() -> None:
    decoder = JointPyramidDecoder((3, 4, 5, 6), 2, width=4)
    assert [lateral[0].in_channels for lateral in decoder.laterals] == [4, 5, 6]
    assert [branch[0].dilation for branch in decoder.dilated] == [(1, 1), (2, 2), (4, 4), (8, 8)]
    assert [branch[0].groups for branch in decoder.dilated] == [12] * 4
