"""Bytes of dispatch and combine: once for each rank that hosts an expert of a token, and no more."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import pytest
import torch
from lowered import explain_failure, lower
from moe_plans import Plan, graph_of, overlap
from routings import biased, choices, hosts_of
from torch import Tensor

from plancc.verification import Verification
from plancc.verification.cases import choose_case

SPLIT = "split batch over dp (block = balanced)"
NUMBER = 8  # bytes of a float64, and of an expert's number
MA = Plan(
    {"rep": 2, "hp": 2, "sp": 3}, {"ep": 4}, every="split batch over rep",
    attention="split heads over hp; split seq over sp (block = balanced)",
)  # fmt: skip
CASES = {
    "ma": MA, "3+1": Plan({"dp": 3}, {"ep": 1}, every=SPLIT),
    "14+2": Plan({"dp": 14}, {"ep": 2}, every=SPLIT),
    "3+2": Plan({"dp": 3}, {"ep": 2}, every=SPLIT),
    "2+4": Plan({"dp": 2}, {"ep": 4}, every=SPLIT),
    "uneven": Plan({"dp": 2}, {"ep": 3}, every=SPLIT, model="moe5"),
    "tokens on every rank": Plan({"tp": 4}, {"ep": 4}, attention="split heads over tp"),
    "experts x ffn": Plan(
        {"dp": 3}, {"ep": 4, "tp": 2}, every=SPLIT,
        experts="split experts over ep; split ffn over tp",
    ),
    "copies": Plan({"dp": 3}, {"rep": 2, "ep": 4}, every=SPLIT),
    "top 1": Plan({"dp": 3}, {"ep": 4}, "top1", SPLIT, route="route = top(1)"),
    "top 4": Plan({"dp": 3}, {"ep": 4}, "top4", SPLIT, route="route = top(4)"),
    "all experts": Plan({"dp": 3}, {"ep": 4}, "top8", SPLIT, route="route = top(8)"),
    "mixtral": Plan({"dp": 3}, {"ep": 2}, "mixtral", SPLIT),
    "qwen3_moe": Plan({"dp": 3}, {"ep": 3}, "qwen3_moe", SPLIT),
}  # fmt: skip
ROW = {"forward": (2, 2), "train": (4, 3)}
"""Phase -> how often a token's hidden state, and its k numbers, travel to an expert rank or back."""


def counted(work: Verification, phase: str) -> int:
    """Bytes of all exchanges of one phase, by the transports; the results are right."""
    unit = next(u for u in work.compiled.units if u.graph.phase == phase)
    result, _ = work.verify_unit(unit)
    assert result.ok, result.message
    return result.bytes["exchange"]


def routed_rows(work: Verification, plan: Plan) -> list[tuple[int, int, int]]:
    """(rows, tokens, k) of each layer, from what the router chooses on one device."""
    unit = work.compiled.units[0]
    case = choose_case(unit, work.reference.graph, work.dtype, work.seed)
    work.reference.run(case.inputs, record=True)
    found = choices(work.reference.graph, work.reference.recorded)
    experts = expert_count(plan)
    return [(hosts_of(c, experts, plan.moe["ep"]), *c.shape) for c in found]


def expert_count(plan: Plan) -> int:
    """How many experts a layer of the plan's model has."""
    graph = graph_of(plan.model)
    node = next(n for n in graph.nodes if n.target == "plancc.experts.default")
    return int(next(v for v in graph.values() if v.name == node.args[3].name).shape[0])


def formula(plan: Plan, rows: Sequence[tuple[int, int, int]], phase: str) -> int:
    """The bytes by hand: counts of every pair, hidden states, choices and weights of the rows."""
    graph = graph_of(plan.model)
    node = next(n for n in graph.nodes if n.target == "plancc.experts.default")
    hidden = int(node.outs[0].shape[-1])
    twins = plan.moe.get("tp", 1)  # each holds a part of every expert's ffn
    counts = prod(plan.attn.values()) * plan.moe["ep"] * twins
    states, numbers = ROW[phase]
    return NUMBER * sum(
        counts + n * twins * (states * hidden + numbers * k) for n, _, k in rows
    )  # fmt: skip


