"""Timelines as the page's script reads them: columns of numbers, texts by number, times in nanoseconds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from plancc.show.facts import by_title
from plancc.show.kinds import KINDS
from plancc.simulator.forms import COMPUTE, Timeline


class Texts:
    """Numbers for texts, each text once."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {"": 0}

    def number(self, text: str) -> int:
        """The number of a text."""
        return self.numbers.setdefault(text, len(self.numbers))


def packed(timelines: Sequence[Timeline], budgets: Mapping[str, int]) -> dict[str, Any]:
    """Everything that the script draws; groups are timelines of one title."""
    texts = Texts()
    groups = [
        {"title": title, "timelines": [packed_timeline(one, texts) for one in same]}
        for title, same in by_title(timelines).items()
    ]
    kinds = [
        {
            "name": k.name, "family": k.family, "label": k.label, "code": k.code,
            "light": k.light, "dark": k.dark,
        }
        for k in KINDS.values()
    ]  # fmt: skip
    return {
        "kinds": kinds,
        "budgets": dict(budgets),
        "groups": groups,
        "texts": list(texts.numbers),
    }


def packed_timeline(timeline: Timeline, texts: Texts) -> dict[str, Any]:
    """One timeline; spans stand by actor, stream (0 computes) and begin, in columns."""
    kinds = {name: number for number, name in enumerate(KINDS)}
    spans = sorted(timeline.spans, key=lambda s: (s.actor, s.stream != COMPUTE, s.begin, s.end))
    return {
        "predicted": timeline.predicted,
        "seconds": timeline.seconds,
        "actors": [
            {"name": actor.name, "ranks": list(actor.ranks), "mesh": actor.mesh}
            for actor in timeline.actors
        ],
        "spans": {
            "actor": [span.actor for span in spans],
            "stream": [int(span.stream != COMPUTE) for span in spans],
            "name": [texts.number(span.name) for span in spans],
            "kind": [kinds[span.kind] for span in spans],
            "begin": [nanoseconds(span.begin) for span in spans],
            "end": [nanoseconds(span.end) for span in spans],
            "path": [texts.number(span.path) for span in spans],
            "line": [texts.number(span.line) for span in spans],
            "batch": [span.batch for span in spans],
            "flops": [span.flops for span in spans],
            "bytes": [span.bytes for span in spans],
        },
        "memory": {
            str(number): [[nanoseconds(at) for at, _ in points], [size for _, size in points]]
            for number, points in timeline.memory.items()
        },
        "traffic": [[source, target, size] for (source, target), size in timeline.traffic.items()],
    }


def nanoseconds(seconds: float) -> int:
    """Whole nanoseconds."""
    return round(seconds * 1e9)


def data_text(value: Any) -> str:
    """JSON that can stand inside a script element: no `<`, `>` or `&` in it, nor line ends of scripts."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text
