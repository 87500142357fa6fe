"""Moves between layouts: planned, carried out by Comm on all ranks, compared with slices."""

from __future__ import annotations

from math import prod

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from plancc.codegen.manifest import tree_json
from plancc.codegen.python import part_text
from plancc.dsl.errors import Bug
from plancc.ir.layout import (
    CutLeaf,
    Layout,
    Part,
    Prod,
    Sum,
    cuts,
    map_cuts,
    pending_parts,
    plan_moves,
)
from plancc.ir.mesh import Grid
from plancc.runtime.comm import Comm
from plancc.runtime.dims import part_range
from plancc.runtime.local import run_local
from plancc.runtime.pieces import cut
from plancc.runtime.sizes import build_dim
from plancc.runtime.view import View

QUICK = settings(
    derandomize=True, database=None, deadline=None, max_examples=150,
    suppress_health_check=list(HealthCheck), phases=(Phase.explicit, Phase.generate, Phase.shrink),
)  # fmt: skip
SIZES = {"a": 4, "b": 3}


def axis(name: str, rule: str = "balanced") -> Part:
    """A whole axis."""
    return Part("m", name, 1, SIZES[name], SIZES[name], rule)


def factor(stride: int, rule: str = "balanced") -> Part:
    """A factor of the axis of four."""
    return Part("m", "a", stride, 2, 4, rule)


@st.composite
def shapes(draw: st.DrawFn) -> tuple:
    """One to three dims without cuts: leaves, products, concatenations."""
    count = 0

    def leaf() -> CutLeaf:
        nonlocal count
        count += 1
        return CutLeaf(count, draw(st.integers(1, 7)))

    def dim():
        kind = draw(st.sampled_from(["leaf", "leaf", "prod", "sum"]))
        if kind == "leaf":
            return leaf()
        return (Prod if kind == "prod" else Sum)((leaf(), leaf()))

    return tuple(dim() for _ in range(draw(st.integers(1, 3))))


@st.composite
def layouts(draw: st.DrawFn, dims: tuple, pending: tuple[Part, ...] | None = None) -> Layout:
    """A valid layout of `dims`; parts that are not placed may be pending."""
    rule = draw(st.sampled_from(["balanced", "block"]))
    parts = [axis("a", rule)] if draw(st.booleans()) else [factor(2, rule), factor(1, rule)]
    partial, at = [], list(dims)
    for part in draw(st.permutations([*parts, axis("b")])):
        places = [(d, p) for d, dim in enumerate(dims) for p, _ in enumerate(cuts(dim))]
        choice = draw(st.sampled_from(["none", "pending", *places]))
        if choice == "pending":
            partial.append(part)
        elif choice != "none":
            d, p = choice
            have = list(cuts(at[d]))
            both = isinstance(at[d], Sum) and draw(st.booleans())
            spots = range(len(have)) if both else [p]
            at[d] = map_cuts(at[d], {q: (*have[q].parts, part) for q in spots})
    found = pending_parts(partial)
    if pending is not None:
        cut_by = [x for dim in at for leaf in cuts(dim) for x in leaf.parts]
        found = tuple(p for p in found if p in pending and not any(p.meets(x) for x in cut_by))
    return Layout(tuple(at), found)


def local(layout: Layout, whole: Tensor, view: View) -> Tensor:
    """What a rank holds of a tensor, sums aside."""
    dims = [build_dim(view, tree_json(d, {}), {}) for d in layout.dims]
    return cut(whole, tuple(d.ranges(view.coord_of(view.rank)) for d in dims))


def share(layout: Layout, whole: Tensor, view: View) -> Tensor:
    """What a rank holds: of a pending sum an uneven share, by its place among the peers."""
    mine = local(layout, whole, view)
    for part in layout.partial:
        index = view.index(view.rank, part)
        mine = mine * (2.0 * (index + 1) / (part.count * (part.count + 1)))
    return mine


def carry_out(comm: Comm, view: View, x: Tensor, move, at: int) -> Tensor:
    """One move, called as emitted programs call it."""

    def dim(layout: Layout, d: int):
        return build_dim(view, tree_json(layout.dims[d], {}), {})

    texts = tuple(part_text(p, "").strip("'") for p in move.parts)
    if move.kind == "all_reduce":
        return comm.all_reduce(x, texts, at)
    if move.kind == "all_gather":
        return comm.all_gather(x, move.dim, dim(move.before, move.dim), texts, at)
    if move.kind == "all_to_all":
        there = dim(move.before, move.dim), move.to_dim, dim(move.after, move.to_dim)
        return comm.all_to_all(x, move.dim, *there, texts, at)
    after = dim(move.after, move.dim)
    if move.kind == "shard":
        return comm.shard(x, move.dim, after, texts)
    return comm.reduce_scatter(x, move.dim, after, texts, at)


def check(source: Layout, target: Layout) -> list[str]:
    """Carry the moves out on twelve ranks; the kinds of moves that were made."""
    moves = plan_moves(source, target)
    shape = [size(d) for d in source.dims]
    whole = torch.arange(1.0, 1 + prod(shape), dtype=torch.float64).reshape(shape)
    grid = Grid("m", tuple(SIZES.items()), tuple(range(12)))

    def one(transport) -> None:
        view = View(transport.rank, {"m": grid}, "m")
        comm = Comm(transport, view)
        x = share(source, whole, view)
        for at, move in enumerate(moves):
            assert move.parts
            x = carry_out(comm, view, x, move, at)
            assert torch.allclose(x, share(move.after, whole, view) if not at else x)
        assert x.shape == local(target, whole, view).shape
        assert torch.allclose(total(x, target, transport, view), local(target, whole, view))

    run_local(12, one)
    return [move.kind for move in moves]


