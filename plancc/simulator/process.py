"""What an actor has before it, and how far it is: calls, clocks, what it did and what it waits for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from plancc.simulator.forms import Span
from plancc.simulator.script import Item, Script

Fact = tuple[object, ...]
"""What others wait for: that all came to a collective, that a message was sent, that a call ended."""
Wait = tuple[Fact, ...] | None
"""What a walker needs to go on; None: the other micro-batches of its actor have their turn."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a function for one micro-batch, with the script of its sizes.

    It begins when the facts `needs` are there. `tells` is a fact, and how many actors must tell it.
    `last`: no later micro-batch of the step runs this function.
    """

    name: str
    script: Script
    batch: int = 0
    step: int = 0
    needs: tuple[Fact, ...] = ()
    tells: tuple[Fact, int] | None = None
    last: bool = True


Slots = Sequence[Sequence[Call]]
"""The calls of an actor: slots take turns at pauses, the calls of one slot follow each other."""


@dataclass(slots=True)
class Tally:
    """The seconds of one actor, whose rest is waiting: `busy` computing (`kinds`: with what), `moving` in
    communication, `exposed` the part of that which nothing hides. `sent` counts bytes, `ends` when calls
    ended.
    """

    busy: float = 0.0
    moving: float = 0.0
    exposed: float = 0.0
    sent: int = 0
    flops: int = 0
    kinds: dict[str, float] = field(default_factory=dict)
    ends: list[tuple[str, int, int, float]] = field(default_factory=list)


@dataclass(slots=True)
class Meeting:
    """Who has come to a collective, and when it can begin."""

    came: int = 0
    begin: float = 0.0
    seconds: float = 0.0
    latest: int = -1


class Process:
    """One actor on its way: its clock, what it has under way, what it did."""

    def __init__(self, rounds: Sequence[Slots], resting: int = 0) -> None:
        self.rounds = rounds
        self.clock = self.side = self.shown = 0.0
        self.live = self.resting = resting
        self.memory: list[tuple[float, int]] = [(0.0, resting)]
        self.tally = Tally()
        self.spans: list[Span] = []
        self.counts: dict[object, int] = {}
        self.started: dict[str, Fact] = {}
        self.queue: list[tuple[Item, Call, float, Fact]] = []
