"""Rows of a batch shared out by pace: any shares give the tokens, losses and gradients of one device."""

from __future__ import annotations

import pytest
import torch
from balanced_plans import MOE, plan
from hypothesis import given
from hypothesis import strategies as st
from lowered import Lowered, captured, explain_failure, lower, prompt, tokens_of_one

from plancc.dsl import PlanError
from plancc.ir.layout import Part
from plancc.runtime.balance import Paces
from plancc.runtime.balance.paces import share_rows
from plancc.runtime.generate import generate
from plancc.runtime.loading import Loaded
from plancc.runtime.local import run_local
from plancc.runtime.runner import Runner
from plancc.verification.reference import buffers_of, random_params

ASSIGNED = plan().replace("split batch over rep", "split batch over rep (assign = least_loaded)")
KEY = ("attn", "rep", 1, 2)


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=6), st.integers(0, 60))
def test_shares_are_exact(paces: list[float], rows: int) -> None:
    """All rows, each once; at least one each where there are two for each; faster ranks no fewer."""
    found = share_rows(tuple(paces), rows)
    assert sum(found) == rows and min(found) >= 0
    if rows >= 2 * len(paces):
        assert min(found) >= 1
        fast, slow = paces.index(min(paces)), paces.index(max(paces))
        assert found[fast] >= found[slow] - 1
    else:
        assert max(found) - min(found) <= 1


def test_measurements_within_noise_change_nothing() -> None:
    """Paces within a tenth are equal; others are in proportion."""
    part, paces = Part("attn", "rep", 1, 2, 2, "loaded"), Paces()
    paces.note(part, [1.0, 1.05], [10.0, 10.0])
    assert paces.newest[KEY] == (1.0, 1.0)
    paces.note(part, [1.0, 0.0], [10.0, 0.0])
    assert paces.newest[KEY] == (1.0, 1.0)
    for _ in range(30):
        paces.note(part, [3.0, 1.0], [10.0, 10.0])
    paces.used = dict(paces.newest)
    assert [hi - lo for ((lo, hi),) in paces.shares(part, 8)] == [2, 6]
    assert [hi - lo for ((lo, hi),) in paces.shares(part, 3)] == [1, 2]


def assigned(text: str = ASSIGNED, **options: object) -> Lowered:
    return lower(text, captured("moe", MOE), **options)


def test_every_phase() -> None:
    """Programs of inference and training equal one device."""
    for options in ({}, {"phases": ("train",)}):
        result = assigned(**options).verify()
        assert result.ok, explain_failure(result)


@pytest.mark.parametrize("paces", [(1.0, 1.0), (3.0, 1.0), (1.0, 9.0)])
def test_tokens_of_one_device(paces: tuple[float, float]) -> None:
    """However fast the replicas are; each computes its share, also of what is cached."""
    lowered = assigned()
    graph = lowered.compiled.graph
    source = Loaded(random_params(graph, torch.float64), buffers_of(graph, torch.float64))
    ids = prompt(graph, 9, 5)

    def one(transport):
        runner = Runner(lowered.artifact, transport, source, dtype=torch.float64)
        runner.tables.measures = False
        runner.tables.paces.newest[KEY] = paces
        found = generate(runner, ids, 4)
        part = Part("attn", "rep", 1, 2, 2, "loaded")
        return found.tokens, [hi - lo for ((lo, hi),) in runner.tables.paces.shares(part, 9)]

    want = tokens_of_one(graph, ids, 4)
    counts = {(1.0, 1.0): [5, 4], (3.0, 1.0): [2, 7], (1.0, 9.0): [8, 1]}[paces]
    for tokens, shares in run_local(lowered.artifact.world, one):
        assert torch.equal(tokens, want) and shares == counts


def test_measured() -> None:
    """Two batches one after the other: the second uses what the first measured, the same on all ranks."""
    lowered = assigned()
    graph = lowered.compiled.graph
    source = Loaded(random_params(graph, torch.float64), buffers_of(graph, torch.float64))
    ids = prompt(graph, 6, 4)

    def one(transport):
        runner = Runner(lowered.artifact, transport, source, dtype=torch.float64)
        first = generate(runner, ids, 3).tokens
        assert not runner.tables.paces.used
        again = generate(runner, ids, 3).tokens
        return first, again, runner.tables.paces.used

    found = run_local(lowered.artifact.world, one)
    for first, again, used in found:
        assert torch.equal(first, again) and used == found[0][2] and used


def test_refused() -> None:
    """Turns, and rows within the share of another axis, are not there yet."""
    for text in (
        ASSIGNED.replace("least_loaded", "round_robin"),
        ASSIGNED.replace("split batch over rep (", "split batch over rep, hp ("),
    ):
        with pytest.raises(PlanError) as problem:
            assigned(text)
        assert "P901" in {d.code for d in problem.value.diagnostics}
