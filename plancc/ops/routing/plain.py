"""The `plain` routing kernel: torch operators alone, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from plancc.ops.routing.kernel import Kernel, sum_type


def hosted(owners: Tensor, n: int) -> Tensor:
    """Return [t, n] bool: the ranks that host any choice of each token (owners [t, k], -1 none)."""
    table = owners.new_zeros((owners.shape[0], n + 1), dtype=torch.bool)
    return table.scatter_(1, owners.remainder(n + 1), True)[:, :n]  # -1 lands in the last column


def by_token(rows: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Return the positions of `rows` [m] sorted by token, in order, and where each token starts."""
    sorted_rows, order = rows.sort(stable=True)
    edges = torch.arange(tokens + 1, device=rows.device)
    return order, torch.searchsorted(sorted_rows, edges)


def _count(owners: Tensor, n: int) -> Tensor:
    return hosted(owners, n).sum(0)


def _permute(owners: Tensor, n: int) -> tuple[Tensor, Tensor]:
    table = hosted(owners, n)
    return table.T.nonzero()[:, 1].contiguous(), table.sum(0)


def _take(x: Tensor, rows: Tensor) -> Tensor:
    return x.index_select(0, rows)


def _combine(rows: Tensor, values: Tensor, tokens: int, weights: Tensor | None) -> Tensor:
    exact = values.to(sum_type(values.dtype))
    if weights is not None:
        exact = exact * weights.to(exact.dtype).unsqueeze(1)
    if values.device.type == "cpu":  # adds one row after the other
        out = exact.new_zeros((tokens, values.shape[1])).index_add_(0, rows, exact)
    else:
        out = sum_by_turns(rows, exact, tokens)
    return out.to(values.dtype)


def sum_by_turns(rows: Tensor, values: Tensor, tokens: int) -> Tensor:
    """Return [tokens, h]: values [m, h] summed by token in order, without index_add."""
    out = values.new_zeros((tokens, values.shape[1]))
    order, starts = by_token(rows, tokens)
    sizes = starts.diff()
    for turn in range(int(sizes.max())):  # the first row of every token, the second, ...
        token = (sizes > turn).nonzero()[:, 0]
        value = values.index_select(0, order[starts[token] + turn])
        out.index_copy_(0, token, out.index_select(0, token) + value)
    return out


PLAIN = Kernel(
    "plain",
    devices=(),
    probe=lambda: None,
    raw_count=_count,
    raw_permute=_permute,
    raw_take=_take,
    raw_combine=_combine,
)
