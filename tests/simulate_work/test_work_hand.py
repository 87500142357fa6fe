"""Single calls by hand: FLOPs, bytes, and what counts as no work at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plancc.ops.attention import visible
from plancc.ops.blocks import block_ranges
from plancc.simulator.costs import cost_of
from plancc.simulator.costs_attention import seen
from plancc.simulator.forms import Work
from plancc.simulator.local_call import (
    Call,
    ExpertRows,
    Local,
    contiguous,
    dense,
    run_view,
    tensors,
)

F32, BF16, I64 = torch.float32, torch.bfloat16, torch.int64


def local(*shape: int, dtype: torch.dtype = F32, strides: tuple[int, ...] | None = None) -> Local:
    return Local(shape, contiguous(shape) if strides is None else strides, dtype)


def call(target: str, *args: Any, outs: tuple[Local, ...] = (), **options: Any) -> Call:
    """A call with what it makes; `needs` and `routed` are the call's own, the rest its keywords."""
    more = {name: options.pop(name) for name in ("needs", "routed") if name in options}
    kwargs = options
    found = tuple(tensors((args, tuple(kwargs.values()))))
    one = Call(target, args, kwargs, found, outs, **more)
    if cost_of(target).lies == "view":  # type: ignore[union-attr]
        made, shared = run_view(one)
        return Call(target, args, kwargs, found, made, aliases=shared, **more)
    return one


def forward(target: str, *args: Any, **options: Any) -> tuple[Work, ...]:
    """The kernels of a call."""
    return cost_of(target).forward(call(target, *args, **options))  # type: ignore[union-attr]


def backward(target: str, *args: Any, **options: Any) -> tuple[Work, ...]:
    """The kernels of its gradients."""
    return cost_of(target).backward(call(target, *args, **options))  # type: ignore[union-attr]


def test_linear() -> None:
    """[2, 3, 8] x [5, 8] + [5] in bf16: 2 * 6 * 5 * 8 FLOPs; 48 + 40 + 5 numbers read, 30 written."""
    x, w, b, y = (local(*s, dtype=BF16) for s in ((2, 3, 8), (5, 8), (5,), (2, 3, 5)))
    assert forward("aten.linear.default", x, w, b, outs=(y,)) == (
        Work("matmul", 480, 2 * 93, 2 * 30, "bf16", (1, 6, 5, 8)),
    )
    dx, dw, db = backward("aten.linear.default", x, w, b, outs=(y,), needs=(True,) * 3)
    assert dx == Work("matmul", 480, 2 * (30 + 40), 2 * 48, "bf16", (1, 6, 8, 5))
    assert dw == Work("matmul", 480, 2 * (30 + 48), 2 * 40, "bf16", (1, 5, 8, 6))
    assert db == Work("memory", 0, 2 * 30, 2 * 5, "bf16")
    only = backward("aten.linear.default", x, w, b, outs=(y,), needs=(True, False, False))
    assert only == (dx,)
    assert backward("plancc.linear_later.default", x, w, b, outs=(y,), needs=(True,) * 3) == (
        dx,
        db,
    )
    late = cost_of("plancc.linear_later.default").late  # type: ignore[union-attr]
    assert late(call("aten.linear.default", x, w, b, outs=(y,), needs=(True,) * 3)) == (dw,)


@pytest.mark.parametrize(
    ("a", "b", "out", "shape"),
    [
        ((4, 6), (6, 8), (4, 8), (1, 4, 8, 6)),
        ((3, 4, 6), (3, 6, 8), (3, 4, 8), (3, 4, 8, 6)),
        ((2, 3, 4, 6), (6, 8), (2, 3, 4, 8), (1, 24, 8, 6)),
        ((2, 1, 4, 6), (3, 6, 8), (2, 3, 4, 8), (6, 4, 8, 6)),
        ((6,), (6,), (), (1, 1, 1, 6)),
        ((4, 6), (6,), (4,), (1, 4, 1, 6)),
        ((6,), (3, 6, 8), (3, 8), (3, 1, 8, 6)),
    ],
)
def test_matmul(a: tuple[int, ...], b: tuple[int, ...], out: tuple[int, ...], shape: Any) -> None:
    """All ranks of both operands."""
    (work,) = forward("aten.matmul.default", local(*a), local(*b), outs=(local(*out),))
    assert (work.shape, work.flops) == (shape, 2 * shape[0] * shape[1] * shape[2] * shape[3])


