"""Timelines as trace files that Perfetto, chrome://tracing and Holistic Trace Analysis (HTA) read.

The form is that of PyTorch's profiler (Kineto): complete events (`ph` "X") in microseconds, kernels with
`args.stream`, NCCL's names for what communicates. Predicted and measured steps have the same form.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from plancc.show.files import write_whole
from plancc.show.kinds import COMMUNICATION, WAIT, kernel_name, kind_of
from plancc.simulator.forms import COMPUTE, Actor, Span, Timeline

STREAMS = {COMPUTE: 7, COMMUNICATION: 20}
"""Numbers of the streams, as PyTorch's profiler usually shows them."""
PROGRAM = {COMPUTE: 1, COMMUNICATION: 2}
"""Threads of a rank's program, which has a row for each stream."""

FIRST = 1_000_000
"""The first correlation: HTA stores indices of events in the narrowest type that holds correlations."""

Event = dict[str, Any]


def write_trace(timelines: Timeline | Sequence[Timeline], path: str | Path) -> None:
    """One file of all timelines for Perfetto: a process for each actor, a thread for each stream.

    Several timelines stand beside each other, actor by actor, predicted before measured; all begin at 0.
    """
    found = [timelines] if isinstance(timelines, Timeline) else list(timelines)
    write_whole(path, document(combined_events(found), {"timelines": [one.title for one in found]}))


def write_rank_traces(
    timeline: Timeline, folder: str | Path, ranks: Iterable[int] | None = None
) -> list[Path]:
    """A file for each rank (or only for `ranks`), as HTA wants them; times in whole microseconds.

    HTA moves a begin up and an end down to whole microseconds, which makes short kernels negative; both
    are rounded to the nearest here, so that sums stay right.
    """
    wanted = None if ranks is None else set(ranks)
    world = sum(len(actor.ranks) for actor in timeline.actors)
    paths = []
    for number, actor in enumerate(timeline.actors):
        spans = [span for span in timeline.spans if span.actor == number]
        for rank in actor.ranks:
            if wanted is not None and rank not in wanted:
                continue
            facts = {"distributedInfo": {"rank": rank, "world_size": world}, "deviceProperties": []}
            path = Path(folder) / f"rank-{rank}.json"
            write_whole(path, document(rank_events(timeline, actor, spans, rank), facts))
            paths.append(path)
    return paths


def document(events: Iterable[Event], facts: Event) -> Iterator[str]:
    """The text of a trace: `facts` first (HTA looks for the rank in the first lines), an event a line."""
    head = json.dumps({"schemaVersion": 1, "displayTimeUnit": "ms", **facts})
    yield f'{head[:-1]}, "traceEvents": ['
    for number, event in enumerate(events):
        yield f"{',' if number else ''}\n{json.dumps(event)}"
    yield "\n]}\n"


def combined_events(timelines: Sequence[Timeline]) -> Iterator[Event]:
    """The events of several timelines, their processes numbered by first rank."""
    rows = [
        (min(actor.ranks, default=0), not timeline.predicted, at, number)
        for at, timeline in enumerate(timelines)
        for number, actor in enumerate(timeline.actors)
    ]
    pids = {(at, number): pid for pid, (_, _, at, number) in enumerate(sorted(rows))}
    for at, timeline in enumerate(timelines):
        used = {(span.actor, span.stream) for span in timeline.spans}
        for number, actor in enumerate(timeline.actors):
            pid = pids[at, number]
            yield from names(timeline, actor, pid, pid)
            for stream, tid in STREAMS.items():
                if (number, stream) in used:
                    yield from thread(pid, tid, stream)
            for seconds, size in timeline.memory.get(number, ()):
                yield {
                    "ph": "C", "name": "memory", "pid": pid, "ts": exact(seconds),
                    "args": {"bytes": size},
                }  # fmt: skip
        for span in timeline.spans:
            yield slice_event(span, pids[at, span.actor])


def rank_events(
    timeline: Timeline, actor: Actor, spans: Iterable[Span], rank: int
) -> Iterator[Event]:
    """The events of one rank: its kernels, and the program that they belong to."""
    yield from names(timeline, actor, rank, rank)
    for stream in STREAMS:
        yield from thread(rank, STREAMS[stream], stream)
        yield from thread(rank, PROGRAM[stream], f"program, {stream}")
    yield {
        "ph": "X", "cat": "user_annotation", "name": "ProfilerStep#0", "pid": rank,
        "tid": PROGRAM[COMPUTE], "ts": 0, "dur": whole(timeline.seconds) + 1,
    }  # fmt: skip
    for number, span in enumerate(spans, FIRST):
        begin, end = whole(span.begin), whole(span.end)
        called = {
            "ph": "X", "name": span.path or span.name, "pid": rank, "tid": PROGRAM[span.stream],
            "ts": begin, "dur": end - begin,
        }  # fmt: skip
        if kind_of(span.kind).family == WAIT:
            yield called | {"cat": "user_annotation", "name": span.name, "args": facts_of(span)}
            continue
        same = {"correlation": number, "External id": number}
        yield called | {"cat": "cpu_op", "args": same}
        kernel = slice_event(span, rank)
        kernel["args"] |= same | {"device": rank}
        yield kernel | {"ts": begin, "dur": end - begin}


def slice_event(span: Span, pid: int) -> Event:
    """The complete event of a span; waiting is no kernel."""
    tid = STREAMS[span.stream]
    begin = exact(span.begin)
    event: Event = {
        "ph": "X", "cat": "kernel", "name": kernel_name(span.kind, span.name), "pid": pid, "tid": tid,
        "ts": begin, "dur": round(exact(span.end) - begin, 3), "args": facts_of(span),
    }  # fmt: skip
    if kind_of(span.kind).family == WAIT:
        return event | {"cat": WAIT}
    event["args"]["stream"] = tid
    if kind_of(span.kind).family == COMMUNICATION:
        event["args"]["Collective name"] = span.kind
    return event


def facts_of(span: Span) -> Event:
    """What is known of a span beside its times; nothing for what it has not."""
    facts = {
        "name": span.name, "kind": span.kind, "module": span.path, "plan": span.line,
        "FLOPs": span.flops, "bytes": span.bytes,
    }  # fmt: skip
    return {key: value for key, value in facts.items() if value} | {"micro-batch": span.batch}


def names(timeline: Timeline, actor: Actor, pid: int, order: int) -> Iterator[Event]:
    """What a process is called, and where it stands among the others."""
    how = "predicted" if timeline.predicted else "measured"
    yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": f"{actor.name} ({how})"}}
    yield {"ph": "M", "name": "process_labels", "pid": pid, "args": {"labels": timeline.title}}
    yield {"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": order}}


def thread(pid: int, tid: int, name: str) -> Iterator[Event]:
    """What a thread is called; threads stand in the order of their numbers."""
    place = {"pid": pid, "tid": tid}
    yield {"ph": "M", "name": "thread_name", **place, "args": {"name": name}}
    yield {"ph": "M", "name": "thread_sort_index", **place, "args": {"sort_index": tid}}


def exact(seconds: float) -> float:
    """Microseconds with three places, which are nanoseconds."""
    return round(seconds * 1e6, 3)


def whole(seconds: float) -> int:
    """Whole microseconds, the nearest."""
    return round(seconds * 1e6)
