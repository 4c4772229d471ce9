from __future__ import annotations

import torch

from rgbdseg.nn.blocks import DropPath, halves


def test_drop_path_leaves_out_whole_images_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25)
    addend = torch.rand(4000, 3, 2) + 1
    ratio = (drop(addend) / addend).flatten(1)
    assert torch.equal(ratio.amin(1) == 0, ratio.amax(1) == 0)  # all of an image or nothing
    kept = ratio[ratio[:, 0] != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / 0.75))
    assert abs(len(kept) / 4000 - 0.75) < 0.03


def test_halves_of_a_stack_for_any_number_of_images() -> None:
    class Difference(torch.nn.Module):
        def forward(self, color: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            first, second = halves(2 * torch.cat([color, other]))
            return first - 2 * second

    free = {0: torch.export.Dim.AUTO}
    given = (torch.randn(2, 3), torch.randn(2, 3))
    program = torch.export.export(Difference(), given, dynamic_shapes=(free, free), strict=False)
    for images in (1, 3):
        color, other = torch.randn(images, 3), torch.randn(images, 3)
        torch.testing.assert_close(program.module()(color, other), 2 * color - 4 * other)
    operators = {str(node.target) for node in program.graph.nodes}
    assert not any("split" in name or "chunk" in name for name in operators)


def test_drop_path_does_nothing_in_evaluation_or_at_rate_0() -> None:
    addend = torch.randn(5, 2)
    assert DropPath(0.9).eval()(addend) is addend
    assert DropPath(0.0).train()(addend) is addend
