"""What a sample loses depends on its place in the pass, and not on the number of processes."""

from __future__ import annotations

import pytest
import torch
from timm.layers.drop import DropBlock2d, DropPath
from torch import Tensor, nn

from rgbdseg.engine.dropout import draw_dropout_by_sample
from rgbdseg.errors import UsageError


def drawn(layer: nn.Module, input: Tensor, rank: int = 0, processes: int = 1) -> Tensor:
    model = nn.Sequential(layer).train()
    draw_dropout_by_sample(model, rank, processes)
    torch.manual_seed(7)
    output: Tensor = model(input)
    return output


@pytest.mark.parametrize("layer", [nn.Dropout(0.3), nn.Dropout2d(0.3), DropPath(0.3), nn.Dropout1d(0.3)])
def test_two_processes_draw_what_one_draws(layer: nn.Module) -> None:
    shape = (8, 5, 6) if isinstance(layer, nn.Dropout1d) else (8, 5, 6, 7)
    input = torch.rand(shape) + 1
    whole = drawn(layer, input)
    halves = [drawn(layer, input[4 * rank : 4 * rank + 4], rank, 2) for rank in (0, 1)]
    assert torch.equal(torch.cat(halves), whole)
    assert not torch.equal(halves[0] == 0, halves[1] == 0)


def test_shares_axes_and_means_are_those_of_the_plain_layers() -> None:
    ones = torch.ones(2000, 4, 3, 3)
    for layer, axes in ((nn.Dropout(0.25), 4), (nn.Dropout2d(0.25), 2), (DropPath(0.25), 1)):
        output = drawn(layer, ones)
        assert output.unique().tolist() == pytest.approx([0, 1 / 0.75])
        assert float(output.mean()) == pytest.approx(1, abs=0.05)
        together = output.flatten(axes) if axes < 4 else output[..., None]
        assert bool((together == together[..., :1]).all())
        if axes < 4:  # and no more than these go together
            first = output[:, 0, 0, 0] if axes == 1 else output[:, :, 0, 0]
            assert 0.7 < float((first > 0).float().mean()) < 0.8


def test_nothing_is_lost_in_evaluation_or_at_probability_0() -> None:
    input = torch.rand(2, 3, 4, 4)
    assert torch.equal(drawn(nn.Dropout(0.0), input), input)
    assert float(drawn(nn.Dropout(1.0), input).abs().max()) == 0
    model = nn.Sequential(nn.Dropout(0.5), DropPath(0.5)).eval()
    draw_dropout_by_sample(model, 1, 2)
    assert torch.equal(model(input), input)


def test_a_path_that_is_not_enlarged_stays_so() -> None:
    assert set(drawn(DropPath(0.5, scale_by_keep=False), torch.ones(64, 1, 1, 1)).unique().tolist()) == {0.0, 1.0}


def test_mixed_precision_is_kept() -> None:
    assert drawn(nn.Dropout2d(0.5), torch.ones(2, 3, 4, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_an_unknown_kind_is_refused_on_several_devices_only() -> None:
    draw_dropout_by_sample(nn.Sequential(DropBlock2d(0.1)), 0, 1)
    for layer in (DropBlock2d(0.1), nn.AlphaDropout(0.1)):
        with pytest.raises(UsageError, match=rf"{type(layer).__name__} \('0'\) cannot be drawn for several devices"):
            draw_dropout_by_sample(nn.Sequential(layer), 0, 2)
