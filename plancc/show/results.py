"""Result rows, what verification found, and assumptions, in a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from plancc.show.html import Cell, escape, number, table
from plancc.show.units import bytes_text, count_text, time_text


def plain_number(value: float) -> str:
    """Whole numbers and large ones with marks between thousands, others with four figures."""
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1e4 else f"{value:.4g}"


FORMS = {
    ("per_s",): plain_number, ("_s", "seconds"): time_text, ("bytes",): bytes_text,
    ("flops",): count_text,
}  # fmt: skip
"""Ends of keys -> how their numbers are written; the first that fits."""


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
        form = next((f for ends, f in FORMS.items() if key.lower().endswith(ends)), plain_number)
        return number(form(value), float(value), f"{value!r}")
    return Cell(value if isinstance(value, str) else json.dumps(value, default=str))


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
