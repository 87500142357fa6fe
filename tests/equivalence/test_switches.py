"""`when` variants that change within a generation: caches move, tokens stay those of one device."""

from __future__ import annotations

import pytest
from lowered import captured, explain_failure, lower, prompt, tokens_of_one, tokens_of_ranks
from plans import HEAD, grid, written

HEAD_SIZED = HEAD + "model small { seq_len in 1..64 }\n"
ATTENTION = "place $attn { split heads over tp (block = balanced) }\n"
PLANS = {
    "another_cut": HEAD_SIZED + grid(("tp", 4)) + "place ** on base\n"
    "place $mlp { split ffn over tp }\nwhen seq_len > 12 {\n" + ATTENTION + "}\n",
    "another_axis": HEAD_SIZED + grid(("dp", 2), ("tp", 2)) + "place ** on base\n" + ATTENTION
    + "when seq_len > 16 {\nplace ** { split batch over dp }\n}\n",
    "another_mesh": HEAD_SIZED + grid(("tp", 2), name="x") + grid(("tp", 3), name="y", first=2)
    + "place ** on x\n" + ATTENTION + "when seq_len > 14 {\nplace $attn on y\n" + ATTENTION + "}\n",
    "shared_ranks": HEAD_SIZED + grid(("tp", 2), name="x") + grid(("tp", 6), name="y")
    + "place ** on x\n" + ATTENTION + "when seq_len > 9 {\nplace $attn on y\n" + ATTENTION + "}\n",
    "phases": HEAD_SIZED + grid(("tp", 3)) + "place ** on base\nwhen phase == prefill {\n"
    "place $layers { split seq over tp }\n}\nwhen phase == decode {\n" + ATTENTION + "}\n",
    "three_regions": HEAD_SIZED + grid(("tp", 3)) + "place ** on base\n" + ATTENTION
    + "when seq_len > 10 {\nplace $attn { split batch over tp (block = balanced) }\n}\n"
    "when seq_len > 20 {\nplace $attn { replicate batch over tp }\n}\n",
    "micro_batches": HEAD_SIZED + grid(("pp", 2), ("tp", 2)) + "place ** on base\n"
    "place $layers { split layers over pp }\nplace $mlp { split ffn over tp }\n"
    "when seq_len > 12 {\n" + ATTENTION + "}\npipeline over base.pp { microbatches = 2 }\n",
}  # fmt: skip


@pytest.mark.parametrize("model", ["dense", "qwen3", "gpt2"])
@pytest.mark.parametrize("plan", PLANS)
def test_a_generation_that_crosses_variants(plan: str, model: str) -> None:
    """Every variant is right, several run, and all ranks give one device's tokens."""
    graph = captured(model)
    lowered = lower(written(PLANS[plan], model), graph)
    result = lowered.verify()
    assert result.ok, explain_failure(result)
    ids = prompt(graph)
    found = tokens_of_ranks(lowered, ids, 32)
    assert len(set(found[0].variants)) > 1
    expected = tokens_of_one(graph, ids, 32).tolist()
    assert all(one.tokens.tolist() == expected for one in found)
