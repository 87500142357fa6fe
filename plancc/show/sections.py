"""The sections of a report: what stands in the page as text, before any script draws."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plancc.show.facts import (
    by_actor,
    by_family,
    by_title,
    longest_waits,
    peaks,
    time_by_kind,
    totals,
    traffic_by_mesh,
    who_waits,
)
from plancc.show.html import PATTERNS, Cell, bar, escape, number, swatch, table
from plancc.show.kinds import COMMUNICATION, COMPUTE, IDLE, KINDS, WAIT, kind_of
from plancc.show.layout import layout_text
from plancc.show.units import bytes_text, count_text, seconds_text, share_text
from plancc.simulate.forms import Timeline

if TYPE_CHECKING:
    from plancc.show.report import Report

FAMILIES = {
    COMPUTE: "computing", COMMUNICATION: "exposed communication", WAIT: "waiting", IDLE: "idle",
}  # fmt: skip
MOST_ACTORS, MOST_FLOWS = 512, 20


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page: the anchor, what links call it, its HTML."""

    name: str
    title: str
    text: str


def sections(report: Report) -> list[Section]:
    """Those that have something to show."""
    made = [
        ("figures", "Figures", figures(report)),
        ("timeline", "Timeline", timeline_text(report)),
        ("waits", "Waits", waits_text(report.timelines)),
        ("time", "Time by rank", time_text(report.timelines)),
        ("memory", "Memory", memory_text(report)),
        ("traffic", "Traffic", traffic_text(report.timelines)),
        ("layout", "Layout", layout_text(report.layout) if report.layout else ""),
        ("results", "Results", results_text(report.rows)),
        ("verification", "Verification", verification_text(report.verification)),
        ("assumptions", "Assumptions", assumptions_text(report.assumptions)),
    ]
    return [
        Section(name, title, f'<section id="{name}"><h2>{title}</h2>\n{text}\n</section>')
        for name, title, text in made
        if text
    ]


def time(seconds: float) -> str:
    """Seconds with a real µ."""
    return seconds_text(seconds, "µs")


def how(timeline: Timeline) -> str:
    """Where it comes from."""
    return "predicted" if timeline.predicted else "measured"


def several(timelines: Sequence[Timeline]) -> Iterator[tuple[Timeline, str]]:
    """Each with a name that tells it from the others."""
    for timeline in timelines:
        yield timeline, f"{timeline.title}, {how(timeline)}"


def figures(report: Report) -> str:
    """The step in numbers, predicted and measured beside each other."""
    if not report.timelines:
        return ""
    found = {
        title: [(timeline, totals(timeline)) for timeline in same]
        for title, same in by_title(report.timelines).items()
    }
    cards = "".join(cards_of(title, same) for title, same in found.items())
    return cards + figures_table([pair for same in found.values() for pair in same])


def cards_of(title: str, same: Sequence[tuple[Timeline, Mapping[str, float]]]) -> str:
    """The step time of one title, large; the others beside it."""
    out = [
        f'<div class="cards"><div class="card wide-card"><span class="of">{escape(title)}</span>'
    ]
    first = same[0][1]["seconds"]
    for at, (timeline, sums) in enumerate(same):
        ratio = ""
        if at and first:
            ratio = f' <span class="ratio">{share_text(sums["seconds"] / first - 1)} against '
            ratio += f"{how(same[0][0])}</span>"
        out.append(
            f'<div class="big"><b>{time(sums["seconds"])}</b> <span class="tag {how(timeline)}">'
            f"{how(timeline)}</span>{ratio.replace('>-', '>−')}</div>"
        )
        shares = {kind: sums[kind] for kind in FAMILIES}
        out.append(bar_of(shares))
    return "".join([*out, "</div></div>"])


def bar_of(families: Mapping[str, float]) -> str:
    """A bar of shares by family."""
    kinds = {COMPUTE: "matmul", COMMUNICATION: "all_reduce", WAIT: "wait", IDLE: IDLE}
    words = ", ".join(f"{FAMILIES[f]} {share_text(part(families, f))}" for f in families)
    keys = "".join(
        f"<li>{swatch(kinds[family])} {FAMILIES[family]} <b>{share_text(part(families, family))}</b></li>"
        for family in families
    )
    return f'{bar({kinds[f]: s for f, s in families.items()}, words)}<ul class="keys">{keys}</ul>'


def part(families: Mapping[str, float], family: str) -> float:
    """A family's share of the whole."""
    whole = sum(families.values())
    return families[family] / whole if whole else 0.0


