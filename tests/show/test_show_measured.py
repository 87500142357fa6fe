"""A recorded run as a timeline: by hand, and what every backend really did."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import plancc.api as api
from plancc.runtime.artifact import STRIDE, Artifact
from plancc.runtime.deploy import Deployment
from plancc.runtime.record import Recorder, record_local, record_processes
from plancc.show.facts import longest_waits, totals
from plancc.show.measured import Place, measured, measured_timelines, places_of
from plancc.simulator.forms import COMPUTE, Span, Timeline

ROOT = Path(__file__).parents[2]
PROGRAM = '''"""p: base, prefill, ranks 0-1. Written by plancc."""


def step(r, comm, w, kv, input_ids):
    B, T, P = r.batch, r.tokens, r.past
    # -- layers.0.mlp.up_proj   (models.py:20, plan p.plan:4)
    a = aten.linear.default(input_ids, w['up'])  # f32[B, T]
    # -- layers.0.mlp.down_proj   (models.py:21, plan p.plan:5)
    b = aten.linear.default(a, w['down'])
    del a
    b_sum = comm.all_reduce(b, 'tp', at=2)  # f32[B, T]
    # -- (root)   (models.py:30)
    c = aten.add.Tensor(b_sum, 1)
    # -- layers.1.mlp   (models.py:31, plan p.plan:9)
    comm.send(c, stage0, (batch,), stage1, (batch,), at=4)
    # -- norm
    d = aten.rms_norm.default(c, [8])
    return {'next_token': d}
'''


@pytest.fixture
def by_hand(tmp_path: Path) -> Artifact:
    """Two ranks of one program on a mesh."""
    (tmp_path / "c0.py").write_text(PROGRAM)
    row = {"file": "c0.py", "name": "base", "mesh": "base", "ranks": [0, 1]}
    programs = [{"phase": "prefill", "variant": 0, "classes": [row]}]
    return Artifact(tmp_path, {"world": 2, "plan": "p", "programs": programs, "grids": {}})


def call(verb: str, at: int, begin: float, end: float, **facts: Any) -> Mapping[str, Any]:
    """A call in a record."""
    return {
        "verb": verb,
        "at": STRIDE + at,
        "batch": 1,
        "begin": begin,
        "end": end,
        "size": 8,
        **facts,
    }


def plain(spans: tuple[Span, ...], actor: int) -> list[tuple[str, str, float, float]]:
    """Names, kinds and times of one rank."""
    return [(s.name, s.kind, s.begin, s.end) for s in spans if s.actor == actor]


def test_places_in_a_program() -> None:
    verbs, between = places_of(PROGRAM)
    assert verbs == {
        2: Place("layers.0.mlp.down_proj", "p.plan:5"), 4: Place("layers.1.mlp", "p.plan:9"),
    }  # fmt: skip
    assert between == {
        -1: Place("layers.0.mlp", "p.plan:4, p.plan:5"),
        2: Place("", ""),
        4: Place("norm"),
    }


def test_the_first_one_waits_for_the_last(by_hand: Artifact) -> None:
    """Rank 0 comes to the sum at 12, rank 1 at 15; both leave at 16. Then a message of 3 bytes."""
    both = {"group": [0, 1]}
    records = [
        {
            "rank": 0, "batch": 2, "tokens": 6, "steps": [["prefill", 0, 10.0, 20.0]],
            "calls": [
                call("all_reduce", 2, 12.0, 16.0, **both),
                call("exchange", 4, 18.0, 18.5, sends=[[1, 3, 0]], takes=[]),
            ],
        },
        {
            "rank": 1, "batch": 2, "tokens": 6, "steps": [["prefill", 0, 10.5, 19.0]],
            "calls": [
                call("all_reduce", 2, 15.0, 16.0, **both),
                call("exchange", 4, 16.5, 18.75, sends=[], takes=[[0, 3, 0]]),
            ],
        },
    ]  # fmt: skip
    found = measured(by_hand, records, "t")
    assert [actor.name for actor in found.actors] == ["base rank 0", "base rank 1"]
    assert plain(found.spans, 0) == [
        ("computation", "compute", 0, 2), ("wait for base rank 1", "wait", 2, 5),
        ("all_reduce", "all_reduce", 5, 6), ("computation", "compute", 6, 8),
        ("exchange", "exchange", 8, 8.5), ("computation", "compute", 8.5, 10),
    ]  # fmt: skip
    assert plain(found.spans, 1) == [
        ("computation", "compute", 0.5, 5), ("all_reduce", "all_reduce", 5, 6),
        ("computation", "compute", 6, 6.5), ("wait for base rank 0", "wait", 6.5, 8),
        ("exchange", "exchange", 8, 8.75), ("computation", "compute", 8.75, 9),
    ]  # fmt: skip
    mine = [span for span in found.spans if span.actor == 0]
    assert [(span.path, span.line) for span in mine[:4]] == [
        ("layers.0.mlp", "p.plan:4, p.plan:5"), ("layers.0.mlp.down_proj", "p.plan:5"),
        ("layers.0.mlp.down_proj", "p.plan:5"), ("", ""),
    ]  # fmt: skip
    assert {span.batch for span in mine} == {1} and {span.stream for span in mine} == {COMPUTE}
    assert found.traffic == {(0, 1): 8 + 3, (1, 0): 8} and not found.predicted
    assert [span.bytes for span in mine if span.kind in ("all_reduce", "exchange")] == [8, 3]


def test_messages_of_one_channel_arrive_in_order(by_hand: Artifact) -> None:
    """Two messages over channels 1 and 0; the first receive is of channel 0, which is sent last."""
    records = [
        {
            "rank": 0, "batch": 2, "tokens": 6, "steps": [["prefill", 0, 0.0, 9.0]],
            "calls": [
                call("exchange", 2, 1.0, 1.5, sends=[[1, 4, 1]], takes=[]),
                call("exchange", 4, 5.0, 5.5, sends=[[1, 4, 0]], takes=[]),
            ],
        },
        {
            "rank": 1, "batch": 2, "tokens": 6, "steps": [["prefill", 0, 0.0, 9.0]],
            "calls": [
                call("exchange", 2, 2.0, 6.0, sends=[], takes=[[0, 4, 0]]),
                call("exchange", 4, 7.0, 7.5, sends=[], takes=[[0, 4, 1]]),
            ],
        },
    ]  # fmt: skip
    waits = [span for span in measured(by_hand, records, "t").spans if span.kind == "wait"]
    assert [(span.actor, span.begin, span.end) for span in waits] == [(1, 2, 5)]


def test_steps_are_cut_apart(by_hand: Artifact) -> None:
    """The second step begins at its own zero, and has only its own calls."""
    both = {"group": [0, 1]}
    records = [
        {
            "rank": rank, "batch": 2, "tokens": 6,
            "steps": [["prefill", 0, 0.0, 4.0], ["prefill", 0, 4.0, 10.0]],
            "calls": [
                call("all_reduce", 2, 1.0, 2.0, **both), call("all_reduce", 2, 5.0 + rank, 7.0, **both)
            ],
        }
        for rank in (0, 1)
    ]  # fmt: skip
    first, last = measured_timelines(by_hand, records)
    assert (first.title, last.title) == ("p, prefill, batch 2 x 6", "p, prefill, batch 2 x 7")
    assert first.seconds == 4 and last.seconds == 6
    assert [span.seconds for span in last.spans if span.kind == "wait"] == [1]
    whole = measured(by_hand, records, "whole")
    assert whole.seconds == 10 and whole.traffic[0, 1] == 2 * first.traffic[0, 1]


def check_spans(timeline: Timeline) -> None:
    """Spans of a rank do not overlap and leave no gap from its first to its last."""
    for number in range(len(timeline.actors)):
        mine = sorted((s for s in timeline.spans if s.actor == number), key=lambda s: s.begin)
        assert mine and all(span.seconds > 0 for span in mine)
        assert all(a.end == pytest.approx(b.begin, abs=1e-9) for a, b in pairwise(mine))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A pipeline of two unequal stages with two micro-batches."""
    sizes = {
        "layers": "3",
        "hidden": "48",
        "heads": "6",
        "ffn": "48",
        "vocab": "60",
        "max_len": "32",
    }
    return api.compile(
        ROOT / "examples/hetero_pipeline.plan", f"{ROOT}/examples/models.py:dense",
        tmp_path_factory.mktemp("record") / "artifact", model_args=sizes, verify=False,
    ).artifact  # fmt: skip


