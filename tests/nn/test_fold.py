"""Which batch normalizations become part of a convolution; that scores stay is asked of every model of the registry."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import rgbdseg
from rgbdseg.nn.fold import fold_batch_norms


def learned(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    return model.double().eval()


def folded(model: nn.Module, x: torch.Tensor) -> int:
    """Fold a copy and return how many; the copy must compute the same."""
    changed = copy.deepcopy(model)
    count = len(fold_batch_norms(changed))
    torch.testing.assert_close(changed(x), model(x), rtol=1e-10, atol=1e-12)
    return count


X = torch.randn(2, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_a_sequence(bias: bool, affine: bool) -> None:
    torch.manual_seed(0)
    assert folded(learned(nn.Sequential(nn.Conv2d(4, 4, 3, bias=bias), nn.BatchNorm2d(4, affine=affine))), X) == 1


def test_what_is_between_or_before_stays() -> None:
    relu, conv = nn.ReLU(), nn.Conv2d(4, 4, 1)
    for layers in (
        (conv, relu, nn.BatchNorm2d(4)),
        (nn.BatchNorm2d(4), conv),
        # The module that is there twice must not make its neighbors neighbors of each other.
        (relu, conv, relu, nn.BatchNorm2d(4)),
        (conv, nn.BatchNorm2d(4, track_running_stats=False)),
        (nn.ConvTranspose2d(4, 4, 1), nn.BatchNorm2d(4)),
    ):
        assert folded(learned(nn.Sequential(*layers)), X) == 0


def test_a_convolution_with_two_users_stays() -> None:
    conv = nn.Conv2d(4, 4, 1)
    assert folded(learned(nn.Sequential(conv, nn.BatchNorm2d(4), conv)), X) == 0


def test_a_block_with_two_users_is_folded_once() -> None:
    block = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    assert folded(learned(nn.Sequential(block, nn.ReLU(), block)), X) == 1


def test_weights_that_others_share_are_left_to_them() -> None:
    first, second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
    second.weight = first.weight
    assert folded(learned(nn.Sequential(first, nn.BatchNorm2d(4), nn.ReLU(), second)), X) == 1


class Reversed(nn.Module):
    """Has the names of a block that normalizes afterwards, and normalizes before."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv1(self.bn1(x))
        return y


def test_names_alone_decide_nothing() -> None:
    assert folded(learned(Reversed()), X) == 0


def test_a_model_in_training_is_left_alone() -> None:
    assert fold_batch_norms(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))) == []


@pytest.mark.parametrize(
    ("name", "left"), [("sagate_resnet18", 3), ("litefusion_lite0", 0), ("esanet_r10_nbt1d", 0), ("danet_resnet18", 0)]
)
def test_convolutional_networks_keep_hardly_any(name: str, left: int) -> None:
    model = rgbdseg.create_model(name, 5).eval()
    fold_batch_norms(model)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(names) == left, names
