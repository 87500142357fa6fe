"""Plans with routed experts as text, small models with experts, and what all tests ask of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod

import torch
from lowered import Lowered, explain_failure, lower, moe, prompt, tokens_of_one, tokens_of_ranks
from model_zoo import ZOO

from plancc.ir.graph import Graph
from plancc.passes.capture import capture
from plancc.verification.check import VariantResult

INFERENCE = ("forward", "prefill", "decode")
MODELS = {
    "moe": lambda: moe(layers=2, heads=4, kv_heads=2, experts=16, ffn=8),
    "moe32": lambda: moe(layers=1, hidden=64, heads=32, experts=16, ffn=6),
    "moe6": lambda: moe(layers=2, hidden=24, heads=6, experts=6, ffn=8),
    "moe5": lambda: moe(layers=2, heads=4, experts=5, ffn=10),
    "one": lambda: moe(layers=1, heads=4, kv_heads=2, experts=8, ffn=8),
    **{f"top{k}": lambda k=k: moe(layers=1, heads=4, experts=8, ffn=8, top_k=k)
       for k in (1, 3, 4, 8)},
    "mixtral": ZOO["mixtral"], "qwen3_moe": ZOO["qwen3_moe"], "gpt_oss": ZOO["gpt_oss"],
}  # fmt: skip


@cache
def graph_of(model: str) -> Graph:
    """The captured graph of one of MODELS."""
    return capture(MODELS[model]())


def block_of(model: str) -> str:
    """The name of a layer's mixture of experts."""
    return "moe" if model.startswith(("moe", "one", "top")) else "mlp"


@dataclass(frozen=True)
class Plan:
    """Attention on one mesh, experts on another (or on the same devices, or the same mesh)."""

    attn: Mapping[str, int]
    moe: Mapping[str, int]
    model: str = "moe"
    every: str = ""
    attention: str = ""
    experts: str = "split experts over ep (block = balanced)"
    route: str = "route = top(2)"
    first: int | None = None
    head: str = ""
    tail: str = ""
    before: str = ""

    @property
    def text(self) -> str:
        """The plan as written."""
        count, more = prod(self.attn.values()), prod(self.moe.values())
        first = count if self.first is None else self.first
        block = block_of(self.model)
        lines = [
            "plan moe_test, edition 1", self.head, mesh("attn", self.attn, 0, count),
            mesh("moe", self.moe, first, more) if self.moe else "",
            f"place ** on attn {{ {self.every} }}" if self.every else "place ** on attn",
            f"place layers.*.self_attn {{ {self.attention} }}" if self.attention else "",
            self.before,
            f"place layers.*.{block}.experts{' on moe' if self.moe else ''} "
            f"{{ {'; '.join(r for r in (self.experts, self.route) if r)} }}", self.tail,
        ]  # fmt: skip
        return "\n".join(line for line in lines if line) + "\n"


def mesh(name: str, axes: Mapping[str, int], first: int, count: int) -> str:
    """The line of a mesh."""
    text = ", ".join(f"{axis} = {size}" for axis, size in axes.items())
    return f"mesh {name}[{text}] on local[{first}:{first + count}]"


def overlap(depth: int = 2) -> str:
    """The line that lets micro-batches take turns."""
    return f"comm attn <-> moe {{ op = all_to_all; overlap = async(chunks = {depth}) }}"


def infer(plan: Plan) -> Lowered:
    """Compile for inference; every phase of every variant equals one device."""
    lowered = lower(plan.text, graph_of(plan.model))
    result = lowered.verify()
    assert result.ok, explain_failure(result)
    assert {v.phase for v in result.variants} == set(INFERENCE)
    assert all(v.max_rel_error < 1e-9 for v in result.variants)
    return lowered


def train(plan: Plan) -> VariantResult:
    """Compile for training; the loss and every gradient equal one device's."""
    result = lower(plan.text, graph_of(plan.model), phases=("train",)).verify()
    assert result.ok, explain_failure(result)
    for one in result.variants:
        assert one.max_rel_error < 1e-9
        assert one.max_grad_error is not None and one.max_grad_error < 1e-9
    return result.variants[0]


def same_tokens(lowered: Lowered, batch: int = 3, tokens: int = 4, new: int = 4) -> None:
    """Every rank generates what one device does."""
    graph = lowered.compiled.graph
    ids = prompt(graph, batch, tokens)
    want = tokens_of_one(graph, ids, new)
    for one in tokens_of_ranks(lowered, ids, new):
        assert torch.equal(one.tokens, want)
