"""Attention on a block of keys with log-sum-exp: forward, exact backward, and layouts of blocks.

Queries and keys carry absolute positions, so that a block knows what of it is visible. Results
over disjoint keys merge by `plancc.ops.merge`; each block's backward takes the merged (out, lse).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plancc.ops.attention import visible
from plancc.ops.kernels import Kernel, choose, empty, get
from plancc.ops.kernels.kernel import NEG_INF
from plancc.ops.kernels.pieces import Piece, pieces
from plancc.ops.merge import add_sinks, merge_into, refuse_graph


@dataclass(frozen=True, slots=True)
class Options:
    """What all blocks of one attention share; `kernel` is a name, or None for the best present."""

    scale: float
    causal: bool
    window: int = 0
    softcap: float = 0.0
    kernel: str | Kernel | None = None


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of a kernel: a piece with its additive mask."""

    piece: Piece
    mask: Tensor | None
    kernel: Kernel


def block_ranges(n: int, p: int, i: int) -> tuple[range]:
    """Return the positions of rank i of p: block i of ceil(n / p); the last ones may be empty."""
    size = -(-n // p)
    return (range(min(n, i * size), min(n, (i + 1) * size)),)


def zigzag_ranges(n: int, p: int, i: int) -> tuple[range, range]:
    """Return the positions of rank i of p: chunks i and 2p-1-i of ceil(n / 2p), even when causal."""
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
) -> tuple[Tensor, Tensor]:
    """Return out [B, H, Tq, Dv] and lse [B, H, Tq] of q over one block of keys, without a graph.

    q [B, H, Tq, D] stands at q_start .., k [B, K, Tk, D] and v [B, K, Tk, Dv] at k_start .., or
    at `k_positions` ([Tk] or [B, Tk]; a negative one is an empty slot). `mask` (bool or additive)
    is cut to the block, [B, H, Tq, Tk] with 1 for any of these; `sinks` [H] belong to exactly one
    block of an attention. Rows that see no key give out 0, lse -inf. Raises RuntimeError where
    autograd would record, LookupError and ValueError where no kernel fits.
    """
    q_ranges, k_ranges = _contiguous(q, q_start), _contiguous(k, k_start)
    options = Options(scale, causal, window, softcap, kernel)
    out, lse = attend_ranges(q, k, v, q_ranges, k_ranges, options, mask, k_positions)
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
    options = Options(scale, causal, window, softcap, kernel)
    q_ranges, k_ranges = _contiguous(q, q_start), _contiguous(k, k_start)
    return ranges_backward(dout, out, lse, q, k, v, q_ranges, k_ranges, options, mask, k_positions)


