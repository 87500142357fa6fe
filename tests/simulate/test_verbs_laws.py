"""Laws of predicted calls: what is sent is received, sizes at random, faults that must be seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from lowered import Lowered, captured, lower
from moe_plans import graph_of
from noted import (
    check_inference,
    check_training,
    differences,
    inference,
    programs_of,
    step_inputs,
    training,
)
from plans import HEAD, grid
from pools import pool_model

from plancc.ir.program import Launch, ProgramSet
from plancc.runtime import matching
from plancc.simulator import verbs as module
from plancc.simulator.errors import SimulateError
from plancc.simulator.forms import Verb
from plancc.simulator.phases import micro_batches
from plancc.simulator.place import Place, Sizes
from plancc.simulator.routing import EVEN, Routing, Skewed
from plancc.simulator.traffic import step_calls, traffic
from plancc.simulator.verbs import ProgramVerbs

FIXED = settings(
    derandomize=True, database=None, deadline=None, max_examples=10,
    suppress_health_check=list(HealthCheck), phases=(Phase.explicit, Phase.generate, Phase.shrink),
)  # fmt: skip
FEW = settings(FIXED, max_examples=5)
NODES = "cluster pod { devices gpu[5] { per_node = 3; memory = 80GB } }\n"
SUMS = (
    HEAD
    + NODES
    + """mesh base[tp = 5] on gpu
place ** on base
place layers.*.self_attn { split heads over tp }
place layers.*.mlp { split ffn over tp }
"""
)
LAZY = (
    HEAD
    + NODES
    + """model m { mode = train }
mesh base[dp = 5] on gpu
place ** on base { split batch over dp }
comm grads over base.dp { op = all_reduce; overlap = async(bucket = 128MB) }
"""
)
PLANS = {
    "megatron": ("megatron_1f1b.plan", {}, "train"),
    "fsdp": ("fsdp.plan", dict(replicas=2, shards=3), "train"),
    "sequence": ("sequence_parallel.plan", dict(tp=3), "forward"),
    "hetero": ("hetero_pipeline.plan", {}, "forward"),
}


@cache
def compiled(case: str) -> Lowered:
    """A plan of this test, lowered once."""
    if case == "pool":
        return lower(
            "fa_pool.plan", pool_model("llama8"), {"long": 4}, phases=("prefill", "decode")
        )
    if case == "experts":
        return lower("ma_separation.plan", graph_of("moe"), phases=("train",))
    if case in ("sums", "lazy"):
        phase = "forward" if case == "sums" else "train"
        graph = captured("dense", tuple(dict(layers=1, hidden=400, heads=5).items()))
        return lower(SUMS if case == "sums" else LAZY, graph, phases=(phase,))
    plan, sets, phase = PLANS[case]
    return lower(plan, captured("dense", (("layers", 3),)), sets, phases=(phase,))


@pytest.mark.parametrize("case", ["sequence", "hetero"])
@FIXED
@given(batch=st.integers(1, 9), tokens=st.integers(1, 40))
@example(batch=1, tokens=1)
def test_any_batch_and_length(case: str, batch: int, tokens: int) -> None:
    """Fewer tokens than ranks, fewer sequences than micro-batches."""
    lowered = compiled(case)
    name = lowered.compiled.graph.inputs[0].name
    check_inference(lowered, None, [("forward", {name: torch.ones(batch, tokens).long()})])


@pytest.mark.parametrize("case", ["megatron", "fsdp"])
@FIXED
@given(batch=st.integers(4, 9), tokens=st.integers(1, 12))
def test_any_batch_and_length_of_a_step(case: str, batch: int, tokens: int) -> None:
    """Sequences that do not divide over micro-batches and replicas."""
    check_training(compiled(case), batch, tokens)


def calls_of(
    lowered: Lowered, programs: ProgramSet, sizes: Sizes, routing: Routing = EVEN
) -> Mapping[int, Sequence[Verb]]:
    """Rank -> its calls in one step."""
    nodes = lowered.artifact.manifest["nodes"]
    batches = micro_batches(sizes.batch, sizes.tokens, sizes.past, programs.microbatches)
    found = {}
    for program in programs.programs:
        verbs = ProgramVerbs(program, lowered.compiled.world.grids, nodes, routing)
        found.update({rank: tuple(step_calls(verbs, rank, batches)) for rank in program.ranks})
    return found


def imbalance(calls: Mapping[int, Sequence[Verb]]) -> Counter[tuple[str, int, int, int]]:
    """(kind, source, target, bytes) of messages that are sent and not taken, or the reverse."""
    sent: Counter[tuple[str, int, int, int]] = Counter()
    got: Counter[tuple[str, int, int, int]] = Counter()
    for rank, found in calls.items():
        for call in found:
            sent.update((call.kind, rank, to, size) for to, size in call.sends)
            got.update((call.kind, of, rank, size) for of, size in call.takes)
    return (sent - got) + (got - sent)


@pytest.mark.parametrize("case", ["megatron", "hetero", "pool", "experts"])
@FEW
@given(batch=st.integers(4, 64), tokens=st.integers(1, 300), skew=st.sampled_from([0, 1, 3]))
def test_what_is_sent_is_received(case: str, batch: int, tokens: int, skew: int) -> None:
    """Message by message, in exchanges and all_to_alls, whatever the router does."""
    lowered = compiled(case)
    routing = Skewed(skew) if skew else EVEN
    messages = 0
    for unit in lowered.compiled.units:
        assert unit.programs is not None
        past = tokens if unit.graph.phase == "decode" else 0
        calls = calls_of(lowered, unit.programs, Sizes(batch, 1 if past else tokens, past), routing)
        assert not imbalance(calls)
        messages += sum(len(call.sends) for found in calls.values() for call in found)
    assert messages


def test_a_loss_on_the_way_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The law fails if one rank expects a byte more."""
    lowered = compiled("hetero")
    programs = lowered.compiled.units[0].programs
    assert programs is not None
    calls = dict(calls_of(lowered, programs, Sizes(4, 8)))
    at = next(i for i, call in enumerate(calls[2]) if call.takes)
    (source, size), *rest = calls[2][at].takes
    wrong = Verb("exchange", calls[2][at].group, 0, 0, (), ((source, size + 1), *rest))
    calls[2] = (*calls[2][:at], wrong, *calls[2][at + 1 :])
    assert sum(imbalance(calls).values()) == 2


