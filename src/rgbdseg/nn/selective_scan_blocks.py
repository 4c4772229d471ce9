"""The selective scan in blocks of tokens, and its gradients.

Tokens are worked off in blocks of a few megabytes.  Only the state before every 32nd token is kept, and the backward
pass computes the others again.  Within a block, chunks of tokens run side by side from a state of zero, then the states
at the chunks' ends are handed on, and what the chunks left out is added.  This is exact: decays are only ever
multiplied with each other, never divided by one another, so that nothing overflows however fast a state decays.
`benchmarks/selective_scan.py` compares it with the plain recurrence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

# B batch, K sequences of an image, L tokens, D channels, N states
# of a block: M chunks of T tokens

_SPACING = 32  # tokens between the states that are kept for the backward pass; a power of two


def scan_in_blocks(x_BKLD: Tensor, step_BKLD: Tensor, a_KND: Tensor, b_BKLN: Tensor, c_BKLN: Tensor) -> Tensor:
    """Return y (B, K, L, D) = sum over states of c h, with h_t = exp(step_t a) h_(t-1) + step_t b_t x_t from h_0 = 0.

    First derivatives with respect to all arguments; no second ones.

    Args:
        x_BKLD: the tokens.
        step_BKLD: their steps, positive.
        a_KND: rates of decay, negative, per unit of step.
        b_BKLN: what every state takes of a token.
        c_BKLN: how much of every state is read.
    """
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (x_BKLD, step_BKLD, a_KND, b_BKLN, c_BKLN))
    keep = keep and not torch.compiler.is_exporting()
    y, _ = _scan(x_BKLD, step_BKLD, a_KND, b_BKLN, c_BKLN, keep=keep)
    return y


class _Sizes(NamedTuple):
    """Numbers of all channels and states of the tokens of a block, and of one step of all its chunks.

    On a CPU a block stays in the cache, and a step is large enough to outweigh its calls; a GPU is given a hundred
    times as much at once.
    """

    block: int
    step: int

    @classmethod
    def on(cls, device: torch.device) -> _Sizes:
        return cls(2**19, 2**14) if device.type == "cpu" else cls(2**25, 2**21)


def _parts(x: Tensor, states: int) -> Iterator[tuple[slice, slice]]:
    """Yield images and sequences that are scanned at once, so few that 32 of their tokens are not too many."""
    batch, sequences, _, channels = x.shape
    at_once = max(1, _Sizes.on(x.device).block // (_SPACING * channels * states))
    of_image, images = min(at_once, sequences), max(1, at_once // sequences)
    for image in range(0, batch, images):
        for sequence in range(0, sequences, of_image):
            yield slice(image, image + images), slice(sequence, sequence + of_image)


class _Block(NamedTuple):
    """Some tokens of every sequence, from a multiple of `_SPACING` on, in chunks of equal length."""

    first: int
    chunks: int
    tokens: int

    def of(self, t_BKLx: Tensor) -> Tensor:
        """Return the block's part of a tensor (B, K, L, .) as (B, K, M, T, .)."""
        stop = self.first + self.chunks * self.tokens
        return t_BKLx[:, :, self.first : stop].unflatten(2, (self.chunks, self.tokens))


