from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.nn.resize import resize_by_rule, resize_logits


@pytest.mark.parametrize("size", [(28, 36), (7, 9), (11, 5), (20, 31), (1, 40)])
def test_bicubic_resizing_in_a_program_is_pytorchs(size: tuple[int, int]) -> None:
    class Resized(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return resize_by_rule(image, size, "bicubic")

    image = torch.randn(2, 3, 7, 9, generator=torch.Generator().manual_seed(0))
    program = torch.export.export(Resized(), (image,))
    wanted = functional.interpolate(image, size=size, mode="bicubic", align_corners=False)
    torch.testing.assert_close(program.module()(image), wanted, rtol=1e-5, atol=1e-5)
    assert not any("bicubic" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("sizes", [((5, 7), (19, 30)), ((6, 8), (6, 8)), ((9, 4), (5, 11)), ((1, 3), (4, 1))])
def test_gradients_of_logits_are_those_of_pytorchs_resizing(
    sizes: tuple[tuple[int, int], tuple[int, int]], align_corners: bool
) -> None:
    small, large = sizes
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, *small, dtype=torch.float64, generator=generator, requires_grad=True)
    weights = torch.randn(2, 3, *large, dtype=torch.float64, generator=generator)
    resized = resize_logits(logits, large, align_corners)
    plain = functional.interpolate(logits, size=large, mode="bilinear", align_corners=align_corners)
    assert torch.equal(resized, plain)
    (ours,) = torch.autograd.grad((resized * weights).sum(), logits)
    (theirs,) = torch.autograd.grad((plain * weights).sum(), logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
