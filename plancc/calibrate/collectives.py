"""Verbs between ranks as programs call them: after other work, so that nothing of them is in the caches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from plancc.calibrate.clock import Effort
from plancc.calibrate.spread import Spread, spread_of
from plancc.calibrate.steps import settle
from plancc.ir.mesh import Grid
from plancc.runtime.comm import Comm
from plancc.runtime.local import LocalTransport
from plancc.runtime.transport import Transport
from plancc.runtime.view import Members, View

KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
MESSAGE = "message"
"""One way between two ranks: half of what it takes there and back."""
WIDTH = 512
AT = 22
"""Instruction number of all that is measured."""
ITEM = 4
"""Bytes of an element: verbs are measured in float32."""
WORK = 4 << 20
"""Bytes that a rank reads before each call."""
MOST = 200
"""Calls of a verb, at most."""

Meeting = tuple[float, float, float]
"""A call on one rank: its begin and end (the host's monotonic clock), and its seconds on a core."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """Seconds of a verb (or message) among `ranks`; `size` is each one's operand in bytes."""

    kind: str
    ranks: int
    size: int
    seconds: Spread


def run_rank(
    transport: Transport, payload: Mapping[str, Any]
) -> list[tuple[str, int, list[Meeting]]]:
    """Entry of a rank: (verb, bytes, calls) of everything that `payload` asks for."""
    torch.set_num_threads(int(payload["threads"]))
    effort = Effort(**payload["effort"])
    found = []
    with torch.no_grad():
        for kind, size, call in calls_of(transport, payload["sizes"]):
            found.append((kind, size, meetings(transport, call, effort)))
    return found


def calls_of(
    transport: Transport, sizes: Sequence[int]
) -> Iterator[tuple[str, int, Callable[[], object]]]:
    """(verb, bytes of the operand, call) for all verbs and sizes; sizes are rounded to whole elements."""
    world = transport.world
    grid = Grid("base", (("tp", world),), tuple(range(world)))
    view = View(transport.rank, {"base": grid}, "base", device=transport.device)
    comm = Comm(transport, view)
    for size in sizes:
        for kind in KINDS:
            count = max(1, size // ITEM)
            if kind in ("reduce_scatter", "all_to_all"):
                count = -(-count // world) * world
            yield kind, count * ITEM, _call(comm, view, kind, count, world)
        if world == 2:
            count = max(1, size // ITEM)
            yield MESSAGE, count * ITEM, _there_and_back(comm, view, count)


def _call(comm: Comm, view: View, kind: str, count: int, world: int) -> Callable[[], object]:
    """A verb on an operand of `count` elements, split along the middle dim of [1, rows, width]."""
    split = world if kind in ("reduce_scatter", "all_to_all") else 1
    width = next(w for w in (WIDTH, 64, 8, 1) if count % (w * split) == 0)
    if kind == "all_to_all":
        share = count // world
        x = torch.randn(1, 1, count, device=view.device)
        before, after = view.dim("seq", world, "tp"), view.dim("heads", share * world, "tp")
        return lambda: comm.all_to_all(x, 1, before, 2, after, "tp", AT)
    rows = count // width
    x = torch.randn(1, rows, width, device=view.device)
    if kind == "all_reduce":
        return lambda: comm.all_reduce(x, "tp", AT)
    dim = view.dim("seq", rows * world if kind == "all_gather" else rows, "tp")
    verb = comm.all_gather if kind == "all_gather" else comm.reduce_scatter
    return lambda: verb(x, 1, dim, "tp", AT)


def _there_and_back(comm: Comm, view: View, count: int) -> Callable[[], object]:
    """A value of `count` elements to the other of two ranks, and one from it."""
    x = torch.randn(count, device=view.device)
    dims = [view.dim("rows", count)]
    first, second = (Members(f"rank {rank}", "base", (rank,)) for rank in range(2))

    def both() -> None:
        for giver, source, target in ((0, first, second), (1, second, first)):
            if view.rank == giver:
                comm.send(x, source, dims, target, dims, AT)
            else:
                comm.recv(x.dtype, source, dims, target, dims, AT)

    return both


def meetings(transport: Transport, call: Callable[[], object], effort: Effort) -> list[Meeting]:
    """Calls that all ranks make together, with other work before each; the first ones do not count."""
    waste = torch.ones(WORK // ITEM, device=transport.device)
    busy = time.thread_time if isinstance(transport, LocalTransport) else time.process_time

    def once() -> Meeting:
        waste.sum()
        settle(transport.device)
        begin, spent = time.perf_counter(), busy()
        call()
        settle(transport.device)
        return begin, time.perf_counter(), busy() - spent

    for _ in range(effort.warm):
        once()
    longest = slowest(transport, once())
    count = int(effort.lap * effort.laps / max(longest, 1e-9))
    return [once() for _ in range(max(effort.laps, min(MOST, count)))]


def slowest(transport: Transport, meeting: Meeting) -> float:
    """Seconds of the call on the rank where it took longest: the same number on all ranks."""
    everyone = tuple(range(transport.world))
    mine = torch.tensor([meeting[1] - meeting[0]], dtype=torch.float64, device=transport.device)
    found = transport.all_gather(mine, everyone, [(1,)] * transport.world, AT)
    return max(float(x) for x in found)


def joined(
    ranks: Sequence[Sequence[tuple[str, int, Sequence[Meeting]]]], by_turns: bool
) -> list[Exchange]:
    """Seconds of calls from what all ranks kept.

    From when the last rank came to when the last one left; of ranks that run by turns what all of them
    spent on the core that they share.
    """
    found = []
    for rows in zip(*ranks, strict=True):
        kind, size, _ = rows[0]
        ways = 2 if kind == MESSAGE else 1
        seconds = [
            (
                sum(m[2] for m in met)
                if by_turns
                else max(m[1] for m in met) - max(m[0] for m in met)
            )
            / ways
            for met in zip(*(calls for _, _, calls in rows), strict=True)
        ]
        found.append(Exchange(kind, len(rows), size, spread_of(seconds)))
    return found
