"""plancc::attention: the one attention of every captured model.

Causal masks are aligned at the bottom right (torch's `is_causal` is not), grouped-query heads
are consecutive, an empty KV or a fully masked row gives zeros. Softmax is at least float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NEG_INF = float("-inf")


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    sinks: Tensor | None = None,
    *,
    scale: float,
    causal: bool = False,
    window: int = 0,
    softcap: float = 0.0,
    q_start: int = -1,
) -> Tensor:
    """Return [B, H, Tq, Dv] for q [B, H, Tq, D], k [B, K, Tk, D], v [B, K, Tk, Dv], H = K * groups.

    Query i stands at position `q_start + i` (Tk - Tq + i when q_start is negative); with `causal`
    it sees keys 0 .. its position, with `window` > 0 only the last `window` of those. `mask` is
    bool (True: visible) or additive, broadcastable to [B, H, Tq, Tk]; `sinks` [H] are extra logits.
    """
    tq, tk = q.shape[2], k.shape[2]
    if tk == 0 or q.shape[1] == 0:
        return _weighted(_scores(q, k).to(v.dtype), v, q.shape[1])
    start = tk - tq if q_start < 0 else q_start
    if window and tq == 1 and mask is None and window < tk and start == tk - 1:
        k, v, tk, start = k[:, :, -window:], v[:, :, -window:], window, window - 1
    hidden = (causal and start < tk - 1) or 0 < window < max(start + tq, tk)
    fast = sinks is None and not softcap and q.dtype == v.dtype
    square = causal and mask is None and start == 0 and tq == tk and (not window or window >= tk)
    if fast and square:
        return _sdpa(q, k, v, None, scale, True)
    if hidden:
        mask = _merge(mask, visible(tq, tk, start, causal, window, q.device), q.dtype)
    if fast:
        return _sdpa(q, k, v, mask, scale, False)
    return _explicit(q, k, v, mask, sinks, scale, softcap)


def visible(
    tq: int, tk: int, start: int, causal: bool, window: int, device: torch.device
) -> Tensor:
    """Return bool [tq, tk]: True where the query at `start + i` sees key j."""
    ahead = (
        torch.arange(tk, device=device) - torch.arange(start, start + tq, device=device)[:, None]
    )
    seen = ahead <= 0 if causal else torch.ones_like(ahead, dtype=torch.bool)
    if window:
        seen = seen & (ahead > -window)
        if not causal:
            seen = seen & (ahead < window)
    return seen


def _merge(mask: Tensor | None, seen: Tensor, dtype: torch.dtype) -> Tensor:
    if mask is None:
        return seen
    if mask.dtype == torch.bool:
        return mask & seen
    return mask.to(dtype).masked_fill(~seen, NEG_INF)


def _sdpa(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool
) -> Tensor:
    if mask is not None and mask.dtype not in (torch.bool, q.dtype):
        mask = mask.to(q.dtype)
    gqa = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, mask, 0.0, causal, scale=scale, enable_gqa=gqa)


def _explicit(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    sinks: Tensor | None,
    scale: float,
    softcap: float,
) -> Tensor:
    """Compute scores, softmax and sum one by one: what sdpa has no kernel for."""
    heads, groups = q.shape[1], q.shape[1] // k.shape[1]
    scores = _scores(q, k) * scale
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        folded = mask.unflatten(1, (-1, groups)) if _per_head(mask, heads) else _lift(mask)
        scores = (
            scores.masked_fill(~folded, NEG_INF) if mask.dtype == torch.bool else scores + folded
        )
    exact = torch.promote_types(q.dtype, torch.float32)
    if sinks is not None:
        sink = sinks.to(exact).view(1, -1, groups, 1, 1).expand(*scores.shape[:-1], 1)
        weights = torch.cat((scores.to(exact), sink), -1).softmax(-1)[..., :-1]
    elif mask is not None:
        dead = (scores == NEG_INF).all(-1, keepdim=True)
        weights = scores.masked_fill(dead, 0.0).softmax(-1, dtype=exact).masked_fill(dead, 0.0)
    else:
        weights = scores.softmax(-1, dtype=exact)
    return _weighted(weights.to(v.dtype), v, heads)


def _per_head(mask: Tensor, heads: int) -> bool:
    return mask.dim() == 4 and mask.shape[1] == heads and heads > 1


def _lift(mask: Tensor) -> Tensor:
    return mask.unsqueeze(2) if mask.dim() == 4 else mask


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """Return [B, K, groups, Tq, Tk]."""
    groups = q.shape[1] // k.shape[1] if k.shape[1] else 1
    return torch.matmul(q.unflatten(1, (k.shape[1], groups)), k.unsqueeze(2).transpose(-1, -2))


def _weighted(weights: Tensor, v: Tensor, heads: int) -> Tensor:
    out = torch.matmul(weights, v.unsqueeze(2))
    return out.reshape(out.shape[0], heads, *out.shape[3:])


torch.library.define(
    "plancc::attention",
    "(Tensor q, Tensor k, Tensor v, Tensor? mask=None, Tensor? sinks=None, *, float scale, "
    "bool causal=False, int window=0, float softcap=0.0, int q_start=-1) -> Tensor",
)
torch.library.impl("plancc::attention", "CompositeExplicitAutograd", attention)


@torch.library.register_fake("plancc::attention")
def _(q: Tensor, k: Tensor, v: Tensor, mask=None, sinks=None, **options) -> Tensor:
    return v.new_empty((*q.shape[:3], v.shape[3]))
