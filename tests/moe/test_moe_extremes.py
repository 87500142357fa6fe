"""Routers at their worst, tiny inputs, and what is refused: plans that do not fit, broken routers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import pytest
import torch
from lowered import Lowered, example_models, lower, prompt
from moe_cases import MA, ONE_MESH, SPLIT, ratio
from moe_plans import Plan, graph_of, infer, overlap, train
from routings import biased, choices
from torch import Tensor, nn

from plancc.dsl import PlanError
from plancc.ir.graph import Graph
from plancc.passes.capture import capture
from plancc.runtime.failure import RankFailure
from plancc.runtime.loading import Loaded
from plancc.runtime.local import run_local
from plancc.runtime.runner import Runner
from plancc.runtime.transport import Transport
from plancc.verification import Verification
from plancc.verification.cases import choose_case
from plancc.verification.reference import buffers_of, random_params

PLANS = {
    "ma": replace(MA, tail=overlap()), "3+2": ratio(3, 2), "one mesh": ONE_MESH,
    "experts x ffn": Plan({"dp": 3}, {"ep": 4, "tp": 2}, every=SPLIT,
                          experts="split experts over ep; split ffn over tp"),
}  # fmt: skip
ROUTERS: Mapping[str, tuple[list[float], float, set[int]]] = {
    "two experts of one rank": ([9.0, 8.0] + [0.0] * 14, 0.0, {0, 1}),
    "the last two experts": ([0.0] * 14 + [8.0, 9.0], 0.0, {14, 15}),
    "the first and the last": ([9.0] + [0.0] * 14 + [8.0], 0.0, {0, 15}),
    "one expert and any other": ([30.0] + [0.0] * 15, 1.0, set(range(16))),
    "half of them empty": ([0.0] * 8 + [9.0] * 8, 0.5, set(range(8, 16))),
    "skewed": ([0.3 * e for e in range(16)], 0.5, set(range(16))),
}
"""Name -> (what routers prefer, noise by token, the experts that may be chosen)."""


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("plan", PLANS)
def test_one_sided_routers(plan: str, router: str) -> None:
    """Experts and whole ranks without a token, or with all: values, loss and gradients are right."""
    bias, noise, allowed = ROUTERS[router]
    graph = graph_of("moe")
    params = biased(graph, "moe", bias, noise)
    for phases in (("forward", "prefill", "decode"), ("train",)):
        lowered = lower(PLANS[plan].text, graph, phases=phases)
        work = Verification(lowered.compiled, lowered.artifact, params=params)
        if phases[0] == "forward":
            unit = lowered.compiled.units[0]
            case = choose_case(unit, work.reference.graph, work.dtype, work.seed)
            work.reference.run(case.inputs, record=True)
            found = choices(work.reference.graph, work.reference.recorded)
            assert all(set(c.flatten().tolist()) <= allowed for c in found)
        result = work.run()
        assert result.ok, [v.message for v in result.variants]
        assert all(v.max_rel_error < 1e-9 for v in result.variants)


@pytest.mark.parametrize("k", [1, 3, 4, 8])
@pytest.mark.parametrize("moe", [1, 3, 4])
def test_any_k(k: int, moe: int) -> None:
    """One expert a token, several, and all eight."""
    plan = Plan({"dp": 3}, {"ep": moe}, f"top{k}", SPLIT, route=f"route = top({k})")
    infer(plan)
    train(plan)


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (2, 1)])
@pytest.mark.parametrize("plan", PLANS)
def test_fewer_tokens_than_ranks(plan: str, size: tuple[int, int]) -> None:
    """One token, one sequence, two sequences of one: most ranks have none."""
    batch, tokens = size
    head = f"model m {{ mode = train; batch in {batch}..{batch}; seq_len in 1..{tokens} }}"
    alone = replace(PLANS[plan], head=head, tail="" if batch < 2 else PLANS[plan].tail)
    infer(alone)
    train(alone)


REFUSED = {
    "P311": replace(ratio(3, 2), route="route = top(3)"),
    "P316": replace(ratio(3, 2), tail="place layers.*.self_attn { route = top(2) }"),
    "P501": ratio(4, 4, first=2, tail=overlap()),
}  # fmt: skip


@pytest.mark.parametrize("code", REFUSED)
@pytest.mark.parametrize("phases", [None, ("train",)])
def test_plans_that_are_refused(code: str, phases: tuple[str, ...] | None) -> None:
    """Another k than the model's, a route without experts, turns between meshes that share some devices."""
    with pytest.raises(PlanError) as caught:
        lower(REFUSED[code].text, graph_of("moe"), **({"phases": phases} if phases else {}))
    errors = [d for d in caught.value.diagnostics if d.level == "error"]
    assert {d.code for d in errors} == {code}
    assert all(d.span is not None for d in errors)


