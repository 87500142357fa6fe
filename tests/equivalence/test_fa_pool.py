"""The FA Pool example.

8 base ranks and 0..32 pool ranks generate the tokens of one device around every threshold.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from lowered import Lowered, explain_failure, lower, prompt, tokens_of_one
from pools import Counted, counted_runs, pool_model

from plancc.dsl import load_plan
from plancc.ir.graph import Graph
from plancc.runtime.artifact import ArtifactError
from plancc.runtime.deploy import Deployment

LONG = 4
THRESHOLDS = (LONG, 4 * LONG, 16 * LONG)
LAYERS = 2
MODELS = ("dense", "llama8")


@cache
def pool(model: str) -> Lowered:
    """The example with a small threshold."""
    return lower("fa_pool.plan", pool_model(model), {"long": LONG})


def one_device(graph: Graph, requests) -> list[list[list[int]]]:
    """The tokens of each request."""
    return [tokens_of_one(graph, ids, count).tolist() for ids, count in requests]


def equal_tokens(model: str, requests) -> list[list[Counted]]:
    """Run the requests one after the other on all 40 ranks; every rank has one device's tokens."""
    lowered = pool(model)
    found = counted_runs(lowered, requests)
    expected = one_device(lowered.compiled.graph, requests)
    assert len(found) == 40
    assert all([c.generated.tokens.tolist() for c in rank] == expected for rank in found)
    return found


@pytest.mark.parametrize("model", MODELS)
def test_every_variant_of_every_phase_is_right(model: str) -> None:
    """Forward, prefill and decode with 0, 8, 16 and 32 pool ranks.

    More ranks than tokens, empty blocks.
    """
    lowered = pool(model)
    result = lowered.verify()
    assert result.ok, explain_failure(result)
    assert lowered.artifact.world == 40
    sizes = {u.variant.index: len(u.programs.programs[1].ranks) for u in lowered.compiled.units}
    assert [sizes[i] for i in (1, 2)] == [8, 16]
    assert len(result.variants) == 12


def test_the_example_is_the_papers_setting() -> None:
    """8 base devices, a pool of 0..32 in steps of 8 beyond 4096 tokens, 65 and 45 GB."""
    plan, report = load_plan(str(example()))
    assert plan is not None and not report.diagnostics
    base, fa = plan.meshes["base"], plan.meshes["fa"]
    assert (len(base.devices), len(fa.devices)) == (8, 32)
    assert (base.budget, fa.budget) == (65 * 10**9, 45 * 10**9)
    assert fa.axes[0].steps == (0, 8, 16, 24, 32)
    assert [v.bounds["seq_len"] for v in plan.variants] == [
        (1, 4096), (4097, 16384), (16385, 65536), (65537, 131072)
    ]  # fmt: skip


def example():
    """The path of the example."""
    from lowered import EXAMPLES

    return EXAMPLES / "fa_pool.plan"


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("model", MODELS)
def test_prompts_around_every_threshold(model: str, batch: int) -> None:
    """Prompts one short of, at and beyond each threshold, in turn; then a short one again."""
    graph = pool_model(model)
    lengths = [n + d for n in THRESHOLDS for d in (-1, 0, 1)] + [2]
    found = equal_tokens(model, [(prompt(graph, batch, n), 3) for n in lengths])
    variants = [c.generated.variants for c in found[0]]
    assert variants[0] == (0, 0, 1) and variants[1] == (0, 1, 1) and variants[2] == (1, 1, 1)
    assert variants[3] == (1, 1, 2) and variants[6] == (2, 2, 3) and variants[8] == (3, 3, 3)
    assert variants[9] == (0, 0, 0)


@pytest.mark.parametrize("model", MODELS)
def test_one_generation_across_all_thresholds(model: str) -> None:
    """0 -> 8 -> 16 -> 32 ranks within one generation of 3 uneven micro-batches.

    The cache moves thrice.
    """
    graph = pool_model(model)
    found = equal_tokens(model, [(prompt(graph, 3, 3), 64), (prompt(graph, 1, 3), 2)])
    first, second = found[0]
    assert sorted(set(first.generated.variants)) == [0, 1, 2, 3]
    assert list(first.generated.variants) == sorted(first.generated.variants)
    for rank in found:
        assert [c.moved for c in rank] == [3 * LAYERS, 0]
    assert second.generated.variants == (0, 0)


def test_a_prompt_beyond_the_threshold_moves_no_cache() -> None:
    """Prefill already leaves the cache with the pool.

    Crossing one threshold moves each layer once.
    """
    found = equal_tokens(
        "dense", [(prompt(pool_model("dense"), 2, 6), 6), (prompt(pool_model("dense"), 2, 3), 6)]
    )
    assert all([c.moved for c in rank] == [0, LAYERS] for rank in found)


@pytest.mark.parametrize("case", ["batch", "seq_len", "tokens", "positions"])
def test_lengths_that_the_plan_does_not_admit_are_refused(case: str) -> None:
    """Before anything runs, with the range in words."""
    text = {
        "batch": (1025, 4, 1),
        "seq_len": (1, 131072, 1),
        "tokens": (64, 65000, 1),
        "positions": (1, 160, 1),
    }
    batch, tokens, new = text[case]
    run = Deployment(pool("dense").artifact)
    said = {"positions": "160 positions"}.get(case, f"{case} = ")
    with pytest.raises(ArtifactError, match=said):
        run.generate(torch.zeros(1, 1, dtype=torch.long).expand(batch, tokens), new)
