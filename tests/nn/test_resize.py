from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rgbdseg.nn.resize import resize_by_rule


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
