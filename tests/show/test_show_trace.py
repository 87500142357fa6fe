"""Trace files: the fields that Perfetto and HTA read, and times that are those of the timeline."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hand_timelines import ping_pong, pipeline, pool, with_title

from plancc.show.files import WriteError
from plancc.show.trace import FIRST, PROGRAM, STREAMS, write_rank_traces, write_trace
from plancc.simulator.forms import COMPUTE, Actor, Span, Timeline

Event = dict[str, Any]


def events(path: Path, ph: str = "X") -> list[Event]:
    """The events of a file of one kind."""
    return [event for event in json.loads(path.read_text())["traceEvents"] if event["ph"] == ph]


def by_thread(found: list[Event]) -> dict[tuple[int, int], list[Event]]:
    """Events by process and thread, in order."""
    out: dict[tuple[int, int], list[Event]] = {}
    for event in sorted(found, key=lambda event: event["ts"]):
        out.setdefault((event["pid"], event["tid"]), []).append(event)
    return out


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Predicted and measured in one file."""
    path = tmp_path_factory.mktemp("trace") / "deep" / "both.json"
    write_trace([pipeline(predicted=False, seed=1), pipeline()], path)
    return path


def test_every_span_is_an_event_with_its_times(both: Path) -> None:
    timeline = pipeline()
    found = [event for event in events(both) if event["pid"] % 2 == 0]
    assert len(found) == len(timeline.spans)
    for event, span in zip(found, timeline.spans, strict=True):
        assert event["ts"] == pytest.approx(span.begin * 1e6, abs=1e-3)
        assert event["dur"] == pytest.approx(span.seconds * 1e6, abs=2e-3)
        assert event["tid"] == STREAMS[span.stream] and event["pid"] == 2 * span.actor
        assert event["args"]["module"] == span.path and event["args"]["plan"] == span.line
        assert event["args"]["micro-batch"] == span.batch


def test_processes_stand_beside_each_other(both: Path) -> None:
    names = {e["pid"]: e["args"]["name"] for e in events(both, "M") if e["name"] == "process_name"}
    assert names[0] == "base rank 0 (predicted)" and names[1] == "base rank 0 (measured)"
    assert names[7] == "base rank 3 (measured)" and len(names) == 8
    threads = {
        (e["pid"], e["tid"]): e["args"]["name"]
        for e in events(both, "M")
        if e["name"] == "thread_name"
    }
    assert threads[0, 7] == "compute" and threads[0, 20] == "communication"


def test_memory_is_a_counter(both: Path) -> None:
    found = [event["args"]["bytes"] for event in events(both, "C") if event["pid"] == 0]
    assert found == [size for _, size in pipeline().memory[0]]


@pytest.mark.parametrize(
    "timeline", [pipeline(), pool(2, 3, 2), ping_pong(3, 2, 2)], ids=lambda t: t.title
)
def test_events_of_a_thread_do_not_overlap(timeline: Timeline, tmp_path: Path) -> None:
    write_trace(timeline, tmp_path / "all.json")
    paths = write_rank_traces(timeline, tmp_path / "ranks")
    assert len(paths) == sum(len(actor.ranks) for actor in timeline.actors)
    for path in [tmp_path / "all.json", *paths]:
        found = [event for event in events(path) if event["name"] != "ProfilerStep#0"]
        for row in by_thread(found).values():
            assert all(a["ts"] + a["dur"] <= b["ts"] + 2e-3 for a, b in pairwise(row))


