from __future__ import annotations

import torch

from rgbdseg.nn.blocks import DropPath


def test_drop_path_leaves_out_whole_images_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25)
    addend = torch.rand(4000, 3, 2) + 1
    ratio = (drop(addend) / addend).flatten(1)
    assert torch.equal(ratio.amin(1) == 0, ratio.amax(1) == 0)  # all of an image or nothing
    kept = ratio[ratio[:, 0] != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / 0.75))
    assert abs(len(kept) / 4000 - 0.75) < 0.03


def test_drop_path_does_nothing_in_evaluation_or_at_rate_0() -> None:
    addend = torch.randn(5, 2)
    assert DropPath(0.9).eval()(addend) is addend
    assert DropPath(0.0).train()(addend) is addend
