"""Diagnostics as text in rustc's style, as JSON, and as GitHub annotations."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from plancc.dsl.diagnostics import Diagnostic
from plancc.dsl.source import Source, Span

_TAB = "    "
_WIDEST = 150
_RED, _YELLOW, _BLUE = "\033[1;31m", "\033[1;33m", "\033[1;34m"
_BOLD, _PLAIN = "\033[1m", "\033[0m"


def render_text(diagnostics: Iterable[Diagnostic], color: bool = False) -> str:
    """Each diagnostic with its lines of the file; a blank line follows each."""
    return "".join(_text(found, color) + "\n" for found in diagnostics)


def render_json(diagnostics: Iterable[Diagnostic]) -> str:
    """A JSON list of {code, level, message, span, labels, notes, helps, fix}."""
    return json.dumps([_record(found) for found in diagnostics], indent=2) + "\n"


def render_github(diagnostics: Iterable[Diagnostic]) -> str:
    """One workflow command (`::error file=...`) a diagnostic."""
    lines = []
    for found in diagnostics:
        where = ""
        if found.span is not None:
            span = found.span
            end = max(span.end_column - 1, span.column)
            columns = f",col={span.column},endColumn={end}" if span.line == span.end_line else ""
            where = f"file={_escape(span.source.name, True)},line={span.line}"
            where += f",endLine={span.end_line}{columns},"
        extra = [found.label, *found.notes, *(f"help: {text}" for text in found.helps)]
        body = _escape("\n".join([found.message, *(text for text in extra if text)]), False)
        lines.append(f"::{found.level} {where}title={found.code}::{body}\n")
    return "".join(lines)


def _text(found: Diagnostic, color: bool) -> str:
    paint = _paint if color else _no_paint
    tone = _RED if found.level == "error" else _YELLOW
    head = paint(f"{found.level}[{found.code}]", tone) + paint(f": {clean(found.message)}", _BOLD)
    marks = _marks(found)
    files: dict[str, tuple[Source, dict[int, list[_Mark]]]] = {}
    for span, text, main in marks:
        rows = files.setdefault(span.source.name, (span.source, {}))[1]
        rows.setdefault(span.line, []).append((span, text, main))
    width = max((len(str(span.line)) for span, _, _ in marks), default=1)
    out = [head]
    for number, (source, rows) in enumerate(files.values()):
        out += _excerpt(source, rows, number == 0, width, found, paint, tone)
    bar = " " * width + " " + paint("=", _BLUE)
    out += [f"{bar} {paint('note', _BOLD)}: {clean(text)}" for text in found.notes]
    out += [f"{bar} {paint('help', _BOLD)}: {clean(text)}" for text in found.helps]
    return "\n".join(out) + "\n"


_Mark = tuple[Span, str, bool]


def _marks(found: Diagnostic) -> list[_Mark]:
    if found.span is None:
        return []
    seconds = [(label.span, label.text, False) for label in found.labels]
    return [(found.span, found.label, True), *seconds]


def _excerpt(
    source: Source, rows: dict[int, list[_Mark]], first: bool, width: int,
    found: Diagnostic, paint: Any, tone: str,
) -> list[str]:  # fmt: skip
    """The marked lines of one file."""
    lead = found.span if first else min(rows[min(rows)], key=lambda mark: mark[0].column)[0]
    assert lead is not None
    arrow = "-->" if first else ":::"
    bar = " " * width + " " + paint("|", _BLUE)
    place = f"{clean(source.name)}:{lead.line}:{lead.column}"
    out = [f"{' ' * width}{paint(arrow, _BLUE)} {place}", bar]
    previous = None
    for number in sorted(rows):
        if previous is not None and number > previous + 1:
            out.append("...")
        previous = number
        line = source.line(number)
        shift = _shift(line, rows[number])
        shown = "..." * bool(shift) + line[shift : shift + _WIDEST]
        shown += "..." * (len(line) > shift + _WIDEST)
        gutter = paint(f"{number:>{width}} |", _BLUE)
        out.append(f"{gutter} {clean(shown)}".rstrip())
        for span, text, main in sorted(rows[number], key=lambda mark: -mark[0].column):
            pad, size = _columns(line, span, shift)
            mark = ("^" if main else "-") * size + (f" {clean(text)}" if text else "")
            out.append(f"{bar} {' ' * pad}{paint(mark, tone if main else _BLUE)}")
    return [*out, bar]


def _shift(line: str, marks: list[_Mark]) -> int:
    """How many characters of a very long line to leave out before the first mark."""
    first = min(span.column for span, _, _ in marks) - 1
    return max(0, first - _WIDEST // 3) if len(line) > _WIDEST else 0


def _columns(line: str, span: Span, shift: int) -> tuple[int, int]:
    """How far to indent a mark and how long it is, in terminal cells."""
    end = span.end_column - 1 if span.end_line == span.line else len(line)
    start, stop = span.column - 1, min(end, shift + _WIDEST)
    pad = 3 * bool(shift) + _cells(line[shift : min(start, shift + _WIDEST)])
    return pad, max(_cells(line[start:stop]), 1)


def clean(text: str) -> str:
    """The text without tabs and control characters."""
    return "".join(_TAB if c == "\t" else c if c.isprintable() else "\ufffd" for c in text)


def _cells(text: str) -> int:
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in clean(text)
    )


def _paint(text: str, tone: str) -> str:
    return f"{tone}{text}{_PLAIN}"


def _no_paint(text: str, tone: str) -> str:
    return text


def _record(found: Diagnostic) -> dict[str, Any]:
    labels: Sequence[dict[str, Any]] = [
        {"span": _place(label.span), "text": label.text} for label in found.labels
    ]
    return {
        "code": found.code,
        "level": found.level,
        "message": found.message,
        "span": _place(found.span),
        "label": found.label,
        "labels": labels,
        "notes": list(found.notes),
        "helps": list(found.helps),
        "fix": found.fix,
    }


def _place(span: Span | None) -> dict[str, Any] | None:
    if span is None:
        return None
    return {
        "file": span.source.name,
        "line": span.line,
        "column": span.column,
        "end": {"line": span.end_line, "column": span.end_column},
    }


def _escape(text: str, is_property: bool) -> str:
    for char in "%\r\n" + (":," if is_property else ""):
        text = text.replace(char, f"%{ord(char):02X}")
    return text
