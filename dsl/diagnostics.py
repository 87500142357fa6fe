"""Diagnostics: what is wrong with a plan, where, and what helps; collected in a Report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches

from plancc.dsl.codes import CODES
from plancc.dsl.errors import Bug, PlanError
from plancc.dsl.source import Span


@dataclass(frozen=True, slots=True)
class Label:
    """A second place that belongs to a diagnostic, with a few words about it."""

    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One thing that is wrong (or dubious); `span` is None if no file holds it.

    `label` stands beside the marked text, `fix` is text that could take its place.
    """

    code: str
    level: str  # "error" | "warning"
    message: str
    span: Span | None
    label: str = ""
    labels: tuple[Label, ...] = ()
    notes: tuple[str, ...] = ()
    helps: tuple[str, ...] = ()
    fix: str | None = None


@dataclass(slots=True)
class Report:
    """Collects diagnostics; equal ones count once."""

    _found: dict[Diagnostic, None] = field(default_factory=dict)
    _context: list[str] = field(default_factory=list)

    def error(
        self, code: str, message: str, span: Span | None, *, label: str = "",
        help: str | Iterable[str] = (), notes: str | Iterable[str] = (),
        labels: Iterable[tuple[Span, str]] = (), fix: str | None = None,
    ) -> None:  # fmt: skip
        """Add an error: `message` in lower case, able to stand alone, no full stop."""
        self._add("error", code, message, span, label, help, notes, labels, fix)

    def warning(
        self, code: str, message: str, span: Span | None, *, label: str = "",
        help: str | Iterable[str] = (), notes: str | Iterable[str] = (),
        labels: Iterable[tuple[Span, str]] = (), fix: str | None = None,
    ) -> None:  # fmt: skip
        """Add a warning, in the same way as an error."""
        self._add("warning", code, message, span, label, help, notes, labels, fix)

    @contextmanager
    def within(self, note: str) -> Iterator[None]:
        """Add `note` to every diagnostic reported inside the `with`."""
        self._context.append(note)
        try:
            yield
        finally:
            self._context.pop()

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """All of them, sorted by file and position."""
        files: dict[str, int] = {}
        for found in self._found:
            if found.span is not None:
                files.setdefault(found.span.source.name, len(files))
        return tuple(sorted(self._found, key=lambda d: _position(d, files)))

    @property
    def errors(self) -> tuple[Diagnostic, ...]:
        """The diagnostics of level error, sorted."""
        return tuple(d for d in self.diagnostics if d.level == "error")

    @property
    def ok(self) -> bool:
        """Whether there is no error (warnings do not count)."""
        return not any(d.level == "error" for d in self._found)

    def raise_errors(self) -> None:
        """Raise PlanError with all diagnostics if one is an error."""
        if not self.ok:
            raise PlanError(self.diagnostics)

    def extend(self, other: Report) -> None:
        """Take over the diagnostics of another report."""
        self._found.update(other._found)

    def _add(
        self, level: str, code: str, message: str, span: Span | None, label: str,
        help: str | Iterable[str], notes: str | Iterable[str],
        labels: Iterable[tuple[Span, str]], fix: str | None,
    ) -> None:  # fmt: skip
        if code not in CODES:
            raise Bug(f"diagnostic code {code} is not registered in dsl/codes.py")
        second = tuple(Label(where, text) for where, text in labels)
        all_notes = _lines(notes) + tuple(reversed(self._context))
        found = Diagnostic(code, level, message, span, label, second, all_notes, _lines(help), fix)
        self._found.setdefault(found)


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """The known word nearest to `word`, if one is near."""
    names = sorted(set(known))
    lower = {name.lower(): name for name in names}
    if word.lower() in lower:
        return lower[word.lower()]
    near = get_close_matches(word, names, n=1, cutoff=0.6)
    return near[0] if near else None


def _lines(text: str | Iterable[str]) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else tuple(text)


def _position(found: Diagnostic, files: dict[str, int]) -> tuple[int, int, int, str]:
    if found.span is None:
        return (-1, 0, 0, found.code)
    span = found.span
    return (files[span.source.name], span.line, span.column, found.code)
