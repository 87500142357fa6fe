"""Records of a run as timelines: the form of a prediction, but measured.

A rank's time in a verb is split where the last of those that it meets arrives: before, it waits for that
rank. What lies between two verbs is computation; its modules and plan lines are those of the program text.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from plancc.ir.mesh import mesh_of
from plancc.runtime.artifact import STRIDE, Artifact
from plancc.simulator import calls
from plancc.simulator.forms import COMPUTE, Actor, Span, Timeline, Verb
from plancc.simulator.traffic import given_to

Record = Mapping[str, Any]
Call = Mapping[str, Any]
AT = re.compile(r"\bat=(\d+)\)")
HEADER = re.compile(r"# -- (.+?)(?:   \((.*)\))?$")
ROOT = "(root)"


@dataclass(frozen=True, slots=True)
class Place:
    """Where instructions come from: the module and the lines of the plan."""

    path: str = ""
    line: str = ""


class Places:
    """What the instruction numbers of an artifact's programs stand for."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self._found: dict[str, tuple[dict[int, Place], dict[int, Place]]] = {}

    def verb(self, rank: int, at: int) -> Place:
        """The place of a verb, by its number with the program's base."""
        number, at = divmod(at, STRIDE)
        return self._of(rank, number)[0].get(at, Place())

    def after(self, rank: int, at: int) -> Place:
        """The place of what is computed after a verb, up to the next one."""
        number, at = divmod(at, STRIDE)
        return self._of(rank, number)[1].get(at, Place())

    def before(self, rank: int, at: int) -> Place:
        """The place of what is computed before a verb, if it is the first."""
        return self._of(rank, at // STRIDE)[1].get(-1, Place())

    def _of(self, rank: int, number: int) -> tuple[dict[int, Place], dict[int, Place]]:
        rows = self.artifact.manifest["programs"]
        if not 0 < number <= len(rows):
            return {}, {}
        file = next(row["file"] for row in rows[number - 1]["classes"] if rank in row["ranks"])
        if file not in self._found:
            self._found[file] = places_of((self.artifact.folder / file).read_text())
        return self._found[file]


def places_of(text: str) -> tuple[dict[int, Place], dict[int, Place]]:
    """Of an emitted program: the place of each verb, and of what follows it (-1: before the first)."""
    verbs: dict[int, Place] = {}
    between: dict[int, list[Place]] = defaultdict(list)
    here, last, begun = Place(), -1, False
    for line in text.splitlines():
        header = HEADER.match(line.strip())
        found = AT.search(line.partition("  #")[0])
        if header is not None:
            here = Place(header[1].replace(ROOT, ""), (header[2] or "").partition("plan ")[2])
            begun = True
        elif found is not None:
            last = int(found[1])
            verbs[last] = here
        elif begun and line.strip() and not line.strip().startswith(("del ", "#")):
            between[last].append(here)
    return verbs, {at: together(places) for at, places in between.items()}


def together(places: Sequence[Place]) -> Place:
    """One place for several: what their paths begin with, and all their lines."""
    paths = list(dict.fromkeys(place.path for place in places if place.path))
    parts = [path.split(".") for path in paths]
    shared: list[str] = []
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    path = ".".join(shared) if shared else " .. ".join(dict.fromkeys([*paths[:1], *paths[-1:]]))
    lines = dict.fromkeys(place.line for place in places if place.line)
    return Place(path, ", ".join(lines))


def measured_timelines(artifact: Artifact, records: Sequence[Record]) -> tuple[Timeline, ...]:
    """The prefill and the last decode step, each from its own start.

    Their titles are those that a prediction of the same step has: plan, phase, batch and length.
    """
    first = records[0]
    steps = first["steps"]
    found = []
    for number in dict.fromkeys((0, len(steps) - 1)):
        size = f"batch {first['batch']} x {first['tokens'] + number}"
        title = f"{artifact.manifest['plan']}, {steps[number][0]}, {size}"
        found.append(measured(artifact, records, title, (number,)))
    return tuple(found)


def measured(
    artifact: Artifact, records: Sequence[Record], title: str, steps: Sequence[int] | None = None
) -> Timeline:
    """All steps of a run as one timeline, or only those with these numbers (which stand in a row)."""
    chosen = range(len(records[0]["steps"])) if steps is None else steps
    return _Joined(artifact, records, chosen).timeline(title)


class _Joined:
    """The records of all ranks, matched with each other."""

    def __init__(self, artifact: Artifact, records: Sequence[Record], steps: Sequence[int]) -> None:
        self.places = Places(artifact)
        self.artifact = artifact
        self.records = {record["rank"]: record for record in records}
        self.steps = steps
        self.number = {rank: at for at, rank in enumerate(self.records)}

    @cached_property
    def start(self) -> float:
        """When the first rank began."""
        return min(float(record["steps"][self.steps[0]][2]) for record in self.records.values())

    @cached_property
    def actors(self) -> tuple[Actor, ...]:
        """One for each rank, called by the class of its program in the first step."""
        phase, variant = next(iter(self.records.values()))["steps"][self.steps[0]][:2]
        row = next(
            row
            for row in self.artifact.manifest["programs"]
            if row["phase"] == phase and row["variant"] == variant
        )
        classes = {rank: found for found in row["classes"] for rank in found["ranks"]}
        return tuple(
            Actor(f"{classes[rank]['name']} rank {rank}", (rank,), mesh_of(classes[rank]["mesh"]))
            for rank in self.records
        )

    @cached_property
    def awaited(self) -> dict[tuple[int, int], tuple[float, int]]:
        """(rank, number of its call) -> when the last of those that it needs came, and who that is."""
        met: dict[object, list[tuple[float, int, int]]] = defaultdict(list)
        sent: dict[object, tuple[float, int]] = {}
        for rank, record in self.records.items():
            seen: dict[object, int] = defaultdict(int)
            for number, call in enumerate(record["calls"]):
                for key in _meetings(rank, call):
                    seen[key] += 1
                    met[key, seen[key]].append((call["begin"], rank, number))
                for key in _messages(rank, call, "sends"):
                    seen[key] += 1
                    sent[key, seen[key]] = (call["begin"], rank)
        found = {}
        for meeting in met.values():
            last = max(meeting)
            for _, rank, number in meeting:
                found[rank, number] = (last[0], last[1])
        return found | self._received(sent)

    def _received(
        self, sent: Mapping[object, tuple[float, int]]
    ) -> dict[tuple[int, int], tuple[float, int]]:
        found = {}
        for rank, record in self.records.items():
            seen: dict[object, int] = defaultdict(int)
            for number, call in enumerate(record["calls"]):
                came = []
                for key in _messages(rank, call, "takes"):
                    seen[key] += 1
                    if (key, seen[key]) in sent:
                        came.append(sent[key, seen[key]])
                if came:
                    found[rank, number] = max(came)
        return found

    def timeline(self, title: str) -> Timeline:
        """Spans and traffic of the chosen steps."""
        spans: list[Span] = []
        traffic: dict[tuple[int, int], int] = {}
        for rank in self.records:
            for call in self.calls(rank):
                for target, size in given(rank, call[1]):
                    traffic[rank, target] = traffic.get((rank, target), 0) + size
            spans += self.spans(rank)
        return Timeline(title, False, self.actors, tuple(spans), {}, traffic)

    def calls(self, rank: int) -> list[tuple[int, Call]]:
        """The calls of a rank in the chosen steps, with their numbers."""
        steps = self.records[rank]["steps"]
        begin, end = steps[self.steps[0]][2], steps[self.steps[-1]][3]
        return [
            (number, call)
            for number, call in enumerate(self.records[rank]["calls"])
            if begin <= call["begin"] and call["end"] <= end
        ]

    def spans(self, rank: int) -> Iterator[Span]:
        """What a rank did, in order: computation, waiting, verbs."""
        steps = [self.records[rank]["steps"][number] for number in self.steps]
        calls = self.calls(rank)
        edges = [(steps[0][2], None), *((call["end"], call) for _, call in calls)]
        stops = [*((call["begin"], call) for _, call in calls), (steps[-1][3], None)]
        for (begin, before), (end, after), number in zip(
            edges, stops, [*(number for number, _ in calls), -1], strict=True
        ):
            if end > begin:
                yield self.computed(rank, begin, end, before, after)
            if after is not None:
                yield from self.verb(rank, number, after)

    def computed(
        self, rank: int, begin: float, end: float, before: Call | None, after: Call | None
    ) -> Span:
        """What lies between two verbs."""
        place = Place()
        if before is not None and before["at"] >= STRIDE:
            place = self.places.after(rank, before["at"])
        elif after is not None and after["at"] >= STRIDE:
            place = self.places.before(rank, after["at"])
        batch = (
            after["batch"] if after is not None else before["batch"] if before is not None else 0
        )
        return self._span(rank, "computation", "compute", begin, end, place, batch)

    def verb(self, rank: int, number: int, call: Call) -> Iterator[Span]:
        """One call: waiting until the last one comes, then the move itself."""
        begin, end = call["begin"], call["end"]
        place = (
            self.places.verb(rank, call["at"]) if call["at"] >= STRIDE else Place("between steps")
        )
        came, whom = self.awaited.get((rank, number), (begin, rank))
        if whom != rank and came > begin:
            came = min(came, end)
            name = f"wait for {self.actors[self.number[whom]].name}"
            yield self._span(rank, name, "wait", begin, came, place, call["batch"])
            begin = came
        size = sum(count for _, count in given(rank, call))
        if end > begin:
            yield self._span(
                rank, call["verb"], call["verb"], begin, end, place, call["batch"], size
            )

    def _span(
        self, rank: int, name: str, kind: str, begin: float, end: float, place: Place, batch: int,
        size: int = 0,
    ) -> Span:  # fmt: skip
        return Span(
            self.number[rank], COMPUTE, name, kind, begin - self.start, end - self.start,
            place.path, place.line, batch, 0, size,
        )  # fmt: skip


def _meetings(rank: int, call: Call) -> Iterator[object]:
    if call.get("group"):
        yield tuple(call["group"])


def _messages(rank: int, call: Call, which: str) -> Iterator[object]:
    if call["verb"] == "exchange":
        for other, _, channel in call[which]:
            yield (rank, other, channel) if which == "sends" else (other, rank, channel)


def given(rank: int, call: Call) -> Sequence[tuple[int, int]]:
    """(rank, bytes) that a call gives to others, as a prediction counts them."""
    return tuple(pair for verb in verbs_of(rank, call) for pair in given_to(rank, verb))


def verbs_of(rank: int, call: Call) -> tuple[Verb, ...]:
    """The call in the form of predictions; a barrier gives nothing."""
    kind, group = call["verb"], tuple(call.get("group", ()))
    sends = {target: size for target, size, _ in call.get("sends", ())}
    if kind == "exchange":
        pairs = [(source, size) for source, size, _ in call["takes"]]
        return calls.exchange(rank, [(target, size) for target, size, _ in call["sends"]], pairs)
    if kind == "reduce_scatter":
        return calls.reduce_scatter(rank, group, [sends.get(member, 0) for member in group])
    if kind == "all_to_all":
        return calls.all_to_all(
            rank, group, [sends.get(member, 0) for member in group], [0] * len(group)
        )
    if kind == "all_gather":
        return calls.all_gather(group, call["size"])
    return calls.all_reduce(rank, group, call["size"], 1) if kind == "all_reduce" else ()
