"""Numbers out of a timeline: what ranks spend their time with, the longest waits, peaks of memory."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import nlargest

from plancc.show.kinds import COMMUNICATION, COMPUTE, IDLE, WAIT, kind_of
from plancc.simulator.forms import Actor, Span, Timeline

RANK_OF = {COMPUTE: 0, COMMUNICATION: 1, WAIT: 2}
"""Which family counts where spans of several streams lie over each other: the smallest."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Waits for one thing at one place of the plan, by actors that did so equally often and long.

    `path` has `*` for the layers if there are several; `seconds` are those of one actor in all.
    """

    name: str
    path: str
    line: str
    count: int
    seconds: float
    actors: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Peak:
    """The most bytes that an actor has in use, when (seconds), and the budget (None: not known)."""

    actor: Actor
    bytes: int
    at: float
    budget: int | None


def by_actor(timeline: Timeline) -> list[list[Span]]:
    """The spans of each actor, by begin."""
    found: list[list[Span]] = [[] for _ in timeline.actors]
    for span in timeline.spans:
        found[span.actor].append(span)
    for spans in found:
        spans.sort(key=lambda span: (span.begin, span.end))
    return found


def time_by_kind(spans: Iterable[Span], seconds: float) -> dict[str, float]:
    """What one actor spends `seconds` with: kind -> seconds, idle among them; they add up to `seconds`.

    Where its streams overlap, computation counts and not what it hides: so communication is what is
    exposed.
    """
    edges = sorted(
        edge
        for number, span in enumerate(spans)
        if span.end > span.begin
        for edge in (
            (span.begin, 1, number, RANK_OF[kind_of(span.kind).family], span.kind),
            (span.end, 0, number, RANK_OF[kind_of(span.kind).family], span.kind),
        )
    )
    found: dict[str, float] = {}
    running: dict[int, tuple[int, str]] = {}
    last = 0.0
    for at, opens, number, order, kind in edges:
        if at > last:
            top = min(running.values())[1] if running else IDLE
            found[top] = found.get(top, 0.0) + at - last
            last = at
        if opens:
            running[number] = (order, kind)
        else:
            del running[number]
    if seconds > last:
        found[IDLE] = found.get(IDLE, 0.0) + seconds - last
    return found


def by_family(times: Mapping[str, float]) -> dict[str, float]:
    """The same by family: compute, communication, wait, idle."""
    found = {COMPUTE: 0.0, COMMUNICATION: 0.0, WAIT: 0.0, IDLE: 0.0}
    for kind, seconds in times.items():
        found[kind_of(kind).family] += seconds
    return found


def longest_waits(timeline: Timeline, count: int = 10) -> list[Wait]:
    """The waits that cost most, the worst first; those of all layers, and ranks that wait alike, are one."""
    mine: dict[tuple[int, str, str, str], list[Span]] = {}
    for span in timeline.spans:
        if kind_of(span.kind).family == WAIT:
            key = (span.actor, any_layer(span.name), any_layer(span.path), span.line)
            mine.setdefault(key, []).append(span)
    alike: dict[tuple[object, ...], list[Wait]] = {}
    for (actor, name, path, line), spans in mine.items():
        seconds = sum(span.seconds for span in spans)
        what = name if len({span.name for span in spans}) > 1 else spans[0].name
        where = path if len({span.path for span in spans}) > 1 else spans[0].path
        found = Wait(what, where, line, len(spans), seconds, (actor,))
        alike.setdefault((what, where, line, len(spans), f"{seconds:.2e}"), []).append(found)
    joined = (
        replace(waits[0], actors=tuple(actor for wait in waits for actor in wait.actors))
        for waits in alike.values()
    )
    return nlargest(count, joined, key=lambda wait: wait.seconds)


def any_layer(text: str) -> str:
    """The path of a module, or the name of a value (`add_l3`), with `*` for numbers of layers."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)|(?<=_l)\d+(?=_|\b)", "*", text)


def who_waits(timeline: Timeline, wait: Wait) -> str:
    """`base rank 3`, `fa rank 8 and 31 others`."""
    name = timeline.actors[wait.actors[0]].name
    more = len(wait.actors) - 1
    return f"{name} and {more} other{'s' if more > 1 else ''}" if more else name


def peaks(timeline: Timeline, budgets: Mapping[str, int] | None = None) -> list[Peak]:
    """The peak of every actor whose memory is known; `budgets` are bytes of a rank by mesh."""
    found = []
    for number, actor in enumerate(timeline.actors):
        points = timeline.memory.get(number, ())
        if points:
            at, size = max(points, key=lambda point: point[1])
            found.append(Peak(actor, size, at, (budgets or {}).get(actor.mesh)))
    return found


def mean_by_kind(timeline: Timeline) -> dict[str, float]:
    """Mean seconds of a rank by kind, as `time_by_kind` counts them."""
    found: dict[str, float] = {}
    ranks = sum(len(actor.ranks) for actor in timeline.actors)
    for actor, spans in zip(timeline.actors, by_actor(timeline), strict=True):
        for kind, seconds in time_by_kind(spans, timeline.seconds).items():
            found[kind] = found.get(kind, 0.0) + seconds * len(actor.ranks) / ranks
    return found


def totals(timeline: Timeline) -> dict[str, float]:
    """A timeline in numbers: seconds, a rank's mean seconds by family, bytes sent, FLOPs, peak of memory."""
    means = by_family(mean_by_kind(timeline))
    return {
        "seconds": timeline.seconds, "ranks": sum(len(actor.ranks) for actor in timeline.actors), **means,
        "sent": sum(timeline.traffic.values()),
        "flops": sum(s.flops * len(timeline.actors[s.actor].ranks) for s in timeline.spans),
        "memory": max((peak.bytes for peak in peaks(timeline)), default=0),
    }  # fmt: skip


def by_title(timelines: Sequence[Timeline]) -> dict[str, list[Timeline]]:
    """Timelines of one title, which are compared with each other: predicted ones first."""
    found: dict[str, list[Timeline]] = {}
    for timeline in timelines:
        found.setdefault(timeline.title, []).append(timeline)
    return {title: sorted(same, key=lambda t: not t.predicted) for title, same in found.items()}


def mesh_of_rank(timeline: Timeline) -> dict[int, str]:
    """Rank -> the mesh of its actor."""
    return {rank: actor.mesh for actor in timeline.actors for rank in actor.ranks}


def traffic_by_mesh(timeline: Timeline) -> dict[tuple[str, str], int]:
    """Bytes from the ranks of one mesh to those of another."""
    mesh = mesh_of_rank(timeline)
    found: dict[tuple[str, str], int] = {}
    for (source, target), size in timeline.traffic.items():
        key = (mesh.get(source, ""), mesh.get(target, ""))
        found[key] = found.get(key, 0) + size
    return found