def _blocks(x: Tensor, states: int) -> list[_Block]:
    """Return all blocks in order, the largest one first."""
    in_block, in_step = _Sizes.on(x.device)
    width = x.shape[0] * x.shape[1] * x.shape[3] * states
    length = x.shape[2]
    size = _SPACING * max(1, min(in_block // width, length) // _SPACING)
    most = min(in_step // width, math.isqrt(size), _SPACING)
    chunks = 1 << max(0, most.bit_length() - 1)  # a power of two, which divides the spacing
    rest = length % size
    sizes = [size] * (length // size) + [rest // _SPACING * _SPACING]
    blocks = [_Block(i * size, chunks, tokens // chunks) for i, tokens in enumerate(sizes) if tokens]
    if rest % _SPACING:
        blocks.append(_Block(length - rest % _SPACING, 1, rest % _SPACING))
    return blocks


class _Inputs(NamedTuple):
    """Arguments of `scan_in_blocks`, or their gradients."""

    x: Tensor
    step: Tensor
    a: Tensor
    b: Tensor
    c: Tensor

    def part(self, images: slice, sequences: slice) -> _Inputs:
        """Return some images and sequences."""
        of_all = (t[images, sequences] for t in (self.x, self.step, self.b, self.c))
        x, step, b, c = of_all
        return _Inputs(x, step, self.a[sequences], b, c)


class _Tokens(NamedTuple):
    """The tokens of a block: (B, K, M, T, D), inputs of the states (B, K, M, T, N)."""

    x: Tensor
    step: Tensor
    scaled: Tensor
    inputs: Tensor

    @classmethod
    def of(cls, block: _Block, inputs: _Inputs) -> _Tokens:
        x, step = block.of(inputs.x), block.of(inputs.step)
        return cls(x, step, step * x, block.of(inputs.b))


class _Scratch(NamedTuple):
    """Memory for numbers of every channel, state and token of a block, which all blocks use in turn."""

    decay: Tensor
    state: Tensor

    @classmethod
    def empty(cls, x: Tensor, states: int, largest: _Block) -> _Scratch:
        size = x.shape[0] * x.shape[1] * largest.chunks * largest.tokens * states * x.shape[3]
        return cls(x.new_empty(size), x.new_empty(size))

    def shaped(self, tokens: _Tokens) -> tuple[Tensor, Tensor]:
        """Return both as (B, K, M, T, N, D) of a block."""
        shape = (*tokens.x.shape[:4], tokens.inputs.shape[4], tokens.x.shape[4])
        size = math.prod(shape)
        return self.decay[:size].view(shape), self.state[:size].view(shape)


def _decays(tokens: _Tokens, a_KND: Tensor, out: Tensor) -> None:
    torch.mul(tokens.step[..., None, :], a_KND[:, None, None], out=out)
    out.exp_()


def _states(tokens: _Tokens, a_KND: Tensor, start: Tensor, scratch: _Scratch) -> tuple[Tensor, Tensor]:
    """Return the states (B, K, M, T, N, D) of a block, and decays of the same shape.

    start: the state (B, K, N, D) before the block.  With several chunks the decays are those since the beginning of
    the chunk.
    """
    decay, h = scratch.shaped(tokens)
    _decays(tokens, a_KND, decay)
    torch.mul(tokens.scaled[..., None, :], tokens.inputs[..., None], out=h)
    at_token, decay_at_token = h.unbind(3), decay.unbind(3)
    chunks = h.shape[2]
    if chunks == 1:
        at_token[0].addcmul_(decay_at_token[0], start[:, :, None])
    for now, earlier, factor in zip(at_token[1:], at_token, decay_at_token[1:], strict=False):
        now.addcmul_(factor, earlier)
    if chunks == 1:
        return h, decay
    for now, earlier in zip(decay_at_token[1:], decay_at_token, strict=False):
        now.mul_(earlier)
    before = torch.empty_like(h[:, :, :, 0])
    for m in range(chunks):
        before[:, :, m] = start
        start = torch.addcmul(h[:, :, m, -1], decay[:, :, m, -1], start)
    h.addcmul_(decay, before[:, :, :, None])
    return h, decay


@torch.library.custom_op("rgbdseg::selective_scan", mutates_args=())
def _scan(x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, *, keep: bool) -> tuple[Tensor, Tensor]:
    """Return y, and with ``keep`` the state before every 32nd token."""
    states, a = a.shape[1], a.contiguous()
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    kept = x.new_zeros(_kept_shape(x, states, keep))
    for part in _parts(x, states):
        own_kept = kept[part] if keep else None
        _scan_part(_Inputs(x, step, a, b, c).part(*part), y[part], own_kept)
    return y, kept


def _scan_part(inputs: _Inputs, y: Tensor, kept: Tensor | None) -> None:
    """Fill ``y``, and ``kept`` where it is given."""
    x, states = inputs.x, inputs.a.shape[1]
    blocks = _blocks(x, states)
    scratch = _Scratch.empty(x, states, blocks[0])
    state = x.new_zeros(*x.shape[:2], states, x.shape[3])
    for block in blocks:
        h, _ = _states(_Tokens.of(block, inputs), inputs.a, state, scratch)
        block.of(y).copy_(torch.matmul(block.of(inputs.c)[..., None, :], h).squeeze(-2))
        state = h[:, :, -1, -1].clone()
        if kept is not None:
            followed = h.flatten(2, 3)[:, :, _SPACING - 1 :: _SPACING]
            first = block.first // _SPACING + 1
            target = kept[:, :, first : first + followed.shape[2]]  # the last state has no token after it
            target.copy_(followed[:, :, : target.shape[2]])


def _kept_shape(x: Tensor, states: int, keep: bool) -> tuple[int, ...]:
    number = (x.shape[2] + _SPACING - 1) // _SPACING if keep else 0
    return (x.shape[0], x.shape[1], number, states, x.shape[3])


@_scan.register_fake
def _(x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, *, keep: bool) -> tuple[Tensor, Tensor]:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, x.new_empty(_kept_shape(x, a.shape[1], keep))


@register_flop_formula(torch.ops.rgbdseg.selective_scan)
def _(x_shape: Sequence[int], step_shape: Sequence[int], a_shape: Sequence[int], *_: object, **__: object) -> int:
    """Two multiply-adds for every channel and state: the recurrence and the readout."""
    return 4 * math.prod(x_shape) * a_shape[1]


# Gradients


@torch.library.custom_op("rgbdseg::selective_scan_backward", mutates_args=())
def _scan_backward(grad_y: Tensor, inputs: list[Tensor], kept: Tensor) -> list[Tensor]:
    """Return the gradients of the ``inputs`` x, step, a, b and c."""
    given = _Inputs(*(t.contiguous() if index == 2 else t for index, t in enumerate(inputs)))
    grads = _Inputs(*(torch.zeros_like(t, memory_format=torch.contiguous_format) for t in inputs))
    for part in _parts(given.x, given.a.shape[1]):
        _add_gradients(given.part(*part), grad_y[part], kept[part], grads.part(*part))
    return list(grads)


def _add_gradients(inputs: _Inputs, grad_y: Tensor, kept: Tensor, grads: _Inputs) -> None:
    """Fill the gradients of x, step, b and c, and add to that of a."""
    states, a = inputs.a.shape[1], inputs.a
    blocks = _blocks(inputs.x, states)
    scratch, more = (_Scratch.empty(inputs.x, states, blocks[0]) for _ in range(2))
    from_later = torch.zeros_like(kept[:, :, 0])
    for block in reversed(blocks):
        start = kept[:, :, block.first // _SPACING]
        tokens, grad = _Tokens.of(block, inputs), block.of(grad_y)
        h, decay = _states(tokens, a, start, scratch)
        if block.chunks > 1:
            _decays(tokens, a, decay)  # those of single tokens are needed, too
        block.of(grads.c).copy_(torch.matmul(h, grad[..., None]).squeeze(-1))
        product, g = more.shaped(tokens)
        torch.mul(grad[..., None, :], block.of(inputs.c)[..., None], out=g)
        from_later = _add_later(g, decay, product, from_later)
        of_scaled = torch.matmul(tokens.inputs[..., None, :], g).squeeze(-2)
        block.of(grads.b).copy_(torch.matmul(g, tokens.scaled[..., None]).squeeze(-1))
        block.of(grads.x).copy_(of_scaled * tokens.step)
        _to_log_decay(g, decay, h, start)
        torch.mul(g, tokens.step[..., None, :], out=h)
        grads.a.add_(h.sum(dim=(0, 2, 3)))
        block.of(grads.step).copy_(g.mul_(a[:, None, None]).sum(dim=-2).addcmul_(of_scaled, tokens.x))


def _to_log_decay(g: Tensor, decay: Tensor, h: Tensor, start: Tensor) -> None:
    """Turn the gradients of a block's states into those of the logarithms of its decays, in place."""
    g.mul_(decay)
    flat = g.flatten(2, 3)
    flat[:, :, 1:].mul_(h.flatten(2, 3)[:, :, :-1])
    flat[:, :, 0].mul_(start)


def _add_later(g: Tensor, decay: Tensor, product: Tensor, from_later: Tensor) -> Tensor:
    """Add to the gradients ``g`` of a block's states what comes from later tokens; return what earlier ones get.

    Args:
        g: (B, K, M, T, N, D), changed in place.
        decay: (B, K, M, T, N, D).
        product: memory of the same size.
        from_later: (B, K, N, D).
    """
    at_token, decay_at_token, product_at_token = g.unbind(3), decay.unbind(3), product.unbind(3)
    chunks, length = g.shape[2:4]
    if chunks == 1:
        at_token[-1].add_(from_later[:, :, None])
    for t in range(length - 2, -1, -1):
        at_token[t].addcmul_(decay_at_token[t + 1], at_token[t + 1])
    if chunks == 1:
        return decay[:, :, 0, 0] * g[:, :, 0, 0]
    product_at_token[-1].fill_(1.0)  # product of the decays from the next token to the chunk's last
    for t in range(length - 2, -1, -1):
        torch.mul(decay_at_token[t + 1], product_at_token[t + 1], out=product_at_token[t])
    after = torch.empty_like(g[:, :, :, 0])
    for m in range(chunks - 1, -1, -1):
        after[:, :, m] = from_later
        first = torch.addcmul(g[:, :, m, 0], product[:, :, m, 0], from_later)
        from_later = decay[:, :, m, 0] * first
    g.addcmul_(product, after[:, :, :, None])
    return from_later


@_scan_backward.register_fake
def _(grad_y: Tensor, inputs: list[Tensor], kept: Tensor) -> list[Tensor]:
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in inputs]


def _keep_for_backward(
    ctx: Any, inputs: tuple[Tensor, ...], keyword_only_inputs: dict[str, bool], output: tuple[Tensor, Tensor]
) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _backward(ctx: Any, grad_y: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    *inputs, kept = ctx.saved_tensors
    return tuple(_scan_backward(grad_y, inputs, kept))


_scan.register_autograd(_backward, setup_context=_keep_for_backward)
