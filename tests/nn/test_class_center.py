from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rgbdseg.nn.decoders.class_center import (
    ClassFeatureBlock,
    ClassFeatureHead,
    class_attention,
    class_centers,
    repelled_centers,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_centers_of_exact_masks_are_means() -> None:
    label = torch.tensor([[[0, 0, 2], [2, 2, 0]]])  # class 1 is absent
    mask = nn.functional.one_hot(label, 3).movedim(-1, 1).double()
    feature = random(1, 4, 2, 3)
    centers = class_centers(mask, feature)
    means = [feature[0][:, label[0] == c].mean(1) for c in (0, 2)]
    torch.testing.assert_close(centers[0, 0], means[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(centers[0, 2], means[1], rtol=1e-6, atol=1e-6)
    assert torch.equal(centers[0, 1], torch.zeros(4, dtype=torch.float64))
    mixed = class_attention(mask, centers)
    for row in range(2):
        for column in range(3):
            assert torch.equal(mixed[0, :, row, column], centers[0, label[0, row, column]])


def test_uniform_probabilities_give_the_mean_of_the_image() -> None:
    probability, feature = torch.full((2, 5, 3, 4), 0.2, dtype=torch.float64), random(2, 6, 3, 4)
    centers = class_centers(probability, feature, epsilon=0)
    mean = feature.mean((2, 3))
    torch.testing.assert_close(centers, mean[:, None].expand(-1, 5, -1))
    torch.testing.assert_close(class_attention(probability, centers), mean[:, :, None, None].expand(-1, -1, 3, 4))


def test_order_of_classes_and_pixels() -> None:
    probability, feature = random(1, 4, 3, 5).softmax(1), random(1, 6, 3, 5, seed=1)
    mixed = class_attention(probability, class_centers(probability, feature))
    shuffled = probability[:, [2, 0, 3, 1]]
    torch.testing.assert_close(class_attention(shuffled, class_centers(shuffled, feature)), mixed)
    flipped = probability.flip(3)
    torch.testing.assert_close(class_attention(flipped, class_centers(flipped, feature.flip(3))), mixed.flip(3))


def test_mixed_features_lie_between_the_centers() -> None:
    probability, feature = (5 * random(1, 4, 6, 7)).softmax(1), random(1, 3, 6, 7, seed=1)
    centers = class_centers(probability, feature)
    mixed = class_attention(probability, centers)
    assert (mixed.amax((2, 3)) <= centers.amax(1) + 1e-12).all()
    assert (mixed.amin((2, 3)) >= centers.amin(1) - 1e-12).all()


def test_a_constant_on_all_logits_of_a_pixel_changes_nothing() -> None:
    torch.manual_seed(0)
    feature, logits, offset = random(1, 6, 3, 4), random(1, 5, 3, 4, seed=1), random(1, 1, 3, 4, seed=2)
    paper, unofficial = (ClassFeatureBlock(6, 8, compat).double().eval() for compat in ("paper", "unofficial"))
    torch.testing.assert_close(paper(feature, logits + offset), paper(feature, logits))
    assert (unofficial(feature, logits + offset) - unofficial(feature, logits)).abs().max() > 1e-3


def test_unofficial_centers_by_hand() -> None:
    logits = torch.tensor([[1.0, 2.0]], dtype=torch.float64).reshape(1, 1, 1, 2)
    feature = torch.tensor([[1.0, 1.0], [2.0, -1.0]], dtype=torch.float64).reshape(1, 2, 1, 2)
    # Sums of logit times feature are 3 and 0; what they lack to the largest is 0 and 3.
    expected = torch.tensor([0.0, 3.0], dtype=torch.float64).softmax(0)
    torch.testing.assert_close(repelled_centers(logits, feature)[0, 0], expected)


def test_fine_loss_reaches_the_coarse_logits_through_the_centers() -> None:
    torch.manual_seed(0)
    block = ClassFeatureBlock(6, 8).double()
    logits = random(2, 5, 3, 4, seed=1).requires_grad_()
    (block(random(2, 6, 3, 4), logits) * random(2, 8, 3, 4, seed=2)).sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() > 1e-4
    # The softmax does not see a constant.
    assert logits.grad.sum(1).abs().max() < 1e-12


def test_centers_stay_float32_under_half_precision() -> None:
    probability, feature = random(1, 3, 64, 64).softmax(1).bfloat16(), random(1, 4, 64, 64, seed=1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = class_centers(probability, feature)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, class_centers(probability.float(), feature.float()))


@pytest.mark.parametrize(
    ("compat", "fine"), [("paper", 3072 * 512 + 1024 + 513 * 19), ("unofficial", 9 * 3072 * 1024 + 2048 + 1025 * 19)]
)
def test_parameter_counts(compat: str, fine: int) -> None:
    with torch.device("meta"):
        head = ClassFeatureHead(2560, 19, 512, compat)  # type: ignore[arg-type]

    def count(*modules: nn.Module) -> int:
        return sum(p.numel() for module in modules for p in module.parameters())

    assert count(head.class_feature.reduce) == 2560 * 512 + 1024
    assert count(head.class_feature.project) == 512 * 512 + 512
    assert count(head.fuse, head.classifier) == fine
