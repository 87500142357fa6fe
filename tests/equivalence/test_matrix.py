"""The acceptance matrix: logits to 1e-10 and 32 equal tokens on every rank, against one device."""

from __future__ import annotations

import pytest
from lowered import captured, explain_failure, lower, prompt, tokens_of_one, tokens_of_ranks
from plans import matrix, written

MATRIX = matrix()


@pytest.mark.parametrize("case", MATRIX)
def test_programs_compute_what_one_device_computes(case: str) -> None:
    """Every phase is right, and generation gives one device's tokens on all ranks."""
    text, model, sizes = MATRIX[case]
    graph = captured(model, sizes)
    lowered = lower(written(text, model), graph)
    result = lowered.verify()
    assert result.ok, explain_failure(result)
    assert [v.phase for v in result.variants] == ["forward", "prefill", "decode"]
    assert max(v.max_rel_error for v in result.variants) < 1e-10
    ids = prompt(graph)
    expected = tokens_of_one(graph, ids, 32)
    for found in tokens_of_ranks(lowered, ids, 32):
        assert found.tokens.tolist() == expected.tolist()
