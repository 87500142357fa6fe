"""Where text came from: files and spans in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Source:
    """One file of plan text. `name` is what messages show (the path as the user gave it)."""

    name: str
    text: str = field(repr=False)

    def line(self, number: int) -> str:
        """The text of 1-based line `number`, without its newline; empty beyond the end."""
        lines = _lines(self.text)
        return lines[number - 1].rstrip("\r") if 0 < number <= len(lines) else ""


@dataclass(frozen=True, slots=True)
class Span:
    """A range of characters on one or more lines.

    Lines and columns are 1-based, `end_column` exclusive.
    """

    source: Source
    line: int
    column: int
    end_line: int
    end_column: int

    def __str__(self) -> str:
        return f"{self.source.name}:{self.line}"

    def to(self, other: Span) -> Span:
        """From the start of this span to the end of `other`, in the same file."""
        end = (other.end_line, other.end_column)
        return Span(self.source, self.line, self.column, *end)


@lru_cache(maxsize=16)
def _lines(text: str) -> list[str]:
    return text.split("\n")
