"""The notation of operator rows: "... i, o i, [+ o] -> ... o" parsed into slots, once per text.

`x` a label; `!x` must be whole; `(k g)` a product, outermost first; `(i+i)` a concatenation;
`1` size 1; `_` whole and of no class; `...` broadcast dims, right-aligned; `*` every operand;
`[...]` optional operand; `+` an addend; `x.lo` a part of label x (its own class, the same label).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

TOKEN = re.compile(r"\s*(\.\.\.|[()+\[\]!*]|[A-Za-z_][A-Za-z0-9_]*(?:\.[a-z0-9]+)?|[0-9]+)")


class NotationError(ValueError):
    """A row text that does not follow the notation."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One dim of an operand: a single variable, a product, or a concatenation of slots.

    `names` holds the variables of a product (one for a single variable, none for `1`), `parts` the
    parts of a concatenation; a name that begins with a digit is a whole factor of that size.
    """

    names: tuple[str, ...] = ()
    parts: tuple[Slot, ...] = ()
    ellipsis: bool = False


ONE = Slot()
ELLIPSIS = Slot(ellipsis=True)


@dataclass(frozen=True, slots=True)
class Side:
    """One operand or output of a row."""

    slots: tuple[Slot, ...]
    optional: bool = False
    addend: bool = False
    every: bool = False  # "*": stands for all operands


@dataclass(frozen=True, slots=True)
class Pattern:
    """A parsed row. `whole` holds labels; variables `x.a` and `x.b` share the label `x`."""

    text: str
    ins: tuple[Side, ...]
    outs: tuple[Side, ...]
    whole: frozenset[str]
    out_names: frozenset[str] = frozenset()


def label_of(name: str) -> str:
    """The label of a variable: the part before the dot."""
    return name.partition(".")[0]


@cache
def parse(text: str) -> Pattern:
    """Parse a row; raises NotationError."""
    if text.count("->") != 1:
        raise NotationError(f"a row has one `->`: `{text}`")
    left, right = text.split("->")
    whole: set[str] = set()
    counter = [0]
    ins = _sides(left, text, whole, counter) if left.strip() else ()
    outs = _sides(right, text, whole, counter)
    if any(side.every for side in ins) and len(ins) > 1:
        raise NotationError(f"`*` stands alone before `->`: `{text}`")
    return Pattern(text, ins, outs, frozenset(whole))


def _sides(text: str, row: str, whole: set[str], counter: list[int]) -> tuple[Side, ...]:
    return tuple(_side(part, row, whole, counter) for part in text.split(","))


def _side(text: str, row: str, whole: set[str], counter: list[int]) -> Side:
    text = text.strip()
    optional = text.startswith("[") and text.endswith("]")
    if optional:
        text = text[1:-1].strip()
    addend = text.startswith("+")
    if addend:
        text = text[1:].strip()
    if text == "*":
        return Side((ELLIPSIS,), every=True)
    slots: list[Slot] = []
    tokens = _tokens(text, row)
    while tokens:
        slots.append(_slot(tokens, row, whole, counter))
    if sum(slot.ellipsis for slot in slots) > 1:
        raise NotationError(f"more than one `...` in an operand: `{row}`")
    return Side(tuple(slots), optional, addend)


def _tokens(text: str, row: str) -> list[str]:
    found, at = [], 0
    while at < len(text.rstrip()):
        match = TOKEN.match(text, at)
        if match is None:
            raise NotationError(f"cannot read `{text[at:]}` in the row `{row}`")
        found.append(match[1])
        at = match.end()
    return found[::-1]


def _slot(tokens: list[str], row: str, whole: set[str], counter: list[int]) -> Slot:
    token = tokens.pop()
    if token == "...":
        return ELLIPSIS
    if token == "(":
        return _group(tokens, row, whole, counter)
    return Slot(_name(token, tokens, row, whole, counter))


def _name(
    token: str, tokens: list[str], row: str, whole: set[str], counter: list[int]
) -> tuple[str, ...]:
    mark = token == "!"
    if mark:
        if not tokens:
            raise NotationError(f"`!` marks a label: `{row}`")
        token = tokens.pop()
    if token == "1":
        return ()
    if token == "_":
        counter[0] += 1
        token, mark = f"_{counter[0]}", True
    elif not (token[0].isalpha() or token.isdigit()):
        raise NotationError(f"`{token}` is not a label in the row `{row}`")
    elif token.isdigit():
        counter[0] += 1
        token, mark = f"{token}.{counter[0]}", True
    if mark:
        whole.add(label_of(token))
    return (token,)


def _group(tokens: list[str], row: str, whole: set[str], counter: list[int]) -> Slot:
    parts: list[list[str]] = [[]]
    is_sum = False
    while True:
        if not tokens:
            raise NotationError(f"a `(` without its `)`: `{row}`")
        token = tokens.pop()
        if token == ")":
            break
        if token == "+":
            is_sum = True
            parts.append([])
        else:
            parts[-1].extend(_name(token, tokens, row, whole, counter))
    if not is_sum:
        return Slot(tuple(parts[0]))
    return Slot(parts=tuple(Slot(tuple(part)) for part in parts))


@cache
def expand(text: str, ranks: tuple[int | None, ...], out_ranks: tuple[int, ...]) -> Pattern:
    """Parse a row and write out its `...` and `*` for operands of the given ranks (None: absent).

    The broadcast dims are labelled `z1`, `z2` ... from the right. Raises NotationError where ranks
    or the number of operands do not fit.
    """
    pattern = parse(text)
    sides = pattern.ins
    if sides and sides[0].every:
        sides = (Side((ELLIPSIS,), optional=True),) * len(ranks)
    if not sides and ranks == (0,):
        sides = (Side(()),)
    if len(ranks) < len(sides):
        ranks = (*ranks, *(None,) * (len(sides) - len(ranks)))
    if len(ranks) > len(sides):
        if any(rank is not None for rank in ranks[len(sides) :]):
            raise NotationError(f"the row `{text}` has {len(sides)} operands, not {len(ranks)}")
        ranks = ranks[: len(sides)]
    if len(out_ranks) != len(pattern.outs):
        raise NotationError(
            f"the row `{text}` has {len(pattern.outs)} outputs, not {len(out_ranks)}"
        )
    ins = tuple(_written(side, rank, text) for side, rank in zip(sides, ranks, strict=True))
    outs = tuple(_written(s, rank, text) for s, rank in zip(pattern.outs, out_ranks, strict=True))
    names = frozenset(
        name
        for side in outs
        for slot in side.slots
        for part in (slot, *slot.parts)
        for name in part.names
    )
    return Pattern(text, ins, outs, pattern.whole, names)


def _written(side: Side, rank: int | None, text: str) -> Side:
    if rank is None:
        if not side.optional:
            raise NotationError(f"an operand of the row `{text}` is missing")
        return side
    slots: list[Slot] = []
    extra = rank - sum(not slot.ellipsis for slot in side.slots)
    for slot in side.slots:
        if slot.ellipsis:
            slots.extend(Slot((f"z{extra - i}",)) for i in range(extra))
        else:
            slots.append(slot)
    if len(slots) != rank:
        raise NotationError(f"an operand of the row `{text}` has {rank} dims")
    return Side(tuple(slots), side.optional, side.addend)


def letters(count: int, but: Sequence[int] = ()) -> list[str]:
    """Labels `a`, `b` ... for the dims of a tensor; the dims in `but` come out as `!a`."""
    return [("!" if dim in but else "") + chr(97 + dim) for dim in range(count)]
