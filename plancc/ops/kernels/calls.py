"""From a block of attention to the calls of kernels that compute it, each with its own mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plancc.ops.attention import visible
from plancc.ops.kernels import Kernel, choose, get
from plancc.ops.kernels.kernel import NEG_INF
from plancc.ops.kernels.pieces import Piece, pieces


@dataclass(frozen=True, slots=True)
class Options:
    """What all blocks of one attention share; `kernel` is a name, or None for the best present."""

    scale: float
    causal: bool
    window: int = 0
    softcap: float = 0.0
    kernel: str | Kernel | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """Keys k [B, K, Tk, D] and values v [B, K, Tk, Dv] at `ranges`, or at explicit `positions`.

    `positions` is [Tk] or [B, Tk], a negative one is an empty slot, and `ranges` are not read
    then; `mask` is bool or additive, [B, H, Tq, Tk] with 1 for any of these.
    """

    k: Tensor
    v: Tensor
    ranges: tuple[range, ...] = ()
    positions: Tensor | None = None
    mask: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a kernel: a piece of the block and its additive mask."""

    piece: Piece
    mask: Tensor | None
    kernel: Kernel
    options: Options

    def forward(self, q: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        """Return out and lse of the piece's rows."""
        return self.kernel.forward(
            rows(q, self.piece.rows),
            rows(block.k, self.piece.keys),
            rows(block.v, self.piece.keys),
            scale=self.options.scale,
            mask=self.mask,
            causal_square=self.piece.form == "square",
            softcap=self.options.softcap,
        )

    def backward(
        self, dout: Tensor, out: Tensor, lse: Tensor, q: Tensor, block: Block
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return dq of the piece's rows, dk and dv of its keys."""
        span = self.piece.rows
        return self.kernel.backward(
            rows(dout, span),
            rows(out, span),
            rows(lse, span),
            rows(q, span),
            rows(block.k, self.piece.keys),
            rows(block.v, self.piece.keys),
            scale=self.options.scale,
            mask=self.mask,
            causal_square=self.piece.form == "square",
            softcap=self.options.softcap,
        )


def calls(
    q: Tensor, q_ranges: Sequence[range], block: Block, options: Options, backward: bool
) -> list[Call]:
    """Cut a block into calls that the kernel may make; what no query sees is not in them.

    Raises ValueError if rows and positions differ in number, LookupError if no kernel fits.
    """
    queries, keys = q.shape[2], block.k.shape[2]
    _same("queries", queries, sum(len(span) for span in q_ranges))
    if block.positions is None:
        _same("keys", keys, sum(len(span) for span in block.ranges))
    else:
        _same("keys", keys, block.positions.shape[-1])
    if not (q.numel() and block.k.numel() and block.v.numel()):
        return []
    mask = None if block.mask is None else _additive(block.mask, q.dtype)
    if block.positions is not None:
        piece = Piece(range(queries), range(keys), "full")
        found = [(piece, _placed_mask(q, q_ranges, block.positions, options, mask))]
    else:
        cut = pieces(q_ranges, block.ranges, options.causal, options.window)
        found = [(piece, _piece_mask(piece, mask, q, options)) for piece in cut]
    return [
        Call(piece, own, _kernel(options, q, block.v, own is not None, backward), options)
        for piece, own in found
    ]


def rows(x: Tensor, span: range, dim: int = 2) -> Tensor:
    """Return the view of the rows in `span`; one row of a mask stands for all."""
    if x.shape[dim] in (1, len(span)):
        return x
    return x.narrow(dim, span.start, len(span))


def _same(what: str, count: int, positions: int) -> None:
    if count != positions:
        raise ValueError(f"{count} {what} at {positions} positions")


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
    cut = None if mask is None else rows(rows(mask, piece.rows, 2), piece.keys, 3)
    if piece.form != "masked":
        return cut
    queries, keys = len(piece.rows), len(piece.keys)
    seen = visible(queries, keys, piece.ahead, options.causal, options.window, q.device)
    return _hide(cut, seen[None, None], q.dtype)


def _placed_mask(
    q: Tensor,
    q_ranges: Sequence[range],
    positions: Tensor,
    options: Options,
    mask: Tensor | None,
) -> Tensor | None:
    """Return the mask for keys at explicit positions; whether it is needed is read back."""
    own = torch.cat([torch.arange(s.start, s.stop, device=q.device) for s in q_ranges])
    placed = positions.to(q.device)[..., None, :]
    ahead = placed - own[:, None]
    seen = (placed >= 0).expand_as(ahead)
    if options.causal:
        seen = seen & (ahead <= 0)
    if options.window:
        seen = seen & (ahead > -options.window)
        if not options.causal:
            seen = seen & (ahead < options.window)
    if bool(seen.all()):
        return mask
    return _hide(mask, seen[None, None] if seen.dim() == 2 else seen[:, None], q.dtype)


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