def test_a_count_of_experts_that_must_fit() -> None:
    """`require` says in the plan's words that 16 experts on 3 ranks do not fit."""
    rule = 'require experts % moe.ep == 0 else "each rank has as many experts"'
    plan = ratio(3, 3, head="model m { experts = 16 }", before=rule)
    with pytest.raises(PlanError, match="each rank has as many experts") as caught:
        lower(plan.text, graph_of("moe"))
    assert all(d.span is not None for d in caught.value.diagnostics)
    infer(replace(plan, before=rule.replace("== 0", "== 1")))


@pytest.mark.parametrize("empty", ["attn", "moe"])
def test_a_ratio_that_leaves_a_group_empty(empty: str) -> None:
    """A mesh of no devices is refused, with its line."""
    text = ratio(3, 2).text
    size = "dp = 3" if empty == "attn" else "ep = 2"
    devices = "local[0:3]" if empty == "attn" else "local[3:5]"
    text = text.replace(size, size[:5] + "0").replace(devices, devices.split(":")[0] + ":0]")
    with pytest.raises(PlanError) as caught:
        lower(text.replace("local[3:0]", "local[3:3]"), graph_of("moe"))
    assert all(d.span is not None for d in caught.value.diagnostics if d.level == "error")


def test_facts_of_another_model() -> None:
    """A plan that states 8 experts for a model of 16 is refused."""
    with pytest.raises(PlanError):
        lower(ratio(3, 2, head="model m { experts = 8 }").text, graph_of("moe"))


class Broken(nn.Module):
    """A mixture whose router names experts that do not exist: twice the number of the right one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.router, self.experts, self.top_k = inner.router, inner.experts, inner.top_k

    def forward(self, x: Tensor) -> Tensor:
        """Mix x [batch, seq, hidden]."""
        logits = self.router(x)
        scores, chosen = logits.topk(self.top_k, dim=-1)
        share = torch.zeros_like(logits).scatter(-1, chosen * 2, scores.softmax(dim=-1))
        return self.experts(x, share)


@cache
def broken() -> Graph:
    """The repository's mixture of 16 with the second layer's router broken."""
    model = example_models().moe(
        layers=2, hidden=32, heads=4, kv_heads=2, ffn=8, experts=16, vocab=60, max_len=64
    )
    model.layers[1].moe = Broken(model.layers[1].moe)
    return capture(model)


UNROUTED = """plan inline, edition 1
mesh all[ep = 2] on local
place ** on all
place layers.*.moe.experts { split experts over ep (block = balanced) }
"""


def expect_failure(
    lowered: Lowered, params: Mapping[str, Tensor], text: str, verb: str = "comm.route("
) -> None:
    """Some rank fails with `text` where it chooses, with the plan's line and the verb."""
    graph = lowered.compiled.graph
    source = Loaded(params, buffers_of(graph, torch.float64))
    inputs = {graph.inputs[0].name: prompt(graph, 3, 5)}

    def one(transport: Transport) -> None:
        Runner(lowered.artifact, transport, source, dtype=torch.float64).run("prefill", inputs)

    with pytest.raises(RankFailure, match=text) as caught:
        run_local(lowered.artifact.world, one, describe=lowered.artifact.describe)
    assert verb in str(caught.value) and "inline.plan:" in str(caught.value)
    assert f"rank {caught.value.rank} raised RoutingError at instruction" in str(caught.value)
    assert 0 <= caught.value.rank < lowered.artifact.world


