"""The sections of a page that tables of timelines fill: figures, waits, time by rank, memory, traffic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from plancc.show.facts import (
    Peak,
    by_actor,
    by_family,
    by_title,
    longest_waits,
    mean_by_kind,
    peaks,
    time_by_kind,
    totals,
    traffic_by_mesh,
    who_waits,
)
from plancc.show.html import Cell, bar, escape, folded, number, swatch, table
from plancc.show.kinds import COMMUNICATION, COMPUTE, IDLE, KINDS, WAIT, kind_of
from plancc.show.units import bytes_text, count_text, share_text, time_text
from plancc.simulator.forms import Actor, Span, Timeline

FAMILIES = {
    COMPUTE: "computing", COMMUNICATION: "exposed communication", WAIT: "waiting", IDLE: "idle",
}  # fmt: skip
TYPICAL = {COMPUTE: "matmul", COMMUNICATION: "all_reduce", WAIT: "wait", IDLE: IDLE}
"""The kind whose colour a family has."""
MOST_ACTORS, MOST_FLOWS, FEW_PEAKS = 512, 20, 16

Sums = Mapping[str, float]
Line = tuple[float, float, Callable[[float], str]]
"""A number predicted and measured, and how it is written."""


def how(timeline: Timeline) -> str:
    """Where it comes from."""
    return "predicted" if timeline.predicted else "measured"


def by_step(timelines: Sequence[Timeline]) -> Iterator[tuple[str, list[Timeline]]]:
    """The timelines of each title under a heading, which is empty if there is one title only."""
    found = by_title(timelines)
    for title, same in found.items():
        yield (f"<h3>{escape(title)}</h3>" if len(found) > 1 else ""), same


def figures_text(timelines: Sequence[Timeline]) -> str:
    """The steps in numbers, predicted and measured beside each other."""
    if not timelines:
        return ""
    found = {
        title: [(timeline, totals(timeline)) for timeline in same]
        for title, same in by_title(timelines).items()
    }
    cards = "".join(card(title, same) for title, same in found.items())
    compared = "".join(comparison(title, same) for title, same in found.items())
    everything = figures_table([pair for same in found.values() for pair in same])
    return f'<div class="cards">{cards}</div>{everything}{compared}'


def card(title: str, same: Sequence[tuple[Timeline, Sums]]) -> str:
    """The step time of one title, large, and its shares."""
    out = [f'<div class="card"><span class="of">{escape(title)}</span>']
    for at, (timeline, sums) in enumerate(same):
        ratio = f'<span class="ratio">{against(sums, same[0][1])}</span>' if at else ""
        out.append(
            f'<div class="big"><b>{time_text(sums["seconds"])}</b> '
            f'<span class="tag {how(timeline)}">{how(timeline)}</span>{ratio}</div>'
        )
        out.append(family_bar(sums))
    return "".join([*out, "</div>"])


def against(sums: Sums, first: Sums) -> str:
    """How much longer or shorter than the first one."""
    if not first["seconds"]:
        return ""
    times = sums["seconds"] / first["seconds"]
    if times >= 2:
        return f"{times:.3g} times as long as predicted"
    return f"{share_text(abs(times - 1))} {'longer' if times >= 1 else 'shorter'} than predicted"


def family_bar(sums: Sums) -> str:
    """A bar of shares by family, and what its parts are."""
    whole = sum(sums[family] for family in FAMILIES) or 1.0
    shares = {family: share_text(sums[family] / whole) for family in FAMILIES}
    words = ", ".join(f"{FAMILIES[family]} {share}" for family, share in shares.items())
    keys = "".join(
        f"<li>{swatch(TYPICAL[family])} {FAMILIES[family]} <b>{share}</b></li>"
        for family, share in shares.items()
    )
    times = {TYPICAL[family]: sums[family] for family in FAMILIES}
    return f'{bar(times, words)}<ul class="keys">{keys}</ul>'


def figures_table(found: Sequence[tuple[Timeline, Sums]]) -> str:
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
    rows: list[list[Cell | str]] = []
    for timeline, sums in found:
        peak = bytes_text(sums["memory"]) if sums["memory"] else "–"
        flops = count_text(sums["flops"]) if sums["flops"] else "–"
        rows.append(
            [
                timeline.title, how(timeline), number(time_text(sums["seconds"]), sums["seconds"]),
                number(f"{sums['ranks']:.0f}", sums["ranks"]),
                *(number(time_text(sums[family]), sums[family]) for family in FAMILIES),
                number(bytes_text(sums["sent"]), sums["sent"]),
                number(flops, sums["flops"]), number(peak, sums["memory"]),
            ]
        )  # fmt: skip
    return table("Steps in numbers: times are means over the ranks", head, rows)


def comparison(title: str, same: Sequence[tuple[Timeline, Sums]]) -> str:
    """The first predicted and the first measured timeline of a title beside each other, kind by kind."""
    predicted = next((pair for pair in same if pair[0].predicted), None)
    measured = next((pair for pair in same if not pair[0].predicted), None)
    if predicted is None or measured is None:
        return ""
    lines: dict[str, Line] = {
        "step": (predicted[1]["seconds"], measured[1]["seconds"], time_text),
        **kind_lines(predicted[0], measured[0]),
        "sent by all": (predicted[1]["sent"], measured[1]["sent"], bytes_text),
        "peak memory": (predicted[1]["memory"], measured[1]["memory"], bytes_text),
    }
    rows: list[list[Cell | str]] = [
        [
            name, number(form(first) if first else "–", first), number(form(other) if other else "–", other),
            number(f"{other / first:.2f} x" if first and other else "–", other / first if first else None),
        ]
        for name, (first, other, form) in lines.items()
    ]  # fmt: skip
    head = ["", "predicted", "measured", "measured / predicted"]
    caption = f"{title}: predicted beside measured; times of kinds are means over the ranks"
    return table(caption, head, rows, sortable=False)


def kind_lines(first: Timeline, other: Timeline) -> dict[str, Line]:
    """Mean seconds of a rank in both: by family, and by those kinds of work that both have."""
    found = [mean_by_kind(timeline) for timeline in (first, other)]
    families = [by_family(times) for times in found]
    both = [kind for kind in KINDS if all(kind in times for times in found)]
    return {
        **{name: (families[0][f], families[1][f], time_text) for f, name in FAMILIES.items()},
        **{
            kind_of(kind).label: (found[0][kind], found[1][kind], time_text)
            for kind in both
            if kind_of(kind).family != WAIT
        },
    }


def waits_text(timelines: Sequence[Timeline]) -> str:
    """Who waited for whom, the worst first."""
    out = []
    for heading, same in by_step(timelines):
        rows: list[list[Cell | str]] = [
            [
                Cell(
                    who_waits(timeline, wait),
                    title=", ".join(timeline.actors[actor].name for actor in wait.actors[:64]),
                ),
                how(timeline),
                wait.name, number(time_text(wait.seconds), wait.seconds),
                number(str(wait.count), wait.count), code(wait.path), code(wait.line),
            ]
            for timeline in same
            for wait in longest_waits(timeline, 12)
        ]  # fmt: skip
        if rows:
            head = ["who", "", "waits", "each, in all", "times", "module", "plan"]
            out.append(
                heading + table("The waits that cost most; those of all layers are one", head, rows)
            )
    return "".join(out)


def code(text: str) -> Cell:
    """A cell of names of the program or the plan."""
    return Cell(text, html=f"<code>{escape(text)}</code>")


def time_by_rank_text(timelines: Sequence[Timeline]) -> str:
    """A bar for each actor; predicted and measured of one actor stand beside each other."""
    out = []
    for heading, same in by_step(timelines):
        found = [
            (number, timeline, actor, spans)
            for timeline in same
            for number, (actor, spans) in enumerate(
                zip(timeline.actors, by_actor(timeline), strict=True)
            )
        ]
        found.sort(key=lambda row: (min(row[2].ranks, default=0), not row[1].predicted))
        more = len(found) - MOST_ACTORS
        note = f"<p>{more} further rows are left out.</p>" if more > 0 else ""
        rows = [actor_row(*row[1:]) for row in found[:MOST_ACTORS]]
        if rows:
            head = ["rank", "", "", *FAMILIES.values()]
            out.append(heading + note + table("What each rank spends the step with", head, rows))
    return "".join(out)


def actor_row(timeline: Timeline, actor: Actor, spans: Sequence[Span]) -> list[Cell | str]:
    """The row of one actor."""
    times = time_by_kind(spans, timeline.seconds)
    words = ", ".join(
        f"{kind_of(kind).label} {time_text(seconds)}"
        for kind, seconds in sorted(times.items(), key=lambda pair: -pair[1])
    )
    found = by_family(times)
    return [
        actor.name, how(timeline), Cell("", html=bar(times, words), title=words),
        *(number(time_text(found[family]), found[family]) for family in FAMILIES),
    ]  # fmt: skip


def memory_text(timelines: Sequence[Timeline], budgets: Mapping[str, int]) -> str:
    """The frame of the memory chart, and the peaks."""
    out = []
    for heading, same in by_step(timelines):
        rows = [
            peak_row(peak, how(timeline)) for timeline in same for peak in peaks(timeline, budgets)
        ]
        if rows:
            head = ["rank", "", "peak", "at", "budget", "of the budget", ""]
            text = table("Peaks of memory", head, rows)
            out.append(heading + folded("Peaks of all ranks", text, len(rows) <= FEW_PEAKS))
    return '<div id="memory-view"></div>' + "".join(out) if out else ""


def peak_row(peak: Peak, of: str) -> list[Cell | str]:
    """The row of one peak."""
    share = peak.bytes / peak.budget if peak.budget else None
    over = peak.budget is not None and peak.bytes > peak.budget
    return [
        peak.actor.name, of, number(bytes_text(peak.bytes), peak.bytes), number(time_text(peak.at), peak.at),
        number("–" if peak.budget is None else bytes_text(peak.budget), peak.budget),
        number("–" if share is None else share_text(share), share), "over budget" if over else "",
    ]  # fmt: skip


def traffic_text(timelines: Sequence[Timeline]) -> str:
    """The frame of the heat map, bytes between meshes, and the largest flows."""
    out = []
    for heading, same in by_step(timelines):
        meshes: list[list[Cell | str]] = [
            [source or "–", target or "–", number(bytes_text(size), size), how(timeline)]
            for timeline in same
            for (source, target), size in sorted(
                traffic_by_mesh(timeline).items(), key=lambda pair: -pair[1]
            )
        ]
        flows: list[list[Cell | str]] = [
            [number(str(start), start), number(str(end), end), number(bytes_text(size), size), how(timeline)]
            for timeline in same
            for (start, end), size in sorted(timeline.traffic.items(), key=lambda pair: -pair[1])[
                :MOST_FLOWS
            ]
        ]  # fmt: skip
        if flows:
            text = table("Bytes of a step between meshes", ["from", "to", "bytes", ""], meshes)
            largest = table("Flows", ["from rank", "to rank", "bytes", ""], flows)
            out.append(
                heading + text + folded("The largest flows between two ranks", largest, False)
            )
    tables = "".join(out)
    return (
        f'<div class="beside"><div id="traffic-view"></div><div>{tables}</div></div>' if out else ""
    )