def test_a_rank_has_its_file(tmp_path: Path) -> None:
    """Its rank, kernels with streams, and a program with the same correlations; waiting is no kernel."""
    paths = write_rank_traces(ping_pong(), tmp_path, ranks=[3, 15])
    assert [path.name for path in paths] == ["rank-3.json", "rank-15.json"]
    whole = json.loads(paths[0].read_text())
    assert whole["distributedInfo"] == {"rank": 3, "world_size": 16}
    assert '"rank": 3' in paths[0].read_text().partition("\n")[0]
    kernels = [event for event in events(paths[0]) if event["cat"] == "kernel"]
    mine = [s for s in ping_pong().spans if s.actor == 3 and s.kind != "wait"]
    assert len(kernels) == len(mine) and {event["pid"] for event in events(paths[0])} == {3}
    assert {event["args"]["stream"] for event in kernels} == {7, 20}
    assert all(event["tid"] == event["args"]["stream"] for event in kernels)
    sums = [event for event in kernels if event["args"]["kind"] == "all_to_all"]
    assert sums and {event["name"] for event in sums} == {"ncclDevKernel_SendRecv"}
    assert {event["args"]["Collective name"] for event in sums} == {"all_to_all"}
    assert not any(event["name"].startswith("nccl") for event in kernels if event not in sums)
    program = [event for event in events(paths[0]) if event["cat"] == "cpu_op"]
    assert [e["args"]["correlation"] for e in program] == [
        e["args"]["correlation"] for e in kernels
    ]
    assert min(e["args"]["correlation"] for e in kernels) >= FIRST
    waits = [event for event in events(paths[0]) if event.get("args", {}).get("kind") == "wait"]
    assert waits and all(e["cat"] == "user_annotation" and "stream" not in e["args"] for e in waits)
    assert {event["tid"] for event in waits} == {PROGRAM[COMPUTE]}


def test_times_of_rank_files_are_whole_and_add_up(tmp_path: Path) -> None:
    """HTA would make a kernel from 0.4 to 0.9 us last -1 us; ten of 0.6 us take 6 us here."""
    spans = tuple(Span(0, COMPUTE, "k", "memory", n * 0.6e-6, (n + 1) * 0.6e-6) for n in range(10))
    (path,) = write_rank_traces(Timeline("t", True, (Actor("a", (0,)),), spans), tmp_path)
    kernels = [event for event in events(path) if event["cat"] == "kernel"]
    assert all(isinstance(event["ts"], int) and event["dur"] >= 0 for event in kernels)
    assert sum(event["dur"] for event in kernels) == 6
    alone = (Span(0, COMPUTE, "k", "memory", 10.9e-6, 12.1e-6),)
    (path,) = write_rank_traces(Timeline("t", True, (Actor("a", (0,)),), alone), tmp_path)
    assert [(e["ts"], e["dur"]) for e in events(path) if e["cat"] == "kernel"] == [(11, 1)]


def test_an_actor_of_many_ranks_has_a_file_for_each(tmp_path: Path) -> None:
    timeline = Timeline(
        "t", True, (Actor("a", (4, 5)),), (Span(0, COMPUTE, "k", "matmul", 0, 1e-3),)
    )
    paths = write_rank_traces(timeline, tmp_path)
    assert [json.loads(path.read_text())["distributedInfo"]["rank"] for path in paths] == [4, 5]
    assert [events(path)[-1]["pid"] for path in paths] == [4, 5]


def test_names_are_plain_json(tmp_path: Path) -> None:
    title = 'a "quoted" <plan>\n\u2028'
    write_trace(with_title(pipeline(2, 1), title), tmp_path / "t.json")
    assert json.loads((tmp_path / "t.json").read_text())["timelines"] == [title]


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(WriteError, match=r"cannot write .*file/t\.json"):
        write_trace(pipeline(2, 1), tmp_path / "file" / "t.json")
    target = tmp_path / "t.json"
    target.write_text("before")

    def broken() -> Any:
        yield "half"
        raise ValueError("stop")

    from plancc.show.files import write_whole

    with pytest.raises(ValueError, match="stop"):
        write_whole(target, broken())
    assert target.read_text() == "before" and len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(find_spec("hta") is None, reason="HolisticTraceAnalysis is not installed")
def test_hta_reads_the_files(tmp_path: Path) -> None:
    """Its breakdown of the pipeline: 102.24 ms of computation, and messages hidden for all but the last."""
    write_rank_traces(pipeline(), tmp_path)
    code = (
        "import sys, json; from hta.trace_analysis import TraceAnalysis;"
        "a = TraceAnalysis(trace_dir=sys.argv[1]);"
        "print(json.dumps([a.get_temporal_breakdown(visualize=False).to_dict('list'),"
        " a.get_comm_comp_overlap(visualize=False).to_dict('list')]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    times, overlap = json.loads(done.stdout.strip().splitlines()[-1])
    assert times["rank"] == [0, 1, 2, 3] and times["compute_time(us)"] == [102240] * 4
    assert times["kernel_time(us)"][0] == round(pipeline().seconds * 1e6)
    assert overlap["comp_comm_overlap_pctg"] == [87.5] * 4
