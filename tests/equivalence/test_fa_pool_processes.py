"""The FA Pool example as forty real processes, for a few steps across the threshold."""

from __future__ import annotations

from lowered import lower, prompt
from pools import pool_model

from plancc.runtime.deploy import Deployment
from plancc.runtime.launch import launch


def test_forty_processes_give_the_tokens_of_local_ranks() -> None:
    """Prompt of 3, threshold 4: the third step moves the cache to eight processes of the pool."""
    lowered = lower("fa_pool.plan", pool_model("dense"), {"long": 4}, phases=("prefill", "decode"))
    ids = prompt(lowered.compiled.graph, 2, 3)
    expected = Deployment(lowered.artifact).generate(ids, 4)
    assert expected.variants == (0, 0, 1, 1)
    payload = {"folder": str(lowered.artifact.folder), "ids": ids.tolist(), "new_tokens": 4}
    found = launch(40, "plancc.runtime.deploy:run_rank", payload)
    assert len(found) == 40
    assert all(one["tokens"] == expected.tokens.tolist() for one in found)
    assert [one["variants"] for one in found] == [[0, 0, 1, 1]] * 40
    assert all(one["bytes"]["exchange"] > 0 for one in found[8:16])
