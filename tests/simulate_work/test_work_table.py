"""The table has every operator; what nobody knows is an error that names it; users' own operators."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from lowered import plan_file
from torch import Tensor, nn

from plancc.codegen.names import SPECIAL
from plancc.compiler import compile_graph
from plancc.dsl import load_plan
from plancc.ops import _OWN
from plancc.passes.capture import capture
from plancc.passes.rows import register_op
from plancc.passes.rows.table import ROWS, USER_ROWS
from plancc.simulator.costs import BY_TARGET, COSTS, cost_of
from plancc.simulator.errors import SimulateError
from plancc.simulator.place import Place, Sizes
from plancc.simulator.work import NoCost, ProgramWork

torch.library.define("simtest::mix", "(Tensor x, Tensor w) -> Tensor")
torch.library.define("simtest::twist", "(Tensor x) -> Tensor")
torch.library.impl("simtest::mix", "CompositeExplicitAutograd", lambda x, w: x @ w)
torch.library.impl("simtest::twist", "CompositeExplicitAutograd", lambda x: x * 2)
torch.library.register_fake("simtest::mix", lambda x, w: x.new_empty((*x.shape[:-1], w.shape[1])))
torch.library.register_fake("simtest::twist", lambda x: torch.empty_like(x))


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 10))

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.simtest.twist(torch.ops.simtest.mix(x, self.weight)) + 1


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.own = Own()

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.own(self.embed(input_ids))


@pytest.fixture
def registered() -> Iterator[None]:
    """Rows for the operators of this file, gone afterwards."""
    register_op("simtest::mix", "... i, i o -> ... o")
    register_op("simtest::twist", "... -> ...")
    yield
    for name in ("mix", "twist"):
        USER_ROWS.pop(f"simtest.{name}", None)


def program(phase: str = "forward"):  # type: ignore[no-untyped-def]
    """The one program of the model with its own operators, and its meshes."""
    text = "plan own, edition 1\nmesh base[tp = 2] on local\nplace ** on base\n"
    resolved, report = load_plan(plan_file(text), {})
    assert resolved is not None
    found = compile_graph(resolved, capture(Model()), report, phases=(phase,))
    assert found.units[0].programs is not None
    return found.units[0].programs.programs[0], found.world.grids


def test_every_operator_has_a_cost() -> None:
    """Those of the rows, those of programs alone, those that emission treats specially."""
    wanted = {*ROWS, *_OWN, *SPECIAL, "plancc.route.default"}
    assert sorted(target for target in wanted if cost_of(target) is None) == []


def test_no_row_of_the_table_is_idle() -> None:
    """Every row's operators exist in torch, in plancc, or are instructions."""
    for row in COSTS:
        for op in row.ops.split():
            name, _, overload = op.partition(".")
            if row.namespace == "aten":
                assert hasattr(getattr(torch.ops.aten, name), overload), op
            else:
                assert row.namespace in ("plancc", "step")
    assert len(BY_TARGET) == sum(len(row.ops.split()) for row in COSTS)


def test_users_products_and_others(registered: None) -> None:
    """A row that contracts is a product: 2 * 12 * 6 * 10 FLOPs; the other moves its bytes."""
    found, grids = program()
    works = ProgramWork(found).works(Place(0, grids, Sizes(3, 4)))
    mixed, twisted, _ = (one for one in (works[at] for at in calls(found)) if one)
    assert (mixed[0].flops, mixed[0].shape) == (2 * 12 * 10 * 6, (1, 12, 10, 6))
    assert mixed[0].read == 4 * (12 * 6 + 60) and mixed[0].written == 4 * 120
    assert (twisted[0].kind, twisted[0].read, twisted[0].written) == ("memory", 480, 480)


def calls(found) -> list[int]:  # type: ignore[no-untyped-def]
    """The places of the calls of module `own`."""
    return [
        at for at, step in enumerate(found.instructions)
        if getattr(getattr(step, "origin", None), "path", "") == "own"
    ]  # fmt: skip


def test_unknown_operators_are_named_all_at_once(registered: None) -> None:
    """Each with its module and line of the model; never a guess."""
    found, _ = program()
    for name in ("mix", "twist"):
        del USER_ROWS[f"simtest.{name}"]
    with pytest.raises(NoCost) as problem:
        ProgramWork(found)
    assert isinstance(problem.value, SimulateError)
    first, second = problem.value.problems
    assert "`simtest.mix.default`" in first and "`simtest.twist.default`" in second
    for text in problem.value.problems:
        assert "module `own`, test_work_table.py:" in text
