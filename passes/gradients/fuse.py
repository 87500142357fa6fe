"""Make one collective of the moves of many weights: gathered layer by layer, their gradients scattered so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from plancc.ir.program import Accumulate, Bucket, Collective, Held, operands
from plancc.passes.gradients.activity import Entry
from plancc.passes.gradients.reduce import wire_of

Key = tuple[Any, ...]


def fuse_moves(
    entries: Sequence[Entry], weights: Mapping[str, Held], unit_of: Callable[[str], str],
    wires: Mapping[Any, str],
) -> list[Entry]:  # fmt: skip
    """Entries with the gatherings of a unit's weights made together where the first one stood, and the
    scatterings of their gradients where the last one stood. `unit_of` names the unit of a weight."""
    gathers: dict[Key, list[int]] = {}
    scatters: dict[Key, list[int]] = {}
    taker = accumulated(entries)
    for index, (_, step) in enumerate(entries):
        if not isinstance(step, Collective):
            continue
        if step.kind == "all_gather" and step.operand in weights:
            gathers.setdefault(move_key(step, unit_of(step.operand)), []).append(index)
        elif step.kind == "reduce_scatter" and step.out.name in taker:
            weight = entries[taker[step.out.name]][1]
            assert isinstance(weight, Accumulate)
            scatters.setdefault(move_key(step, unit_of(weight.weight)), []).append(index)
    moved: dict[int, list[Entry]] = {}
    gone: set[int] = set()
    for members in gathers.values():
        if len(members) > 1:
            gone.update(members)
            moved.setdefault(members[0], []).append(bucket(entries, members))
    for members in scatters.values():
        wire = wire_of(wires, entries[members[0]][1].parts)  # type: ignore[union-attr]
        if len(members) > 1 or wire:
            sums = [taker[entries[i][1].out.name] for i in members]  # type: ignore[union-attr]
            gone.update(members, sums)
            last = max(members)
            moved.setdefault(last, []).append(bucket(entries, members, wire))
            moved[last] += [entries[i] for i in sums]
    out: list[Entry] = []
    for index, entry in enumerate(entries):
        out += moved.get(index, ())
        if index not in gone:
            out.append(entry)
    return out


def move_key(step: Collective, unit: str) -> Key:
    """Moves with equal keys can be made together."""
    return (step.kind, step.out.stage, step.parts, step.out.dtype, unit)


def bucket(entries: Sequence[Entry], members: Sequence[int], wire: str = "") -> Entry:
    """One bucket of several moves."""
    steps = [entries[i][1] for i in members]
    found = [step for step in steps if isinstance(step, Collective)]
    moves = tuple(step.move for step in found if step.move is not None)
    first = found[0]
    return entries[members[0]][0], Bucket(
        first.kind, tuple(s.operand for s in found), tuple(s.out for s in found), moves,
        first.parts, first.origin, wire,
    )  # fmt: skip


def accumulated(entries: Sequence[Entry]) -> dict[str, int]:
    """Value -> the entry that adds it to a weight's gradient, for values with no other use."""
    users: dict[str, list[int]] = {}
    for index, (_, step) in enumerate(entries):
        for name in operands(step):
            users.setdefault(name, []).append(index)
    return {
        name: found[0]
        for name, found in users.items()
        if len(found) == 1 and isinstance(entries[found[0]][1], Accumulate)
    }
