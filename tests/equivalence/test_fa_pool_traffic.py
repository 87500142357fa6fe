"""What an attention pool sends, counted by target.

Merges inside nodes first, decode steps that do not grow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

import pytest
from lowered import EXAMPLES, Lowered, lower, prompt
from pools import PoolPlan, counted_runs, pool_model

LAYERS, HEADS, DEPTH, BYTES, PER_NODE, BASE = 2, 32, 2, 8, 8, 8
"""The model below in float64: 32 heads of 2, so that 32 ranks divide the heads."""
POOL = 32


@cache
def example(tree: bool, depth: int = 2) -> Lowered:
    """The example with thresholds 4, 16 and 64; without the tree its merges are flat."""
    text = (EXAMPLES / "fa_pool.plan").read_text()
    assert " (tree = [node, pod])" in text
    text = text if tree else text.replace(" (tree = [node, pod])", "")
    graph = pool_model("dense", heads=HEADS, hidden=HEADS * DEPTH)
    return lower(text, graph, {"long": 4, "batches": 1, "depth": depth})


def steps_of(lowered: Lowered, batch: int, tokens: int, count: int) -> list[list[Mapping]]:
    """Rank -> step -> (verb, target) -> bytes."""
    ids = prompt(lowered.compiled.graph, batch, tokens)
    return [rank[0].sent for rank in counted_runs(lowered, [(ids, count)])]


def across(steps: list[list[Mapping]], verb: str, at: int, ranks: Iterable[int]) -> int:
    """Bytes of one step that leave the node of their rank."""
    return sum(
        count
        for rank in ranks
        for (kind, target), count in steps[rank][at].items()
        if kind == verb and target // PER_NODE != rank // PER_NODE
    )


def total(steps: list[list[Mapping]], verb: str, at: int) -> int:
    """All bytes of one verb in one step."""
    return sum(n for rank in steps for (kind, _), n in rank[at].items() if kind == verb)


@pytest.mark.parametrize(("tokens", "size"), [(17, 16), (65, 32)])
def test_merging_inside_nodes_first_sends_an_eighth_across(tokens: int, size: int) -> None:
    """Across nodes.

    Flat (p - m) H rows (D + 1), tree (p/m - 1) H rows (D + 1), for m ranks in a node.
    """
    batch = 2
    unit = LAYERS * HEADS * batch * (DEPTH + 1) * BYTES
    found = {}
    for tree in (False, True):
        steps = steps_of(example(tree), batch, tokens, 2)
        pool = range(BASE, BASE + size)
        for at, rows in ((0, tokens), (1, 1)):
            crossing = across(steps, "all_to_all", at, pool)
            assert crossing == unit * rows * ((size // PER_NODE - 1) if tree else (size - PER_NODE))
            found[tree, at] = crossing
            assert total(steps, "all_to_all", at) == unit * rows * (size - 1)
    assert found[False, 0] == PER_NODE * found[True, 0]
    assert found[False, 1] == PER_NODE * found[True, 1]


def test_every_rank_of_the_pool_sends_the_same() -> None:
    """A merge over p ranks: (1 - 1/p) of the partial result from each, tree or flat.

    Then its share of out.
    """
    for tree in (False, True):
        steps = steps_of(example(tree, depth=1), 1, 65, 3)
        for rank in range(BASE, BASE + POOL):
            sent = steps[rank][2]
            merged = sum(n for (kind, _), n in sent.items() if kind == "all_to_all")
            given = sum(n for (kind, _), n in sent.items() if kind == "exchange")
            assert merged == LAYERS * HEADS * (DEPTH + 1) * BYTES * (POOL - 1) // POOL
            assert given == LAYERS * HEADS * DEPTH * BYTES // POOL


@pytest.mark.parametrize("batch", [1, 3])
def test_a_decode_step_ships_the_new_token_only(batch: int) -> None:
    """q to every pool rank, k and v to their owner, the result back, the token to all.

    Whatever the length.
    """
    steps = steps_of(example(True), batch, 17, 40)
    row = LAYERS * batch * HEADS * DEPTH * BYTES
    expected = 16 * row + 2 * row + row + 32 * batch * 8
    assert {total(steps, "exchange", at) for at in range(1, 40)} == {expected}
    assert len({total(steps, "all_to_all", at) for at in range(1, 40)}) == 1


def test_crossing_a_threshold_ships_the_cache_once() -> None:
    """The step that crosses sends all cached positions once more, and no other step does."""
    steps = steps_of(example(True), 2, 2, 8)
    row = LAYERS * 2 * HEADS * DEPTH * BYTES
    told = 32 * 2 * 8
    sent = [total(steps, "exchange", at) for at in range(8)]
    pooled = 8 * row + 2 * row + row + told
    assert sent == [told, told, told, pooled + 2 * 4 * row, *[pooled] * 4]


def test_growing_the_pool_ships_what_changes_hands() -> None:
    """8 -> 16 ranks: positions that stay with their owner stay; the others travel once."""
    steps = steps_of(example(True), 1, 15, 4)
    row = LAYERS * HEADS * DEPTH * BYTES
    told = 32 * 8
    before, crossing, after = (total(steps, "exchange", at) for at in (1, 2, 3))
    assert before == 8 * row + 3 * row + told
    assert after == 16 * row + 3 * row + told
    held = {i: i // 2 for i in range(15)} | {
        15: 7
    }  # blocks of ceil(15 / 8), then the emptiest rank
    wanted = {i: i for i in range(16)}  # blocks of ceil(16 / 16)
    moved = sum(held[i] != wanted[i] for i in range(16))
    assert crossing == after + 2 * row * moved


def test_heads_first_needs_no_merge_and_sends_the_least() -> None:
    """Every q, k, v leaves the base once, every result leaves the pool once.

    Each rank sends the same.
    """
    plan = PoolPlan(
        base=8, devices=8, per_node=8, axes="hp = 0..8 step 8", combine="",
        jobs=("split heads over hp",), steps=(("hp = 8", "seq_len > 6"),),
    )  # fmt: skip
    lowered = lower(plan.text(), pool_model("dense", heads=HEADS, hidden=HEADS * DEPTH))
    steps = steps_of(lowered, 2, 9, 3)
    row = LAYERS * 2 * HEADS * DEPTH * BYTES
    for at, rows in ((0, 9), (1, 1), (2, 1)):
        assert total(steps, "all_to_all", at) == 0
        sent = [sum(n for (_, to), n in rank[at].items() if to >= 8) for rank in steps[:8]]
        told = [sum(n for (_, to), n in rank[at].items() if to < 8) for rank in steps[8:]]
        assert sum(sent) == 3 * row * rows + 8 * 2 * 8
        assert set(told) == {row * rows // 8}