def check(plan: Plan, phase: str, bias: Sequence[float] | None, noise: float = 1.0) -> None:
    """One phase's bytes are the formula's, which are never those of sending all tokens everywhere."""
    phases = ("train",) if phase == "train" else None
    graph = graph_of(plan.model)
    lowered = lower(plan.text, graph, **({"phases": phases} if phases else {}))
    params = biased(graph, plan.model, bias, noise) if bias is not None else None
    work = Verification(lowered.compiled, lowered.artifact, params=params)
    rows = routed_rows(work, plan)
    assert counted(work, phase) == formula(plan, rows, phase)
    for n, tokens, k in rows:
        assert tokens <= n <= tokens * min(k, plan.moe["ep"])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("phase", ["forward", "train"])
def test_bytes_are_those_of_the_formula(case: str, phase: str) -> None:
    """Tokens times distinct hosts times the bytes of a row, to the byte."""
    check(CASES[case], phase, None)


@pytest.mark.parametrize("bias", ["one rank", "two ranks", "skewed"])
def test_bytes_follow_the_router(bias: str) -> None:
    """Both experts on one rank: each token once. On two: twice."""
    wanted = {
        "one rank": [9.0, 8.0] + [0.0] * 14, "two ranks": [9.0] + [0.0] * 14 + [8.0],
        "skewed": [0.2 * e for e in range(16)],
    }  # fmt: skip
    check(CASES["2+4"], "forward", wanted[bias], 0.3 if bias == "skewed" else 0.0)


def test_a_token_goes_once_to_a_rank_with_both_of_its_experts() -> None:
    """All tokens to the two experts of one rank: as many rows as tokens; on two ranks, twice that."""
    plan = CASES["2+4"]
    graph = graph_of(plan.model)
    lowered = lower(plan.text, graph)
    sent = []
    for last in (1, 15):
        bias = [9.0] + [0.0] * 15
        bias[last] = 8.0
        params = biased(graph, plan.model, bias)
        work = Verification(lowered.compiled, lowered.artifact, params=params)
        rows = routed_rows(work, plan)
        assert [n for n, _, _ in rows] == [48 if last == 1 else 96] * 2
        sent.append(counted(work, "forward"))
    assert sent[1] - sent[0] == 2 * 48 * NUMBER * (2 * 32 + 2 * 2)


@pytest.mark.parametrize("phase", ["forward", "train"])
def test_fewer_bytes_than_without_routes(phase: str) -> None:
    """Everything that all ranks give, with `route = top(2)` and without, 16 experts on 8 ranks."""
    sent = []
    for route in ("route = top(2)", ""):
        plan = Plan({"dp": 4}, {"ep": 8}, every=SPLIT, route=route)
        lowered = lower(plan.text, graph_of(plan.model), phases=(phase,))
        result = lowered.verify()
        assert result.ok, explain_failure(result)
        sent.append(sum(result.variants[0].bytes.values()))
    assert sent[0] < 0.5 * sent[1], sent


def test_turns_change_no_bytes_but_those_of_counts() -> None:
    """Two micro-batches send the same rows; counts are sent for each."""
    sent = []
    for tail in ("", overlap(2)):
        plan = Plan({"dp": 3}, {"ep": 4}, every=SPLIT, tail=tail)
        lowered = lower(plan.text, graph_of(plan.model))
        work = Verification(lowered.compiled, lowered.artifact)
        sent.append(counted(work, "forward"))
    assert sent[1] - sent[0] == 2 * 3 * 4 * NUMBER


def test_sending_all_tokens_everywhere_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault that no value shows: the results are right, the bytes are not."""

    def all_rows(owners: Tensor, ranks: int) -> tuple[Tensor, Tensor]:
        count = owners.shape[0]
        return torch.arange(count).repeat(ranks), torch.full((ranks,), count)

    plan = CASES["2+4"]
    lowered = lower(plan.text, graph_of(plan.model))
    work = Verification(lowered.compiled, lowered.artifact)
    rows = routed_rows(work, plan)
    monkeypatch.setattr("plancc.runtime.routes.permute", all_rows)
    dense = [(tokens * plan.moe["ep"], tokens, k) for _, tokens, k in rows]
    assert counted(work, "forward") == formula(plan, dense, "forward")
    assert formula(plan, dense, "forward") > 1.5 * formula(plan, rows, "forward")


def test_the_rule_of_ranges_that_the_formula_assumes() -> None:
    """Five experts on three ranks by hand: 1, 2, 2."""
    choice = torch.tensor([[0, 1], [1, 2], [3, 4], [0, 4]])
    assert hosts_of(choice, 5, 3) == 2 + 1 + 1 + 2
