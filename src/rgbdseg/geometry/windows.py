"""Polynomially weighted sliding-window sums in a logarithmic number of additions.

Float32 suffices: every output is a short tree of additions around its own pixel, so nothing large cancels as it
would in the difference of two running totals over the whole image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def window_moments(values: Tensor, radius: int, dim: int, order: int) -> list[Tensor]:
    """Return the sums over k = -radius..radius of k**p * values[i + k] along ``dim`` for p = 0..order.

    A window of 2 radius + 1 elements is put together from runs whose lengths are powers of two, and every run from
    two runs of half its length; moving the origin of a moment is the binomial formula.

    Args:
        values: any shape, a signed type; it counts as zero outside.
        radius: of the windows; they have 2 radius + 1 elements.
        dim: along which they lie.
        order: the highest power of k.

    Returns:
        ``order + 1`` tensors of the same shape and type. Integers may wrap around on the way and are right where the
            result fits the type.
    """
    count = values.shape[dim]
    before_and_after = [0, 0] * (-dim - 1 if dim < 0 else values.ndim - 1 - dim) + [radius, radius]
    run: list[Tensor | None] = [torch.nn.functional.pad(values, before_and_after)]
    run += [None] * order  # a single element has no first or second moment about itself
    run_length, start, size = 1, 0, 2 * radius + 1
    window: list[Tensor | None] = [None] * (order + 1)
    while True:
        if size & run_length:
            window = _add_run(window, run, start=start, offset=start - radius, dim=dim, places=count)
            start += run_length
        if start == size:
            return [moment if moment is not None else torch.zeros_like(values) for moment in window]
        places = count + 2 * radius + 1 - 2 * run_length
        run = _add_run(run, run, start=run_length, offset=run_length, dim=dim, places=places)
        run_length *= 2


def _add_run(
    total: Sequence[Tensor | None], run: Sequence[Tensor | None], *, start: int, offset: int, dim: int, places: int
) -> list[Tensor | None]:
    """Add to ``total`` the moments of the run that begins ``start`` further on and lies ``offset`` from the origin.

    None stands for zero.
    """
    result: list[Tensor | None] = []
    for order, before in enumerate(total):
        moment = None if before is None else before.narrow(dim, 0, places)
        fresh = False
        for part, values in enumerate(run[: order + 1]):
            factor = math.comb(order, part) * offset ** (order - part)
            if values is None or factor == 0:
                continue
            piece = values.narrow(dim, start, places)
            if moment is None:
                moment = piece * factor if factor != 1 else piece
                fresh = factor != 1
            elif fresh:
                moment.add_(piece, alpha=factor)
            else:
                moment, fresh = moment.add(piece, alpha=factor), True
        result.append(moment)
    return result
