"""Attention on a block of keys with log-sum-exp: forward, exact backward, and layouts of blocks.

Queries and keys carry absolute positions, so that a block knows what of it is visible. Results
over disjoint keys merge by `plancc.ops.merge`; each block's backward takes the merged (out, lse).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from plancc.ops.kernels import Kernel, empty
from plancc.ops.kernels.calls import Block, Options, calls, rows
from plancc.ops.merge import Part, add_sinks, merge, merge_into, refuse_graph, sink_backward

__all__ = [
    "Block",
    "Options",
    "attend_block",
    "attend_blocks",
    "attend_ranges",
    "block_backward",
    "block_forward",
    "block_ranges",
    "ranges_backward",
    "zigzag_ranges",
]


def block_ranges(n: int, p: int, i: int) -> tuple[range]:
    """Return the positions of rank i of p: block i of ceil(n / p); the last ones may be empty."""
    size = -(-n // p)
    return (range(min(n, i * size), min(n, (i + 1) * size)),)


def zigzag_ranges(n: int, p: int, i: int) -> tuple[range, range]:
    """Return the positions of rank i of p: chunks i and 2p-1-i of ceil(n / 2p), even if causal."""
    (early,), (late,) = block_ranges(n, 2 * p, i), block_ranges(n, 2 * p, 2 * p - 1 - i)
    return early, late


def attend_block(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    q_start: int,
    k_start: int,
    causal: bool,
    window: int = 0,
    softcap: float = 0.0,
    mask: Tensor | None = None,
    sinks: Tensor | None = None,
    k_positions: Tensor | None = None,
    kernel: str | Kernel | None = None,
) -> Part:
    """Return out [B, H, Tq, Dv] and lse [B, H, Tq] of q over one block of keys, without a graph.

    q [B, H, Tq, D] stands at q_start .., k [B, K, Tk, D] and v [B, K, Tk, Dv] at k_start .., or
    at `k_positions` ([Tk] or [B, Tk]; a negative one is an empty slot). `mask` (bool or additive)
    is cut to the block, [B, H, Tq, Tk] with 1 for any of these; `sinks` [H] belong to exactly one
    block of an attention. Rows that see no key give out 0, lse -inf. Raises RuntimeError where
    autograd would record, LookupError and ValueError where no kernel fits.
    """
    block = Block(k, v, _span(k, k_start), k_positions, mask)
    options = Options(scale, causal, window, softcap, kernel)
    out, lse = attend_ranges(q, _span(q, q_start), block, options)
    return (out, lse) if sinks is None else add_sinks(out, lse, sinks)


block_forward = attend_block


def block_backward(
    dout: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    q_start: int,
    k_start: int,
    causal: bool,
    window: int = 0,
    softcap: float = 0.0,
    mask: Tensor | None = None,
    k_positions: Tensor | None = None,
    kernel: str | Kernel | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (dq of this block, dk, dv) from the *merged* out and lse; sum dq over the blocks.

    Sinks are inside the merged lse; their own gradient is `plancc.ops.merge.sink_backward`.
    """
    block = Block(k, v, _span(k, k_start), k_positions, mask)
    options = Options(scale, causal, window, softcap, kernel)
    return ranges_backward(dout, out, lse, q, _span(q, q_start), block, options)


def attend_ranges(q: Tensor, q_ranges: Sequence[range], block: Block, options: Options) -> Part:
    """Do `attend_block` for rows of q that stand at several ranges of positions (a zigzag).

    The rows of q are those of q_ranges one after the other, as those of the block are of its
    ranges. Raises as `attend_block`, and ValueError if rows and positions differ in number.
    """
    refuse_graph(q, block.k, block.v, block.mask)
    with torch.no_grad():
        planned = calls(q, q_ranges, block, options, backward=False)
        if len(planned) == 1 and len(planned[0].piece.rows) == q.shape[2]:
            return planned[0].forward(q, block)
        out, lse = empty(q, block.v.shape[3])
        if not planned:
            return out, lse
        exact = out.to(lse.dtype)
        for call in planned:
            part = call.forward(q, block)
            merge_into((rows(exact, call.piece.rows), rows(lse, call.piece.rows)), part)
        return exact.to(q.dtype), lse


