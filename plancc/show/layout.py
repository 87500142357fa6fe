"""The layout of a plan in a page: which rank stands where in a mesh, and which modules live on it.

The facts are those of `plancc.explain.explain`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

from plancc.show.html import Cell, escape, number, table
from plancc.show.units import bytes_text, share_text

MOST_CELLS, TINTS = 1024, 6


def layout_text(facts: Mapping[str, Any]) -> str:
    """Meshes as grids of ranks, then what lives on them, phase by phase."""
    stages = stages_of(facts)
    meshes = "".join(mesh_text(mesh, stages) for mesh in facts["meshes"])
    out = [
        f"<p>{facts['ranks']} ranks.</p>",
        f'<div class="meshes">{meshes}</div>',
        stage_keys(stages),
    ]
    if len(facts["variants"]) > 1:
        rows = [[str(v["index"]), v["guard"], v["phase"] or "all"] for v in facts["variants"]]
        out.append(table("Variants", ["variant", "when", "phase"], rows))
    if facts.get("schedule"):
        out.append(schedule_text(facts["schedule"]))
    seen: dict[str, str] = {}
    lives: dict[str, str] = {}
    for phase in facts["phases"]:
        title = f"{phase['phase']}, variant {phase['variant']}"
        key = json.dumps(phase["lives"])
        body = phase_text(phase, lives.get(key, ""))
        lives.setdefault(key, title)
        key = json.dumps(
            {k: v for k, v in phase.items() if k not in ("phase", "variant")}, default=str
        )
        if key in seen:
            out.append(f"<h3>{escape(title)}</h3><p>As {escape(seen[key])}.</p>")
            continue
        seen[key] = title
        out.append(f"<h3>{escape(title)}</h3>{body}")
    if facts["notes"]:
        notes = "".join(f"<li>{escape(note)}</li>" for note in facts["notes"])
        out.append(f"<h3>Notes</h3><ul>{notes}</ul>")
    return "\n".join(out)


@dataclass(frozen=True, slots=True)
class Place:
    """Where modules live: a mesh, or the part of it with these coordinates. `mark` stands for it."""

    name: str
    mesh: str
    coords: Mapping[str, int]
    mark: str


def stages_of(facts: Mapping[str, Any]) -> list[Place]:
    """The places of all phases that are part of a mesh; () if nothing is placed on parts."""
    names = dict.fromkeys(row["on"] for phase in facts["phases"] for row in phase["lives"])
    found: list[Place] = []
    for name in names:
        parts = re.fullmatch(r"([^\[]+)\[(.+)\]", name)
        if parts is not None:
            coords = dict(re.findall(r"(\w+)=(\d+)", parts[2]))
            mark = chr(ord("A") + len(found)) if len(found) < 26 else str(len(found) + 1)
            found.append(Place(name, parts[1], {k: int(v) for k, v in coords.items()}, mark))
    return found


def stage_keys(stages: Sequence[Place]) -> str:
    """What the marks in the grids mean."""
    items = "".join(
        f'<li><span class="mark s{at % TINTS}">{escape(place.mark)}</span> {escape(place.name)}</li>'
        for at, place in enumerate(stages)
    )
    return f'<ul class="keys">{items}</ul>' if items else ""


def mesh_text(mesh: Mapping[str, Any], stages: Sequence[Place]) -> str:
    """A grid of ranks: the last axis lies, all others stand. Marks tell which part of the plan is there."""
    axes: list[tuple[str, int]] = list(mesh["axes"].items())
    ranks, wide = mesh["ranks"], axes[-1][1] if axes else 1
    standing = axes[:-1]
    shown = max(1, MOST_CELLS // max(wide, 1))
    tops = (
        "".join(f'<th scope="col">{escape(axes[-1][0])} {n}</th>' for n in range(wide))
        if axes
        else ""
    )
    rows = []
    for at, place in enumerate(product(*(range(size) for _, size in standing))):
        if at == shown:
            left = prod(size for _, size in standing) - shown
            rows.append(f'<tr><th scope="row">{left} more rows</th></tr>')
            break
        coords = dict(zip((axis for axis, _ in standing), place, strict=True))
        name = ", ".join(f"{axis} {n}" for axis, n in coords.items())
        cells = "".join(
            rank_cell(rank, mesh["name"], coords | ({axes[-1][0]: n} if axes else {}), stages)
            for n, rank in enumerate(ranks[at * wide : (at + 1) * wide])
        )
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    sizes = ", ".join(f"{axis} {size}" for axis, size in axes)
    caption = f"<b>{escape(mesh['name'])}</b> {escape(sizes)}"
    return (
        f'<div class="wide mesh" tabindex="0" role="region" aria-label="mesh {escape(mesh["name"])}"><table>'
        f"<caption>{caption}</caption><thead><tr><td></td>{tops}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def rank_cell(rank: int, mesh: str, coords: Mapping[str, int], stages: Sequence[Place]) -> str:
    """A rank with the mark of the first place that it belongs to."""
    for at, place in enumerate(stages):
        if place.mesh == mesh and all(coords.get(axis) == n for axis, n in place.coords.items()):
            return (
                f'<td class="s{at % TINTS}" title="{escape(place.name)}">{rank}'
                f"<sub>{escape(place.mark)}</sub></td>"
            )
    return f"<td>{rank}</td>"


def schedule_text(schedule: Mapping[str, Any]) -> str:
    """The pipeline's schedule in words, its rows to open."""
    rows = "\n".join(" ".join(row) for row in schedule["rows"])
    words = (
        f"{schedule['name']}: {schedule['stages']} stages, {schedule['microbatches']} micro-batches"
        f"{f', {n} virtual stages' if (n := schedule['virtual']) > 1 else ''}, "
        f"bubbles {share_text(schedule['bubbles'])} if forwards and backwards cost the same everywhere."
    )
    return (
        f"<h3>Schedule</h3><p>{escape(words)}</p><details><summary>The order on every rank</summary>"
        f'<pre class="wide" tabindex="0">{escape(rows)}</pre></details>'
    )