def test_einsum_and_convolution() -> None:
    """bth,eih->btei contracts h only; a kernel of 3 on 4 of 8 channels in 2 groups."""
    x, w, y = local(2, 5, 8), local(4, 6, 8), local(2, 5, 4, 6)
    (work,) = forward("aten.einsum.default", "bth,eih->btei", (x, w), outs=(y,))
    assert work == Work("matmul", 2 * 10 * 24 * 8, 4 * (80 + 192), 4 * 240, "f32", (1, 10, 24, 8))
    outer = forward(
        "aten.einsum.default", "...i,j->...ij", (x, local(3)), outs=(local(2, 5, 8, 3),)
    )
    assert outer == (Work("memory", 0, 4 * 83, 4 * 240, "f32"),)
    both = backward("aten.einsum.default", "bth,eih->btei", (x, w), outs=(y,), needs=(True, True))
    assert [one.flops for one in both] == [work.flops] * 2
    (conv,) = forward(
        "aten.conv1d.default", local(2, 8, 10), local(6, 4, 3), None, (1,), (0,), (1,), 2,
        outs=(local(2, 6, 8),),
    )  # fmt: skip
    assert (conv.flops, conv.shape) == (2 * 2 * 8 * 6 * 4 * 3, (2, 16, 3, 12))


def test_prefill_attention() -> None:
    """4 queries, 2 heads on 1 kv head, head_dim 8: 1 + 2 + 3 + 4 pairs a head; keys are read once."""
    q, k, out = (
        local(1, 2, 4, 8, dtype=BF16),
        local(1, 1, 4, 8, dtype=BF16),
        local(1, 2, 4, 8, dtype=BF16),
    )
    given = {"outs": (out,), "scale": 1.0, "causal": True}
    (work,) = forward("plancc.attention.default", q, k, k, **given)
    assert work == Work(
        "attention", 2 * 2 * 10 * 16, 2 * (64 + 2 * 32), 2 * 64 + 4 * 8, "bf16", (1, 2, 4, 4, 8)
    )
    (back,) = backward("plancc.attention.default", q, k, k, needs=(True,) * 3, **given)
    assert back.flops == 2.5 * work.flops
    assert back.read == 2 * (64 + 2 * 32) + 2 * 2 * 64 + 4 * 8  # out, its gradient, logsumexps
    assert back.written == 2 * (64 + 2 * 32)


def test_decode_attention_with_a_cache() -> None:
    """One query at position 99 of a cache of 100: all keys; with a window of 10 just the last ten."""
    q, k = local(3, 4, 1, 8), local(3, 2, 100, 8, strides=(3200, 1600, 8, 1))
    out = local(3, 4, 1, 8)
    (work,) = forward("plancc.attention.default", q, k, k, outs=(out,), scale=1.0, causal=True)
    assert work.flops == 2 * 3 * 4 * 100 * 16
    assert work.read == 4 * (96 + 2 * 3 * 2 * 100 * 8)
    (near,) = forward(
        "plancc.attention.default", q, k, k, outs=(out,), scale=1.0, causal=True, window=10
    )
    assert (near.flops, near.read) == (work.flops // 10, 4 * (96 + 2 * 3 * 2 * 10 * 8))
    assert near.shape == (3, 4, 1, 10, 8)


def test_attention_over_some_keys() -> None:
    """Queries 4..7 over keys 0..1 and 6..7: 4 * 2 pairs, and of 6 and 7 only those behind: 2 + 1."""
    q, k = local(1, 1, 4, 2), local(1, 1, 4, 2)
    options = {"scale": 1.0, "causal": True, "q_start": 4, "keys": ((0, 2), (6, 8))}
    outs = (local(1, 1, 4, 2), local(1, 1, 4))
    (work,) = forward("plancc.attention_over_keys.default", q, k, k, outs=outs, **options)
    assert (work.flops, work.written) == (2 * 11 * 4, 4 * (8 + 4))
    (back,) = forward(
        "plancc.attention_over_keys_backward.default", q, q, local(1, 1, 4), q, k, k,
        outs=(q, k, k), **options,
    )  # fmt: skip
    assert back.flops == 2 * 11 * 10
    none = {**options, "keys": ((8, 10), (10, 12))}
    (zeros,) = forward("plancc.attention_over_keys.default", q, k, k, outs=outs, **none)
    assert zeros == Work("memory", 0, 0, 4 * 12, "f32")


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 9), st.integers(0, 12), st.integers(0, 9), st.booleans(), st.integers(0, 6))
def test_visible_pairs_are_those_of_the_mask(
    queries: int, keys: int, start: int, causal: bool, window: int
) -> None:
    """The closed form against the mask of `plancc::attention`, whole and cut into ranges."""
    mask: Tensor = visible(queries, keys, start, causal, window, torch.device("cpu"))
    found = seen(queries, ((0, keys),), start, causal, window)
    assert found.pairs == int(mask.sum())
    assert found.keys == int(mask.any(0).sum())
    parts = [block_ranges(keys, 3, at)[0] for at in range(3)]
    cut = [seen(queries, ((p.start, p.stop),), start, causal, window) for p in parts]
    assert sum(one.pairs for one in cut) == found.pairs
    assert sum(one.keys for one in cut) == found.keys


