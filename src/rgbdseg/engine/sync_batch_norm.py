"""Batch statistics over all devices, on the CPU too.

`torch.nn.SyncBatchNorm` refuses CPU tensors; the version here computes the same with differentiable all-reduces, so
that a run over two processes equals a run over one with the same batch, whatever the hardware.
"""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

# B batch, C channels


class _SumOverProcesses(torch.autograd.Function):
    """The sum over all processes; every process's input has the gradient of all processes' outputs."""

    @staticmethod
    def forward(ctx: FunctionCtx, local: Tensor) -> Tensor:
        total = local.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        torch.distributed.all_reduce(total)
        return total


class PortableSyncBatchNorm(nn.BatchNorm2d):
    """`BatchNorm2d` whose training statistics are taken over all processes of the default group."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, H, W); the statistics are float32 also where the input is of lower precision."""
        if not self.training or not torch.distributed.is_initialized():
            return super().forward(input)
        dtype, input = input.dtype, input.float()
        axes = (0, 2, 3)
        count = input.new_full((1,), input.numel() / input.shape[1])
        # One message per pass: count, sums and sums of squares.
        totals = _SumOverProcesses.apply(torch.cat((count, input.sum(axes), input.square().sum(axes))))
        count, sums, squares = totals.split((1, self.num_features, self.num_features))
        mean = sums / count
        variance = (squares / count - mean.square()).clamp_min(0)
        self._update_running(mean.detach(), variance.detach(), float(count.detach()))
        scale = torch.rsqrt(variance + self.eps)
        shift = -mean * scale
        if self.affine:
            scale = scale * self.weight
            shift = -mean * scale + self.bias
        return (input * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)).to(dtype)

    @torch.no_grad()
    def _update_running(self, mean: Tensor, variance: Tensor, count: float) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * (count / max(1.0, count - 1.0)), momentum)


def synchronise_batch_norm(model: nn.Module, cpu: bool) -> None:
    """Give every submodule of ``model`` batch normalisation over all processes, in place.

    cpu: use the portable version; otherwise PyTorch's own for CUDA.  Parameters, buffers and names stay the same.
    """
    if not cpu:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            # The class adds behaviour but no state, so that modules used in two places stay one module.
            module.__class__ = PortableSyncBatchNorm
