"""Quantities, folding, and trees of run-time inputs."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plancc.dsl import Report, Source
from plancc.dsl import values as v
from plancc.dsl.expressions import evaluate
from plancc.dsl.parser import parse_source
from plancc.dsl.plan import Expr
from plancc.dsl.scope import Env, FileScope, World

QUANTITIES = [
    ("80GB", "bytes", 80 * 10**9), ("64GiB", "bytes", 64 * 2**30), ("1_000B", "bytes", 1000),
    ("450GB/s", "bytes/s", 450e9), ("30s", "seconds", 30.0), ("5ms", "seconds", 0.005),
    ("10%", "ratio", 0.1), ("1.5h", "seconds", 5400.0), ("2min", "seconds", 120.0),
]  # fmt: skip


@pytest.mark.parametrize(("text", "unit", "value"), QUANTITIES)
def test_quantities(text: str, unit: str, value: float) -> None:
    """Every unit folds to bytes, bytes a second, seconds or a fraction."""
    quantity = v.read_quantity(text)
    assert (quantity.unit, quantity.fold()) == (unit, value)
    assert isinstance(quantity.fold(), int) == (unit == "bytes")


def test_quantity_arithmetic() -> None:
    """Amounts of one unit add; numbers scale."""
    gb = v.read_quantity("8GB")
    assert v.binary("*", 2, gb) == v.read_quantity("16GB")
    assert v.binary("/", gb, v.read_quantity("2GB")) == 4
    assert v.compare("<", v.read_quantity("999MB"), v.read_quantity("1GB"))
    for op, other in (("+", 2), ("+", v.read_quantity("3s")), ("//", 2)):
        with pytest.raises(v.ExprError):
            v.binary(op, gb, other)


@pytest.mark.parametrize("text", ["9" * 20, str(2**63), str(2**70)])
def test_large_numbers(text: str) -> None:
    """Numbers beyond 64 bits are refused."""
    with pytest.raises(v.ExprError):
        v.read_int(text)


def test_division() -> None:
    """Division is exact, and by zero an error."""
    assert v.binary("/", 7, 2) == Fraction(7, 2)
    assert v.call("ceil", (v.binary("/", 7, 2),)) == 4
    assert v.binary("//", -7, 2) == -4 and v.binary("%", 7, 3) == 1
    for op in ("/", "//", "%"):
        with pytest.raises(v.ExprError):
            v.binary(op, 1, 0)


SEQ: Any = v.Dynamic(("ref", "seq_len"))


def test_trees() -> None:
    """An expression over inputs evaluates exactly and shows as it would be written."""
    tree = v.call("ceil", (v.binary("/", SEQ, 8),)).tree
    expr = Expr(v.show(tree), tree)
    assert expr.text == "ceil(seq_len / 8)"
    assert [expr.evaluate({"seq_len": n}) for n in (1, 8, 9, 2**53 + 1)] == [1, 1, 2, 2**50 + 1]
    with pytest.raises(KeyError):
        expr.evaluate({})


def test_tokens() -> None:
    """`tokens` is batch times seq_len unless it is given."""
    tree = v.compare(">", v.Dynamic(("ref", "tokens")), 100).tree
    assert v.evaluate_tree(tree, {"batch": 4, "seq_len": 26})
    assert not v.evaluate_tree(tree, {"batch": 4, "seq_len": 26, "tokens": 7})


def test_logic() -> None:
    """Known truths disappear from a guard."""
    guard = v.compare(">", SEQ, 10)
    assert v.logic("and", (guard, True)) is guard and v.logic("or", (guard, False)) is guard
    assert v.logic("and", (guard, False)) is False and v.logic("or", (guard, True)) is True
    assert v.show(v.logic("not", (guard,)).tree) == "not seq_len > 10"
    with pytest.raises(v.ExprError):
        v.logic("and", (guard, 3))


numbers = st.integers(-50, 50).filter(bool)
trees = st.recursive(
    numbers.map(lambda n: ("int", n)) | st.just(("ref", "seq_len")),
    lambda kids: (
        st.tuples(st.just("binary"), st.sampled_from("+-*"), kids, kids)
        | kids.map(lambda kid: ("negative", kid))
    ),
    max_leaves=12,
)


@given(trees, st.integers(1, 100))
def test_shown_trees_mean_the_same(tree: tuple[Any, ...], seq_len: int) -> None:
    """The text of a tree has the parentheses it needs."""
    source = Source("tree", f"plan tree, edition 1\nlet a = {v.show(tree)}\n")
    report = Report()
    plan = parse_source(source, report)
    assert plan is not None
    world = World(report, {})
    read = evaluate(plan.statements[0].value, Env(world, FileScope(source, "", True)))  # type: ignore[union-attr]
    value = v.evaluate_tree(v.tree_of(read), {"seq_len": seq_len})
    assert value == v.evaluate_tree(tree, {"seq_len": seq_len})
