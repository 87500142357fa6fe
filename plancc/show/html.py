"""Small pieces of HTML. Every text that comes in is escaped here, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape as _escape
from itertools import count

from plancc.show.kinds import COMMUNICATION, IDLE, KINDS, WAIT, kind_of

HIGH, LONG = 16, 48
"""Tables with more rows scroll by themselves; texts with more letters may be broken into lines."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table: its text (or `html`, which is already safe), and what it is sorted by."""

    text: str
    value: float | None = None
    html: str = ""
    right: bool = False
    title: str = ""
    long: bool = False


def escape(text: object) -> str:
    """Text that can stand in HTML and in quoted attributes."""
    return _escape(str(text), quote=True)


def number(text: str, value: float | None, title: str = "") -> Cell:
    """A cell of a number, sorted by `value`."""
    return Cell(text, value, right=True, title=title)


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[Cell | str]], *, sortable: bool = True
) -> str:  # fmt: skip
    """A table that scrolls sideways by itself where it is too wide; the first cell of a row heads it."""
    body = []
    right: set[int] = set()
    for row in rows:
        cells = [cell if isinstance(cell, Cell) else Cell(cell) for cell in row]
        right |= {at for at, cell in enumerate(cells) if cell.right}
        body.append(f"<tr>{''.join(_cell(cell, not at) for at, cell in enumerate(cells))}</tr>")
    tops = "".join(
        f'<th scope="col"{" class=right" if at in right else ""}>{escape(text)}</th>'
        for at, text in enumerate(head)
    )
    kind = ' class="sortable"' if sortable and len(body) > 1 else ""
    high = " high" if len(body) > HIGH else ""
    return (
        f'<div class="wide{high}" tabindex="0" role="region" aria-label="{escape(caption)}"><table{kind}>'
        f"<caption>{escape(caption)}</caption><thead><tr>{tops}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _cell(cell: Cell, first: bool) -> str:
    words = ["right"] * cell.right + ["long"] * (cell.long or len(cell.text) > LONG)
    facts = f' class="{" ".join(words)}"' if words else ""
    if cell.value is not None:
        facts += f' data-value="{cell.value!r}"'
    if cell.title:
        facts += f' title="{escape(cell.title)}"'
    inside = cell.html or escape(cell.text)
    return f'<th scope="row"{facts}>{inside}</th>' if first else f"<td{facts}>{inside}</td>"


PATTERNS = f"""<svg class="patterns" aria-hidden="true" width="0" height="0"><defs>
<pattern id="p-{COMMUNICATION}" width="6" height="6" patternUnits="userSpaceOnUse"
 patternTransform="rotate(45)"><rect width="2" height="6" class="stripe"/></pattern>
<pattern id="p-{WAIT}" width="5" height="5" patternUnits="userSpaceOnUse"
 patternTransform="rotate(-45)"><rect width="1.2" height="5" class="hatch"/></pattern>
</defs></svg>"""
"""The patterns of families, once in a page."""


def bar(times: Mapping[str, float], label: str) -> str:
    """Shares of time as one bar of colours and patterns; `label` says the same in words."""
    whole = sum(times.values()) or 1.0
    order = {name: at for name, at in zip([*KINDS, IDLE], count())}
    left, rects = 0.0, []
    for kind in sorted(times, key=order.__getitem__):
        width = 100 * times[kind] / whole
        rects.append(_rect(left, width, f'class="k-{kind}"'))
        family = kind_of(kind).family
        if family in (COMMUNICATION, WAIT):
            rects.append(_rect(left, width, f'fill="url(#p-{family})"'))
        left += width
    return f'<svg class="bar" role="img" aria-label="{escape(label)}">{"".join(rects)}</svg>'


def _rect(left: float, width: float, how: str) -> str:
    return f'<rect x="{left:.3f}%" y="0" width="{width:.3f}%" height="100%" {how}/>'


def folded(title: str, text: str, opened: bool) -> str:
    """A part that can be opened."""
    return f"<details{' open' if opened else ''}><summary>{escape(title)}</summary>{text}</details>"


def swatch(kind: str) -> str:
    """A small field of a kind's colour and pattern,"""
    found = kind_of(kind)
    rects = _rect(0, 100, f'class="k-{found.name}"')
    if found.family in (COMMUNICATION, WAIT):
        rects += _rect(0, 100, f'fill="url(#p-{found.family})"')
    return f'<svg class="swatch" aria-hidden="true">{rects}</svg>'