def ranges_backward(
    dout: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    q_ranges: Sequence[range],
    block: Block,
    options: Options,
) -> tuple[Tensor, Tensor, Tensor]:
    """Do `block_backward` for rows at several ranges of positions; see `attend_ranges`."""
    with torch.no_grad():
        planned = calls(q, q_ranges, block, options, backward=True)
        inputs = (q, block.k, block.v)
        if len(planned) == 1:
            piece = planned[0].piece
            if (len(piece.rows), len(piece.keys)) == (q.shape[2], block.k.shape[2]):
                return planned[0].backward(dout, out, lse, q, block)
        grads = [torch.zeros_like(x, dtype=lse.dtype) for x in inputs]
        for call in planned:
            spans = (call.piece.rows, call.piece.keys, call.piece.keys)
            done = call.backward(dout, out, lse, q, block)
            for grad, more, span in zip(grads, done, spans, strict=True):
                rows(grad, span).add_(more)
        dq, dk, dv = (grad.to(x.dtype) for grad, x in zip(grads, inputs, strict=True))
        return dq, dk, dv


def attend_blocks(
    q: Tensor,
    blocks: Sequence[Block],
    *,
    scale: float,
    q_start: int = 0,
    q_ranges: Sequence[range] | None = None,
    causal: bool,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    kernel: str | Kernel | None = None,
) -> Part:
    """Return the merged out and lse of q over disjoint blocks of keys, differentiable in out.

    Gradients reach q, every k and v, and sinks: each block's backward takes the merged (out, lse),
    which is exact. q stands at q_start .., or at q_ranges. Raises ValueError for no blocks or for
    a mask that asks for a gradient.
    """
    if not blocks:
        raise ValueError("attention over no blocks: the width of v is unknown")
    if any(b.mask is not None and b.mask.requires_grad for b in blocks):
        raise ValueError("masks get no gradient from attention on blocks")
    options = Options(scale, causal, window, softcap, kernel)
    spans = tuple(q_ranges) if q_ranges is not None else _span(q, q_start)
    flat = [tensor for block in blocks for tensor in (block.k, block.v)]
    return _Attention.apply(q, sinks, tuple(blocks), spans, options, *flat)


class _Attention(torch.autograd.Function):
    """Forward over blocks and merge; backward block by block with the merged result."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        sinks: Tensor | None,
        blocks: tuple[Block, ...],
        q_ranges: tuple[range, ...],
        options: Options,
        *flat: Tensor,
    ) -> Part:
        exact = torch.promote_types(q.dtype, torch.float32)
        out, lse = merge([attend_ranges(q, q_ranges, b, options) for b in blocks], exact)
        if sinks is not None:
            out, lse = add_sinks(out, lse, sinks)
        out = out.to(q.dtype)
        ctx.save_for_backward(q, sinks, out, lse, *flat)
        ctx.places = [(b.ranges, b.positions, b.mask) for b in blocks]
        ctx.q_ranges, ctx.options = q_ranges, options
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        q, sinks, out, lse, *flat = ctx.saved_tensors
        dq, grads = torch.zeros_like(q, dtype=lse.dtype), []
        for k, v, place in zip(flat[::2], flat[1::2], ctx.places, strict=True):
            block = Block(k, v, *place)
            more, dk, dv = ranges_backward(dout, out, lse, q, ctx.q_ranges, block, ctx.options)
            dq.add_(more)
            grads += [dk, dv]
        dsinks = sinks if sinks is None else sink_backward(dout, out, lse, sinks)
        return dq.to(q.dtype), dsinks, None, None, None, *grads


def _span(x: Tensor, start: int) -> tuple[range]:
    return (range(start, start + x.shape[2]),)