@pytest.mark.parametrize("fault", ["share", "size", "giver"])
def test_a_wrong_share_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank's part off by one, a size off by one on one rank, blocks from other replicas."""
    case = "hetero" if fault == "giver" else "sequence"
    lowered = compiled(case)
    unit = lowered.compiled.units[0]
    noted = [steps[-1] for steps in inference(lowered, unit)]
    programs = programs_of(lowered, noted[0].row)
    assert not differences(lowered, programs, noted)
    pieces, shape, routes = matching.pieces_of, module.Place.shape, matching.find_routes

    def longer(view, d, peers):
        frame, found = pieces(view, d, peers)
        (lo, hi), *rest = found[1]
        return frame, [found[0], ((lo, hi + 1), *rest), *found[2:]]

    def larger(self, layout):
        first, *rest = shape(self, layout)
        return (first + (self.rank == 1), *rest)

    def turned(view, source, has, target, wants):
        other = matching.Members(source.name, source.mesh, source.ranks[::-1])
        return routes(view, other, has, target, wants)

    if fault == "share":
        monkeypatch.setattr(module, "pieces_of", longer)
    elif fault == "size":
        monkeypatch.setattr(module.Place, "shape", larger)
    else:
        monkeypatch.setattr(module, "find_routes", turned)
    wrong = differences(lowered, programs, noted)
    assert wrong
    if fault == "size":
        assert {rank for rank, _, _ in wrong} == {1}


def test_sums_go_node_by_node() -> None:
    """Nodes of 3 and 2 ranks: scattered inside, swapped across, gathered inside, to the byte."""
    lowered = compiled("sums")
    noted = [steps[-1] for steps in check_inference(lowered, lowered.compiled.units[0])]
    kinds = [[verb.kind for _, verb in one.calls] for one in noted]
    for found in kinds:
        assert found[:3] == ["reduce_scatter", "exchange", "all_gather"]


def test_small_sums_go_round_a_ring() -> None:
    """By hand: 2 * 4/5 of [1, 1, 400] float32, twice in a layer."""
    lowered = compiled("sums")
    programs = lowered.compiled.units[0].programs
    assert programs is not None
    for found in calls_of(lowered, programs, Sizes(1, 1)).values():
        assert found == (Verb("all_reduce", (0, 1, 2, 3, 4), 1600, 2560),) * 2


def test_sums_beside_the_computation_go_node_by_node() -> None:
    """Gradients of a bucket, started while the backward goes on."""
    lowered = compiled("lazy")
    check_training(lowered, 5, 3)
    programs = lowered.compiled.units[0].programs
    assert programs is not None
    (program,) = programs.programs
    verbs = ProgramVerbs(program, lowered.compiled.world.grids, (0, 0, 0, 1, 1))
    found = verbs.verbs(Place(0, verbs.grids, Sizes(5, 3)))
    started = [
        [call.kind for call in calls]
        for step, calls in zip(program.instructions, found, strict=True)
        if isinstance(step, Launch)
    ]
    assert ["reduce_scatter", "exchange", "all_gather"] in started


