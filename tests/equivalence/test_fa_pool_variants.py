"""Pools in other ways.

Heads first, queries split, zigzag, a shared cache, odd sizes, other models and types.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lowered import Lowered, explain_failure, lower, prompt, tokens_of_one
from pools import PoolPlan, counted_runs, overlap, pool_model

from plancc.ir.program import Compute, Merge
from plancc.verification.reference import buffers_of, random_params

PLAIN = PoolPlan()
BLOCKS = PLAIN.jobs[0]
HEADS_FIRST = PoolPlan(
    devices=6, axes="hp = 1..2, sp = 1..3", jobs=("split heads over hp", BLOCKS),
    steps=(("hp = 2", "seq_len > 6"), ("sp = 3", "seq_len > 12")),
)  # fmt: skip
ZIGZAG = PoolPlan(jobs=("split kv_seq over sp (layout = zigzag)",))
BOTH = overlap(depth=2, batches=2)
FALCON = dict(base=3, attn="h.*.self_attention", others="")
PLANS = {
    "blocks": (PLAIN, "dense"),
    "blocks_async": (replace(PLAIN, comm=BOTH), "dense"),
    "balanced": (replace(PLAIN, jobs=("split kv_seq over sp",)), "dense"),
    "flat": (replace(PLAIN, combine="combine out by logsumexp over sp"), "llama8"),
    "derived_merge": (replace(PLAIN, combine=""), "dense"),
    "shared_cache": (replace(PLAIN, share="share kv from base"), "dense"),
    "shared_cache_async": (replace(PLAIN, share="share kv from base", comm=BOTH), "llama8"),
    "queries": (replace(PLAIN, jobs=("split q_seq over sp",), combine=""), "llama8"),
    "heads": (replace(PLAIN, jobs=("split heads over sp",), combine=""), "llama8"),
    "heads_first": (HEADS_FIRST, "llama8"),
    "heads_first_async": (replace(HEADS_FIRST, comm=overlap(depth=2, batches=3)), "dense"),
    "heads_beside_blocks": (
        PoolPlan(
            devices=8, per_node=4, axes="hp = 2, sp = 0..4", jobs=("split heads over hp", BLOCKS)
        ),
        "dense",
    ),
    "zigzag": (ZIGZAG, "dense"),
    "zigzag_async": (replace(ZIGZAG, comm=BOTH), "llama8"),
    "zigzag_shared": (replace(ZIGZAG, share="share kv from base"), "dense"),
    "three_then_five": (
        PoolPlan(devices=5, axes="sp = 0..5", steps=(("3", "seq_len > 6"), ("5", "seq_len > 12"))),
        "dense",
    ),
    "more_ranks_than_tokens": (
        PoolPlan(
            base=8, devices=16, per_node=8, axes="sp = 0..16", steps=(("16", "seq_len > 1"),),
            guard="seq_len > 1",
        ),
        "llama8",
    ),
    "multi_query": (replace(PLAIN, **FALCON), "falcon_mqa"),
    "alibi": (replace(PLAIN, **FALCON), "falcon_alibi"),
    "window": (replace(PLAIN, base=3), "mistral"),
    "window_zigzag": (replace(ZIGZAG, base=3), "mistral"),
    "window_softcap": (replace(PLAIN, base=3), "gemma2"),
    "window_async": (replace(PLAIN, base=3, comm=BOTH), "gemma3"),
    "sinks": (replace(PLAIN, base=3, others=""), "gpt_oss"),
    "sinks_async": (replace(PLAIN, base=3, others="", comm=BOTH), "gpt_oss"),
    "latent_heads": (replace(PLAIN, base=3, others=""), "deepseek_v3"),
    "learned_positions": (replace(PLAIN, base=3, attn="h.*.attn", others=""), "gpt2"),
}  # fmt: skip
SHARED = ("shared_cache", "zigzag_shared")


def lowered_pool(case: str) -> Lowered:
    """One of PLANS."""
    plan, model = PLANS[case]
    return lower(plan.text(), pool_model(model))


@pytest.mark.parametrize("case", PLANS)
def test_a_pool_gives_the_tokens_of_one_device(case: str) -> None:
    """Every variant is verified.

    Three prompts grow across both steps, then one starts short again.
    """
    lowered = lowered_pool(case)
    result = lowered.verify()
    assert result.ok, explain_failure(result)
    graph = lowered.compiled.graph
    ids = prompt(graph, 3, 5)
    requests = [(ids, 14), (ids[:1], 3)]
    expected = [tokens_of_one(graph, *request).tolist() for request in requests]
    found = counted_runs(lowered, requests)
    assert all([c.generated.tokens.tolist() for c in rank] == expected for rank in found)
    if case in SHARED:
        assert all(c.moved == 0 for rank in found for c in rank)


@pytest.mark.parametrize(
    "case", ["blocks", "zigzag", "queries", "window", "more_ranks_than_tokens"]
)
def test_the_merges_of_a_pool(case: str) -> None:
    """Cut keys are merged inside nodes first, at once where the pool lies askew.

    Cut queries not at all.
    """
    lowered = lowered_pool(case)
    merged = {
        unit.variant.index: [s.part.count for _, s in unit.instructions if isinstance(s, Merge)]
        for unit in lowered.compiled.units if unit.graph.phase == "decode"
    }  # fmt: skip
    known = {"queries": [], "more_ranks_than_tokens": [8, 2] * 2, "window": [4] * 2}
    expected = known.get(case, [2, 2] * 2)
    assert merged[max(merged)] == expected


def test_derived_merges_are_flat() -> None:
    """Without a combine line the compiler merges over the whole axis at once."""
    unit = lowered_pool("derived_merge").compiled.units[-1]
    assert [s.part.count for _, s in unit.instructions if isinstance(s, Merge)] == [4, 4]


def test_a_zigzag_evens_out_the_causal_triangle() -> None:
    """Of 24 positions on 4 ranks.

    Blocks leave the last rank 2.7 times the work of a zigzag's fullest.
    """
    from plancc.ir.layout import Part
    from plancc.runtime.owners import Table

    def work(rule: str) -> list[int]:
        """The keys that queries see, by owner of the keys."""
        table = Table(Part("fa", "sp", 1, 4, 4, f"owned+{rule}"), 24)
        return [sum(24 - i for lo, hi in owned for i in range(lo, hi)) for owned in table.owned]

    assert work("block") == [129, 93, 57, 21]
    assert work("zigzag") == [75] * 4


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 6e-2)])
@pytest.mark.parametrize("case", ["blocks_async", "heads_first", "window"])
def test_other_types(case: str, dtype: torch.dtype, close: float) -> None:
    """In float32 and bfloat16 the logits are as close as the type allows, and ranks agree on
    tokens.
    """
    lowered = lowered_pool(case)
    result = lowered.verify(dtype=dtype)
    assert all(v.max_rel_error <= close for v in result.variants), explain_failure(result)
    ids = prompt(lowered.compiled.graph, 2, 5)
    found = [
        rank[0].generated.tokens.tolist()
        for rank in counted_runs(lowered, [(ids, 10)], dtype=dtype)
    ]
    assert all(tokens == found[0] for tokens in found)


def test_the_pool_runs_attention_and_nothing_else() -> None:
    """No weights, no projections: attention over owned keys, the cache, slices and merges."""
    for unit in lower("fa_pool.plan", pool_model("dense"), {"long": 4}).compiled.units:
        assert unit.programs is not None
        for program in unit.programs.programs:
            if any(stage.mesh.startswith("fa") for stage in program.stages):
                assert not program.weights
                computed = {s.target for s in program.instructions if isinstance(s, Compute)}
                assert computed <= {
                    "plancc.attention_over_keys.default", "plancc.cache_append.default",
                    "aten.slice.Tensor", "aten.cat.default",
                }  # fmt: skip


def test_buffers_and_parameters_of_the_grouped_model_are_its_own() -> None:
    """The tiny grouped Llama has 8 heads over 4 kv heads."""
    graph = pool_model("llama8")
    shapes = [tuple(p.value.shape) for p in graph.params.values() if p.kind == "param"]
    assert (16, 32) in shapes and (32, 32) in shapes
    assert random_params(graph, torch.float64) and buffers_of(graph, torch.float64) is not None
