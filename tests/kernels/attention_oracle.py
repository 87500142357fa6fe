"""Attention written once more, naively and in float64: what every kernel is measured against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plancc.ops.attention import attention

NEG_INF = float("-inf")
HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Case:
    """One whole attention of n keys; `queries` are the positions of its query rows."""

    q: Tensor
    k: Tensor
    v: Tensor
    queries: tuple[range, ...]
    causal: bool
    window: int = 0
    softcap: float = 0.0
    mask: Tensor | None = None  # additive, [B or 1, H or 1, Tq, n]
    sinks: Tensor | None = None
    scale: float = 0.3

    @property
    def needs(self) -> dict:
        """What a kernel must offer for this case as a whole."""
        masked = self.mask is not None or self.window > 0
        width = max(self.q.shape[3], self.v.shape[3])
        return {"mask": masked, "softcap": self.softcap != 0.0, "head_dim": width}


def oracle(case: Case) -> tuple[Tensor, Tensor]:
    """Return out and lse in float64, with a graph where the inputs ask for one."""
    q, k, v = case.q.double(), case.k.double(), case.v.double()
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = torch.einsum("bhid,bhjd->bhij", q, k) * case.scale
    if case.softcap:
        scores = case.softcap * torch.tanh(scores / case.softcap)
    if case.mask is not None:
        scores = scores + case.mask.double()
    own = torch.tensor([i for span in case.queries for i in span]).view(-1, 1)
    placed = torch.arange(k.shape[2]).view(1, -1)
    hidden = torch.zeros(len(own), k.shape[2], dtype=torch.bool)
    if case.causal:
        hidden |= placed > own
    if case.window:
        hidden |= (own - placed).abs() >= case.window
    scores = scores.masked_fill(hidden.to(scores.device), NEG_INF)
    if case.sinks is not None:
        sink = case.sinks.double().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat((scores, sink), -1)
        v = torch.cat((v, torch.zeros_like(v[:, :, :1])), 2)
        if v.shape[2] != scores.shape[3]:
            v = v.new_zeros(*v.shape[:2], scores.shape[3], v.shape[3])
    dead = (scores == NEG_INF).all(-1, keepdim=True)
    safe = scores.masked_fill(dead, 0.0)
    weights = safe.softmax(-1).masked_fill(dead, 0.0)
    lse = safe.logsumexp(-1).masked_fill(dead.squeeze(-1), NEG_INF)
    return torch.einsum("bhij,bhjd->bhid", weights, v), lse


def leaves(case: Case) -> list[Tensor]:
    """The tensors of a case that get gradients."""
    return [x for x in (case.q, case.k, case.v, case.sinks) if x is not None]


def gradients(case: Case, dout: Tensor) -> list[Tensor]:
    """Return the float64 gradients of `leaves` for the given gradient of out."""
    exact = [x.detach().double().requires_grad_() for x in leaves(case)]
    sinks = exact[3] if case.sinks is not None else None
    out, _ = oracle(Case(*exact[:3], case.queries, case.causal, case.window, case.softcap,
                         case.mask, sinks, case.scale))  # fmt: skip
    return list(torch.autograd.grad(out, exact, dout.double(), allow_unused=True))


def single(case: Case) -> Tensor:
    """The same attention on one device in the dtype of the case, rows at their positions."""
    outs, row = [], 0
    for span in case.queries:
        take = slice(row, row + len(span))
        mask = None if case.mask is None else case.mask[:, :, take].to(case.q.dtype)
        outs.append(
            attention(
                case.q[:, :, take], case.k, case.v, mask, case.sinks, scale=case.scale,
                causal=case.causal, window=case.window, softcap=case.softcap, q_start=span.start,
            )
        )  # fmt: skip
        row += len(span)
    return torch.cat(outs, 2)


def close(got: Tensor, want: Tensor, alone: Tensor | None = None, ulps: int = 1) -> None:
    """Assert the project's bounds: fp32 1e-5, fp64 1e-10; halves twice the error of one device.

    `alone` is one device's result, or tells the dtype; halves get `ulps` roundings on top.
    """
    dtype = torch.float32 if alone is None else alone.dtype
    bound = _BOUNDS[dtype]
    if dtype in HALVES:
        exact = want.masked_fill(want == NEG_INF, 0.0)
        near = alone.double().masked_fill(want == NEG_INF, 0.0)
        bound *= ulps * _size(exact)
        bound += 2 * (near - exact).abs().max().item() if near.numel() else 0.0
    else:
        bound *= _size(want)
    _within(got, want, bound)


def close_lse(got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    """Assert the bounds of an lse; that of halves is computed in float32, good to 2e-4."""
    _within(got, want, (2e-4 if dtype in HALVES else _BOUNDS[dtype]) * _size(want))


def _size(want: Tensor) -> float:
    seen = want.masked_fill(want == NEG_INF, 0.0).abs()
    return max(1.0, seen.max().item()) if seen.numel() else 1.0


def _within(got: Tensor, want: Tensor, bound: float) -> None:
    assert got.shape == want.shape
    assert not got.isnan().any()
    low = want == NEG_INF
    assert torch.equal(got == NEG_INF, low)
    if got.numel():
        error = (got.double() - want).masked_fill(low, 0.0).abs().max().item()
        assert error <= bound, f"error {error:.2e}, bound {bound:.2e}"


_BOUNDS = {
    torch.float32: 1e-5,
    torch.float64: 1e-10,
    torch.bfloat16: torch.finfo(torch.bfloat16).eps,
    torch.float16: torch.finfo(torch.float16).eps,
}


def rows_at(x: Tensor, spans: Sequence[range], dim: int = 2) -> Tensor:
    """Return the rows of a contiguous sequence at the given positions."""
    return torch.cat([x.narrow(dim, span.start, len(span)) for span in spans], dim)
