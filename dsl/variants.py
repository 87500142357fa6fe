"""Guards to variants: the boxes of inputs inside which every guard has one truth value.

Every guard is a combination of comparisons `a * input + c <=> 0`; each cuts the range of
one input, and the cells between the cuts are merged where nothing differs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from plancc.dsl.plan import Expr, Variant
from plancc.dsl.values import ExprError, binary, compare

UNBOUNDED = 2**40  # the upper end of an input that the plan does not bound
MAX_CELLS = 2048

Tree = tuple[Any, ...]
Interval = tuple[int, int]


class GuardError(Exception):
    """A guard that cannot be cut into ranges."""


@dataclass(frozen=True, slots=True)
class Domain:
    """Where inputs may lie: inclusive ranges, and the phases of the plan."""

    ranges: Mapping[str, Interval]
    phases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """A box of inputs, with its phase (or phases, once merged)."""

    ranges: tuple[tuple[str, Interval], ...]
    phases: tuple[str, ...]

    def point(self) -> dict[str, Any]:
        """One point of the cell."""
        return {**{name: lo for name, (lo, _) in self.ranges}, "phase": self.phases[0]}


def cells_of(guards: Iterable[Expr], domain: Domain) -> list[Cell]:
    """Cut the domain by all comparisons of the guards; GuardError beyond MAX_CELLS."""
    cuts: dict[str, set[int]] = {name: set() for name in domain.ranges}
    by_phase = False
    for guard in guards:
        for atom in _atoms(guard.tree):
            place = cut_of(atom)
            if place is None:
                by_phase = True
                continue
            if place[0] not in cuts:
                raise GuardError(f"the range of `{place[0]}` is not declared")
            cuts[place[0]].update(place[1])
    phases: list[tuple[str, ...]] = [(phase,) for phase in domain.phases]
    phases = phases if by_phase else [domain.phases]
    pieces = [_pieces(domain.ranges[name], cuts[name]) for name in domain.ranges]
    if math.prod(map(len, pieces)) * len(phases) > MAX_CELLS:
        raise GuardError(f"the guards cut the inputs into more than {MAX_CELLS} boxes")
    names = tuple(domain.ranges)
    found = [
        Cell(tuple(zip(names, box, strict=True)), phase)
        for phase in phases
        for box in itertools.product(*pieces)
    ]
    return [cell for cell in found if _reachable(dict(cell.ranges))]


def truth(tree: Tree, point: Mapping[str, Any]) -> bool:
    """Whether a guard holds at a point (comparisons are read as cut_of reads them)."""
    kind = tree[0]
    if kind == "bool":
        return bool(tree[1])
    if kind == "not":
        return not truth(tree[1], point)
    if kind == "and":
        return truth(tree[1], point) and truth(tree[2], point)
    if kind == "or":
        return truth(tree[1], point) or truth(tree[2], point)
    phase = _phase_atom(tree)
    if phase is not None:
        return bool(compare(tree[1], point["phase"], phase))
    name, slope, offset = _affine_atom(tree)
    return bool(compare(tree[1], slope * point[name] + offset, Fraction(0)))


def merge(cells: list[Cell], guards: tuple[Expr, ...]) -> list[tuple[Cell, tuple[bool, ...]]]:
    """Join neighbouring cells in which every guard has the same truth."""
    found = [(cell, tuple(truth(g.tree, cell.point()) for g in guards)) for cell in cells]
    for place in range(len(cells[0].ranges) if cells else 0):
        found = _join_ranges(found, place)
    return _join_phases(found)


def variants_of(
    merged: list[tuple[Cell, tuple[bool, ...]]], guards: tuple[Expr, ...], domain: Domain
) -> tuple[Variant, ...]:
    """The variants in order of phase and size, with texts for people."""
    merged = sorted(merged, key=lambda item: (_phase_order(item[0], domain), item[0].ranges))
    found = []
    for index, (cell, truths) in enumerate(merged):
        phase = cell.phases[0] if cell.phases != domain.phases else None
        values = {guard.text: value for guard, value in zip(guards, truths, strict=True)}
        found.append(Variant(index, _text(cell, phase, domain), dict(cell.ranges), phase, values))
    return tuple(found)


def cut_of(atom: Tree) -> tuple[str, set[int]] | None:
    """The input that a comparison tests and where it changes; None if it tests the phase."""
    if _phase_atom(atom) is not None:
        return None
    name, slope, offset = _affine_atom(atom)
    edge, op = -offset / slope, atom[1]
    below, above = math.ceil(edge), math.floor(edge) + 1
    if op in ("==", "!="):
        return name, {below, above} if below != above else set()
    strict = op in ("<", ">=") if slope > 0 else op in (">", "<=")
    return name, {below if strict else above}


def range_text(name: str, box: Interval, whole: Interval) -> str:
    """`4097 <= seq_len <= 16384`; only the lower end where the domain has no upper one."""
    lo, hi = box
    if lo == hi:
        return f"{name} = {lo}"
    if hi == whole[1] >= UNBOUNDED:
        return f"{name} >= {lo}"
    return f"{lo} <= {name} <= {hi}"


def _atoms(tree: Tree) -> Iterator[Tree]:
    if tree[0] == "compare":
        yield tree
    for kid in tree[1:]:
        if isinstance(kid, tuple) and tree[0] in ("and", "or", "not"):
            yield from _atoms(kid)


def _phase_atom(atom: Tree) -> str | None:
    """The phase that an atom compares with; GuardError if the comparison makes no sense."""
    a, b = atom[2], atom[3]
    if ("ref", "phase") not in (a, b):
        return None
    other = b if a == ("ref", "phase") else a
    if other[0] != "string" or atom[1] not in ("==", "!="):
        raise GuardError("`phase` compares by == or != with a phase")
    return str(other[1])


def _affine_atom(atom: Tree) -> tuple[str, Fraction, Fraction]:
    """An atom as (input, slope, offset): slope * input + offset, compared with 0."""
    left, right = _affine(atom[2]), _affine(atom[3])
    total = {
        name: left.get(name, Fraction(0)) - right.get(name, Fraction(0)) for name in {*left, *right}
    }
    offset = total.pop("", Fraction(0))
    slopes = {name: slope for name, slope in total.items() if slope}
    if len(slopes) != 1:
        what = "no input" if not slopes else " and ".join(sorted(slopes))
        raise GuardError(f"this compares {what}; a guard compares one input with a constant")
    ((name, slope),) = slopes.items()
    return name, slope, offset


def _affine(tree: Tree) -> dict[str, Fraction]:
    """A sum as {input: factor, "": constant}; batch * seq_len counts as tokens."""
    kind = tree[0]
    if kind == "int":
        return {"": Fraction(tree[1])}
    if kind == "ref" and tree[1] in ("seq_len", "batch", "tokens"):
        return {tree[1]: Fraction(1)}
    if kind == "negative":
        return {name: -factor for name, factor in _affine(tree[1]).items()}
    if kind == "binary" and tree[1] in "+-*/":
        return _affine_binary(tree[1], _affine(tree[2]), _affine(tree[3]))
    raise GuardError("a guard compares one input with a constant")


def _affine_binary(op: str, a: dict[str, Fraction], b: dict[str, Fraction]) -> dict[str, Fraction]:
    if op in "+-":
        sign = 1 if op == "+" else -1
        return {n: a.get(n, Fraction(0)) + sign * b.get(n, Fraction(0)) for n in {*a, *b}}
    if set(b) == {""}:
        factor = Fraction(binary(op, Fraction(1), b[""]))
        return {name: value * factor for name, value in a.items()}
    if op == "*" and set(a) == {""}:
        return {name: value * a[""] for name, value in b.items()}
    if op == "*" and {*a, *b} == {"batch", "seq_len"} and len(a) == len(b) == 1:
        return {"tokens": next(iter(a.values())) * next(iter(b.values()))}
    raise GuardError("a guard compares one input with a constant")


def check_guard(guard: Expr) -> str | None:
    """Why a guard cannot be cut into ranges, or None if it can."""
    try:
        for atom in _atoms(guard.tree):
            cut_of(atom)
    except (GuardError, ExprError) as error:
        return str(error)
    return None


def _pieces(whole: Interval, cuts: set[int]) -> list[Interval]:
    lo, hi = whole
    starts = [lo, *sorted(cut for cut in cuts if lo < cut <= hi)]
    ends = [start - 1 for start in starts[1:]] + [hi]
    return list(zip(starts, ends, strict=True))


def _reachable(ranges: dict[str, Interval]) -> bool:
    """Whether some batch times some seq_len gives a number of tokens in the box."""
    if not {"tokens", "batch", "seq_len"} <= set(ranges):
        return True
    (lo, hi), (b_lo, b_hi), (s_lo, s_hi) = (ranges[n] for n in ("tokens", "batch", "seq_len"))
    if b_hi - b_lo > 4096:
        return lo <= b_hi * s_hi and hi >= b_lo * s_lo
    return any(max(-(-lo // b), s_lo) <= min(hi // b, s_hi) for b in range(b_lo, b_hi + 1))


Found = list[tuple[Cell, tuple[bool, ...]]]


def _join_ranges(found: Found, place: int) -> Found:
    """Join cells that touch in one input and agree in everything else."""
    joined: Found = []
    last: dict[Any, int] = {}
    for cell, truths in sorted(found, key=lambda item: item[0].ranges[place][1]):
        name, (lo, hi) = cell.ranges[place]
        others = (*cell.ranges[:place], *cell.ranges[place + 1 :])
        key = (others, cell.phases, truths)
        at = last.get(key)
        if at is not None and joined[at][0].ranges[place][1][1] == lo - 1:
            before = joined[at][0]
            box = (name, (before.ranges[place][1][0], hi))
            ranges = (*cell.ranges[:place], box, *cell.ranges[place + 1 :])
            joined[at] = (Cell(ranges, cell.phases), truths)
        else:
            last[key] = len(joined)
            joined.append((cell, truths))
    return joined


def _join_phases(found: Found) -> Found:
    groups: dict[Any, list[str]] = {}
    for cell, truths in found:
        groups.setdefault((cell.ranges, truths), []).extend(cell.phases)
    whole = {phase for cell, _ in found for phase in cell.phases}
    joined: Found = []
    for cell, truths in found:
        phases = groups[cell.ranges, truths]
        if len(phases) < len(whole):
            joined.append((cell, truths))
        elif cell.phases[0] == phases[0]:
            joined.append((Cell(cell.ranges, tuple(phases)), truths))
    return joined


def _phase_order(cell: Cell, domain: Domain) -> int:
    return domain.phases.index(cell.phases[0])


def _text(cell: Cell, phase: str | None, domain: Domain) -> str:
    parts = [phase] if phase is not None else []
    for name, box in cell.ranges:
        if box != domain.ranges[name]:
            parts.append(range_text(name, box, domain.ranges[name]))
    return ", ".join(parts) or "always"
