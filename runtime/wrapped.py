"""A transport around another, for those that look at every call: the meter, the recorder."""

from __future__ import annotations

from typing import Any

from plancc.runtime.transport import Group, Transport

VERBS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "exchange", "barrier")


class Wrapped:
    """Passes on what the inner transport is; who derives from it sets the VERBS."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner
        self.rank, self.world, self.device = inner.rank, inner.world, inner.device
        self.counters = inner.counters
        self.members: Group | None = getattr(inner, "members", None)
        self.set_position = inner.set_position

    def lane(self) -> Any:
        """The inner transport's lane, whose calls are not seen: it runs beside the computation."""
        from plancc.runtime.lane import Lane

        make = getattr(self.inner, "lane", None)
        return make() if make is not None else Lane(self, False)

    @property
    def program(self) -> str:
        """The name of the rank's program."""
        return self.inner.program

    @program.setter
    def program(self, name: str) -> None:
        self.inner.program = name
