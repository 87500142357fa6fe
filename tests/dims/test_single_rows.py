"""Each row of the table on small tensors, also those that no model of the zoo uses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from single import Calls, show
from torch import Tensor, randn

from plancc.passes.rows import TABLE
from plancc.passes.rows.call import schema
from plancc.passes.rows.table import ELEMENTWISE


def ints(high: int, *shape: int) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(0))


X, Y = randn(4, 6, 8), randn(4, 6, 8)
CALLS: dict[str, Callable[[Calls], object]] = {
    "add": lambda c: c("aten.add.Tensor", X, Y, alpha=2),
    "add number": lambda c: c("aten.add.Tensor", X, 1e-1),
    "sub": lambda c: c("aten.sub.Tensor", X, randn(8)),
    "mul": lambda c: c("aten.mul.Tensor", X, randn(6, 1)),
    "div": lambda c: c("aten.div.Tensor", X, 3.0),
    "cat one": lambda c: c("aten.cat.default", [X], 1),
    "to int": lambda c: c("aten.to.dtype", X, torch.int64),
    "mv": lambda c: c("aten.mv.default", randn(4, 6), randn(6)),
    "dot": lambda c: c("aten.dot.default", randn(6), randn(6)),
    "outer": lambda c: c("aten.outer.default", randn(6), randn(4)),
    "mm": lambda c: c("aten.mm.default", randn(4, 6), randn(6, 8)),
    "bmm": lambda c: c("aten.bmm.default", X, randn(4, 8, 6)),
    "addmm": lambda c: c("aten.addmm.default", randn(8), randn(4, 6), randn(6, 8)),
    "addmm matrix": lambda c: c("aten.addmm.default", randn(4, 8), randn(4, 6), randn(6, 8)),
    "baddbmm": lambda c: c("aten.baddbmm.default", randn(1, 6, 6), X, randn(4, 8, 6), beta=0.5),
    "matmul 4 2": lambda c: c("aten.matmul.default", randn(2, 4, 6, 8), randn(8, 6)),
    "matmul 3 1": lambda c: c("aten.matmul.default", X, randn(8)),
    "matmul 1 3": lambda c: c("aten.matmul.default", randn(6), X),
    "matmul 2 3": lambda c: c("aten.matmul.default", randn(4, 6), X),
    "einsum": lambda c: c("aten.einsum.default", "bij,kj->kbi", [X, randn(5, 8)]),
    "einsum sum": lambda c: c("aten.einsum.default", "...ij->...j", [X]),
    "einsum implicit": lambda c: c("aten.einsum.default", "bij,kj", [X, randn(5, 8)]),
    "einsum diagonal": lambda c: c("aten.einsum.default", "ii->i", [randn(4, 4)]),
    "softmax": lambda c: c("aten.softmax.int", X, 1),
    "log_softmax": lambda c: c("aten.log_softmax.int", X, -1),
    "cumsum": lambda c: c("aten.cumsum.default", X, 1),
    "sort": lambda c: c("aten.sort.default", X, 1),
    "argsort": lambda c: c("aten.argsort.default", X, 1),
    "flip": lambda c: c("aten.flip.default", X, [0, 2]),
    "roll": lambda c: c("aten.roll.default", X, [1], [1]),
    "sum": lambda c: c("aten.sum.dim_IntList", X, [0, 2]),
    "sum all": lambda c: c("aten.sum.default", X),
    "sum keep": lambda c: c("aten.sum.dim_IntList", X, [-1], True),
    "mean": lambda c: c("aten.mean.dim", X, [1], True),
    "mean all": lambda c: c("aten.mean.default", X),
    "mean two": lambda c: c("aten.mean.dim", X, [0, -1]),
    "amax": lambda c: c("aten.amax.default", X, [1]),
    "max.dim": lambda c: c("aten.max.dim", X, 1, True),
    "argmax": lambda c: c("aten.argmax.default", X, -1),
    "argmax all": lambda c: c("aten.argmax.default", X),
    "any": lambda c: c("aten.any.dim", X > 0, 1),
    "var": lambda c: c("aten.var.correction", X, [1], correction=0),
    "logsumexp": lambda c: c("aten.logsumexp.default", X, [1]),
    "norm": lambda c: c("aten.linalg_vector_norm.default", X, 2.0, [-1], True),
    "topk": lambda c: c("aten.topk.default", X, 2, 1),
    "diff": lambda c: c("aten.diff.default", X, 1, -1, randn(4, 6, 1)),
    "pad": lambda c: c("aten.pad.default", X, [1, 2], "constant", 0.0),
    "constant_pad": lambda c: c("aten.constant_pad_nd.default", X, [0, 0, 1, 1], 1.0),
    "layer_norm": lambda c: c("aten.layer_norm.default", X, [8], randn(8), randn(8)),
    "layer_norm two dims": lambda c: c("aten.layer_norm.default", X, [6, 8], randn(6, 8)),
    "native_layer_norm": lambda c: c(
        "aten.native_layer_norm.default", X, [8], randn(8), None, 1e-5
    ),
    "rms_norm": lambda c: c("aten.rms_norm.default", X, [8], randn(8)),
    "group_norm": lambda c: c("aten.group_norm.default", X, 3, randn(6), randn(6)),
    "batch_norm": lambda c: c(
        "aten.batch_norm.default",
        X,
        randn(6),
        randn(6),
        randn(6),
        randn(6).abs(),
        False,
        0.1,
        1e-5,
        False,
    ),
    "conv1d": lambda c: c("aten.conv1d.default", X, randn(4, 6, 3), randn(4)),
    "conv1d depthwise": lambda c: c(
        "aten.conv1d.default", X, randn(6, 1, 3), randn(6), [1], [2], [1], 6
    ),
    "conv1d groups": lambda c: c("aten.conv1d.default", X, randn(4, 3, 3), None, [1], [0], [1], 2),
    "conv2d": lambda c: c(
        "aten.conv2d.default", randn(2, 3, 8, 8), randn(4, 3, 4, 4), None, [4, 4]
    ),
    "avg_pool2d": lambda c: c("aten.avg_pool2d.default", randn(2, 3, 8, 8), [2, 2]),
    "upsample": lambda c: c("aten.upsample_nearest2d.vec", randn(2, 3, 4, 4), [8, 8], None),
    "triu": lambda c: c("aten.triu.default", X),
    "one_hot": lambda c: c("aten.one_hot.default", ints(5, 4, 6), 5),
    "bucketize": lambda c: c("aten.bucketize.Tensor", X, randn(5).sort().values),
    "gather": lambda c: c("aten.gather.default", X, 1, ints(6, 4, 3, 8)),
    "gather fewer": lambda c: c("aten.gather.default", X, 1, ints(6, 2, 3, 8)),
    "scatter": lambda c: c("aten.scatter.src", X, 1, ints(6, 4, 6, 8), Y),
    "scatter value": lambda c: c("aten.scatter.value", X, 1, ints(6, 4, 2, 8), 1.0),
    "scatter_add": lambda c: c("aten.scatter_add.default", X, 1, ints(6, 4, 6, 8), Y),
    "index_add": lambda c: c("aten.index_add.default", X, 1, ints(6, 3), randn(4, 3, 8)),
    "index_copy": lambda c: c(
        "aten.index_copy.default", X, 1, torch.tensor([1, 3]), randn(4, 2, 8)
    ),
    "index_select": lambda c: c("aten.index_select.default", X, 1, ints(6, 3)),
    "index": lambda c: c("aten.index.Tensor", X, [None, ints(6, 3, 2)]),
    "index apart": lambda c: c("aten.index.Tensor", X, [ints(4, 5), None, ints(8, 5)]),
    "index broadcast": lambda c: c("aten.index.Tensor", X, [ints(4, 3, 1), ints(6, 1, 5)]),
    "index_put": lambda c: c(
        "aten.index_put.default", X, [None, torch.tensor([1, 3])], randn(2, 8)
    ),
    "embedding_shard": lambda c: c("plancc.embedding_shard.default", ints(5, 4), randn(5, 6)),
    "prelu": lambda c: c("aten.prelu.default", X, randn(6)),
    "prelu one": lambda c: c("aten.prelu.default", X, randn(1)),
    "unbind": lambda c: c("aten.unbind.int", X, 1),
    "stack": lambda c: c("aten.stack.default", [X, Y], 1),
    "cat": lambda c: c("aten.cat.default", [X, randn(4, 2, 8)], 1),
    "cat empty": lambda c: c("aten.cat.default", [X, randn(4, 0, 8), torch.empty(0)], 1),
    "split": lambda c: c("aten.split.Tensor", X, 4, 1),
    "chunk": lambda c: c("aten.chunk.default", X, 3, -1),
    "slice": lambda c: c("aten.slice.Tensor", X, 2, 1, -2),
    "slice nothing": lambda c: c("aten.slice.Tensor", X, 2, 8, 9),
    "slice step": lambda c: c("aten.slice.Tensor", X, 2, 1, None, 2),
    "slice odd step": lambda c: c("aten.slice.Tensor", X, 2, 0, None, 3),
    "narrow": lambda c: c("aten.narrow.default", X, 1, 2, 3),
    "select": lambda c: c("aten.select.int", X, 1, -1),
    "slice_scatter": lambda c: c("aten.slice_scatter.default", X, randn(4, 3, 8), 1, 2, 5),
    "slice_scatter step": lambda c: c("aten.slice_scatter.default", X, randn(4, 3, 8), 1, 0, 6, 2),
    "select_scatter": lambda c: c("aten.select_scatter.default", X, randn(4, 8), 1, 2),
    "repeat": lambda c: c("aten.repeat.default", X, [2, 1, 3, 1]),
    "tile": lambda c: c("aten.tile.default", X, [2]),
    "repeat_interleave": lambda c: c("aten.repeat_interleave.self_int", X, 2, 1),
    "repeat_interleave flat": lambda c: c("aten.repeat_interleave.self_int", X, 2),
    "expand": lambda c: c("aten.expand.default", randn(6, 1), [4, -1, 8]),
    "broadcast_to": lambda c: c("aten.broadcast_to.default", randn(6, 1), [4, 6, 8]),
    "expand_as": lambda c: c("aten.expand_as.default", randn(6, 1), X),
    "permute": lambda c: c("aten.permute.default", X, [2, 0, -2]),
    "transpose": lambda c: c("aten.transpose.int", X, 0, -1),
    "movedim": lambda c: c("aten.movedim.int", X, 0, 2),
    "numpy_T": lambda c: c("aten.numpy_T.default", X),
    "mT": lambda c: c("aten.mT.default", X),
    "squeeze": lambda c: c("aten.squeeze.default", randn(4, 1, 6)),
    "squeeze.dims": lambda c: c("aten.squeeze.dims", randn(4, 1, 6), [1]),
    "unsqueeze": lambda c: c("aten.unsqueeze.default", X, -1),
    "flatten": lambda c: c("aten.flatten.using_ints", X, 1),
    "unflatten": lambda c: c("aten.unflatten.int", X, 2, [2, -1]),
    "reshape_as": lambda c: c("aten.reshape_as.default", X, randn(24, 8)),
    "view_as_real": lambda c: c("aten.view_as_real.default", torch.polar(X.abs(), Y)),
    "view_as_complex": lambda c: c("aten.view_as_complex.default", randn(4, 6, 2)),
    "zeros": lambda c: c("aten.zeros.default", [4, 6]),
    "full": lambda c: c("aten.full.default", [4, 6], 2.0),
    "new_ones": lambda c: c("aten.new_ones.default", X, [4, 6]),
    "new_zeros": lambda c: c("aten.new_zeros.default", X, [4, 6]),
    "arange": lambda c: c("aten.arange.default", 6),
    "eye": lambda c: c("aten.eye.default", 6),
    "scalar_tensor": lambda c: c("aten.scalar_tensor.default", 2.0),
    "meshgrid": lambda c: c("aten.meshgrid.indexing", [randn(4), randn(6)], indexing="ij"),
    "experts": lambda c: experts(c),
    "experts interleaved": lambda c: experts(c, transposed=True, interleaved=True),
    "experts plain": lambda c: experts(c, gated=False),
    "attention": lambda c: attention(c, 2),
    "attention mqa": lambda c: attention(c, 1),
    "attention mask": lambda c: attention(c, 2, mask=randn(3, 1, 5, 5), sinks=randn(4)),
    "attention alibi": lambda c: attention(c, 4, mask=randn(1, 4, 1, 5)),
    "attention past": lambda c: c(
        "plancc.attention.default",
        randn(3, 4, 2, 8),
        randn(3, 2, 5, 8),
        randn(3, 2, 5, 6),
        scale=0.3,
        causal=True,
    ),
    "sdpa": lambda c: c(
        "aten.scaled_dot_product_attention.default",
        randn(3, 4, 5, 8),
        randn(3, 2, 5, 8),
        randn(3, 2, 5, 6),
        enable_gqa=True,
    ),
}


def experts(calls: Calls, **options: bool) -> object:
    gated, turn = options.get("gated", True), options.get("transposed", False)
    up = randn(3, 8 if gated else 4, 6)
    down = randn(3, 6, 4)
    tensors = [up.mT.contiguous(), down.mT.contiguous()] if turn else [up, down]
    return calls(
        "plancc.experts.default",
        randn(5, 6),
        ints(3, 5, 2),
        randn(5, 2).abs(),
        *tensors,
        randn(3, up.shape[1]),
        randn(3, 6),
        act="silu",
        **options,
    )


def attention(calls: Calls, kv: int, **extra: Tensor) -> object:
    q, k, v = randn(3, 4, 5, 8), randn(3, kv, 5, 8), randn(3, kv, 5, 6)
    return calls("plancc.attention.default", q, k, v, **extra, scale=0.3, causal=True)


@pytest.mark.parametrize("name", CALLS)
def test_row(name: str) -> None:
    calls = Calls()
    CALLS[name](calls)
    calls.check()


EXTRA = {
    "div.Tensor_mode": {"rounding_mode": "floor"},
    "div.Scalar_mode": {"rounding_mode": "trunc"},
    "clamp.default": {"min": 0.2},
    "clamp.Tensor": {"min": torch.tensor(0.2)},
    "round.decimals": {"decimals": 1},
}
FIRST_BOOL = ("where.self", "where.ScalarSelf", "where.ScalarOther", "where.Scalar")
TENSORS: tuple[Callable[[], Tensor], ...] = (
    lambda: torch.rand(4, 6) * 0.9 + 0.05,
    lambda: ints(3, 4, 6) + 1,
    lambda: randn(4, 6) > 0,
    lambda: torch.complex(randn(4, 6), randn(4, 6)),
)


def arguments(op: str, make: Callable[[], Tensor], scalar: object) -> list[object]:
    """Arguments for the parameters of an operator that have no default."""
    needed = [
        make() if field.is_tensor else scalar
        for field in schema(f"aten.{op}") or ()
        if not field.optional and field.name not in EXTRA.get(op, {})
    ]
    if op in FIRST_BOOL:
        needed[0] = randn(4, 6) > 0
    elif op.startswith("masked_fill"):
        needed[1:] = [randn(4, 6) > 0, torch.tensor(1.0) if "Tensor" in op else 1.0]
    elif op == "fill.Tensor":
        needed[1] = torch.tensor(1.0)
    return needed


@pytest.mark.parametrize("op", ELEMENTWISE.split())
def test_elementwise_row(op: str) -> None:
    """Tried with floats, integers, booleans, complex numbers: one of them must do."""
    failures = []
    for make in TENSORS:
        for scalar in (0.5, 1):
            calls = Calls()
            try:
                needed = arguments(op, make, scalar)
                calls(f"aten.{op}", *needed, **EXTRA.get(op, {}))
            except (RuntimeError, TypeError, NotImplementedError, ValueError) as failure:
                failures.append(str(failure)[:100])
                continue
            calls.check()
            return
    raise AssertionError(failures)


DERIVED = ("cache_append.default", "cross_entropy.default")
"""Operators that passes insert: no model calls them."""


def test_every_overload_of_the_table_is_tried_or_exists() -> None:
    missing = [
        op
        for row in TABLE
        for op in row.ops.split()
        if schema(f"{row.namespace}.{op}") is None and op not in DERIVED
    ]
    assert missing == []


def test_select_of_a_concatenation_is_a_cut() -> None:
    """Falcon's (K, G + 2, D): the key and value of a group do not make the query's groups whole."""
    calls = Calls()
    fused = calls.tensor(randn(5, 3 * 6 * 8))
    view = calls("aten.view.default", fused, (5, 3, 6, 8))
    calls("aten.slice.Tensor", view, 2, 0, -2)
    calls("aten.select.int", view, 2, -2)
    index = calls.tensor(torch.tensor([-1]), "const")
    calls("aten.index.Tensor", view, (None, None, index))
    named = calls.run().named
    assert show(named.shapes["p0"][1]) == "(3 (4 + () + ()) 8)"
    for node in calls.nodes[1:]:
        assert not any(
            "c" in op.labels[2]
            for op in named.bindings[node.name].operands[:1]
            if "c" in named.bindings[node.name].whole
        )
    assert calls.check() > 10


def test_select_does_not_cut_a_plain_dim() -> None:
    calls = Calls()
    calls("aten.select.int", X, 1, 0)
    named = calls.run().named
    assert show(named.shapes["p0"][1]) == "6"
    assert "b" in named.bindings["n0"].whole
