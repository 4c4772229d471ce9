"""Batch statistics over all devices, on the CPU too, for every kind of batch normalization that a network may hold.

`torch.nn.SyncBatchNorm` refuses CPU tensors; the version here computes the same with differentiable all-reduces, so
that a run over two processes equals a run over one with the same batch, whatever the hardware.
"""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.modules.batchnorm import _BatchNorm

from rgbdseg.engine._timm_layers import BatchNormAct2d, SyncBatchNormAct
from rgbdseg.errors import UsageError

# B batch, C channels; ... any number of further axes; P processes


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


class _OverProcesses(_BatchNorm):
    """Training statistics over all processes of the default group; put before the plain layer among the bases."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalize (B, C, ...); the statistics are at least float32 where the input is of lower precision."""
        if not self.training or not torch.distributed.is_initialized():
            return super().forward(input)
        return _normalize_over_processes(self, input)


class _PortableBatchNorm1d(_OverProcesses, nn.BatchNorm1d):
    pass


class _PortableBatchNorm2d(_OverProcesses, nn.BatchNorm2d):
    pass


class _PortableBatchNorm3d(_OverProcesses, nn.BatchNorm3d):
    pass


class _PortableBatchNormAct2d(_OverProcesses, BatchNormAct2d):
    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not torch.distributed.is_initialized():
            return super().forward(input)  # which has the dropout and the activation in it
        output: Tensor = self.act(self.drop(_normalize_over_processes(self, input)))
        return output


_PORTABLE: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: _PortableBatchNorm1d,
    nn.BatchNorm2d: _PortableBatchNorm2d,
    nn.BatchNorm3d: _PortableBatchNorm3d,
    BatchNormAct2d: _PortableBatchNormAct2d,
}
_CUDA: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: nn.SyncBatchNorm,
    nn.BatchNorm2d: nn.SyncBatchNorm,
    nn.BatchNorm3d: nn.SyncBatchNorm,
    BatchNormAct2d: SyncBatchNormAct,
}


def synchronize_batch_norm(model: nn.Module, cpu: bool) -> None:
    """Give every submodule of ``model`` batch normalization over all processes, in place.

    Parameters, buffers, names, and what a layer does after normalizing (dropout, activation) stay the same.

    Args:
        model: the network; each of its layers stays the same object, so that one used in two places stays one.
        cpu: use the portable version; otherwise PyTorch's own for CUDA.

    Raises:
        UsageError: for a kind of batch normalization that is not known, and so may do more than normalize.
    """
    kinds = _PORTABLE if cpu else _CUDA
    layers = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    done = set(_PORTABLE.values()) if cpu else {nn.SyncBatchNorm, SyncBatchNormAct}
    for name, layer in layers.items():
        if type(layer) not in kinds and type(layer) not in done:
            raise UsageError(
                f"the batch statistics of {type(layer).__module__}.{type(layer).__name__} ('{name}') cannot be taken "
                f"over several devices; expected one of: {', '.join(kind.__name__ for kind in kinds)}; train on one "
                "device, or set hardware.sync_batch_norm to false"
            )
    for layer in layers.values():
        if type(layer) in kinds:
            # The class adds behavior, and no state but the group, here the default one.
            object.__setattr__(layer, "__class__", kinds[type(layer)])
            if isinstance(layer, nn.SyncBatchNorm):
                layer.process_group = None


def _normalize_over_processes(layer: _BatchNorm, input: Tensor) -> Tensor:
    dtype = input.dtype
    x = input if dtype == torch.float64 else input.float()
    axes = [axis for axis in range(x.ndim) if axis != 1]
    shape = [1, -1] + [1] * (x.ndim - 2)
    count, mean, variance = _statistics(x, axes)
    _update_running(layer, count, mean.detach(), variance.detach())
    scale = torch.rsqrt(variance + layer.eps)
    if layer.affine:
        scale = scale * layer.weight
    shifted = (x - mean.view(shape)) * scale.view(shape)
    if layer.affine and layer.bias is not None:
        shifted = shifted + layer.bias.view(shape)
    return shifted.to(dtype)


def _statistics(x: Tensor, axes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return count (1,), mean (C,) and biased variance (C,) over all processes.

    Means and variances are combined rather than sums of squares, whose difference would lose digits.
    """
    size, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    own = torch.cat(
        (x.new_full((1,), x.numel() / x.shape[1]), x.mean(axes), x.var(axes, correction=0)),
    )
    rows = [own if process == rank else torch.zeros_like(own) for process in range(size)]
    all_PK = _SumOverProcesses.apply(torch.stack(rows))  # one message
    channels = x.shape[1]
    counts_P1, means_PC, variances_PC = all_PK.split((1, channels, channels), dim=1)
    count = counts_P1.sum(0)
    shares_P1 = counts_P1 / count
    mean = (shares_P1 * means_PC).sum(0)
    variance = (shares_P1 * (variances_PC + (means_PC - mean).square())).sum(0)
    return count.detach(), mean, variance


@torch.no_grad()
def _update_running(layer: _BatchNorm, count: Tensor, mean: Tensor, variance: Tensor) -> None:
    if not layer.track_running_stats or layer.running_mean is None or layer.running_var is None:
        return
    assert layer.num_batches_tracked is not None
    layer.num_batches_tracked.add_(1)
    momentum = layer.momentum if layer.momentum is not None else 1.0 / float(layer.num_batches_tracked)
    unbiased = variance * (count / (count - 1).clamp_min(1))
    layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), momentum)
    layer.running_var.lerp_(unbiased.to(layer.running_var.dtype), momentum)