def test_eight_bits_by_hand() -> None:
    """Gradients of 2 ranks in blocks of 128: halves of whole blocks there, and back to all."""
    plan = (
        HEAD
        + "model m { mode = train }\n"
        + grid(("dp", 2))
        + (
            "place ** on base { split batch over dp }\n"
            "comm grads over base.dp { op = all_reduce; dtype = int8(block = 128) }\n"
        )
    )
    lowered = lower(plan, captured("dense", (("layers", 1),)), phases=("train",))
    programs = lowered.compiled.units[0].programs
    assert programs is not None
    shapes = [p.value.shape for p in lowered.compiled.graph.params.values() if p.kind == "param"]
    blocks = sum(-(-torch.Size(tuple(int(n) for n in s)).numel() // 128) for s in shapes)
    low, high = blocks // 2 * 132, (blocks - blocks // 2) * 132
    for rank, found in calls_of(lowered, programs, Sizes(2, 3)).items():
        own, other = ((low, high), (high, low))[rank]
        loss, scattered, gathered = found
        assert (loss.kind, loss.size, loss.given) == ("all_reduce", 4, 4)
        assert (scattered.kind, scattered.given) == ("all_to_all", other)
        assert scattered.takes == ((1 - rank, own),)
        assert (gathered.kind, gathered.size, gathered.given) == ("all_gather", own, own)


def test_traffic_is_what_all_ranks_give() -> None:
    """Rows of the matrix are the bytes that each rank gives; rings give to the next rank."""
    lowered = compiled("megatron")
    programs = lowered.compiled.units[0].programs
    assert programs is not None
    sizes, grids = Sizes(8, 6), lowered.compiled.world.grids
    matrix = traffic(programs, grids, sizes)
    for rank, found in calls_of(lowered, programs, sizes).items():
        row = {to: size for (of, to), size in matrix.items() if of == rank}
        assert sum(row.values()) == sum(call.given for call in found)
        assert rank not in row
    tensor, data, stage = (0, 1), (0, 4), (0, 2)  # dp, pp, tp: the last differs first
    assert all(pair in matrix for pair in (tensor, data, stage))
    assert (0, 7) not in matrix


@pytest.mark.parametrize("case", ["megatron", "fsdp", "lazy"])
def test_traffic_is_what_ranks_gave_in_a_step(case: str) -> None:
    """Buckets that start once a step, and all micro-batches of the others."""
    lowered = compiled(case)
    programs = lowered.compiled.units[0].programs
    assert programs is not None
    noted = training(lowered, step_inputs(lowered, 7, 6))
    nodes = lowered.artifact.manifest["nodes"]
    matrix = traffic(programs, lowered.compiled.world.grids, Sizes(7, 6), nodes)
    for rank, one in enumerate(noted):
        given = sum(verb.given for _, verb in one.calls)
        assert given == sum(size for (source, _), size in matrix.items() if source == rank)


def test_traffic_of_many_ranks_is_refused() -> None:
    """At most 128."""
    lowered = lower("tp.plan", captured("dense", (("heads", 8),)), {"tp": 64}, phases=("forward",))
    wide = lowered.compiled.units[0].programs
    assert wide is not None
    traffic(wide, lowered.compiled.world.grids, Sizes(1, 1))
    twice = ProgramSet("forward", 0, "", wide.programs * 3)
    with pytest.raises(SimulateError, match="192 ranks"):
        traffic(twice, lowered.compiled.world.grids, Sizes(1, 1))


def scaled(layers: int) -> Lowered:
    """4,096 ranks: TP 8 x PP 16 x DP 32."""
    graph = captured("dense", (("heads", 8), ("layers", layers)))
    sets = dict(dp=32, pp=16, tp=8)
    return lower("megatron_1f1b.plan", graph, sets, phases=("train",))


def test_questions_do_not_grow_with_layers() -> None:
    """Twice the layers on 4,096 ranks: the same questions, other calls."""
    asked, called = [], []
    for layers in (16, 32):
        lowered = scaled(layers)
        programs = lowered.compiled.units[0].programs
        assert programs is not None and lowered.artifact.world == 4096
        program = programs.programs[1]
        verbs = ProgramVerbs(program, lowered.compiled.world.grids)
        found = verbs.verbs(Place(program.ranks[3], verbs.grids, Sizes(32, 4)))
        asked.append(len(verbs.asks))
        called.append(Counter(call.kind for calls in found for call in calls))
    assert asked[0] == asked[1] < 25
    assert called[1]["all_gather"] > 1.5 * called[0]["all_gather"]
    assert called[0]["exchange"] == called[1]["exchange"] == 4