def figures_table(found: Sequence[tuple[Timeline, Mapping[str, float]]]) -> str:
    """All numbers of all timelines; times are means over the ranks."""
    head = [
        "step",
        "",
        "time",
        "ranks",
        *FAMILIES.values(),
        "sent by all",
        "FLOPs of all",
        "peak memory",
    ]
    rows = []
    for timeline, sums in found:
        row: list[Cell | str] = [
            timeline.title, how(timeline), number(time(sums["seconds"]), sums["seconds"]),
            number(f"{sums['ranks']:.0f}", sums["ranks"]),
        ]  # fmt: skip
        row += [number(time(sums[family]), sums[family]) for family in FAMILIES]
        row += [
            number(bytes_text(sums["sent"]), sums["sent"]),
            number(count_text(sums["flops"]), sums["flops"]),
            number(bytes_text(sums["memory"]) if sums["memory"] else "–", sums["memory"]),
        ]
        rows.append(row)
    return table("Steps in numbers: times are means over the ranks", head, rows)


def timeline_text(report: Report) -> str:
    """The frame that the script draws timelines into, and what the colours mean."""
    if not any(timeline.spans for timeline in report.timelines):
        return ""
    used = {span.kind for timeline in report.timelines for span in timeline.spans}
    keys = "".join(
        f'<li>{swatch(kind.name)} <code>{escape(kind.code)}</code> {escape(kind.label)}</li>'
        for kind in KINDS.values()
        if kind.name in used
    )  # fmt: skip
    return (
        f'{PATTERNS}<ul class="keys">{keys}</ul><div id="timeline-view"><noscript>The timeline needs '
        "scripts; the tables below have its numbers.</noscript></div>"
    )


def waits_text(timelines: Sequence[Timeline]) -> str:
    """Who waited for whom, the worst first."""
    rows = [
        [
            Cell(name, title=", ".join(timeline.actors[actor].name for actor in wait.actors[:64])),
            wait.name, number(time(wait.seconds), wait.seconds), number(str(wait.count), wait.count),
            Cell(wait.path, html=f"<code>{escape(wait.path)}</code>"),
            Cell(wait.line, html=f"<code>{escape(wait.line)}</code>"), of,
        ]
        for timeline, of in several(timelines)
        for wait in longest_waits(timeline, 12)
        for name in [who_waits(timeline, wait)]
    ]  # fmt: skip
    if not rows:
        return ""
    head = ["who", "waits for", "each, in all", "times", "module", "plan", "step"]
    return table("The waits that cost most; those of all layers are one", head, rows)


def time_text(timelines: Sequence[Timeline]) -> str:
    """A bar for each actor."""
    rows: list[list[Cell | str]] = []
    for timeline, of in several(timelines):
        spans = by_actor(timeline)
        for actor, mine in list(zip(timeline.actors, spans, strict=True))[:MOST_ACTORS]:
            times = time_by_kind(mine, timeline.seconds)
            words = ", ".join(
                f"{kind_of(k).label} {time(s)}"
                for k, s in sorted(times.items(), key=lambda p: -p[1])
            )
            found = by_family(times)
            rows.append(
                [
                    Cell(actor.name, html=f"{escape(actor.name)}"),
                    Cell("", html=bar(times, words), title=words),
                    *(number(time(found[family]), found[family]) for family in FAMILIES),
                    of,
                ]
            )
    if not rows:
        return ""
    more = sum(max(0, len(timeline.actors) - MOST_ACTORS) for timeline in timelines)
    note = f"<p>{more} further rows are left out.</p>" if more else ""
    return PATTERNS * (not any(t.spans for t in timelines)) + note + table(
        "What each rank spends the step with", ["rank", "", *FAMILIES.values(), "step"], rows
    )  # fmt: skip


def memory_text(report: Report) -> str:
    """The frame of the memory chart, and the peaks."""
    rows = []
    for timeline, of in several(report.timelines):
        for peak in peaks(timeline, report.budgets):
            over = peak.budget is not None and peak.bytes > peak.budget
            share = peak.bytes / peak.budget if peak.budget else None
            rows.append(
                [
                    peak.actor.name, number(bytes_text(peak.bytes), peak.bytes),
                    number(time(peak.at), peak.at),
                    number("–" if peak.budget is None else bytes_text(peak.budget), peak.budget),
                    number("–" if share is None else share_text(share), share),
                    "over budget" if over else "", of,
                ]
            )  # fmt: skip
    if not rows:
        return ""
    head = ["rank", "peak", "at", "budget", "of the budget", "", "step"]
    return '<div id="memory-view"></div>' + folded(
        "Peaks of all ranks", table("Peaks of memory", head, rows), len(rows) <= 16
    )


