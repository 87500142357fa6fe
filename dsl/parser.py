"""Text to syntax tree: lark's exceptions become P0xx diagnostics.

After an error the broken statement is blanked and parsing goes on, so that one run
shows the errors of several statements.
"""

from __future__ import annotations

import re
from pathlib import Path

import lark

from plancc.dsl.builder import TooDeep, build_file
from plancc.dsl.diagnostics import Report, did_you_mean
from plancc.dsl.grammar import parser
from plancc.dsl.source import Source, Span
from plancc.dsl.tree import PlanFile
from plancc.dsl.vocabulary import EDITIONS, STATEMENTS

MAX_NESTING = 64
MAX_ERRORS = 10
MAX_BYTES = 4_000_000

_STATEMENT = re.compile(rf"^(?:{'|'.join(STATEMENTS)})\b", re.MULTILINE)
_WORD = re.compile(r"[\w.]+|[^\w\s]+|.", re.DOTALL)
_NAMES = {
    "NAME": "a name", "PATTERN": "a module pattern", "INT": "a number", "FLOAT": "a number",
    "QUANTITY": "a quantity", "STRING": "a string", "_NL": "the end of the line",
    "$END": "the end of the file", "CMP": "a comparison", "ADD": "`+` or `-`",
    "MUL": "`*` or `/`", "LPAR": "`(`", "RPAR": "`)`", "LSQB": "`[`", "RSQB": "`]`",
    "LBRACE": "`{`", "RBRACE": "`}`", "EQUAL": "`=`", "COMMA": "`,`", "COLON": "`:`",
    "SEMICOLON": "`;`", "DOT": "`.`", "PLUS": "`+`", "MINUS": "`-`",
    "__ANON_0": "`..`", "__ANON_1": "`->`", "__ANON_2": "`<->`",
}  # fmt: skip


def read_source(path: Path, name: str, report: Report, span: Span | None = None) -> Source | None:
    """Read a plan file as UTF-8; P103 if it cannot be read, P001 if it is no text."""
    try:
        if path.is_file() and path.stat().st_size > MAX_BYTES:
            report.error("P103", f"`{name}` is too large to be a plan", span)
            return None
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        report.error("P103", f"cannot read `{name}`: {reason.lower()}", span)
        return None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        good = data[: error.start].decode("utf-8", "replace")
        line = good.count("\n") + 1
        column = len(good) - (good.rfind("\n") + 1) + 1
        source = Source(name, data.decode("utf-8", "replace"))
        where = Span(source, line, column, line, column + 1)
        report.error("P001", "the file is not UTF-8 text", where, label="this byte")
        return None
    return Source(name, text.replace("\r\n", "\n"))


def parse_source(source: Source, report: Report) -> PlanFile | None:
    """The syntax tree of a file; None after a syntax error (P001) or a wrong edition (P002)."""
    if not _nesting_ok(source, report):
        return None
    tree = _parse_all(source, report)
    if tree is None:
        return None
    try:
        plan = build_file(tree, source)
    except (TooDeep, RecursionError) as error:
        span = error.span if isinstance(error, TooDeep) else _point(source, 1, 1)
        start = _point(source, span.line, span.column)
        report.error("P001", "this is nested too deeply", start)
        return None
    if plan.edition.text not in EDITIONS:
        report.error(
            "P002", f"edition {plan.edition.text[:20]} is not known", plan.edition.span,
            help=f"this plancc knows edition {', '.join(EDITIONS)}",
        )  # fmt: skip
        return None
    return plan


def _parse_all(source: Source, report: Report) -> lark.Tree[lark.Token] | None:
    text, failed = source.text, 0
    while True:
        try:
            tree = parser().parse(text)
        except lark.exceptions.UnexpectedInput as error:
            failed += 1
            line = _report_unexpected(error, source, text, report)
            blanked = _blank_statement(text, line)
            if failed == MAX_ERRORS or blanked is None:
                return None
            text = blanked
        else:
            return None if failed else tree


def _blank_statement(text: str, line: int) -> str | None:
    """Replace the top-level statement around `line` by spaces; None if there is none."""
    starts = [match.start() for match in _STATEMENT.finditer(text)]
    offset = sum(len(part) + 1 for part in text.split("\n")[: line - 1])
    line_end = text.find("\n", offset)
    line_end = len(text) if line_end < 0 else line_end
    before = [start for start in starts if start <= offset]
    begin = before[-1] if before else offset
    header = re.match(r"(?:\s|#[^\n]*)*plan\b[^\n]*", text)
    if header is None or begin < header.end():
        return None
    after = [start for start in starts if start > max(begin, offset)]
    end = max(after[0] if after else len(text), line_end)
    blank = re.sub(r"[^\n]", " ", text[begin:end])
    return text[:begin] + blank + text[end:]


