"""Verbs between ranks as programs call them: between other work, so that nothing of them is in the caches."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from plancc.calibrate.between import Between
from plancc.calibrate.clock import Effort
from plancc.calibrate.spread import Spread, spread_of
from plancc.calibrate.steps import core_clock, settle
from plancc.ir.mesh import Grid
from plancc.runtime.comm import Comm
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
MOST = 200
"""Calls of a verb, at most."""


class Meeting(NamedTuple):
    """A call on one rank: its begin and end (the host's monotonic clock), and its seconds on a core.

    `half` of the work was done before it, in `work` seconds on a core. `given` are seconds on a core, of all
    threads, for which a message kept its sender.
    """

    begin: float
    end: float
    busy: float
    half: int
    work: float
    given: float


class Measured(NamedTuple):
    """What a rank measured: seconds of the halves of the work `alone`, and (verb, bytes, calls)."""

    alone: list[float]
    calls: list[tuple[str, int, list[Meeting]]]

    @staticmethod
    def from_json(found: Any) -> Measured:
        """Take what came as plain data."""
        alone, calls = found
        return Measured(alone, [(k, size, [Meeting(*m) for m in met]) for k, size, met in calls])


@dataclass(frozen=True, slots=True)
class Exchange:
    """Seconds of a verb (or message) among `ranks`; `size` is each one's operand in bytes.

    `given` are those for which a message kept its sender.
    """

    kind: str
    ranks: int
    size: int
    seconds: Spread
    given: float = 0.0


def run_rank(transport: Transport, payload: Mapping[str, Any]) -> Measured:
    """Entry of a rank: everything that `payload` asks for."""
    torch.set_num_threads(int(payload["threads"]))
    effort, work = Effort(**payload["effort"]), Between(transport.device)
    with torch.no_grad():
        alone = undisturbed(transport, work, effort)
        return Measured(alone, [
            (kind, size, meetings(transport, call, work, effort))
            for kind, size, call in calls_of(transport, payload["sizes"])
        ])  # fmt: skip


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
            yield MESSAGE, count * ITEM, _there_and_back(comm, view, count, core_clock(transport))


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


def _there_and_back(
    comm: Comm, view: View, count: int, busy: Callable[[], float]
) -> Callable[[], float]:
    """A value of `count` elements to the other of two ranks, and one from it: the sender's seconds."""
    x = torch.randn(count, device=view.device)
    dims = [view.dim("rows", count)]
    first, second = (Members(f"rank {rank}", "base", (rank,)) for rank in range(2))

    def both() -> float:
        given = 0.0
        for giver, source, target in ((0, first, second), (1, second, first)):
            start = busy()
            if view.rank == giver:
                comm.send(x, source, dims, target, dims, AT)
                given = busy() - start
            else:
                comm.recv(x.dtype, source, dims, target, dims, AT)
        return given

    return both


def meetings(
    transport: Transport, call: Callable[[], object], work: Between, effort: Effort
) -> list[Meeting]:
    """Calls that all ranks make together, with other work before each; the first ones do not count."""
    busy = core_clock(transport)

    def once() -> Meeting:
        start = busy()
        half = work()
        settle(transport.device)
        begin, ready = time.perf_counter(), busy()
        given = call()
        settle(transport.device)
        end, spent = time.perf_counter(), busy() - ready
        return Meeting(
            begin, end, spent, half, ready - start, given if isinstance(given, float) else 0.0
        )

    for _ in range(effort.warm):
        once()
    longest = slowest(transport, once())
    count = int(effort.lap * effort.laps / max(longest, 1e-9))
    return [once() for _ in range(max(effort.laps, min(MOST, count)))]


def undisturbed(transport: Transport, work: Between, effort: Effort) -> list[float]:
    """Seconds on a core of each half of the work where nothing is between them; all ranks begin together."""
    busy = core_clock(transport)
    transport.barrier(tuple(range(transport.world)), AT)
    found: list[list[float]] = [[] for _ in work.halves]
    for at in range(len(found) * (effort.warm + 5 * effort.laps)):
        start = busy()
        half = work()
        settle(transport.device)
        if at >= len(found) * effort.warm:
            found[half].append(busy() - start)
    return [statistics.median(seconds) for seconds in found]


def slowest(transport: Transport, meeting: Meeting) -> float:
    """Seconds of the call on the rank where it took longest: the same number on all ranks."""
    everyone = tuple(range(transport.world))
    mine = torch.tensor([meeting.end - meeting.begin], dtype=torch.float64, device=transport.device)
    found = transport.all_gather(mine, everyone, [(1,)] * transport.world, AT)
    return max(float(x) for x in found)


def joined(ranks: Sequence[Measured], cores: int) -> list[Exchange]:
    """Seconds of calls from what all ranks kept; `cores` compute at a time (0: a device each).

    From when the last rank came to when the last one left. Ranks that are more than the cores wait for one,
    too, which is no part of the verb: there as many times what a rank spends on a core as they have to take
    turns. And on CPUs what the work behind a call takes longer than work without one: it finds the caches
    changed.
    """
    found = []
    for rows in zip(*(one.calls for one in ranks), strict=True):
        kind, size, _ = rows[0]
        ways = 2 if kind == MESSAGE else 1
        turns = math.ceil(len(ranks) / cores) if cores else 1
        after = [behind(one.alone, met) for one, (_, _, met) in zip(ranks, rows, strict=True)]
        more = turns * statistics.fmean(after) if cores else 0.0
        seconds = [
            (turns * statistics.fmean(m.busy for m in met) if turns > 1 else lasted(met)) + more
            for met in zip(*(calls for _, _, calls in rows), strict=True)
        ]
        given = 0.0
        if cores:  # with a device each, what the host does is no time of the device
            given = statistics.fmean(statistics.median(m.given for m in met) for _, _, met in rows)
        spread = spread_of([s / ways for s in seconds])
        found.append(Exchange(kind, len(rows), size, spread, given))
    return found


def together(launches: Sequence[Sequence[Measured]]) -> list[Measured]:
    """What the ranks of several launches measured as if it had been one, by rank."""
    found = []
    for ranks in zip(*launches, strict=True):
        alone = [statistics.fmean(half) for half in zip(*(one.alone for one in ranks), strict=True)]
        calls = [
            (rows[0][0], rows[0][1], [meeting for _, _, met in rows for meeting in met])
            for rows in zip(*(one.calls for one in ranks), strict=True)
        ]
        found.append(Measured(alone, calls))
    return found


def lasted(met: Sequence[Meeting]) -> float:
    """Seconds from when the last rank came to a call until the last one left it."""
    return max(m.end for m in met) - max(m.begin for m in met)


def behind(alone: Sequence[float], calls: Sequence[Meeting]) -> float:
    """Seconds that work takes longer between the calls of a rank than without them."""
    found = [
        statistics.median([m.work for m in calls if m.half == half] or [seconds]) - seconds
        for half, seconds in enumerate(alone)
    ]
    return max(0.0, statistics.fmean(found))
