"""Predicted work against real runs: every rank's products, shapes and strides, phase by phase."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from lowered import Lowered, captured, lower, prompt
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from work_cases import products

from plancc.passes.derive_training import SCALE, TARGETS
from plancc.runtime import comm as comm_module
from plancc.runtime.loading import Loaded
from plancc.runtime.local import run_local
from plancc.runtime.runner import Runner, Sequence
from plancc.runtime.training.step import TrainRunner
from plancc.simulator.local_call import Local
from plancc.simulator.place import Place, Sizes, owned_parts
from plancc.simulator.routing import EVEN, Routing, observed
from plancc.simulator.work import Evaluation, ProgramWork
from plancc.verification import Verification
from plancc.verification.locate import probed_steps
from plancc.verification.reference import buffers_of, random_params

F64 = torch.float64
BATCH, TOKENS = 5, 6
HEAD = "plan inline, edition 1\n"
PLANS: Mapping[str, tuple[str, str]] = {
    "uneven tensor": ("dense", HEAD + (
        "mesh base[tp = 3] on local\nplace ** on base\n"
        "place embed_tokens, lm_head { split vocab over tp (block = balanced) }\n"
        "place layers.*.self_attn { split heads over tp (block = balanced) }\n"
        "place layers.*.mlp { split ffn over tp (block = balanced) }\n")),
    "uneven batch and sequence": ("dense", HEAD + (
        "mesh base[dp = 2, sp = 3] on local\n"
        "place ** on base { split batch over dp (block = balanced) }\n"
        "place layers.* { split seq over sp (block = balanced) }\n")),
    "stages": ("dense", HEAD + (
        "mesh base[pp = 2] on local\nplace ** on base\nplace layers.* { split layers over pp }\n"
        "place embed_tokens on base[pp = 0]\nplace norm, lm_head on base[pp = -1]\n")),
    "one mesh of experts": ("moe", HEAD + (
        "mesh base[ep = 3] on local\nplace ** on base\n"
        "place layers.*.moe.experts { split experts over ep (block = balanced) }\n")),
    "gpt2": ("gpt2", HEAD + (
        "mesh base[tp = 2] on local\nplace ** on base\n"
        "place transformer.h.*.attn { split heads over tp }\n"
        "place transformer.h.*.mlp { split ffn over tp }\n")),
}  # fmt: skip
ROUTED = HEAD + (
    "mesh attn[dp = 3] on local[0:3]\nmesh moe[ep = 2, tp = 2] on local[3:7]\n"
    "place ** on attn { split batch over dp (block = balanced) }\n"
    "place layers.*.moe.experts on moe "
    "{ split experts over ep (block = balanced); split ffn over tp; route = top(2) }\n"
)


def predicted(found: Lowered, phase: str, sizes: Sizes, routing: Routing = EVEN) -> dict[int, int]:
    """Rank -> FLOPs of its products."""
    unit = found.compiled.unit(phase)
    assert unit.programs is not None
    out = {}
    for program in unit.programs.programs:
        work = ProgramWork(program, routing)
        for rank in program.ranks:
            place = Place(rank, found.compiled.world.grids, sizes, owned_parts(program))
            out[rank] = sum(products(one) for works in work.works(place) for one in works)
    return out


def plain(counter: FlopCounterMode) -> int:
    """What was counted for products; those of attention have a batch, and none of the others has."""
    found = counter.get_flop_counts().get("Global", {})
    return sum(n for op, n in found.items() if str(op) in ("aten.mm", "aten.addmm"))


def counted(found: Lowered, ids: Tensor) -> list[dict[str, int]]:
    """Of each rank: phase -> FLOPs of the products that it runs, in a prefill and two steps after it."""
    graph = found.compiled.graph
    source = Loaded(random_params(graph, F64), buffers_of(graph, F64))
    name = graph.inputs[0].name

    def one(transport: Any) -> dict[str, int]:
        runner, sequence, out = Runner(found.artifact, transport, source, dtype=F64), Sequence(), {}
        steps = (
            ("forward", ids, None),
            ("prefill", ids, sequence),
            ("decode", ids[:, :1], sequence),
        )
        for phase, given, kept in steps:
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                runner.run(phase, {name: given}, kept)
            out[phase] = plain(counter)
        return out

    return run_local(found.artifact.world, one)


@pytest.mark.parametrize("name", PLANS)
def test_every_rank_computes_what_was_predicted(name: str) -> None:
    """Products of a forward, a prefill and a decode step, rank by rank."""
    model, text = PLANS[name]
    found = lower(text, captured(model))
    runs = counted(found, prompt(found.compiled.graph, BATCH, TOKENS))
    steps = {"forward": Sizes(BATCH, TOKENS), "prefill": Sizes(BATCH, TOKENS),
             "decode": Sizes(BATCH, 1, TOKENS)}  # fmt: skip
    for phase, sizes in steps.items():
        wanted = predicted(found, phase, sizes)
        real = {rank: run[phase] for rank, run in enumerate(runs)}
        if model == "moe":  # a router is not even, but together the ranks make all choices
            real, wanted = {0: sum(real.values())}, {0: sum(wanted.values())}
        assert real == wanted


def trained(found: Lowered) -> list[int]:
    """The products that each rank runs in one training step."""
    graph = found.compiled.graph
    source = Loaded(random_params(graph, F64), buffers_of(graph, F64))
    ids = prompt(graph, BATCH, TOKENS)
    inputs = {graph.inputs[0].name: ids, TARGETS: ids, SCALE: torch.tensor(0.1, dtype=F64)}

    def one(transport: Any) -> int:
        runner = TrainRunner(found.artifact, transport, source, dtype=F64)
        with FlopCounterMode(display=False) as counter:
            runner.step(inputs)
        return plain(counter)

    return run_local(found.artifact.world, one)


@pytest.mark.parametrize("name", ["uneven tensor", "uneven batch and sequence", "stages", "gpt2"])
def test_every_rank_trains_as_predicted(name: str) -> None:
    """Forward and backward of one step, rank by rank."""
    model, text = PLANS[name]
    found = lower(text, captured(model), phases=("train",))
    assert dict(enumerate(trained(found))) == predicted(found, "train", Sizes(BATCH, TOKENS))


@pytest.mark.parametrize("phase", ["forward", "train"])
def test_routed_experts_as_their_router_chose(phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the router's own choices the work of every rank is exact, that of experts too."""
    found = lower(ROUTED, captured("moe"), phases=(phase,))
    chosen: dict[int, list[list[list[int]]]] = {}
    real = comm_module.find_route

    def noted(view: Any, index: Tensor, *args: Any) -> Any:
        chosen.setdefault(view.rank, []).append(index.tolist())
        return real(view, index, *args)

    monkeypatch.setattr(comm_module, "find_route", noted)
    if phase == "train":
        runs = trained(found)
    else:
        graph = found.compiled.graph
        source = Loaded(random_params(graph, F64), buffers_of(graph, F64))
        ids = prompt(graph, BATCH, TOKENS)

        def one(transport: Any) -> int:
            runner = Runner(found.artifact, transport, source, dtype=F64)
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                runner.run("forward", {graph.inputs[0].name: ids})
            return plain(counter)

        runs = run_local(found.artifact.world, one)
    paths = [f"layers.{at}.moe.experts" for at in range(2)]
    choices = {p: {rank: mine[at] for rank, mine in chosen.items()} for at, p in enumerate(paths)}
    holders = {3 + ep * 2 + tp: range(4 * ep, 4 * ep + 4) for ep in range(2) for tp in range(2)}
    seen = observed(choices, holders)
    sizes = Sizes(BATCH, TOKENS)
    assert dict(enumerate(runs)) == predicted(found, phase, sizes, seen)
    assert dict(enumerate(runs)) != predicted(found, phase, sizes)