def phase_text(phase: Mapping[str, Any], same: str) -> str:
    """Modules, moves and memory of one phase; `same` is an earlier one with modules in the same places."""
    lives = [
        [row["on"], row["split"], Cell("", html=modules_text(row["modules"]), long=True)]
        for row in phase["lives"]
    ]
    given = phase["input"]
    moves = [
        [
            Cell(row["where"], html=f"<code>{escape(row['where'])}</code>"), row["kind"], row["axes"],
            number(f"{row['count']:,}", row["count"]), number(bytes_text(row["bytes"]), row["bytes"]),
        ]
        for row in phase["traffic"]
    ]  # fmt: skip
    keys = [k for k in phase["memory"][0] if k not in ("class", "ranks")] if phase["memory"] else []
    memory = [
        [
            row["class"],
            number(str(row["ranks"]), row["ranks"]),
            *(held(key, row[key]) for key in keys),
        ]
        for row in phase["memory"]
    ]
    sizes = f"batch {given['batch']}, seq_len {given['seq_len']}"
    return "".join(
        [
            f"<p>Modules live as in {escape(same)}.</p>" if same
            else table("Where modules live", ["on", "split", "modules"], lives),
            table(f"Moves of one step ({sizes})", ["module", "move", "over", "times", "each"], moves)
            if moves else "",
            table("Memory of the fullest rank", ["class", "ranks", *keys], memory) if memory else "",
        ]
    )  # fmt: skip


def held(key: str, size: int) -> Cell:
    """A number of bytes, or of micro-batches."""
    return number(str(size) if key == "microbatches" else bytes_text(size), size)


def modules_text(modules: list[str]) -> str:
    """Paths, those beyond the first few to open."""
    texts = [f"<code>{escape(path)}</code>" for path in modules]
    if len(texts) <= 8:
        return " ".join(texts)
    return (
        f"{' '.join(texts[:6])} <details class='more'><summary>and {len(texts) - 6} more</summary>"
        f"{' '.join(texts[6:])}</details>"
    )
