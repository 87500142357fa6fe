"""Laws that hold for every plan: time is conserved, more is never slower, large worlds stay small."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plancc.simulator.rows import make_row
from plancc.simulator.step import Inputs, Simulation
from plancc.simulator.subject import Subject, open_subject

EXAMPLES = Path(__file__).parents[2] / "examples"
MODELS = f"{EXAMPLES / 'models.py'}"
SMALL = {"layers": "2", "hidden": "64", "heads": "8", "vocab": "264", "max_len": "256"}
DENSE = (f"{MODELS}:dense", {**SMALL, "ffn": "128"})
MOE = (f"{MODELS}:moe", {**SMALL, "ffn": "64", "experts": "16"})
# Name -> plan, parameters, model, phases.
PLANS: dict[str, tuple[str, dict[str, str], tuple[str, dict[str, str]], tuple[str, ...]]] = {
    "pipeline": ("tp8_pp2", {}, DENSE, ("prefill", "decode")),
    "sequence": ("sequence_parallel", {}, DENSE, ("prefill", "decode")),
    "stages of 2 and 3": ("hetero_pipeline", {}, DENSE, ("prefill", "decode")),
    "pool": ("fa_pool", {"long": "8"}, DENSE, ("prefill", "decode")),
    "experts": ("expert_data_parallel", {}, MOE, ("prefill", "decode")),
    "separation": ("ma_separation", {}, MOE, ("prefill", "decode")),
    "separation trains": ("ma_separation", {}, MOE, ("train",)),
    "fsdp": ("fsdp", {}, DENSE, ("train",)),
    "1F1B": ("megatron_1f1b", {}, DENSE, ("train",)),
}
EVERY = [(name, phase) for name, row in PLANS.items() for phase in row[3]]


@cache
def subject(name: str, *hardware: str) -> Subject:
    """One of PLANS on forty A100, with some constants changed."""
    from plancc.simulator.cluster import read_cluster

    plan, sets, (model, args), phases = PLANS[name]
    cluster = read_cluster("dgx_a100_40", EXAMPLES)
    if hardware:
        cluster = cluster.with_(*hardware)
    found: Any = open_subject(
        EXAMPLES / f"{plan}.plan", model, cluster, sets=sets, model_args=args, phases=phases
    )
    return found


def seconds(found: Subject, phase: str, batch: int = 16, seq_len: int = 32) -> float:
    """The time of one point."""
    row, _ = make_row(found, phase, batch, seq_len)
    assert row.fits and row.seconds is not None
    return row.seconds


@pytest.mark.parametrize(("name", "phase"), EVERY)
def test_time_is_conserved_on_every_rank(name: str, phase: str) -> None:
    """Busy + exposed + waiting = the end of each actor, and spans of a stream do not overlap."""
    found = subject(name)
    _, outcome = make_row(found, phase, 16, 32, spans=True)
    assert outcome is not None and outcome.seconds > 0
    for number, tally in enumerate(outcome.tallies):
        spans = [s for s in outcome.timeline.spans if s.actor == number and s.stream == "compute"]
        waiting = sum(s.seconds for s in spans if s.kind == "wait")
        end = max((s.end for s in spans), default=0.0)
        assert tally.busy + tally.exposed + waiting == pytest.approx(end, rel=1e-9)
        assert end <= outcome.whole * (1 + 1e-9)
        edges = sorted((s.begin, s.end) for s in spans)
        assert all(a[1] <= b[0] + 1e-12 for a, b in pairwise(edges))


@pytest.mark.parametrize(("name", "phase"), EVERY)
def test_slower_hardware_is_never_faster(name: str, phase: str) -> None:
    """Half the rate of the links within nodes, between nodes, of the memory; twice the latency."""
    base = seconds(subject(name), phase)
    values = subject(name).cluster.values
    for path, factor in (
        ("links.node.bandwidth", 0.5), ("links.network.bandwidth", 0.5),
        ("kinds.a100.bandwidth", 0.5), ("links.node.latency", 2), ("kinds.a100.launch", 2),
    ):  # fmt: skip
        changed = subject(name, f"{path}={values[path] * factor}")
        assert seconds(changed, phase) >= base * (1 - 1e-9), path


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(EVERY), st.integers(16, 48), st.integers(16, 120), st.integers(0, 16),
    st.integers(0, 60),
)  # fmt: skip
def test_more_work_takes_longer(
    point: tuple[str, str], batch: int, seq_len: int, more: int, longer: int
) -> None:
    """Within one variant and for whole multiples of the sequences that ranks share out."""
    name, phase = point
    found = subject(name)
    batch, more = batch - batch % 16, more - more % 16
    a = found.unit(phase, batch, seq_len)
    b = found.unit(phase, batch + more, seq_len + longer)
    if a is b:
        before = seconds(found, phase, batch, seq_len)
        after = seconds(found, phase, batch + more, seq_len + longer)
        assert after >= before * (1 - 1e-9)


def test_a_rank_of_many_stands_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen ranks as classes take the time that they take one by one."""
    from plancc.simulator import step

    found = subject("pipeline")
    alone, first = make_row(found, "prefill", 16, 32)
    original = step.Cast

    def few(*args: Any) -> Any:
        return original(*args[:-1], 1)

    monkeypatch.setattr(step, "Cast", few)
    together, second = make_row(found, "prefill", 16, 32)
    assert first is not None and second is not None
    assert len(second.actors) == 2 < len(first.actors) == 16
    assert together.seconds == pytest.approx(alone.seconds, rel=1e-9)
    assert together.bytes_sent == alone.bytes_sent
    assert together.comm_share == pytest.approx(alone.comm_share, rel=1e-9)


@pytest.mark.parametrize(("few", "hardware"), [(1, ()), (64, ()), (64, ("cores=3",))])
@pytest.mark.parametrize(("name", "phase"), EVERY)
def test_without_a_timeline_all_figures_are_the_same(
    name: str, phase: str, few: int, hardware: tuple[str, ...]
) -> None:
    """Stretches of what an actor does by itself take the time and count the bytes of their parts."""
    found = subject(name, *hardware)
    unit = found.unit(phase, 16, 32)
    outcomes = []
    for spans in (True, False):
        assert unit.programs is not None
        one = Simulation(unit.programs, found.compiled.world, found.hardware, few=few, spans=spans)
        outcomes.append(one.run(Inputs(16, 32)))
    whole, short = outcomes
    assert short.seconds == pytest.approx(whole.seconds, rel=1e-9)
    assert not short.timeline.spans and whole.timeline.spans
    for a, b in zip(whole.tallies, short.tallies, strict=True):
        assert (a.sent, a.flops) == (b.sent, b.flops)
        assert b.kinds == pytest.approx(a.kinds, rel=1e-9)
        assert [b.busy, b.moving, b.exposed] == pytest.approx(
            [a.busy, a.moving, a.exposed], rel=1e-9
        )
