"""Tables of experts: seats and turns, rows that move, sums over copies; any table gives the same result."""

from __future__ import annotations

import random

import pytest
import torch
from balanced_plans import MOE, compiled
from hypothesis import given, settings
from hypothesis import strategies as st
from lowered import captured, prompt, tokens_of_one

from plancc.dsl.errors import Bug
from plancc.ir.layout import Part
from plancc.ir.mesh import Grid
from plancc.runtime.balance.balancer import better, filled, loads_of, spread
from plancc.runtime.balance.rows import move_rows, sum_copies, travels
from plancc.runtime.balance.tables import Seating, Table, Tables, first_table
from plancc.runtime.generate import generate
from plancc.runtime.loading import Loaded
from plancc.runtime.local import run_local
from plancc.runtime.runner import Runner
from plancc.runtime.view import View
from plancc.verification.reference import buffers_of, random_params

CPU = torch.device("cpu")


def some_table(experts: int, ranks: int, room: int, seed: int) -> Table:
    """A random table: every expert somewhere, ranks with `room` different ones, some twice in the slots."""
    rng = random.Random(seed)
    while True:
        order = rng.sample(range(experts), experts)
        order += [rng.randrange(experts) for _ in range(ranks * room - experts)]
        rng.shuffle(order)
        try:
            return filled(first_table(experts, ranks, ranks * room - experts), order)
        except Bug:
            continue


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int, int]:
    """Experts, ranks, seats of a rank."""
    ranks, experts = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    least = -(-experts // ranks)
    return experts, ranks, draw(st.integers(least, experts))


@given(sizes(), st.integers(0, 99), st.integers(0, 20), st.integers(1, 3), st.integers(0, 7))
def test_seats(size: tuple[int, int, int], seed: int, tokens: int, k: int, place: int) -> None:
    """A choice gets a seat of its expert; copies take turns, so that their counts differ by one."""
    table = some_table(*size, seed)
    index = torch.randint(0, size[0], (tokens, k), generator=torch.Generator().manual_seed(seed))
    found = Seating.of(table, CPU).choose(index, place)
    assert found.shape == index.shape and found.dtype == index.dtype
    counts: dict[int, list[int]] = {expert: [] for expert in range(size[0])}
    for expert, seat in zip(index.flatten().tolist(), found.flatten().tolist(), strict=True):
        rank, row = divmod(seat, table.room)
        assert table.held[rank][row] == expert and expert in table.hosted(rank)
        counts[expert].append(seat)
    for expert, seats in counts.items():
        turns = [
            seats.count(seat) / table.seats[expert].count(seat) for seat in table.seats[expert]
        ]
        if len(set(table.seats[expert])) == len(turns):
            assert not seats or max(turns) - min(turns) <= 1


@given(st.integers(1, 20), st.integers(1, 6), st.integers(0, 12))
def test_first_table(experts: int, ranks: int, spare: int) -> None:
    """It begins with balanced ranges; without copies it is just these."""
    if (experts + spare) % ranks or spare > experts * (ranks - 1):
        return
    table = first_table(experts, ranks, spare)
    assert all(len(mine) == (experts + spare) // ranks for mine in table.held)
    for rank, mine in enumerate(table.held):
        assert set(range(experts * rank // ranks, experts * (rank + 1) // ranks)) <= set(mine)
    assert table.copied == (spare > 0)
    assert sorted(e for r in range(ranks) for e in table.firsts(r)) == list(range(experts))
    if not spare:
        assert [e for found in table.seats for e in found] == list(range(experts))


def test_wrong_tables() -> None:
    """An expert without a slot, a slot without weights."""
    with pytest.raises(Bug):
        Table(3, (0, 1), ((0,), (1,)))
    with pytest.raises(Bug):
        Table(2, (0, 1), ((0,), (0,)))


@settings(max_examples=25, deadline=None)
@given(sizes(), st.integers(0, 99))
def test_rows_move_and_copies_add_up(size: tuple[int, int, int], seed: int) -> None:
    """After a change each rank has its experts' rows; sums over copies are whole, and equal bit by bit."""
    experts, ranks, _ = size
    old, new = some_table(*size, seed), some_table(*size, seed + 1)
    grid = Grid("m", (("x", ranks),), tuple(range(ranks)))
    part = Part("m", "x", 1, ranks, ranks, "placed+0+0")
    way = travels(old, new, 1)
    assert all(e in old.held[s] and e in new.held[t] and s != t for e, s, t in way)

    def one(transport):
        view = View(transport.rank, {"m": grid}, "m")
        mine = torch.tensor(old.held[transport.rank], dtype=torch.float64)
        tensors = [mine.clone(), mine[:, None] * torch.ones(3, dtype=torch.float64)]
        move_rows(transport, view, part, (old, new), way, tensors, 1)
        noise = torch.Generator().manual_seed(transport.rank)
        grad = torch.rand(len(new.held[transport.rank]), 2, generator=noise)
        return tensors, grad, sum_copies(transport, view, part, new, [grad], 2)[0]

    found = run_local(ranks, one)
    for expert in range(experts):
        holders = [(r, new.held[r].index(expert)) for r in range(ranks) if expert in new.held[r]]
        for rank, row in holders:
            assert [float(x.flatten()[row * (x.numel() // len(x))]) for x in found[rank][0]] == [
                expert, expert
            ]  # fmt: skip
            total = sum(found[r][1][at] for r, at in holders)
            assert torch.allclose(found[rank][2][row], total)
            assert torch.equal(found[rank][2][row], found[holders[0][0]][2][holders[0][1]])


@given(sizes(), st.integers(0, 99), st.booleans())
def test_better_tables(size: tuple[int, int, int], seed: int, timed: bool) -> None:
    """A new table is always less uneven, and none comes where the tolerance allows the old one."""
    rng = random.Random(seed)
    table = some_table(*size, seed)
    given_ = [float(rng.randrange(100)) for _ in range(table.ranks * table.room)]
    seconds = [rng.random() + 0.1 for _ in range(table.ranks)] if timed else [0.0] * table.ranks
    tokens, load = loads_of(table, given_, seconds)
    assert sum(tokens) == sum(given_)
    if not timed:
        assert sum(load) == pytest.approx(sum(given_))
    one = {"tolerance": 0.0, "groups": 1, "nodes": 1, "policy": "hierarchical"}
    new = better(table, load, one)
    assert new is None or spread(new, load) < spread(table, load)
    assert new is None or [len(mine) for mine in new.held] == [len(mine) for mine in table.held]
    assert better(table, load, {**one, "tolerance": table.ranks}) is None


@pytest.mark.parametrize("seed", range(4))
def test_any_table_gives_the_same_tokens(seed: int) -> None:
    """Whatever the tables of the layers are from the begin."""
    lowered = compiled("", 4)
    graph = lowered.compiled.graph
    assert graph is captured("moe", MOE)
    source = Loaded(random_params(graph, torch.float64), buffers_of(graph, torch.float64))
    ids = prompt(graph, 3, 5)

    def one(transport):
        runner = Runner(lowered.artifact, transport, source, dtype=torch.float64)
        for number in range(2):
            key = (f"{number}+4", "moe", "ep", 1, 4)
            runner.tables.found[key] = some_table(8, 4, 3, 10 * seed + number)
        return generate(runner, ids, 4).tokens

    want = tokens_of_one(graph, ids, 4)
    assert all(torch.equal(tokens, want) for tokens in run_local(lowered.artifact.world, one))


def test_counted() -> None:
    """Choices are counted by seat until the table changes."""
    tables, part = Tables(), Part("m", "x", 1, 2, 2, "placed+0+0")
    tables.seat(part, 4, torch.tensor([[0, 3], [3, 2]]), 0)
    tables.seat(part, 4, torch.tensor([[1, 3]]), 0)
    (key,) = tables.found
    assert tables.given[key].tolist() == [1, 1, 1, 3]
    tables.change(key, tables.found[key])
    assert key not in tables.given and tables.spent(key) == 0.0