@pytest.mark.parametrize("plan", ["3+2", "one mesh"])
def test_a_router_that_names_experts_that_do_not_exist(plan: str) -> None:
    """The rank, the instruction and the plan's line; no token is dropped in silence."""
    graph = broken()
    lowered = lower(PLANS[plan].text, graph)
    params = random_params(graph, torch.float64)
    expect_failure(lowered, params, r"chose expert \d+, experts are 0\.\.15")


def test_a_router_that_names_such_experts_where_nothing_is_routed() -> None:
    """Also where every rank has all tokens and just computes with its own experts."""
    graph = broken()
    lowered = lower(UNROUTED, graph)
    params = random_params(graph, torch.float64)
    expect_failure(lowered, params, r"chose expert \d+, experts are 0\.\.15", "comm.all_reduce(")


@pytest.mark.parametrize("phase", ["prefill", "train"])
def test_a_router_whose_weights_are_no_numbers(phase: str) -> None:
    """NaN in a router's matrix is found where its tokens are routed, also while training."""
    graph = graph_of("moe")
    lowered = lower(PLANS["3+2"].text, graph, phases=("train",) if phase == "train" else None)
    params = random_params(graph, torch.float64)
    params["layers.1.moe.router.weight"] = params["layers.1.moe.router.weight"] * float("nan")
    if phase == "train":
        work = Verification(lowered.compiled, lowered.artifact, params=params)
        message = work.run().variants[0].message
        assert "RoutingError" in message and "comm.route(" in message
        assert "inline.plan:" in message and "not a finite number" in message
    else:
        expect_failure(lowered, params, "has weight nan for expert")


@pytest.mark.parametrize("wire", ["int8(block = 16)", "bf16"])
def test_ranks_without_rows_in_a_wire_type(wire: str) -> None:
    """Nothing is sent to ranks that nobody chose, in a type of the wire too; results are close."""
    graph = graph_of("moe")
    params = biased(graph, "moe", *ROUTERS["two experts of one rank"][:2])
    source = Loaded(params, buffers_of(graph, torch.float64))
    inputs = {graph.inputs[0].name: prompt(graph, 3, 5)}
    found = []
    for tail in ("", f"comm attn <-> moe {{ dtype = {wire} }}"):
        lowered = lower(replace(PLANS["3+2"], tail=tail).text, graph)

        def one(transport: Transport, lowered: Lowered = lowered) -> Tensor:
            runner = Runner(lowered.artifact, transport, source, dtype=torch.float64)
            return runner.everywhere(runner.run("forward", inputs)["logits"])

        found.append(run_local(lowered.artifact.world, one)[0])
    gap = (found[0] - found[1]).abs().max() / found[0].abs().max()
    assert 0 < gap < 0.05


class Bare(nn.Module):
    """A block of the model that gives what its experts give, without adding it to their input."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.block.self_attn(self.block.input_norm(x), cos, sin)
        return self.block.moe(self.block.post_norm(x))


@pytest.mark.parametrize("phase", ["forward", "train"])
def test_experts_whose_result_is_not_added_to_their_input(phase: str) -> None:
    """Without a residual the hidden dims of tokens and of results are two."""
    model = example_models().moe(
        layers=2, hidden=32, heads=4, kv_heads=2, ffn=8, experts=16, vocab=60, max_len=64
    )
    model.layers[1] = Bare(model.layers[1])
    text = PLANS["one mesh"].text.replace("layers.*.moe.experts", "layers.**.moe.experts")
    lowered = lower(text, capture(model), phases=(phase,))
    result = Verification(lowered.compiled, lowered.artifact).run()
    assert result.ok, result.variants[0].message
