"""A step in a terminal: a bar for each actor, the longest waits, peaks of memory against the budget."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import IO

from plancc.show.facts import (
    Peak,
    by_actor,
    by_family,
    longest_waits,
    peaks,
    time_by_kind,
    totals,
    who_waits,
)
from plancc.show.kinds import COMMUNICATION, COMPUTE, IDLE, KINDS, WAIT, kind_of
from plancc.show.units import bytes_text, seconds_text, share_text, time_text
from plancc.simulator.forms import Actor, Timeline

MARKS = {
    "matmul": ("█", "M"), "attention": ("▓", "A"), "memory": ("▒", "m"), "compute": ("█", "C"),
    COMMUNICATION: ("=", "="), WAIT: ("·", "."), IDLE: (" ", " "),
}  # fmt: skip
"""What a bar is drawn with: kind or family -> (Unicode, ASCII)."""
FEWEST, WIDEST, MOST_ROWS = 60, 160, 24


def summary(
    timeline: Timeline, *, budgets: Mapping[str, int] | None = None, width: int | None = None,
    unicode: bool | None = None, waits: int = 5,
) -> str:  # fmt: skip
    """The text. Without `width` and `unicode`: those of the terminal; at least 60 and at most 160 wide.

    `budgets` are bytes of a rank by mesh.
    """
    plain = not (speaks_unicode(sys.stdout) if unicode is None else unicode)
    columns = shutil.get_terminal_size((100, 24)).columns if width is None else width
    columns = max(FEWEST, min(columns, WIDEST))
    page = _Page(timeline, columns, plain)
    lines = [*page.head(), "", *page.bars(), *page.waits(waits), *page.memory(budgets)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def speaks_unicode(stream: IO[str]) -> bool:
    """Whether a stream can write the marks."""
    try:
        "█▓▒·µ".encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


class _Page:
    def __init__(self, timeline: Timeline, width: int, plain: bool) -> None:
        self.timeline, self.width, self.plain = timeline, width, plain

    def time(self, seconds: float) -> str:
        return seconds_text(seconds) if self.plain else time_text(seconds)

    def fit(self, text: str, room: int) -> str:
        """The text, cut to `room` characters; in ASCII what is not becomes `?`."""
        if self.plain:
            text = text.encode("ascii", "replace").decode("ascii")
        more = "..." if self.plain else "…"
        return text if len(text) <= room else text[: max(0, room - len(more))] + more

    def flow(self, parts: Sequence[str], between: str) -> list[str]:
        """The parts in lines, none of them broken unless it is longer than a line."""
        lines = [""]
        for part in parts:
            longer = f"{lines[-1]}{between}{part}" if lines[-1] else part
            if len(longer) <= self.width:
                lines[-1] = longer
            else:
                lines.append(part)
        return [self.fit(line, self.width) for line in lines]

    def head(self) -> list[str]:
        """What it is, and the means over all ranks."""
        found = totals(self.timeline)
        how = "predicted" if self.timeline.predicted else "measured"
        share = {
            family: share_text(found[family] / found["seconds"] if found["seconds"] else 0.0)
            for family in (COMPUTE, COMMUNICATION, WAIT, IDLE)
        }
        words = [
            f"{share[COMPUTE]} computing,", f"{share[COMMUNICATION]} communicating (exposed),",
            f"{share[WAIT]} waiting,", f"{share[IDLE]} idle",
        ]  # fmt: skip
        title = (
            f"{self.timeline.title}: {self.time(found['seconds'])} {how}, {found['ranks']:.0f} rank"
        )
        title += "s" if found["ranks"] != 1 else ""
        return [self.fit(title, self.width), *self.flow(["mean of a rank:", *words], " ")]

    def bars(self) -> list[str]:
        """A bar for each actor; those beyond the first few are folded into their meshes."""
        rows = [
            (actor, time_by_kind(spans, self.timeline.seconds))
            for actor, spans in zip(self.timeline.actors, by_actor(self.timeline), strict=True)
        ]
        if len(rows) > MOST_ROWS:
            rows = folded(rows)
        used = {self.mark(kind) for _, times in rows for kind in times}
        label = min(self.width // 3, max((len(actor.name) for actor, _ in rows), default=0))
        room = self.width - label - 13
        lines = [
            f"{self.fit(actor.name, label):<{label}} |{self.bar(times, room)}| {self.busy(times):>9}"
            for actor, times in rows
        ]
        return [*lines, *self.legend(used)]

    def busy(self, times: Mapping[str, float]) -> str:
        found = by_family(times)
        whole = sum(found.values())
        busy = found[COMPUTE] + found[COMMUNICATION]
        return f"{busy / whole:.0%} busy" if whole else ""

    def mark(self, kind: str) -> str:
        family = kind_of(kind).family
        return kind if kind in MARKS and family == COMPUTE else family

    def bar(self, times: Mapping[str, float], room: int) -> str:
        """The shares of time as `room` characters, rounded so that they add up."""
        order = [*KINDS, IDLE]
        whole = sum(times.values())
        text, done = "", 0.0
        for kind in sorted(times, key=order.index):
            done += times[kind]
            share = round(room * done / whole) if whole else 0
            text += MARKS[self.mark(kind)][self.plain] * (share - len(text))
        return text.ljust(room)

    def legend(self, used: set[str]) -> list[str]:
        words = {COMMUNICATION: "exposed communication", WAIT: "waiting for another rank"}
        found = [
            f"{MARKS[mark][self.plain]} {words.get(mark) or kind_of(mark).label}"
            for mark in MARKS
            if mark in used and mark != IDLE
        ]
        return ["", *self.flow([*found, "blank: idle"], "   ")]

    def waits(self, count: int) -> list[str]:
        """The longest waits, who for whom and where."""
        found = longest_waits(self.timeline, count)
        if not found:
            return []
        rows = [
            (
                f"{self.time(wait.seconds):>7}",
                f"in {wait.count}" if wait.count > 1 else "",
                f"{who_waits(self.timeline, wait)}: {wait.name}",
                ", ".join(text for text in (wait.path, wait.line) if text),
            )
            for wait in found
        ]
        wide = [max(len(row[at]) for row in rows) for at in range(4)]
        lines = [
            "  ".join(text.ljust(room) for text, room in zip(row, wide, strict=True) if room)
            for row in rows
        ]
        return [
            "",
            "longest waits",
            *(self.fit(f"  {line}".rstrip(), self.width) for line in lines),
        ]

    def memory(self, budgets: Mapping[str, int] | None) -> list[str]:
        """The fullest actor of each mesh, against the budget."""
        fullest: dict[str, Peak] = {}
        for peak in peaks(self.timeline, budgets):
            if peak.actor.mesh not in fullest or peak.bytes > fullest[peak.actor.mesh].bytes:
                fullest[peak.actor.mesh] = peak
        lines = []
        for mesh, peak in fullest.items():
            line = (
                f"  {mesh}: {bytes_text(peak.bytes)} at {self.time(peak.at)} on {peak.actor.name}"
            )
            if peak.budget is not None:
                over = " OVER BUDGET" if peak.bytes > peak.budget else ""
                share = share_text(peak.bytes / peak.budget) if peak.budget else "all"
                line += f", {share} of the budget of {bytes_text(peak.budget)}{over}"
            lines.append(self.fit(line, self.width))
        return ["", "peaks of memory", *lines] if lines else []


def folded(rows: Sequence[tuple[Actor, dict[str, float]]]) -> list[tuple[Actor, dict[str, float]]]:
    """One row for each mesh: the sum of its actors' times, each as often as it has ranks."""
    found: dict[str, tuple[list[int], dict[str, float]]] = {}
    for actor, times in rows:
        ranks, sums = found.setdefault(actor.mesh, ([], {}))
        ranks.extend(actor.ranks)
        for kind, seconds in times.items():
            sums[kind] = sums.get(kind, 0.0) + seconds * len(actor.ranks)
    return [
        (Actor(f"{mesh} ({len(ranks)} ranks)", tuple(ranks), mesh), sums)
        for mesh, (ranks, sums) in found.items()
    ]
