"""The schedules that plancc knows by name, as orders of actions for each pipeline rank.

Each builder takes the numbers of stages, micro-batches and virtual stages a rank, for any counts from 1;
the rows that it gives have no problem by `plancc.ir.schedule` (a test tries them all).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest

from plancc.dsl.errors import Bug
from plancc.dsl.schedules import read_step
from plancc.ir.schedule import Action, Schedule

Row = tuple[Action, ...]
Order = list[tuple[int, int]]
"""(chunk, micro-batch) in the order of running."""


def build_schedule(
    name: str,
    stages: int,
    microbatches: int,
    virtual: int = 1,
    table: Sequence[str] | None = None,
) -> Schedule:
    """The schedule `name` (a key of BUILDERS, or `table` with one text a rank); Bug if it has none.

    With one stage, every named one accumulates: micro-batch after micro-batch, forward and backward.
    """
    if min(stages, microbatches, virtual) < 1:
        raise Bug(f"a schedule of {stages} x {virtual} stages and {microbatches} micro-batches")
    if table is not None:
        rows = read_table(table, stages)
    elif name not in BUILDERS or (virtual > 1 and name in PLAIN):
        raise Bug(f"there is no schedule {name} with {virtual} virtual stages")
    elif stages == 1:
        rows = (accumulate(microbatches, virtual),)
    else:
        build = BUILDERS[name]
        rows = tuple(build(rank, stages, microbatches, virtual) for rank in range(stages))
    return Schedule(rows, stages, virtual, microbatches, name)


def read_table(table: Sequence[str], stages: int) -> tuple[Row, ...]:
    """The rows that a plan writes down, checked by the language word by word."""
    rows = []
    for rank, text in enumerate(table):
        steps = [read_step(word) for word in text.split()]
        if None in steps:
            raise Bug(f"a schedule table with a word that is no action: {text}")
        rows.append(
            tuple(Action(s.kind, (s.virtual or 0) * stages + rank, s.batch) for s in steps if s)
        )
    return tuple(rows)


def accumulate(batches: int, virtual: int) -> Row:
    """One rank: each micro-batch forward through all chunks and back."""
    row = []
    for batch in range(batches):
        row += [Action("F", chunk, batch) for chunk in range(virtual)]
        row += [Action("B", chunk, batch) for chunk in reversed(range(virtual))]
    return tuple(row)


def gpipe(rank: int, stages: int, batches: int, virtual: int) -> Row:
    """All forwards, then all backwards (Huang et al., "GPipe", arXiv 1811.06965)."""
    forward = [Action("F", rank, batch) for batch in range(batches)]
    return (*forward, *(Action("B", rank, batch) for batch in range(batches)))


def one_f_one_b(rank: int, stages: int, batches: int, virtual: int) -> Row:
    """`stages - rank` forwards, then backward and forward in turn, so that no more are ever held.

    PipeDream-Flush (Narayanan et al., "Memory-Efficient Pipeline-Parallel DNN Training",
    arXiv 2006.09503), as in Megatron-LM.
    """
    order = [(rank, batch) for batch in range(batches)]
    return alternate(order, order, stages - 1 - rank)


def interleaved(rank: int, stages: int, batches: int, virtual: int) -> Row:
    """1F1B over `virtual` chunks a rank, depth first (Narayanan et al., arXiv 2104.04473).

    Megatron-LM wants the micro-batches to be a multiple of the stages; groups of any size from
    `stages` on keep the order free of deadlocks, so the rest is shared out among the groups.
    """
    if virtual == 1:
        return one_f_one_b(rank, stages, batches, virtual)
    forward, backward, first = grouped(rank, stages, batches, virtual)
    return alternate(forward, backward, (virtual - 1) * first + 2 * (stages - 1 - rank))


def zero_bubble(rank: int, stages: int, batches: int, virtual: int) -> Row:
    """ZB-H1: 1F1B whose backward is split in two, the weights' half `rank` micro-batches later.

    Qi et al., "Zero Bubble Pipeline Parallelism", arXiv 2401.10241: a third of the bubbles of 1F1B, and
    no rank holds more than the first one does under 1F1B. With virtual stages, the same over their order.
    """
    forward, backward, first = grouped(rank, stages, batches, virtual)
    warm = min((virtual - 1) * first + stages - 1 - rank, len(forward))
    row = [Action("F", *at) for at in forward[:warm]]
    for count, at in enumerate(backward):
        row += [Action("F", *ahead) for ahead in forward[warm + count : warm + count + 1]]
        row.append(Action("I", *at))
        if count >= rank:
            row.append(Action("W", *backward[count - rank]))
    return (*row, *(Action("W", *at) for at in backward[max(len(backward) - rank, 0) :]))


def grouped(rank: int, stages: int, batches: int, virtual: int) -> tuple[Order, Order, int]:
    """The orders of forwards and backwards, and the size of the first group of micro-batches.

    A group runs through one chunk of the rank, then through the next. There are as many groups as
    have at least `stages` micro-batches each, the larger ones first.
    """
    count = max(1, batches // stages)
    sizes = [batches // count + (index < batches % count) for index in range(count)]
    forward: Order = []
    backward: Order = []
    begin = 0
    for size in sizes:
        group = range(begin, begin + size)
        begin += size
        chunks = range(rank, stages * virtual, stages)
        forward += [(chunk, batch) for chunk in chunks for batch in group]
        backward += [(chunk, batch) for chunk in reversed(chunks) for batch in group]
    return forward, backward, sizes[0]


def alternate(forward: Order, backward: Order, warm: int) -> Row:
    """`warm` forwards, then forward and backward in turn, then the backwards that are left."""
    row = [Action("F", *at) for at in forward[:warm]]
    for ahead, back in zip_longest(forward[warm:], backward):
        row += [Action("F", *ahead)] if ahead is not None else []
        row.append(Action("B", *back))
    return tuple(row)


BUILDERS: Mapping[str, Callable[[int, int, int, int], Row]] = {
    "GPipe": gpipe,
    "1F1B": one_f_one_b,
    "interleaved": interleaved,
    "zero_bubble": zero_bubble,
}
PLAIN = ("GPipe", "1F1B")
"""Schedules of one chunk a rank."""
