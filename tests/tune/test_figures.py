"""The sizes that closed forms are made of, read off captured models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor, nn
from toy_cluster import EXPERTS, MODEL, TINY, toy

from plancc.compiler import compile_graph
from plancc.dsl import load_plan
from plancc.models import load_model
from plancc.passes.capture import capture
from plancc.tune.figures import Figures, figures_of, rates_of
from plancc.tune.forms import TuneError

PLAN = "plan p, edition 1\nmesh base[ep = 1] on local\nplace ** on base\n"
Write = Callable[..., Path]


def figures(written: Write, model: str | nn.Module, text: str = PLAN, **args: str) -> Figures:
    plan, report = load_plan(written(text))
    assert plan is not None
    graph = capture(load_model(model, {**TINY, **args} if isinstance(model, str) else {}).module)
    return figures_of(compile_graph(plan, graph, report, phases=("forward",)).named, plan)


def test_a_dense_model(written: Write) -> None:
    # Four projections of 32 x 32; gate, up and down of 32 x 64.
    found = figures(written, MODEL)
    assert found == Figures(1, 32, 4, 4, 8, 4 * 32**2, 3 * 32 * 64, 1, 1, 4, "f32")
    assert found.cached == 2 * 4 * 8 * 4


def test_grouped_heads_and_layers(written: Write) -> None:
    found = figures(written, MODEL, kv_heads="2", layers="3")
    assert (found.layers, found.kv_heads, found.attention) == (3, 2, 3 * 32**2)


def test_experts_are_counted_one_by_one(written: Write) -> None:
    found = figures(written, EXPERTS, experts="8")
    assert (found.experts, found.ffn, found.top_k) == (
        8,
        3 * 32 * 64,
        8,
    )  # all of them without a route
    routed = PLAN + "place layers.*.moe.experts { split experts over ep; route = top(2) }\n"
    assert figures(written, EXPERTS, routed, experts="8").top_k == 2


class Plain(nn.Module):
    """An embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(16, 8), nn.Linear(8, 16)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.embed(input_ids))  # type: ignore[no-any-return]


def test_a_model_without_attention_has_no_closed_form(written: Write) -> None:
    with pytest.raises(TuneError, match="needs the model's layers, heads"):
        figures(written, Plain())


def test_rates_are_those_of_the_slowest_device() -> None:
    hardware = toy(2, flops=3e9).place([0, 1])
    rates = rates_of(hardware, "f32")
    assert (rates.matmul, rates.attention, rates.weights, rates.keys) == (3e9, 3e9, 1e9, 1e9)
