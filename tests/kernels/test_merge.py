"""Merging by log-sum-exp: any order, any tree, any number of empty parts, and never a NaN."""

from __future__ import annotations

import random

import pytest
import torch
from attention_oracle import NEG_INF, close
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plancc.ops.kernels import empty
from plancc.ops.merge import (
    add_sinks,
    merge,
    merge_into,
    merge_pair,
    merge_tree,
    sink_backward,
)

LSE = st.one_of(st.just(NEG_INF), st.floats(-30, 30))
HUGE = st.one_of(LSE, st.sampled_from([-3e38, -1e30, -1e4, 1e3, 1e4, 1e30, 3e38]))
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])


def parts_of(rows: list[list[float]], dtype: torch.dtype, seed: int) -> list:
    """One part for each list of lses; out is 0 where the lse is -inf, as kernels promise."""
    generator = torch.Generator().manual_seed(seed)
    exact = torch.promote_types(dtype, torch.float32)
    parts = []
    for row in rows:
        lse = torch.tensor(row, dtype=exact).view(1, 1, -1)
        out = torch.randn(1, 1, len(row), 4, generator=generator, dtype=torch.float64)
        parts.append((out.masked_fill((lse == NEG_INF).unsqueeze(-1), 0).to(dtype), lse))
    return parts


def exact(parts: list) -> tuple[Tensor, Tensor]:
    """The merge as a softmax over the parts, in float64."""
    lses = torch.stack([lse.double() for _, lse in parts])
    dead = (lses == NEG_INF).all(0)
    weights = lses.masked_fill(dead, 0.0).softmax(0).masked_fill(dead, 0.0)
    outs = torch.stack([out.double() for out, _ in parts])
    total = lses.masked_fill(dead, 0.0).logsumexp(0).masked_fill(dead, NEG_INF)
    return (weights.unsqueeze(-1) * outs).sum(0), total


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data(), st.integers(1, 7), st.integers(1, 5), DTYPES, st.integers(0, 99))
def test_merge_is_exact_in_any_order_and_tree(
    data: st.DataObject, count: int, width: int, dtype: torch.dtype, seed: int
) -> None:
    row = st.lists(LSE, min_size=width, max_size=width)
    parts = parts_of(data.draw(st.lists(row, min_size=count, max_size=count)), dtype, seed)
    want, want_lse = exact(parts)
    order = list(range(count))
    random.Random(seed).shuffle(order)
    cut = seed % count
    tree = [order[:cut], order[cut:]] if cut else [[i] for i in order]
    chain = parts[0]
    for part in parts[1:]:
        chain = merge_pair(chain, part, dtype=part[1].dtype)
    total = parts[0][0].to(parts[0][1].dtype, copy=True), parts[0][1].clone()
    for part in parts[1:]:
        merge_into(total, part)
    for out, lse in (
        merge(parts), merge([parts[i] for i in order]), merge_tree(parts, tree),
        (chain[0].to(dtype), chain[1]), (total[0].to(dtype), total[1]),
    ):  # fmt: skip
        assert out.dtype == dtype and lse.dtype == parts[0][1].dtype
        close(out, want, alone=want.to(dtype))
        close(lse, want_lse, alone=want_lse.to(lse.dtype))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(st.tuples(HUGE, HUGE), min_size=1, max_size=6), DTYPES, st.integers(0, 99))
def test_huge_lses_merge_without_nan(rows: list, dtype: torch.dtype, seed: int) -> None:
    """Where an lse is too large to hold the log of 2, one merge is still exact in out."""
    parts = parts_of([list(row) for row in rows], dtype, seed)
    want, want_lse = exact(parts)
    out, lse = merge(parts)
    close(out, want, alone=want.to(dtype))
    close(lse, want_lse, alone=want_lse.to(lse.dtype))
    chain = parts[0]
    for part in parts[1:]:
        chain = merge_pair(chain, part)
    assert chain[0].isfinite().all() and not chain[1].isnan().any()
    limit = torch.stack([o.abs() for o, _ in parts]).amax(0).double()
    assert (chain[0].double().abs() <= limit * 1.02 + 1e-6).all()


def test_nothing_merged_with_nothing_is_nothing() -> None:
    nothing = empty(torch.zeros(1, 2, 3, 4), 5)
    for out, lse in (merge([nothing, nothing]), merge_tree([nothing] * 3, [[0, 2], 1])):
        assert out.shape == (1, 2, 3, 5) and (out == 0).all() and (lse == NEG_INF).all()


def test_the_empty_part_is_neutral() -> None:
    (part,) = parts_of([[0.5, -3.0, 80.0]], torch.float32, 0)
    nothing = empty(part[0], 4)
    for merged in (merge_pair(part, nothing), merge_pair(nothing, part)):
        assert torch.equal(merged[0], part[0]) and torch.equal(merged[1], part[1])


def test_a_tree_names_each_part_once() -> None:
    parts = parts_of([[0.0]] * 3, torch.float32, 0)
    for tree in ([0, 1], [[0, 1], [1, 2]], [0, 1, 2, 3], 1):
        with pytest.raises(ValueError, match="once"):
            merge_tree(parts, tree)
    with pytest.raises(ValueError, match="nothing"):
        merge([])


def test_merge_refuses_to_lose_a_gradient() -> None:
    (part,) = parts_of([[0.0]], torch.float32, 0)
    recorded = part[0].requires_grad_(), part[1]
    with pytest.raises(RuntimeError, match="attend_blocks"):
        merge([recorded, part])
    with torch.no_grad():
        merge([recorded, part])


def test_bfloat16_levels_of_a_tree_round_once() -> None:
    parts = parts_of([[0.1 * i] * 64 for i in range(32)], torch.bfloat16, 3)
    tree = [[[8 * g + 2 * h, 8 * g + 2 * h + 1] for h in range(4)] for g in range(4)]
    out, _ = merge_tree(parts, tree)
    assert torch.equal(out, exact(parts)[0].to(torch.bfloat16)) or (
        (out.double() - exact(parts)[0]).abs().max() <= 2**-9 * 1.01
    )


def test_sinks_take_their_share_and_get_their_gradient() -> None:
    (part,) = parts_of([[0.5, NEG_INF, 3.0]], torch.float64, 1)
    sinks = torch.tensor([0.7], dtype=torch.float64)
    out, lse = add_sinks(*part, sinks)
    dout = torch.randn_like(out)
    free = sinks.clone().requires_grad_()
    total = torch.logaddexp(part[1], free.view(1, 1, 1))
    want = part[0] * torch.exp(part[1] - total).unsqueeze(-1)
    close(out, want.detach(), alone=want.detach())
    close(lse, total.detach(), alone=total.detach())
    (dsinks,) = torch.autograd.grad(want, free, dout)
    close(sink_backward(dout, out, lse, sinks), dsinks, alone=dsinks)
    gone = add_sinks(*empty(part[0], 4), torch.tensor([NEG_INF], dtype=torch.float64))
    assert (gone[0] == 0).all() and (gone[1] == NEG_INF).all()