IDS = torch.arange(12).reshape(2, 6)


def check_run(artifact: Artifact, records: Any, tokens: Any) -> None:
    """The tokens are those of a run without a recorder; all ranks, both micro-batches, every sum."""
    assert tokens == Deployment(artifact).generate(IDS, 3).tokens.tolist()
    found = measured_timelines(artifact, records)
    assert [timeline.title for timeline in found] == [
        "hetero_pipeline, prefill, batch 2 x 6", "hetero_pipeline, decode, batch 2 x 8"
    ]  # fmt: skip
    for timeline in (*found, measured(artifact, records, "all")):
        check_spans(timeline)
    prefill = found[0]
    assert [actor.name for actor in prefill.actors] == [
        "front rank 0", "front rank 1", "back rank 2", "back rank 3", "back rank 4"
    ]  # fmt: skip
    inside = [s for s in prefill.spans if s.path.startswith("layers.2.") and s.kind == "all_reduce"]
    assert {span.actor for span in inside} <= {2, 3, 4} and {span.batch for span in inside} == {
        0,
        1,
    }
    assert {span.line for span in inside} == {"llama.plan:5", "llama.plan:6"}
    assert {span.path for span in prefill.spans if span.kind == "wait"} & {"layers.1.input_norm"}
    assert longest_waits(prefill)[0].name.startswith("wait for ") and totals(prefill)["sent"] > 0


