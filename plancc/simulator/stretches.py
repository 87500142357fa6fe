"""Scripts for who wants no timeline: what an actor does by itself between two others is one item.

A layer of a large world is then some items in place of some dozens, and takes the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plancc.simulator.script import Item, Label


@dataclass(frozen=True, slots=True)
class Stretch:
    """What an item "alone" is made of: seconds computing, by kind of work, and seconds communicating."""

    kinds: tuple[tuple[str, float], ...]
    busy: float
    moving: float


def stretched(actor: int, items: Sequence[Item]) -> tuple[Item, ...]:
    """The items of an actor, with neighbours that need nobody else as one."""
    found: list[Item] = []
    alone: list[Item] = []
    for item in items:
        if item.kind in ("work", "mark") or (item.kind == "meet" and item.group == (actor,)):
            alone.append(item)
            continue
        found += joined(alone)
        alone = []
        found.append(item)
    return (*found, *joined(alone))


def joined(items: Sequence[Item]) -> Sequence[Item]:
    """Some items as one; one alone, or none, as it is."""
    if len(items) < 2:
        return items
    kinds: dict[str, float] = {}
    moving = 0.0
    for item in items:
        if item.kind == "work":
            kinds[item.label.kind] = kinds.get(item.label.kind, 0.0) + item.seconds
        moving += item.seconds if item.kind == "meet" else 0.0
    busy = sum(kinds.values())
    flops = sum(item.label.flops for item in items)
    sent = sum(item.label.bytes for item in items if item.kind == "meet")
    return [
        Item(
            "alone", Label("", "", flops=flops, bytes=sent), busy + moving,
            parts=Stretch(tuple(kinds.items()), busy, moving),
            delta=sum(item.delta for item in items),
        )
    ]  # fmt: skip
