"""Attention over some of the keys: what one rank of a pool computes, as (out, logsumexp).

Its backward takes the out and logsumexp that all ranks' parts merged to.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plancc.ops.blocks import Block, Options, attend_block, ranges_backward
from plancc.ops.merge import add_sinks, merge, sink_backward


def attention_over_keys(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, sinks: Tensor | None = None, *,
    scale: float, causal: bool = False, window: int = 0, softcap: float = 0.0, q_start: int = 0,
    keys: Sequence[tuple[int, int]] = (),
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attend q [B, H, Tq, D] at positions q_start.. to k, v [B, K, Tk, D] at the positions `keys`.

    `keys` are ascending (lo, hi) ranges of Tk positions in all. `sinks` [H] count where position 0
    lies, so once over all ranks. Returns out [B, H, Tq, Dv] and the natural logsumexp [B, H, Tq]; a
    query that sees none of the keys has out 0 and logsumexp -inf.
    """
    out, rows = over_ranges(
        q, k, v, mask, scale=scale, causal=causal, window=window, softcap=softcap, q_start=q_start,
        keys=keys,
    )  # fmt: skip
    return add_sinks(out, rows, sinks) if sinks is not None and _first(keys) else (out, rows)


def attention_over_keys_backward(
    dout: Tensor, out: Tensor, rows: Tensor, q: Tensor, k: Tensor, v: Tensor,
    mask: Tensor | None = None, sinks: Tensor | None = None, *, scale: float, causal: bool = False,
    window: int = 0, softcap: float = 0.0, q_start: int = 0,
    keys: Sequence[tuple[int, int]] = (),
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return (dq, dk, dv), and dsinks where there are sinks, of `attention_over_keys`.

    `out` and the logsumexp `rows` are those that all ranks' results merged to, dout the gradient of
    that out. dq is this rank's part, to be summed over the ranks; dsinks is zero but where position
    0 lies. Raises ValueError for a mask that asks for a gradient.
    """
    if mask is not None and mask.requires_grad:
        raise ValueError("a mask gets no gradient from attention over some of the keys")
    block = Block(k, v, tuple(range(lo, hi) for lo, hi in keys), None, mask)
    options = Options(scale, causal, window, softcap)
    spans = (range(q_start, q_start + q.shape[2]),)
    grads = ranges_backward(dout, out, rows, q, spans, block, options)
    if sinks is None:
        return grads
    if not _first(keys):
        return *grads, torch.zeros_like(sinks)
    return *grads, sink_backward(dout, out, rows, sinks)


def _first(keys: Sequence[tuple[int, int]]) -> bool:
    """Tell whether position 0 is among the keys."""
    return bool(keys) and keys[0][0] == 0


def over_ranges(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, scale: float, causal: bool,
    window: int, softcap: float, q_start: int, keys: Sequence[tuple[int, int]],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Do `attention_over_keys` without sinks: at once where all is visible, else range by range."""
    last = keys[-1][1] - 1 if keys else -1
    first = keys[0][0] if keys else 0
    seen = not causal or last <= q_start
    near = window == 0 or (causal and q_start + q.shape[2] - 1 - first < window)
    if seen and near:
        return attend_block(
            q, k, v, scale=scale, q_start=q_start, k_start=0, causal=False, softcap=softcap,
            mask=mask,
        )  # fmt: skip
    parts, base = [], 0
    for lo, hi in keys:
        spot = slice(base, base + hi - lo)
        base += hi - lo
        skip = min(max(0, lo - q_start), q.shape[2]) if causal else 0
        found = attend_block(
            q[:, :, skip:], k[:, :, spot], v[:, :, spot], scale=scale, q_start=q_start + skip,
            k_start=lo, causal=causal, window=window, softcap=softcap,
            mask=cut_mask(mask, skip, spot),
        )  # fmt: skip
        parts.append(padded(found, skip))
    if not parts:
        return attend_block(q, k, v, scale=scale, q_start=q_start, k_start=0, causal=False)
    return merge(parts) if len(parts) > 1 else parts[0]


def cut_mask(mask: Tensor | None, skip: int, spot: slice) -> Tensor | None:
    """The rows from `skip` on and the columns of one block; dims of size 1 stay."""
    if mask is None:
        return None
    rows = mask if mask.shape[-2] == 1 else mask[..., skip:, :]
    return rows if mask.shape[-1] == 1 else rows[..., spot]


def padded(found: tuple[Tensor, Tensor], skip: int) -> tuple[Tensor, Tensor]:
    """A result with `skip` rows in front that saw no key."""
    out, rows = found
    if skip == 0:
        return found
    zeros = out.new_zeros((*out.shape[:2], skip, out.shape[3]))
    none = rows.new_full((*rows.shape[:2], skip), float("-inf"))
    return torch.cat([zeros, out], 2), torch.cat([none, rows], 2)