def attend_ranges(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_ranges: Sequence[range],
    k_ranges: Sequence[range],
    options: Options,
    mask: Tensor | None = None,
    k_positions: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Do `attend_block` for rows that stand at several ranges of positions, such as a zigzag.

    The rows of q are those of q_ranges one after the other, those of k and v of k_ranges; with
    `k_positions` the k_ranges are not read. Raises ValueError if lengths differ.
    """
    refuse_graph(q, k, v, mask)
    calls = _calls(q, k, v, q_ranges, k_ranges, options, mask, k_positions, backward=False)
    with torch.no_grad():
        if len(calls) == 1 and len(calls[0].piece.rows) == q.shape[2]:
            return _forward(calls[0], q, k, v, options)
        out, lse = empty(q, v.shape[3])
        if not calls:
            return out, lse
        total = out.to(lse.dtype), lse
        for call in calls:
            rows = call.piece.rows
            part = _forward(call, _rows(q, rows), k, v, options)
            merge_into((_rows(total[0], rows), lse[:, :, rows.start : rows.stop]), part)
        return total[0].to(q.dtype), lse


def ranges_backward(
    dout: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_ranges: Sequence[range],
    k_ranges: Sequence[range],
    options: Options,
    mask: Tensor | None = None,
    k_positions: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Do `block_backward` for rows at several ranges of positions; see `attend_ranges`."""
    calls = _calls(q, k, v, q_ranges, k_ranges, options, mask, k_positions, backward=True)
    exact = lse.dtype
    grads = tuple(torch.zeros_like(x, dtype=exact) for x in (q, k, v))
    with torch.no_grad():
        for call in calls:
            rows, keys = call.piece.rows, call.piece.keys
            done = call.kernel.backward(
                _rows(dout, rows),
                _rows(out, rows),
                lse[:, :, rows.start : rows.stop],
                _rows(q, rows),
                _rows(k, keys),
                _rows(v, keys),
                scale=options.scale,
                mask=call.mask,
                causal_square=call.piece.form == "square",
                softcap=options.softcap,
            )
            for grad, more, span in zip(grads, done, (rows, keys, keys), strict=True):
                _rows(grad, span).add_(more)
    dq, dk, dv = (grad.to(q.dtype) for grad in grads)
    return dq, dk, dv


def _forward(call: _Call, q: Tensor, k: Tensor, v: Tensor, options: Options) -> tuple:
    return call.kernel.forward(
        q,
        _rows(k, call.piece.keys),
        _rows(v, call.piece.keys),
        scale=options.scale,
        mask=call.mask,
        causal_square=call.piece.form == "square",
        softcap=options.softcap,
    )


def _calls(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_ranges: Sequence[range],
    k_ranges: Sequence[range],
    options: Options,
    mask: Tensor | None,
    k_positions: Tensor | None,
    backward: bool,
) -> list[_Call]:
    """Cut the block into calls of kernels that may make them."""
    queries = sum(len(span) for span in q_ranges)
    if queries != q.shape[2]:
        raise ValueError(f"{q.shape[2]} queries at {queries} positions")
    if not k.numel() or not v.numel():
        return []
    mask = None if mask is None else _additive(mask, q.dtype)
    if k_positions is None:
        keys = sum(len(span) for span in k_ranges)
        if keys != k.shape[2]:
            raise ValueError(f"{k.shape[2]} keys at {keys} positions")
        cut = pieces(q_ranges, k_ranges, options.causal, options.window)
        masks = (_piece_mask(piece, mask, q, options) for piece in cut)
        found = list(zip(cut, masks, strict=True))
    else:
        found = list(_placed(q, q_ranges, k_positions, options, mask))
    return [
        _Call(piece, cut_mask, _kernel(options, q, v, cut_mask is not None, backward))
        for piece, cut_mask in found
    ]


def _kernel(options: Options, q: Tensor, v: Tensor, mask: bool, backward: bool) -> Kernel:
    if isinstance(options.kernel, Kernel):
        return options.kernel
    if options.kernel:
        return get(options.kernel)
    return choose(
        q.device, q.dtype, mask=mask, softcap=options.softcap != 0.0, backward=backward,
        head_dim=max(q.shape[3], v.shape[3]),
    )  # fmt: skip


def _piece_mask(piece: Piece, mask: Tensor | None, q: Tensor, options: Options) -> Tensor | None:
    """Return the additive mask of one piece, or None if it needs none."""
    cut = None if mask is None else _rows(_rows(mask, piece.rows, 2), piece.keys, 3)
    if piece.form != "masked":
        return cut
    queries, keys = len(piece.rows), len(piece.keys)
    seen = visible(queries, keys, piece.ahead, options.causal, options.window, q.device)
    return _hide(cut, seen[None, None], q.dtype)


def _placed(
    q: Tensor,
    q_ranges: Sequence[range],
    positions: Tensor,
    options: Options,
    mask: Tensor | None,
) -> Iterator[tuple[Piece, Tensor | None]]:
    """Give the one piece of keys at explicit positions; whether all are visible is read back."""
    placed = torch.cat([torch.arange(s.start, s.stop, device=q.device) for s in q_ranges])
    positions = positions.to(q.device)[..., None, :]
    seen = positions >= 0
    if options.causal:
        seen = seen & (positions <= placed[:, None])
    if options.window:
        seen = seen & (placed[:, None] - positions < options.window)
        if not options.causal:
            seen = seen & (positions - placed[:, None] < options.window)
    piece = Piece(range(q.shape[2]), range(positions.shape[-1]), "full")
    if not bool(seen.all()):
        seen = seen.expand(*seen.shape[:-2], q.shape[2], seen.shape[-1])
        mask = _hide(mask, seen[None, None] if seen.dim() == 2 else seen[:, None], q.dtype)
    yield piece, mask


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a 4-D additive mask; below half of its dtype's lowest number means hidden.

    A finite "minus infinity" would give rows that see nothing a weight in the merge.
    """
    mask = mask[(None,) * (4 - mask.dim())]
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, NEG_INF)
    mask = mask.masked_fill(mask < torch.finfo(mask.dtype).min / 2, NEG_INF)
    return mask if mask.dtype in (dtype, torch.float32) else mask.to(dtype)


def _hide(mask: Tensor | None, seen: Tensor, dtype: torch.dtype) -> Tensor:
    if mask is None:
        mask = torch.zeros((), dtype=dtype, device=seen.device)
    return torch.where(seen, mask, NEG_INF)


def _contiguous(x: Tensor, start: int) -> tuple[range]:
    return (range(start, start + x.shape[2]),)


def _rows(x: Tensor, span: range, dim: int = 2) -> Tensor:
    """Return the view of the rows in `span`; a dim of 1 in a mask stands for all."""
    if len(span) == x.shape[dim] or (dim == 3 or x.dim() != 4) and x.shape[dim] == 1:
        return x
    return x.narrow(dim, span.start, len(span))