def test_look_ups_read_their_rows() -> None:
    """6 ids into a table of 1000 rows of 4: 24 numbers read and written, never the table."""
    ids, table, out = local(2, 3, dtype=I64), local(1000, 4), local(2, 3, 4)
    assert forward("aten.embedding.default", table, ids, outs=(out,)) == (
        Work("memory", 0, 4 * 24 + 8 * 6, 4 * 24, "f32"),
    )
    found = forward("plancc.embedding_shard.default", ids, table, 0, outs=(out,))
    assert [(w.read, w.written) for w in found] == [(4 * 24 + 8 * 6, 4 * 24), (4 * 24, 4 * 24)]
    fill, add = backward("aten.embedding.default", table, ids, outs=(out,), needs=(True, False))
    assert (fill.read, fill.written) == (0, 4 * 4000)
    assert (add.read, add.written) == (4 * 48 + 8 * 6, 4 * 24)


def test_caches_take_the_new_positions_only() -> None:
    """One new position beside 7: 2 * 2 * 3 * 8 numbers are copied; a first prefill copies nothing."""
    new, whole = local(2, 3, 1, 8), local(2, 3, 8, 8)
    assert forward("plancc.cache_append.default", new, new, 0, outs=(whole, whole)) == (
        Work("memory", 0, 4 * 96, 4 * 96, "f32"),
    )
    assert forward("plancc.cache_append.default", whole, whole, 0, outs=(whole, whole)) == ()


def test_elementwise() -> None:
    """Broadcast operands are read as small as they are, expanded ones too."""
    x, y = local(4, 6), local(6)
    expected = (Work("memory", 0, 4 * 30, 4 * 24, "f32"),)
    assert forward("aten.mul.Tensor", x, y, outs=(x,)) == expected
    wide = local(4, 6, strides=(0, 1))
    assert forward("aten.mul.Tensor", x, wide, outs=(x,)) == expected
    dx, dy, total = backward("aten.mul.Tensor", x, y, outs=(x,), needs=(True, True))
    assert (dx.read, dx.written) == (4 * 30, 4 * 24)
    assert (dy.read, dy.written) == (4 * 48, 4 * 24)
    assert (total.read, total.written) == (4 * 24, 4 * 6)
    assert backward("aten.add.Tensor", x, x, outs=(x,), needs=(True, True)) == ()
    assert backward("aten.add.Tensor", x, y, outs=(x,), needs=(False, True)) == (total,)


def test_views_are_free_and_copies_are_not() -> None:
    """A transposed tensor can be viewed as before but not merged across; one position can."""
    x = local(2, 3, 4, 5, strides=(60, 5, 15, 1))  # [B, H, T, D] of a [B, T, H, D]
    assert forward("aten.permute.default", x, (0, 2, 1, 3)) == ()
    back = local(2, 4, 3, 5)
    assert forward("aten.reshape.default", back, (2, 4, 15)) == ()
    copied = forward("aten.reshape.default", x, (2, 3, 20))
    assert copied == (Work("memory", 0, 4 * 120, 4 * 120, "f32"),)
    assert forward("aten.reshape.default", local(2, 3, 1, 5, strides=(15, 5, 15, 1)), (2, 15)) == ()
    grown = local(2, 3, 4, 5, strides=(15, 5, 0, 1))  # heads that were expanded
    assert forward("aten.expand.default", local(2, 3, 1, 5), (2, 3, 4, 5)) == ()
    assert forward("aten.reshape.default", grown, (2, 12, 5)) == (
        Work("memory", 0, 4 * 30, 4 * 120, "f32"),
    )
    assert forward("aten.to.dtype", x, F32) == () != forward("aten.to.dtype", x, BF16)


