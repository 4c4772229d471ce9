"""2.5D convolutions under DistributedDataParallel: two CPU processes get the gradients of one with the whole batch."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rgbdseg.models.malleable import Malleable


def make_model() -> Malleable:
    torch.manual_seed(0)
    model = Malleable(3, "test_resnet", decoder_channels=8).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # its statistics would tell the two halves of a batch from the whole
    return model


def gradients(model: nn.Module, part: slice) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    rgb = torch.randn(4, 3, 32, 32, generator=generator)
    depth_m = 1 + 0.2 * torch.rand(4, 1, 32, 32, generator=generator)
    camera = torch.tensor([[30.0, 30.0, 16.0, 16.0]]).expand(4, 4)
    output = model({"rgb": rgb[part], "depth": depth_m[part]}, camera[part])
    (output.logits.square().mean() + output.aux[0].value.square().mean()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    model = DistributedDataParallel(make_model())
    found = gradients(model, slice(2 * rank, 2 * rank + 2))
    torch.save({name.removeprefix("module."): value for name, value in found.items()}, f"{folder}/{rank}.pth")
    torch.distributed.destroy_process_group()


def test_two_processes_average_to_the_whole_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2)
    expected = gradients(make_model(), slice(0, 4))
    assert {"depth_anchor", "temperature", "kernel_weight", "weight_2"} <= {name.split(".")[-1] for name in expected}
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pth", weights_only=True)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            # Per tensor: sums of both signs leave single numbers with few digits.
            assert (found[name] - value).norm() <= 1e-4 * value.norm() + 1e-7, name
