"""Statistics over processes, here over a group of one, whose result PyTorch's own layer gives as well."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed
from torch import nn

from rgbdseg.engine.sync_batch_norm import synchronise_batch_norm


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("process_group")
def test_one_process_equals_the_plain_layer(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = (3 * torch.randn(4, 5, 7, 9) + 2).to(dtype)
    plain, portable = nn.Sequential(nn.BatchNorm2d(5)), nn.Sequential(nn.BatchNorm2d(5))
    synchronise_batch_norm(portable, cpu=True)
    inputs = [values.clone().requires_grad_() for _ in range(2)]
    outputs = [layer(input) for layer, input in zip((plain, portable), inputs, strict=True)]
    assert outputs[1].dtype == dtype
    for output in outputs:
        output.float().square().sin().sum().backward()
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(outputs[1], outputs[0], **tolerance)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, **tolerance)
    # The running statistics stay float32 and exact: 252 values are too many to be counted and summed in bfloat16.
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(portable.state_dict()[f"0.{name}"], plain.state_dict()[f"0.{name}"])