def test_gradients_of_views() -> None:
    """Of a view nothing, of an expanded one a sum, of a slice zeros and a copy, of a split one copy."""
    x = local(4, 6)
    need = {"needs": (True,)}
    assert backward("aten.view.default", x, (24,), **need) == ()
    (total,) = backward("aten.expand.default", local(1, 6), (4, 6), **need)
    assert (total.read, total.written) == (4 * 24, 4 * 6)
    zeros, copy = backward("aten.slice.Tensor", x, 0, 1, 3, **need)
    assert (zeros.read, zeros.written, copy.read, copy.written) == (0, 96, 48, 48)
    (joined,) = backward("aten.split.Tensor", x, 2, **need)
    assert (joined.read, joined.written) == (96, 96)


def test_experts() -> None:
    """10 choices of 6 rows, 3 of 4 experts in use; hidden 8, ffn 5, gate and up."""
    x, index, share = local(6, 8), local(6, 2, dtype=I64), local(6, 2)
    wide, down = local(4, 10, 8), local(4, 8, 5)
    options = {"outs": (x,), "act": "silu", "routed": ExpertRows(6, 10, 3)}
    found = forward("plancc.experts.default", x, index, share, wide, down, **options)
    up, out = (work for work in found if work.kind == "matmul")
    assert up == Work("matmul", 2 * 10 * 10 * 8, 4 * (80 + 240), 4 * 100, "f32", (3, 3, 10, 8))
    assert out == Work("matmul", 2 * 10 * 8 * 5, 4 * (50 + 120), 4 * 80, "f32", (3, 3, 8, 5))
    needs = (True, False, True, True, True)
    both = backward("plancc.experts.default", x, index, share, wide, down, **options, needs=needs)
    assert sum(w.flops for w in both) == 2 * (up.flops + out.flops)
    frozen = backward(
        "plancc.experts.default", x, index, share, wide, down, **options,
        needs=(True, False, True, False, False),
    )  # fmt: skip
    assert sum(w.flops for w in frozen) == up.flops + out.flops


def test_rare_experts_are_read_as_rarely() -> None:
    """A quarter of a choice on the mean: a quarter of an expert's weights, not none or all of them."""
    x, index, share = local(1, 8), local(1, 2, dtype=I64), local(1, 2)
    given = (x, index, share, local(4, 10, 8), local(4, 8, 5))
    options = {"outs": (x,), "act": "silu", "routed": ExpertRows(0.25, 0.25, 0.25)}
    up = next(w for w in forward("plancc.experts.default", *given, **options) if w.flops)
    assert (up.flops, up.read) == (2 * 0.25 * 80, 4 * (2 + 20))


def test_cross_entropy() -> None:
    """3 rows of 50 logits in bf16: a log softmax in float32; its backward twice that and the logits'."""
    logits, targets, out = local(3, 50, dtype=BF16), local(3, dtype=I64), local(3)
    given = (logits, targets)
    (work,) = forward("plancc.cross_entropy.default", *given, outs=(out,))
    assert (work.read, work.written) == (300 + 24, 600 + 12)
    back = backward("plancc.cross_entropy.default", *given, outs=(out,), needs=(True, False))
    assert [w.written for w in back] == [600, 600, 300]
    (picked,) = forward("aten.nll_loss.default", *given, outs=(local(),))
    assert (picked.read, picked.written) == (2 * 3 + 24, 4)


def test_strides() -> None:
    """Dense strides follow the order of another tensor's; gaps and expanded dims are closed."""
    assert contiguous((2, 3, 4)) == (12, 4, 1)
    assert contiguous(()) == ()
    assert dense((2, 3, 4), (12, 1, 3)) == (12, 1, 3)
    assert dense((2, 3, 4), (100, 1, 7)) == (12, 1, 3)
    assert dense((2, 3), (0, 0)) == (3, 1)