def test_a_local_run(built: Artifact) -> None:
    result, records = record_local(built, IDS, 3)
    check_run(built, records, result.tokens.tolist())


def test_a_run_of_processes(built: Artifact) -> None:
    found, records = record_processes(built, IDS, 3)
    check_run(built, records, found["tokens"])
    assert "trace" not in found and found["ttft_s"] > 0


def test_bytes_are_those_that_the_transport_counts(built: Artifact) -> None:
    """Messages and parts byte by byte; sums as rings send them: 2 (g - 1) / g of what is summed."""
    from plancc.runtime.local import run_local

    x = torch.ones(6, 4)

    def rank(transport: Any) -> Any:
        recorder: Any = Recorder(transport)
        group = (0, 1, 2)
        recorder.all_reduce(x, group, 7)
        recorder.all_gather(x, group, [(6, 4)] * 3, 8)
        recorder.all_to_all([x[:2]] * 3, group, [(2, 4)] * 3, 9)
        recorder.reduce_scatter([x[:2]] * 3, group, 10)
        recorder.all_reduce(x, (transport.rank,), 11)
        recorder.exchange([(transport.rank, x)], [(transport.rank, (6, 4), x.dtype)], 12)
        target, source = (transport.rank + 1) % 3, (transport.rank - 1) % 3
        recorder.exchange([(target, x)], [(source, (6, 4), x.dtype)], 13)
        recorder.barrier(group, 14)
        return recorder.calls

    from plancc.show.measured import given

    calls = run_local(3, rank)[0]
    assert [one["verb"] for one in calls] == [
        "all_reduce", "all_gather", "all_to_all", "reduce_scatter", "exchange", "barrier"
    ]  # fmt: skip
    sums = [sum(size for _, size in given(0, one)) for one in calls]
    assert [sorted(target for target, _ in given(0, one)) for one in calls] == [
        [1], [1], [1, 2], [1], [1], []
    ]  # fmt: skip
    assert sums == [2 * 96 * 2 // 3, 2 * 96, 2 * 32, 2 * 32, 96, 0]
    assert all(one["begin"] <= one["end"] for one in calls) and [one["at"] for one in calls] == [
        7, 8, 9, 10, 13, 14
    ]  # fmt: skip
