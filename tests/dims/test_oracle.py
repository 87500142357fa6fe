"""Every claim of every row that a model of the zoo uses, against the operator on the whole."""

from __future__ import annotations

import oracle
import pytest
import torch
from single import Calls
from zoo import MODELS, named

from plancc.ir.shape import NamedGraph, leaves


@pytest.mark.parametrize("name", list(MODELS))
def test_rows_of_a_model(name: str) -> None:
    graph, state = named(name)
    run = oracle.record(graph, oracle.seeded_inputs(graph.graph, 3, 7, 100), state)
    count, wrong = 0, []
    with torch.no_grad():
        for node in graph.graph.nodes:
            checks, problems = oracle.check_node(run, node)
            count += checks
            wrong += problems
    assert not wrong, wrong[:5]
    assert count > 100


@pytest.mark.parametrize("name", list(MODELS))
def test_trees_have_the_sizes_of_their_values(name: str) -> None:
    graph, _ = named(name)
    run = oracle.Run(graph, {}, {})
    for value in graph.graph.values():
        trees = graph.shapes[value.name]
        assert len(trees) == len(value.shape)
        for tree, size in zip(trees, value.shape, strict=True):
            if isinstance(size, int) and all(isinstance(leaf.size, int) for leaf in leaves(tree)):
                assert oracle.full_size(run, tree) == size


def softmax_over_a_cut_dim(calls: Calls) -> None:
    calls("aten.softmax.int", torch.randn(4, 6), -1)


def bias_added_by_every_rank(calls: Calls) -> None:
    calls("aten.linear.default", torch.randn(4, 6), torch.randn(8, 6), torch.randn(8))


def look_up_without_offset(calls: Calls) -> None:
    calls("aten.embedding.default", torch.randn(10, 6), torch.randint(10, (4, 5)))


def one_operand_of_a_sum(calls: Calls) -> None:
    calls("aten.add.Tensor", torch.randn(4, 6), torch.randn(4, 6))


FAULTS = {
    softmax_over_a_cut_dim: ("aten.softmax.int", "a b -> a b", ""),
    bias_added_by_every_rank: ("aten.linear.default", "... i, o i, [o] -> ... o", ""),
    look_up_without_offset: ("aten.embedding.default", "v h, ... -> ... h", ""),
    one_operand_of_a_sum: ("aten.add.Tensor", "* -> ...", "one"),
}


@pytest.mark.parametrize("make", FAULTS, ids=lambda make: make.__name__)
def test_the_oracle_sees_a_wrong_row(make, monkeypatch: pytest.MonkeyPatch) -> None:
    from plancc.passes.rows import table

    target, notation, linear = FAULTS[make]
    monkeypatch.setitem(table.ROWS, target, table.Row(notation, "", linear))
    calls = Calls()
    make(calls)
    with pytest.raises(AssertionError):
        calls.check()


def test_no_label_of_a_binding_is_unknown() -> None:
    graph: NamedGraph = named("llama")[0]
    for binding in graph.bindings.values():
        sides = (*binding.operands, *binding.outs)
        labels = {label for side in sides for dim in side.labels for label in dim}
        assert "" not in labels
        for side in sides:
            trees = graph.shapes[side.value]
            assert [len(list(leaves(t))) for t in trees] == [len(dim) for dim in side.labels]
