"""Counter-examples that random plans once found, by name."""

from __future__ import annotations

import pytest
import torch
from lowered import explain_failure, lower
from model_zoo import randomise
from small_models import graph_of
from torch import Tensor, nn

from plancc.dsl import PlanError
from plancc.passes.capture import capture

HEAD = "plan found, edition 1\n"
RIGHT = {
    # heads over 4 with 2 kv heads: two factors of the axis, then the whole axis cuts seq
    "factors_then_whole_axis": (
        "grouped",
        """
mesh m0[a = 4] on local[0:4]
place ** on m0
place layers.*.self_attn { split heads over a }
place layers.*.self_attn.o_proj { split seq over a }
""",
    ),
    "factors_then_batch": (
        "grouped",
        """
mesh m0[a = 4] on local[0:4]
place ** on m0 { split batch over a }
place layers.*.self_attn { split heads over a }
""",
    ),
    # the same axis with another rule of ranges
    "block_then_balanced": (
        "dense",
        """
mesh m0[a = 4] on local[0:4]
place ** on m0 { split seq over a (block = ceil(seq_len / 4)) }
place layers.*.self_attn { split heads over a (block = balanced) }
place layers.*.mlp { split ffn over a }
""",
    ),
    # a dim of two parts (gate, up) is cut at both at once
    "exchange_of_gate_and_up": (
        "parallel",
        """
mesh m0[a = 2, b = 3] on local[0:6]
place ** on m0 { split batch over b }
place layers.* { split layers over a }
place layers.*.mlp { split ffn over b }
place op linear in layers.* { split seq over b }
pipeline over m0.a { microbatches = 2 }
""",
    ),
    # the embedding is on no stage of its own: it is cut over the axis of the stages
    "batch_over_the_stage_axis": (
        "dense",
        """
mesh m0[a = 4] on local[0:4]
place ** on m0
place embed_tokens { split batch over a }
place layers.* { split layers over a }
""",
    ),
    "stored_over_the_stage_axis": (
        "moe",
        """
mesh m0[a = 2] on local[0:2]
place ** on m0
place layers.* { split layers over a }
place lm_head.weight { split hidden over a }
""",
    ),
    "tied_and_stored_over_the_stage_axis": (
        "fused_tied",
        """
mesh m0[a = 3] on local[0:3]
place ** on m0
place layers.* { split layers over a }
place embed_tokens { split batch over a }
place lm_head.weight { split vocab over a }
pipeline over m0.a { microbatches = 4 }
""",
    ),
    # prefill and decode write one size differently: nothing may move, nothing may be lost
    "caches_of_equal_variants": (
        "grouped",
        """
model small { seq_len in 1..64 }
mesh m0[a = 3] on local[0:3]
place ** on m0
place layers.*.self_attn { split heads over a }
when phase == decode {
place layers.1 { split hidden over a }
}
""",
    ),
}
REFUSED = {
    "fixed_and_split": ("dense", """
mesh m0[a = 2] on local[0:2]
place ** on m0
place layers.* { split layers over a }
place layers.*.mlp { split ffn over a }
"""),
    "fixed_and_stored": ("dense", """
mesh m0[a = 2] on local[0:2]
place ** on m0
place embed_tokens on m0[a = 0]
place layers.* { split layers over a }
place embed_tokens.weight { split vocab over a }
"""),
    "tied_to_a_fixed_one": ("fused_tied", """
mesh m0[a = 2] on local[0:2]
place ** on m0
place lm_head on m0[a = 1]
place embed_tokens.weight { split vocab over a }
"""),
}  # fmt: skip


@pytest.mark.parametrize("case", RIGHT)
def test_a_plan_that_was_once_wrong(case: str) -> None:
    """It compiles, and verifies."""
    model, text = RIGHT[case]
    result = lower(HEAD + text, graph_of(model)).verify()
    assert result.ok, explain_failure(result)


@pytest.mark.parametrize("case", REFUSED)
def test_a_plan_that_is_refused(case: str) -> None:
    """An axis that is fixed and split at once has a diagnostic, with a line."""
    model, text = REFUSED[case]
    with pytest.raises(PlanError, match="fixed and split at once") as caught:
        lower(HEAD + text, graph_of(model))
    found = [d for d in caught.value.diagnostics if d.level == "error"]
    assert {d.code for d in found} == {"P304"}
    assert all(d.span is not None for d in found)


def test_the_places_of_one_parameter_add_up() -> None:
    """Two lines for one parameter, each over its own axis, both hold."""
    text = """
mesh m0[a = 2, b = 3] on local[0:6]
place ** on m0
place lm_head.weight { split vocab over a }
place lm_head.weight { split hidden over b }
"""
    lowered = lower(HEAD + text, graph_of("dense"))
    rows = lowered.artifact.manifest["programs"][0]["classes"][0]["weights"]
    row = next(r for r in rows if r["fqns"] == ["lm_head.weight"])
    assert [tree[3] for tree in row["dims"]] == [["m0.a"], ["m0.b"]]
    assert lowered.verify().ok


class TwoTables(nn.Module):
    """The ids are read at both ends."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner = nn.Embedding(60, 16), nn.Linear(16, 16)
        self.second, self.head = nn.Embedding(60, 16), nn.Linear(16, 60)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return logits [batch, seq, vocab]."""
        return self.head(torch.tanh(self.inner(self.first(input_ids))) + self.second(input_ids))


@pytest.mark.parametrize("start", [0, 2])
def test_an_input_that_two_stages_read(start: int) -> None:
    """It has one name on both, whether they share ranks or not."""
    text = f"""
mesh x[tp = 2] on local[0:2]
mesh y[tp = 3] on local[{start}:{start + 3}]
place ** on x
place second, head on y
place first, second {{ split vocab over tp }}
"""
    result = lower(HEAD + text, capture(randomise(TwoTables()))).verify()
    assert result.ok, explain_failure(result)
