"""Devices that several sessions share: leases, all or nothing, first come first served.

A session that needs more while it holds some could wait for another one that does the same. So it
claims beforehand how many it may come to hold, and gets devices only while there is an order in
which every holder can still get its claim and finish (the banker's rule). Later asks may overtake
earlier ones that do not fit, until an earlier one has waited for `patience` seconds: from then on
nobody begins or claims more before it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ask:
    """One waiting ask: to hold `count` devices in all, and at most `claim` from then on."""

    who: str
    count: int
    claim: int
    since: float


class Leases:
    """Who holds which devices. Every method may be called from any thread."""

    def __init__(
        self,
        devices: Sequence[int],
        *,
        patience: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.free = list(devices)
        self.patience = patience
        self._clock = clock
        self._held: dict[str, list[int]] = {}
        self._claims: dict[str, int] = {}
        self._queue: list[Ask] = []
        self._changed = threading.Condition(threading.RLock())

    @property
    def total(self) -> int:
        """How many devices there are, free or held."""
        with self._changed:
            return len(self.free) + sum(map(len, self._held.values()))

    def held(self, who: str) -> tuple[int, ...]:
        """The devices of a session, in the order in which it got them."""
        with self._changed:
            return tuple(self._held.get(who, ()))

    def waited(self, who: str) -> float | None:
        """For how many seconds a session's ask has waited; None if it does not wait."""
        with self._changed:
            ask = next((ask for ask in self._queue if ask.who == who), None)
            return None if ask is None else self._clock() - ask.since

    def wanted(self, who: str, patience: float = 0.0) -> bool:
        """Whether another session than this has waited for devices, for that many seconds."""
        with self._changed:
            since = self._clock() - patience
            return any(ask.who != who and ask.since <= since for ask in self._queue)

    def ask(self, who: str, count: int, claim: int) -> bool:
        """Ask to hold `count` devices in all, of at most `claim`; True once they are held.

        An ask that is not granted waits; asking the same again keeps its place. Holding fewer than
        before is for `give_back`. Raises ValueError for a claim that all devices cannot meet.
        """
        with self._changed:
            if not len(self._held.get(who, ())) <= count <= claim <= self.total:
                raise ValueError(f"{who} asks for {count} of {claim} devices, of {self.total}")
            if not self._waits(who, count, claim):
                self.withdraw(who)
                self._queue.append(Ask(who, count, claim, self._clock()))
            self._settle()
            return not self._waits(who, count, claim)

    def withdraw(self, who: str) -> None:
        """Wait no longer."""
        with self._changed:
            self._queue = [ask for ask in self._queue if ask.who != who]
            self._settle()

    def give_back(self, who: str, keep: int = 0, claim: int | None = None) -> tuple[int, ...]:
        """Give back all devices but the first `keep`, and claim less from now on."""
        with self._changed:
            held = self._held.get(who, [])
            back = held[keep:]
            del held[keep:]
            self.free.extend(back)
            if not held:
                self._held.pop(who, None)
                self._claims.pop(who, None)
            elif claim is not None:
                self._claims[who] = max(len(held), min(claim, self._claims[who]))
            self._settle()
            return tuple(back)

    def retire(self, who: str, device: int) -> None:
        """Count a device that `who` holds as lost; asks for more than is left are dropped."""
        with self._changed:
            self._held[who].remove(device)
            self._claims = {name: min(n, self.total) for name, n in self._claims.items()}
            self._queue = [ask for ask in self._queue if ask.claim <= self.total]
            self.give_back(who, len(self._held[who]))

    def wait(self, seconds: float) -> None:
        """Return when something has changed, or after some seconds."""
        with self._changed:
            self._changed.wait(seconds)

    def _waits(self, who: str, count: int, claim: int) -> bool:
        return any((a.who, a.count, a.claim) == (who, count, claim) for a in self._queue)

    def _settle(self) -> None:
        """Grant what can be granted, the first asks first."""
        now, held_up = self._clock(), False
        for ask in list(self._queue):
            begins = ask.claim > self._claims.get(ask.who, 0)
            if not (begins and held_up) and self._grants(ask):
                self._grant(ask)
            elif now - ask.since >= self.patience:
                held_up = True
        self._changed.notify_all()

    def _grants(self, ask: Ask) -> bool:
        """Whether an ask fits, and leaves an order in which all can get their claims and finish."""
        held = {who: len(devices) for who, devices in self._held.items()}
        free = len(self.free) - (ask.count - held.get(ask.who, 0))
        held[ask.who] = ask.count
        claims = {**self._claims, ask.who: max(ask.claim, self._claims.get(ask.who, 0))}
        if free < 0:
            return False
        for who in sorted(held, key=lambda who: claims[who] - held[who]):
            if claims[who] - held[who] > free:
                return False
            free += held[who]
        return True

    def _grant(self, ask: Ask) -> None:
        more = ask.count - len(self._held.get(ask.who, ()))
        if ask.count:
            self._held.setdefault(ask.who, []).extend(self.free[:more])
            self._claims[ask.who] = max(ask.claim, self._claims.get(ask.who, 0))
        del self.free[:more]
        self._queue.remove(ask)
