"""A name that stands for two dims of one weight: one axis never cuts both."""

from __future__ import annotations

import pytest
import torch
from lowered import explain_failure, lower
from model_zoo import randomise
from torch import Tensor, nn

from plancc.dsl import PlanError
from plancc.passes.capture import capture

HEAD = "plan chain, edition 1\n"
BASE = "mesh base[tp = 2] on local[0:2]\nplace ** on base\n"
CLASHES = {
    "both_modules": "place up, down { split ffn over tp }\n",
    "the_second": "place down { split ffn over tp }\n",
    "everywhere": "place ** { split ffn over tp }\n",
    "as_stored": "place up { split ffn over tp }\nplace down.weight { split ffn over tp }\n",
}
PHASES = ("forward", "train")


class Chain(nn.Module):
    """Linear layers without a residual: what `down` makes is contracted too, and is called ffn."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.up = nn.Embedding(50, 12), nn.Linear(12, 20)
        self.down, self.head = nn.Linear(20, 16), nn.Linear(16, 50)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return logits [batch, seq, vocab]."""
        return self.head(self.down(torch.relu(self.up(self.emb(input_ids)))))


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("case", CLASHES)
def test_a_name_of_two_dims_is_refused(case: str, phase: str) -> None:
    """P304 names the weight and the plan's line."""
    with pytest.raises(PlanError) as caught:
        lower(HEAD + BASE + CLASHES[case], capture(randomise(Chain())), phases=(phase,))
    found = [d for d in caught.value.diagnostics if d.level == "error"]
    assert {d.code for d in found} == {"P304"}
    assert any("two dims of `down.weight`" in d.message for d in found)
    assert all(d.span is not None and "split ffn" in CLASHES[case] for d in found)


@pytest.mark.parametrize("phase", PHASES)
def test_a_dim_that_the_plan_names_is_split(phase: str) -> None:
    """`up.weight[0]` alone, wherever it is."""
    text = f"model m {{ dim lanes = up.weight[0] }}\n{BASE}place ** {{ split lanes over tp }}\n"
    result = lower(HEAD + text, capture(randomise(Chain())), phases=(phase,)).verify()
    assert result.ok, explain_failure(result)


@pytest.mark.parametrize("phase", PHASES)
def test_a_module_with_one_of_them_is_split(phase: str) -> None:
    """`up` makes one ffn, `head` contracts the other."""
    text = HEAD + BASE + "place up, head { split ffn over tp }\n"
    result = lower(text, capture(randomise(Chain())), phases=(phase,)).verify()
    assert result.ok, explain_failure(result)