def lies(x: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides of a tensor; no stride of a dim with one element."""
    strides = x.strides if isinstance(x, Local) else x.stride()
    return tuple(x.shape), tuple(s if n > 1 else 0 for n, s in zip(x.shape, strides, strict=True))


def where(found: Lowered, steps: Mapping[str, Any], ids: Tensor) -> list[dict[str, Any]]:
    """Of each rank: how every value of a forward lies in memory."""
    graph = found.compiled.graph
    source = Loaded(random_params(graph, F64), buffers_of(graph, F64))

    def one(transport: Any) -> dict[str, Any]:
        out: dict[str, Any] = {}

        def probed(file: str) -> Any:
            def step(view: Any, *rest: Any) -> Any:
                view.probe = lambda name, value: out.update({name: lies(value)})
                return steps[file](view, *rest)

            return step

        runner = Runner(found.artifact, transport, source, dtype=F64)
        with torch.no_grad():
            runner.run("forward", {graph.inputs[0].name: ids}, probe=probed)
        return out

    return run_local(found.artifact.world, one)


@pytest.mark.parametrize("name", ["uneven tensor", "gpt2", "uneven batch and sequence"])
def test_values_lie_in_memory_as_predicted(name: str) -> None:
    """Shapes and strides of all values: what decides which `reshape` is a copy."""
    model, text = PLANS[name]
    found = lower(text, captured(model), phases=("forward",))
    unit = found.compiled.units[0]
    assert unit.programs is not None
    (program,) = unit.programs.programs
    steps = probed_steps(Verification(found.compiled, found.artifact), unit)
    ids = prompt(found.compiled.graph, BATCH, TOKENS)
    for rank, run in enumerate(where(found, steps, ids)):
        place = Place(rank, found.compiled.world.grids, Sizes(BATCH, TOKENS), owned_parts(program))
        recipes = ProgramWork(program).recipes
        one = Evaluation(recipes.sizes.values(place))
        one.run(recipes.recipes.found)
        expected = {name: lies(one.local(recipes.recipes.operand(name))) for name in run}
        print({n: (run[n], expected[n]) for n in run if run[n] != expected[n]})
        assert run == expected