def total(x: Tensor, layout: Layout, transport, view: View) -> Tensor:
    """The value of a pending sum."""
    for number, part in enumerate(layout.partial):
        x = transport.all_reduce(x, view.peers((part,)).group, 1000 + number)
    return x


def size(tree) -> int:
    """The global size of a dim."""
    if isinstance(tree, CutLeaf):
        return int(tree.size)
    sizes = [size(kid) for kid in tree.kids]
    return prod(sizes) if isinstance(tree, Prod) else sum(sizes)


@st.composite
def journeys(draw: st.DrawFn) -> tuple[Layout, Layout]:
    """Two layouts of one value."""
    dims = draw(shapes())
    source = draw(layouts(dims))
    return source, draw(layouts(dims, source.partial))


@QUICK
@given(journeys())
def test_any_layout_becomes_any_other(pair: tuple[Layout, Layout]) -> None:
    """Never a Bug, and every rank ends up with its part."""
    check(*pair)


@pytest.mark.slow
@settings(QUICK, derandomize=False, max_examples=5000)
@given(journeys())
def test_many_layouts(pair: tuple[Layout, Layout]) -> None:
    """As above, others each time."""
    check(*pair)


A, B = axis("a"), axis("b")
X, Y = CutLeaf(1, 8), CutLeaf(2, 6)


def rows(*parts: Part) -> CutLeaf:
    return CutLeaf(1, 8, parts)


def columns(*parts: Part) -> CutLeaf:
    return CutLeaf(2, 6, parts)


NAMED = {
    "sum": (Layout((X, Y), (A,)), Layout((X, Y)), ["all_reduce"]),
    "scatter": (Layout((X, Y), (A,)), Layout((rows(A), Y)), ["reduce_scatter"]),
    "scatter_block": (
        Layout((X, Y), (A,)), Layout((rows(axis("a", "block")), Y)), ["reduce_scatter"]
    ),
    "gather": (Layout((rows(A), Y)), Layout((X, Y)), ["all_gather"]),
    "slice": (Layout((X, Y)), Layout((rows(A), Y)), ["shard"]),
    "exchange": (Layout((rows(A), Y)), Layout((X, columns(A))), ["all_to_all"]),
    "exchange_nested": (Layout((rows(A, B), Y)), Layout((rows(A), columns(B))), ["all_to_all"]),
    "other_order": (Layout((rows(A, B), Y)), Layout((rows(B, A), Y)), ["all_gather", "shard"]),
    "one_sum_of_two": (Layout((X, Y), (A, B)), Layout((X, Y), (B,)), ["all_reduce"]),
    "scatter_both": (
        Layout((X, Y), (A, B)), Layout((rows(A), columns(B))), ["reduce_scatter", "reduce_scatter"]
    ),
    "factors_to_axis": (
        Layout((rows(factor(2)), columns(factor(1)))), Layout((rows(A), Y)),
        ["all_gather", "all_gather", "shard"],
    ),
    "rules_differ": (
        Layout((rows(axis("a", "block")), Y)), Layout((X, columns(A))), ["all_gather", "shard"]
    ),
    "halves": (
        Layout((Sum((X, Y)), CutLeaf(3, 4, (A,)))),
        Layout((Sum((rows(A), columns(A))), CutLeaf(3, 4))),
        ["all_to_all"],
    ),
    "halves_scatter": (
        Layout((Sum((X, Y)),), (A,)), Layout((Sum((rows(A), columns(A))),)), ["reduce_scatter"]
    ),
    "half_cut": (
        Layout((Sum((rows(A), Y)),)), Layout((Sum((rows(A), columns(A))),)), ["all_gather", "shard"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NAMED)
def test_the_moves_of_known_cases(case: str) -> None:
    """The cheapest moves, and they are right."""
    source, target, kinds = NAMED[case]
    found = check(source, target)
    assert sorted(found) == sorted(kinds), found


def test_nothing_becomes_a_pending_sum() -> None:
    """Whole to partial is no move."""
    with pytest.raises(Bug):
        plan_moves(Layout((X,)), Layout((X,), (A,)))


def test_parts_meet_where_they_share_a_coordinate() -> None:
    """The factors of an axis do not meet, all others of one axis do."""
    outer, inner, whole = factor(2), factor(1), axis("a")
    assert not outer.meets(inner) and not inner.meets(outer)
    assert whole.meets(outer) and inner.meets(whole) and whole.meets(axis("a", "block"))
    assert not whole.meets(axis("b"))
    assert pending_parts((inner, outer)) == (whole,)
    assert pending_parts((axis("b", "block"), factor(2))) == (factor(2), axis("b"))


def test_the_ranges_of_both_rules() -> None:
    """Balanced sizes differ by one at most; blocks are ceil(n / count), the last ones shorter."""
    balanced, block = (Part("m", "x", 1, 4, 4, rule) for rule in ("balanced", "block"))
    assert [part_range(10, balanced, i) for i in range(4)] == [(0, 2), (2, 5), (5, 7), (7, 10)]
    assert [part_range(10, block, i) for i in range(4)] == [(0, 3), (3, 6), (6, 9), (9, 10)]
    assert [part_range(2, block, i) for i in range(4)] == [(0, 1), (1, 2), (2, 2), (2, 2)]