def _report_unexpected(
    error: lark.exceptions.UnexpectedInput, source: Source, text: str, report: Report
) -> int:
    """Report one syntax error as P001 and give its line."""
    if isinstance(error, lark.exceptions.UnexpectedToken):
        token, accepts = error.token, set(error.accepts or error.expected)
        if token.type == "$END":
            span = _end_of(source)
            what = "end of the file"
        else:
            line, column = token.line or 1, token.column or 1
            end_line, end_column = token.end_line or line, token.end_column or column + 1
            span = Span(source, line, column, end_line, end_column)
            what = f"`{_printable(token)}`"
            if token.type == "_NL":
                span, what = _point(source, line, column), "end of the line"
    else:
        assert isinstance(error, lark.exceptions.UnexpectedCharacters)
        accepts = set(error.allowed or ())
        found = _WORD.match(text, error.pos_in_stream or 0)
        word = found.group() if found else ""
        end = error.column + max(len(word), 1)
        span = Span(source, error.line, error.column, error.line, end)
        what = f"`{_printable(word)}`"
    label, helps = _expected(accepts), _hints(what.strip("`"), accepts, span)
    report.error("P001", f"unexpected {what}", span, label=label, help=helps)
    return span.line


def _expected(accepts: set[str]) -> str:
    """What could have stood here, in a few words."""
    if {"PLACE", "MESH"} <= accepts:
        return "expected a statement"
    if {"SPLIT", "REPLICATE"} <= accepts:
        return "expected a rule, a setting or `}`"
    if {"INT", "LPAR", "STRING"} <= accepts:
        return "expected a value"
    if "ADD" in accepts:
        return ""
    names = sorted({_NAMES.get(name, f"`{name.lower()}`") for name in accepts})
    if not names or len(names) > 6:
        return ""
    return "expected " + (", ".join(names[:-1]) + " or " if names[1:] else "") + names[-1]


def _hints(word: str, accepts: set[str], span: Span) -> list[str]:
    """Help for the mistakes that people make."""
    line = span.source.line(span.line)
    if word == "=" and re.match(r"\s*(when|require)\b|.*\bwhen\b", line):
        return ["to compare, write `==`"]
    if word in ("for", "while", "loop", "foreach"):
        return ["plans have no loops: a pattern such as `layers.*` already names every layer"]
    if word == "if":
        return ["a guard is written `when seq_len > 4096 { ... }`"]
    if re.match(r"[0-9]+[A-Za-z]", word):
        return [f'a name starts with a letter: write "{word}" for text']
    if {"PLACE", "MESH"} <= accepts and (near := did_you_mean(word, STATEMENTS)):
        return [f"did you mean `{near}`?"]
    if word == ",":
        return ["items of a block are separated by `;` or a new line"]
    if word == "plan" and "PLAN" not in accepts:
        return ["a file holds one plan"]
    if accepts == {"PLAN"} or accepts == {"PLAN", "_NL"}:
        return ["the first line of a plan is `plan NAME, edition 1`"]
    return []


def _nesting_ok(source: Source, report: Report) -> bool:
    """Refuse bracket towers before they reach anything that recurses."""
    depth = 0
    plain = re.sub(r'"[^"\n]*"|#[^\n]*', lambda match: " " * len(match.group()), source.text)
    for match in re.finditer(r"[([{]|[)\]}]", plain):
        depth = depth + 1 if match.group() in "([{" else max(depth - 1, 0)
        if depth > MAX_NESTING:
            line = plain.count("\n", 0, match.start()) + 1
            column = match.start() - (plain.rfind("\n", 0, match.start()) + 1) + 1
            report.error("P001", "this is nested too deeply", _point(source, line, column))
            return False
    return True


def _point(source: Source, line: int, column: int) -> Span:
    return Span(source, line, column, line, column + 1)


def _end_of(source: Source) -> Span:
    lines = source.text.rstrip().split("\n")
    return _point(source, len(lines), len(lines[-1]) + 1)


def _printable(text: str) -> str:
    short = text if len(text) <= 40 else text[:37] + "..."
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in short)
