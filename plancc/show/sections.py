"""The sections of a report: what stands in the page as text, before any script draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from plancc.show.html import escape, swatch
from plancc.show.kinds import KINDS
from plancc.show.layout import layout_text
from plancc.show.results import assumptions_text, results_text, verification_text
from plancc.show.steps import (
    figures_text,
    memory_text,
    time_by_rank_text,
    traffic_text,
    waits_text,
)

if TYPE_CHECKING:
    from plancc.show.report import Report


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page: the anchor, what links call it, its HTML."""

    name: str
    title: str
    text: str


def sections(report: Report) -> list[Section]:
    """Those that have something to show."""
    steps = report.timelines
    made = [
        ("figures", "Figures", figures_text(steps)),
        ("timeline", "Timeline", timeline_text(report)),
        ("waits", "Waits", waits_text(steps)),
        ("time", "Time by rank", time_by_rank_text(steps)),
        ("memory", "Memory", memory_text(steps, report.budgets)),
        ("traffic", "Traffic", traffic_text(steps)),
        ("results", "Results", results_text(report.rows)),
        ("verification", "Verification", verification_text(report.verification)),
        ("layout", "Layout", layout_text(report.layout) if report.layout else ""),
        ("assumptions", "Assumptions", assumptions_text(report.assumptions)),
    ]
    return [
        Section(name, title, f'<section id="{name}"><h2>{title}</h2>\n{text}\n</section>')
        for name, title, text in made
        if text
    ]


def timeline_text(report: Report) -> str:
    """The frame that the script draws timelines into, and what the colours mean."""
    used = {span.kind for timeline in report.timelines for span in timeline.spans}
    if not used:
        return ""
    keys = "".join(
        f"<li>{swatch(kind.name)} {f'<code>{kind.code}</code> ' if kind.code else ''}"
        f"{escape(kind.label)}</li>"
        for kind in KINDS.values()
        if kind.name in used
    )
    return (
        f'<ul class="keys">{keys}</ul><div id="timeline-view"><noscript>The timeline needs '
        "scripts; the tables below have its numbers.</noscript></div>"
    )
