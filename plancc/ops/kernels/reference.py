"""The `math` kernel: attention with lse and its backward in plain torch, on any device.

Scores and sums are at least float32, whatever the dtype of the inputs; it needs memory for all
scores, so it is the reference and the kernel of what others lack (softcap), not the fast one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plancc.ops.kernels.kernel import NEG_INF, Kernel


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    scores, _ = _scores(q, k, mask, causal, scale, softcap)
    lse = scores.logsumexp(-1)
    weights = _weights(scores, lse)
    out = torch.matmul(weights, v.unsqueeze(2).to(weights.dtype))
    return out.flatten(1, 2).to(q.dtype), lse.flatten(1, 2)


def _grad(
    dout: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    scores, slope = _scores(q, k, mask, causal, scale, softcap)
    exact, split = scores.dtype, (k.shape[1], -1)
    dout, out = dout.to(exact).unflatten(1, split), out.to(exact).unflatten(1, split)
    weights = _weights(scores, lse.to(exact).unflatten(1, split))
    dv = torch.matmul(weights.mT, dout).sum(2)
    dweights = torch.matmul(dout, v.unsqueeze(2).to(exact).mT)
    dscores = weights * (dweights - (dout * out).sum(-1, keepdim=True)) * scale
    if slope is not None:
        dscores = dscores * slope
    dq = torch.matmul(dscores, k.unsqueeze(2).to(exact)).flatten(1, 2)
    dk = torch.matmul(dscores.mT, q.to(exact).unflatten(1, split)).sum(2)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _scores(
    q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, scale: float, softcap: float
) -> tuple[Tensor, Tensor | None]:
    """Return the scores [B, K, groups, Tq, Tk] and the slope of the softcap, where there is one."""
    exact, heads = torch.promote_types(q.dtype, torch.float32), k.shape[1]
    grouped = q.to(exact).unflatten(1, (heads, -1))
    scores, slope = torch.matmul(grouped, k.unsqueeze(2).to(exact).mT) * scale, None
    if softcap:
        bent = torch.tanh(scores / softcap)
        scores, slope = bent * softcap, 1 - bent.square()
    if mask is not None:
        folded = mask.unflatten(1, (heads, -1)) if mask.shape[1] > 1 else mask.unsqueeze(2)
        scores = scores + folded.to(exact)
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, NEG_INF)
    return scores, slope


def _weights(scores: Tensor, lse: Tensor) -> Tensor:
    return torch.exp(scores - lse.masked_fill(lse == NEG_INF, 0.0).unsqueeze(-1))


MATH = Kernel(
    "math",
    devices=(),
    dtypes=(torch.float32, torch.float64, torch.bfloat16, torch.float16),
    probe=lambda: None,
    run=_run,
    grad=_grad,
    causal_alignment="upper_left",
    supports_empty=True,
    supports_different_v_dim=True,
    supports_mask=True,
    supports_softcap=True,
    native_gqa=True,
)
