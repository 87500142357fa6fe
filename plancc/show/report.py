"""One HTML file about a plan: layout, timelines, memory, traffic, results. It needs no network.

All texts of users are escaped, and the page's own policy lets no script run but the one of this package.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from plancc.show.files import write_whole
from plancc.show.html import PATTERNS, escape
from plancc.show.kinds import KINDS, UNSEEN
from plancc.show.pack import data_text, packed
from plancc.show.sections import sections
from plancc.simulator.forms import Timeline

STYLES = ("page.css", "timeline.css")
SCRIPTS = (
    "units.js", "theme.js", "view.js", "lanes.js", "overview.js", "timeline.js", "details.js", "pointer.js",
    "memory.js", "traffic.js", "tables.js", "main.js",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Report:
    """What a page shows; parts that are empty have no section.

    `timelines` of one title are shown on one time axis (predicted and measured). `rows` are results, a
    mapping each. `layout` is what `plancc.explain.explain` gives, `assumptions` are sentences,
    `verification` is `VerifyResult.json()`, `budgets` are bytes of a rank by mesh.
    """

    title: str
    timelines: Sequence[Timeline] = ()
    rows: Sequence[Mapping[str, Any]] = ()
    layout: Mapping[str, Any] | None = None
    assumptions: Sequence[str] = ()
    verification: Mapping[str, Any] | None = None
    budgets: Mapping[str, int] = field(default_factory=dict)


def write_report(path: str | Path, report: Report) -> None:
    """Write the page; it appears whole or not at all. WriteError if it cannot be written."""
    write_whole(path, [report_text(report)])


def report_text(report: Report) -> str:
    """The page. The same report gives the same text."""
    style = "\n".join([*(page_file(name) for name in STYLES), colours()])
    script = "\n".join(page_file(name) for name in SCRIPTS)
    script = f'"use strict";\n(() => {{\n{script}\n}})();\n'
    found = sections(report)
    links = "\n".join(f'<a href="#{one.name}">{escape(one.title)}</a>' for one in found)
    parts = {
        "title": escape(report.title),
        "policy": f"default-src 'none'; img-src data:; style-src '{digest(style)}'; "
        f"script-src '{digest(script)}'; base-uri 'none'; form-action 'none'",
        "style": style, "script": script, "links": links, "patterns": PATTERNS,
        "sections": "\n".join(one.text for one in found),
        "data": data_text(packed(report.timelines, report.budgets)),
    }  # fmt: skip
    pieces = page_file("page.html").split("@@")
    return "".join(parts[piece] if number % 2 else piece for number, piece in enumerate(pieces))


@cache
def page_file(name: str) -> str:
    """The text of a file of the page."""
    return (files("plancc.show") / "page" / name).read_text("utf-8")


def digest(text: str) -> str:
    """A script or style as a content security policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def colours() -> str:
    """The colours of kinds as CSS variables and a class for each."""
    kinds = [*KINDS.values(), UNSEEN]
    both = " ".join(f"--k-{kind.name}: light-dark({kind.light}, {kind.dark});" for kind in kinds)
    return "\n".join(
        [
            f":root {{ {both} }}",
            *(f".k-{kind.name} {{ fill: var(--k-{kind.name}); }}" for kind in kinds),
        ]
    )  # fmt: skip
