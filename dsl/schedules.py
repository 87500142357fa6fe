"""Pipeline schedules as a plan states them: a word or a table, and what fits to virtual stages.

A table has one text a pipeline rank, words `F3`, `B3`, `I3`, `W3`, with virtual stages `F3.1`. Here its words
are checked; whether it runs to its end is checked by a pass, which knows what the actions mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from plancc.dsl import tree as t
from plancc.dsl.diagnostics import Report
from plancc.dsl.expressions import value_of
from plancc.dsl.plan import Setting
from plancc.dsl.scope import Env
from plancc.dsl.source import Span

_STEP = re.compile(r"([FBIW])([0-9]{1,9})(?:\.([0-9]{1,9}))?")
_WORD = re.compile(r"\S+")
FIXED = ("schedule", "microbatches", "virtual")
WITH_VIRTUAL = ("interleaved", "zero_bubble", "table")


@dataclass(frozen=True, slots=True)
class Step:
    """One word of a table; `virtual` is None where the word does not say it."""

    kind: str
    batch: int
    virtual: int | None


@dataclass(frozen=True, slots=True)
class Stated:
    """What a pipeline line says of its schedule."""

    schedule: str
    microbatches: int
    virtual: int
    table: tuple[str, ...] = ()
    rows: tuple[Span, ...] = ()


def read_step(word: str) -> Step | None:
    """One word of a table; None if it is no action."""
    match = _STEP.fullmatch(word)
    if match is None:
        return None
    return Step(match[1], int(match[2]), None if match[3] is None else int(match[3]))


def word_spans(row: Span, text: str) -> Iterator[tuple[str, Span]]:
    """The words of one row of a table, with where each stands (all of `row` if it is no plain text)."""
    plain = row.line == row.end_line and row.end_column - row.column == len(text) + 2
    for match in _WORD.finditer(text):
        begin, end = row.column + 1 + match.start(), row.column + 1 + match.end()
        yield match[0], Span(row.source, row.line, begin, row.line, end) if plain else row


def check_fixed(node: t.PipelineLine, settings: Sequence[Setting], report: Report) -> None:
    """P401: what decides the programs of all variants alike cannot depend on inputs."""
    guards = {attr.span: attr.guard.span for attr in node.attrs if attr.guard is not None}
    for setting in settings:
        if setting.guard is not None and setting.name in FIXED:
            report.error(
                "P401", f"`{setting.name}` cannot depend on a guard", guards[setting.span],
                label="a pipeline has one schedule for all inputs",
            )  # fmt: skip


def read_schedule(
    node: t.PipelineLine, settings: Sequence[Setting], stages: int, env: Env
) -> Stated | None:
    """What a pipeline of `stages` stages runs; None for a wrong table (P508 reported).

    Virtual stages that do not fit are reported as P509.
    """
    report = env.world.report
    check_fixed(node, settings, report)
    known = {s.name: s.value for s in settings if s.guard is None}
    value, virtual = known.get("schedule", "GPipe"), int(known.get("virtual", 1))
    name = value if isinstance(value, str) else "table"
    if all(attr.name.text in known for attr in node.attrs if attr.name.text in FIXED):
        check_virtual(node, name, virtual, stages, env)
    if isinstance(value, str):
        return Stated(value, int(known.get("microbatches", stages)), virtual)
    rows = row_spans(node, value)
    if not check_words(node, value, rows, stages, virtual, report):
        return None
    steps = [read_step(word) for text in value for word in text.split()]
    counted = 1 + max((step.batch for step in steps if step is not None), default=0)
    return Stated(name, int(known.get("microbatches", counted)), virtual, value, rows)


def row_spans(node: t.PipelineLine, table: tuple[str, ...]) -> tuple[Span, ...]:
    """Where each row of a table stands."""
    term = next(attr.value for attr in node.attrs if attr.name.text == "schedule")
    if term.kind == "list" and len(term.args) == len(table):
        return tuple(item.span for item in term.args)
    return (term.span,) * len(table)


def value_span(node: t.PipelineLine, name: str) -> Span:
    """Where the value of a setting stands, else the whole line."""
    return next((a.value.span for a in node.attrs if a.name.text == name), node.span)


def check_words(
    node: t.PipelineLine, table: tuple[str, ...], rows: Sequence[Span], stages: int,
    virtual: int, report: Report,
) -> bool:  # fmt: skip
    """P508: the rows are as many as the stages, and every word is an action of its rank."""
    if len(table) != stages:
        report.error(
            "P508", f"a schedule of {len(table)} rows for {stages} pipeline ranks",
            value_span(node, "schedule"),
            help="write one text for each pipeline rank, from the first stage on",
        )  # fmt: skip
        return False
    good = True
    for text, row in zip(table, rows, strict=True):
        for word, span in word_spans(row, text):
            problem = word_problem(word, virtual)
            if problem is not None:
                message, help = problem
                report.error("P508", message, span, help=help)
                good = False
    return good


def word_problem(word: str, virtual: int) -> tuple[str, str] | None:
    """What is wrong with one word, and what helps."""
    step = read_step(word)
    example = "F0.1" if virtual > 1 else "F0"
    if step is None:
        shown = word if len(word) <= 20 else word[:17] + "..."
        return (
            f"`{shown}` is no action of a schedule",
            f"F forward, B backward, I and W its halves, then the micro-batch: {example}",
        )
    if virtual > 1 and step.virtual is None:
        last = f"{word}.{virtual - 1}"
        return f"`{word}` does not say which virtual stage", f"write {word}.0 .. {last}"
    if step.virtual is not None and step.virtual >= virtual:
        if virtual == 1:
            return f"`{word}` names a virtual stage, and there are none", "set virtual = 2"
        return f"`{word}` is beyond the {virtual} virtual stages", f"they are 0 .. {virtual - 1}"
    return None


def check_virtual(node: t.PipelineLine, schedule: str, virtual: int, stages: int, env: Env) -> None:
    """P509: virtual stages need a schedule that knows them, one axis, and enough layers."""
    report = env.world.report
    if schedule == "interleaved" and virtual < 2:
        report.error(
            "P509", "an interleaved schedule needs virtual stages", value_span(node, "schedule"),
            help="add virtual = 2" if node.over else "a chain of meshes has none; use 1F1B",
        )  # fmt: skip
        return
    if virtual < 2:
        return
    span = value_span(node, "virtual")
    if node.over is None:
        report.error(
            "P509", "a chain of meshes has no virtual stages", span,
            help="virtual stages take turns on the ranks of one axis: pipeline over MESH.AXIS",
        )  # fmt: skip
    elif schedule not in WITH_VIRTUAL:
        report.error(
            "P509", f"{schedule} has no virtual stages", span,
            help="known to have them: interleaved, zero_bubble, or a table",
        )  # fmt: skip
    else:
        check_layers(_layers(env), stages, virtual, span, report)


def check_layers(
    layers: int | None, stages: int, virtual: int, span: Span | None, report: Report
) -> None:
    """P509 for fewer layers than stages in depth order."""
    if layers is not None and layers < stages * virtual:
        report.error(
            "P509", f"{layers} layers are too few for {stages} x {virtual} stages", span,
            help="every virtual stage needs a layer",
        )  # fmt: skip


def _layers(env: Env) -> int | None:
    """The layers that the model block states."""
    entry = env.world.facts.get("layers")
    value = value_of(entry, env) if entry is not None else None
    return value if isinstance(value, int) else None
