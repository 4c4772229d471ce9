"""The selective scan: a linear recurrence whose decay, input and readout depend on each token.

Gu, Dao, Mamba: Linear-Time Sequence Modeling with Selective State Spaces, 2023, arXiv 2312.00752, section 3.2; in the
form of its published kernels (Apache-2.0), where the input is only multiplied by the step:

    step_t = softplus(delta_t + bias)
    h_t    = exp(step_t A) h_(t-1) + step_t B_t x_t,   h_0 = 0, one for every channel and state
    y_t    = sum over states of C_t h_t + D x_t

The states themselves, numbers for every token, channel and state, are never all in memory: see
`rgbdseg.nn.selective_scan_blocks`.  Exported programs hold that operator, so they need this library to run; models in
ONNX hold ONNX's own.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan
from torch.nn import functional

from rgbdseg.errors import UsageError, unknown_name
from rgbdseg.nn.blocks import at_least_float32, without_autocast
from rgbdseg.nn.selective_scan_blocks import scan_in_blocks

# B batch, K sequences of an image, L tokens, D channels, N states

Implementation = Literal["auto", "blocks", "package"]

PACKAGES = ("mamba_ssm.ops.selective_scan_interface", "selective_scan")
"""Modules with the published CUDA kernels as ``selective_scan_fn``, the first that can be imported is used."""


def selective_scan(
    x_BKLD: Tensor,
    delta_BKLD: Tensor,
    a_KDN: Tensor,
    b_BKLN: Tensor,
    c_BKLN: Tensor,
    *,
    d_KD: Tensor,
    bias_KD: Tensor,
    implementation: Implementation = "auto",
) -> Tensor:
    """Return y (B, K, L, D) of sequences that are scanned from the first token to the last.

    Computed in float32 or better, whatever the precision of the inputs; first derivatives with respect to all of them.

    Args:
        x_BKLD: the tokens.
        delta_BKLD: steps before softplus and without their bias.
        a_KDN: rates of decay, negative, per unit of step.
        b_BKLN: what every state takes of a token.
        c_BKLN: how much of every state is read.
        d_KD: what is read of the token itself.
        bias_KD: of the steps.
        implementation: ``blocks`` is the form of this library, which runs everywhere; ``package`` the CUDA kernels of
            one of `PACKAGES`; ``auto`` takes the latter for CUDA tensors where one is installed.

    Raises:
        UsageError: for ``package`` without an installed package, or an unknown implementation.
    """
    if implementation not in get_args(Implementation):
        raise unknown_name("implementation of the selective scan", implementation, get_args(Implementation))
    with without_autocast(x_BKLD):
        x, delta, a, b, c, d, bias = map(at_least_float32, (x_BKLD, delta_BKLD, a_KDN, b_BKLN, c_BKLN, d_KD, bias_KD))
        if implementation == "package" or (implementation == "auto" and _package_suits(x)):
            return _scan_by_package(x, delta, a, b, c, d=d, bias=bias)
        # Above 20 softplus is the identity to float32 precision, and in torch by definition, as in the kernels.
        step = functional.softplus(delta + bias[:, None])
        a_KND = a.mT
        to_onnx = torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()
        y = (_scan_by_token if to_onnx else scan_in_blocks)(x, step, a_KND, b, c)
        return y + d[:, None] * x


# The published kernels


def _package_suits(x: Tensor) -> bool:
    usable = x.is_cuda and x.dtype == torch.float32 and not torch.compiler.is_compiling()
    return usable and _package() is not None


@functools.cache
def _package() -> Callable[..., Tensor] | None:
    for name in PACKAGES:
        try:
            function: Callable[..., Tensor] = importlib.import_module(name).selective_scan_fn
        except (ImportError, AttributeError):  # not there, or built for another version of PyTorch
            continue
        return function
    return None


def _scan_by_package(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, *, d: Tensor, bias: Tensor) -> Tensor:
    function = _package()
    if function is None:
        raise UsageError(
            "implementation 'package' needs mamba_ssm or selective_scan, and neither can be imported; install one of "
            "them for your version of PyTorch and CUDA, or use 'blocks'"
        )

    def channels_first(t_BKLD: Tensor) -> Tensor:
        return t_BKLD.mT.flatten(1, 2).contiguous()

    y = function(
        channels_first(x),
        channels_first(delta),
        a.flatten(0, 1).contiguous(),
        b.mT.contiguous(),
        c.mT.contiguous(),
        D=d.flatten(),
        delta_bias=bias.flatten(),
        delta_softplus=True,
    )
    return y.unflatten(1, x.shape[1:4:2]).mT


# ONNX


def _scan_by_token(x: Tensor, step: Tensor, a_KND: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return the same by PyTorch's own scan operator, which becomes ONNX's; a runtime works off one token at a time."""
    a_KND = a_KND.contiguous()

    def advance(state_BKND: Tensor, token: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        step_BKD, scaled_BKD, b_BKN, c_BKN = token
        decay = torch.exp(step_BKD[:, :, None] * a_KND)
        state_BKND = (decay * state_BKND + scaled_BKD[:, :, None] * b_BKN[..., None]).contiguous()
        return state_BKND, (state_BKND * c_BKN[..., None]).sum(dim=-2)

    start = x.new_zeros(*x.shape[:2], *a_KND.shape[1:])
    tokens_first = tuple(t.permute(2, 0, 1, 3) for t in (step, step * x, b, c))
    _, y_LBKD = scan(advance, start, tokens_first)
    y: Tensor = y_LBKD.permute(1, 2, 0, 3)
    return y
