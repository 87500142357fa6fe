"""Form: the row of one call, its notation written out for the call's arguments.

The notation of operators whose dims depend on arguments (slice, cat, sum ...) is a text made by a
builder; a view has no text that says it all and is marked by `VIEW`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import sympy

from plancc.ir.graph import Size

VIEW = "flatten(in) = flatten(out)"


@dataclass(frozen=True, slots=True)
class Form:
    """A row as one call has it.

    `sizes` gives variables that the operands do not determine (parts of a cut, repeats). `dropped`
    labels are cut away, not contracted. `cut_leaves` False: only an existing concatenation is cut.
    """

    text: str
    sizes: Mapping[str, Size] = field(default_factory=dict)
    rules: tuple[str, ...] = ()
    linear: str = ""
    dropped: tuple[str, ...] = ()
    cut_leaves: bool = True


def names(rank: int) -> list[str]:
    """Labels `a`, `b` ... one a dim."""
    return [chr(97 + dim) for dim in range(rank)]


def whole(labels: Sequence[str], dims: Sequence[int]) -> list[str]:
    """The labels with those of `dims` marked whole."""
    return [f"!{name}" if dim in dims else name for dim, name in enumerate(labels)]


def put(labels: Sequence[str], dim: int, *items: str) -> str:
    """The labels as text, with that of `dim` replaced by `items`."""
    return " ".join([*labels[:dim], *items, *labels[dim + 1 :]])


def plain(size: Size) -> Size:
    """A sympy integer as int, anything else as it is."""
    if isinstance(size, int):
        return size
    expanded = sympy.expand(size)
    return int(expanded) if expanded.is_Integer else expanded


def bounds(size: Size, start: Size | None, length: Size) -> tuple[Size, Size, Size]:
    """Sizes before, inside and after a cut of `length` elements from `start` (may be negative)."""
    begin: Size = 0 if start is None else start
    if isinstance(begin, int) and begin < 0:
        begin = size + begin
        if isinstance(begin, int):
            begin = max(begin, 0)
    return plain(begin), plain(length), plain(size - begin - length)