def traffic_text(timelines: Sequence[Timeline]) -> str:
    """The frame of the heat map, bytes between meshes, and the largest flows."""
    meshes, flows = [], []
    for timeline, of in several(timelines):
        for (source, target), size in sorted(
            traffic_by_mesh(timeline).items(), key=lambda p: -p[1]
        ):
            meshes.append([source or "–", target or "–", number(bytes_text(size), size), of])
        largest = sorted(timeline.traffic.items(), key=lambda pair: -pair[1])[:MOST_FLOWS]
        for (start, end), size in largest:
            flows.append(
                [
                    number(str(start), start),
                    number(str(end), end),
                    number(bytes_text(size), size),
                    of,
                ]
            )
    if not flows:
        return ""
    return (
        '<div id="traffic-view"></div>'
        + table("Bytes of a step between meshes", ["from", "to", "bytes", "step"], meshes)
        + folded(
            "The largest flows between two ranks",
            table("Flows", ["from rank", "to rank", "bytes", "step"], flows), False,
        )
    )  # fmt: skip


def folded(title: str, text: str, opened: bool) -> str:
    """A part that can be opened."""
    return f"<details{' open' if opened else ''}><summary>{escape(title)}</summary>{text}</details>"


def results_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The result rows; their columns are all keys, in the order in which they come up."""
    if not rows:
        return ""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    head = [key.replace("_", " ") for key in keys]
    body = [[result_cell(key, row.get(key)) for key in keys] for row in rows]
    return table(f"{len(rows)} results", head, body)


def result_cell(key: str, value: Any) -> Cell:
    """A value as people read it: `_s` are seconds, `bytes` bytes; the exact one is its title."""
    if value is None:
        return Cell("–")
    if isinstance(value, bool):
        return Cell("yes" if value else "no", float(value))
    if isinstance(value, int | float):
        forms = ((("_s", "seconds"), time), (("bytes",), bytes_text), (("flops",), count_text))
        form = next((f for ends, f in forms if key.lower().endswith(ends)), plain_number)
        return number(form(value), float(value), f"{value!r}")
    return Cell(value if isinstance(value, str) else json.dumps(value, default=str))


def plain_number(value: float) -> str:
    """Whole numbers with marks between thousands, others with four figures."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def verification_text(found: Mapping[str, Any] | None) -> str:
    """What `plancc verify` found."""
    if found is None:
        return ""
    word = "Every rank's results are those of one device" if found["ok"] else "Results differ"
    rows = [
        [
            row["phase"], row["guard"] or "always", "ok" if row["ok"] else "WRONG",
            number(f"{row['max_rel_error']:.1e}", row["max_rel_error"]),
            number(f"{row['max_abs_error']:.1e}", row["max_abs_error"]),
            number(*grad_error(row)),
            ", ".join(f"{n} {kind}" for kind, n in row["collectives"].items()) or "none",
            number(bytes_text(sum(row["bytes"].values())), sum(row["bytes"].values())),
            row["message"],
        ]
        for row in found["variants"]
    ]  # fmt: skip
    head = ["phase", "variant", "", "relative error", "absolute error", "of gradients",
            "communication", "bytes", ""]  # fmt: skip
    shrunk = ", ".join(f"{name} {size}" for name, size in found["shrunk"].items())
    text = f'<p class="verdict {"good" if found["ok"] else "bad"}">{word}.</p><p>{found["ranks"]} ranks, '
    text += f"{found['classes']} programs, in {escape(found['reference_dtype'])}"
    text += f"; dims shrunk to {escape(shrunk)}" if shrunk else ""
    text += ".</p>" + table("Phases and variants against one device", head, rows)
    first = found.get("first_divergence")
    if first is not None:
        text += "<h3>The first value that differs</h3>" + table(
            "First divergence",
            ["what", ""],
            [[str(k), str(v)] for k, v in first.items()],
            sortable=False,
        )
    return text


def grad_error(row: Mapping[str, Any]) -> tuple[str, float | None]:
    """The error of gradients, where there are any."""
    found = row.get("max_grad_error")
    return ("–", None) if found is None else (f"{found:.1e}", found)


def assumptions_text(sentences: Sequence[str]) -> str:
    """What the numbers rest on."""
    return (
        f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in sentences)}</ul>" if sentences else ""
    )
