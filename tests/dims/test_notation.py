"""The notation of rows: what parses, what does not, and how `...` is written out."""

from __future__ import annotations

import pytest
import torch
from single import Calls

from plancc.passes.name_dims import name_dims
from plancc.passes.rows import ROWS, RowError, UnknownOperator, register_op
from plancc.passes.rows.notation import NotationError, expand, parse
from plancc.passes.rows.table import USER_ROWS


def test_a_row_is_read() -> None:
    row = parse("b (k g) q !d, b k !s !d, [b (k g) q !s], [+ o] -> b (k g) q (e+e)")
    assert row.whole == {"d", "s"}
    assert [side.optional for side in row.ins] == [False, False, True, True]
    assert row.ins[3].addend and row.ins[0].slots[1].names == ("k", "g")
    assert [part.names for part in row.outs[0].slots[3].parts] == [("e",), ("e",)]


def test_parts_share_a_label_and_numbers_are_whole() -> None:
    row = parse("(x.lo+x+x.hi) (i 2) _ 1 -> x i")
    assert {"2", "_2"} <= row.whole and "x" not in row.whole
    assert row.ins[0].slots[3].names == ()


def test_nothing_may_be_missing() -> None:
    assert parse("-> a b").ins == () and parse("i, i ->").outs[0].slots == ()
    for text in (
        "a b",
        "a -> b -> c",
        "(a -> b",
        "a) -> b",
        "a? -> b",
        "... a ... -> a",
        "a, * -> a",
        "! -> a",
        "a -> !",
    ):
        with pytest.raises(NotationError):
            parse(text)


def test_broadcast_dims_are_aligned_at_the_right() -> None:
    row = expand("* -> ...", (2, 3, None), (3,))
    assert [slot.names for slot in row.ins[0].slots] == [("z2",), ("z1",)]
    assert [slot.names for slot in row.outs[0].slots] == [("z3",), ("z2",), ("z1",)]


def test_ranks_must_fit() -> None:
    for ranks, out in (((2,), (2,)), ((2, 3), (2,)), ((None, 2), (2,)), ((2, 2, 1, 1), (2,))):
        with pytest.raises(NotationError):
            expand("... i, o i, [+ o] -> ... o", ranks, out)


@pytest.fixture
def my_op():
    library = torch.library.Library("dimstest", "DEF")
    library.define("gelu_bias(Tensor x, Tensor? bias) -> Tensor")
    library.impl(
        "gelu_bias",
        lambda x, bias: torch.nn.functional.gelu(x + (0 if bias is None else bias)),
        "CPU",
    )
    yield "dimstest.gelu_bias.default"
    USER_ROWS.pop("dimstest.gelu_bias", None)
    library._destroy()


def test_an_unknown_operator_is_an_error_with_module_and_line(my_op: str) -> None:
    calls = Calls()
    calls(my_op, torch.randn(4, 6), None)
    calls("aten.pdist.default", torch.randn(4, 6))
    with pytest.raises(UnknownOperator) as caught:
        name_dims(calls.graph())
    assert [caught.value.op, *(one.op for one in caught.value.others)] == [
        my_op,
        "aten.pdist.default",
    ]
    assert (caught.value.path, caught.value.line) == ("block", "model.py:1")
    assert 'register_op("dimstest::gelu_bias"' in str(caught.value)


def test_a_registered_row_names_the_dims_and_holds(my_op: str) -> None:
    register_op("dimstest::gelu_bias", "... d, [d] -> ... d")
    calls = Calls()
    calls(my_op, torch.randn(4, 6), torch.randn(6))
    assert calls.check() > 2
    named = calls.run().named
    assert named.shapes["p0"][1] == named.shapes["p1"][0]


def test_a_row_that_does_not_fit_its_call(my_op: str) -> None:
    register_op("dimstest::gelu_bias", "a b c, [c] -> a b c")
    calls = Calls()
    calls(my_op, torch.randn(4, 6), None)
    with pytest.raises(RowError, match=r"dimstest.gelu_bias.default.*model.py:1.*2 dims"):
        name_dims(calls.graph())


def test_register_op_checks_what_it_is_given() -> None:
    for op in ("gelu", "mylib::", "mylib::gelu.default", "mylib.gelu"):
        with pytest.raises(ValueError, match="operator name"):
            register_op(op, "... -> ...")
    with pytest.raises(ValueError, match="linear"):
        register_op("mylib::gelu", "... -> ...", linear="yes")
    with pytest.raises(NotationError):
        register_op("mylib::gelu", "... -> (")
    with pytest.raises(ValueError, match="has a row"):
        register_op("aten::linear", "... -> ...")
    assert "mylib.gelu" not in USER_ROWS


def test_the_table_parses() -> None:
    for target, row in ROWS.items():
        if isinstance(row.notation, str):
            parse(row.notation)
        assert target.count(".") == 2
