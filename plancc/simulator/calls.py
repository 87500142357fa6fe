"""Calls of the transport as `Verb`s, from the sizes of what is moved.

Bytes given are those that `plancc.runtime.meter` counts. A group of one rank makes no call.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from plancc.runtime import hierarchy
from plancc.runtime.meter import ring_bytes
from plancc.runtime.transport import Group
from plancc.runtime.wires import block_of, block_spans, message_bytes, whole_blocks
from plancc.simulator.forms import Verb

Verbs = tuple[Verb, ...]
Pairs = Iterable[tuple[int, int]]
"""(rank, bytes)."""


def all_reduce(
    rank: int, group: Group, elements: int, item: int, nodes: Sequence[int] = ()
) -> Verbs:
    """The sum of `elements` of `item` bytes over a group, node by node where that pays."""
    size = elements * item
    if len(group) == 1:
        return ()
    if hierarchy.pays(group, nodes, size):
        return by_node(rank, group, elements, item, nodes)
    return (Verb("all_reduce", group, size, ring_bytes("all_reduce", size, len(group))),)


def by_node(rank: int, group: Group, elements: int, item: int, nodes: Sequence[int]) -> Verbs:
    """The calls of `hierarchy.all_reduce`: scatter in the node, swap with the others, gather."""
    houses = hierarchy.by_node(group, nodes)
    mine = next(house for house in houses if rank in house)
    cuts = hierarchy.spans(elements, len(mine))
    own = cuts[mine.index(rank)]
    swapped = [
        (other, (stop - start) * item)
        for other, start, stop in hierarchy.crossings(elements, houses, mine, own)
    ]
    return (
        *reduce_scatter(rank, mine, [(b - a) * item for a, b in cuts]),
        *exchange(rank, swapped, swapped),
        *all_gather(mine, (own[1] - own[0]) * item),
    )


def all_gather(group: Group, size: int) -> Verbs:
    """What every rank has of something, for all; `size` bytes are this rank's."""
    if len(group) == 1:
        return ()
    return (Verb("all_gather", group, size, ring_bytes("all_gather", size, len(group))),)


def reduce_scatter(rank: int, group: Group, sizes: Sequence[int]) -> Verbs:
    """The sum of which group[i] keeps sizes[i] bytes."""
    if len(group) == 1:
        return ()
    total = sum(sizes)
    return (Verb("reduce_scatter", group, total, total - sizes[group.index(rank)]),)


def all_to_all(rank: int, group: Group, sends: Sequence[int], takes: Sequence[int]) -> Verbs:
    """sends[i] bytes for group[i], takes[i] from it."""
    if len(group) == 1:
        return ()
    given = others(rank, zip(group, sends, strict=True))
    taken = others(rank, zip(group, takes, strict=True))
    return (Verb("all_to_all", group, sum(sends), sum(n for _, n in given), given, taken),)


def exchange(rank: int, sends: Pairs, takes: Pairs) -> Verbs:
    """Messages to and from ranks; no call where none leaves or comes."""
    sends = tuple(sends)
    given, taken = others(rank, sends), others(rank, takes)
    if not given and not taken:
        return ()
    group = tuple(sorted({rank, *(r for r, _ in given), *(r for r, _ in taken)}))
    size = sum(n for _, n in sends)
    return (Verb("exchange", group, size, sum(n for _, n in given), given, taken),)


def others(rank: int, pairs: Pairs) -> tuple[tuple[int, int], ...]:
    """What goes to or comes from other ranks, without what is empty."""
    return tuple((other, count) for other, count in pairs if other != rank and count)


def lossy_sum(rank: int, group: Group, counts: Sequence[int], wire: str) -> Verbs:
    """`wires.sums_of` tensors of `counts` elements: parts to the rank that adds them, sums to all."""
    block = block_of(wire)
    total = sum(whole_blocks(count, block) for count in counts)
    cuts = block_spans(total, block, len(group))
    sizes = [message_bytes(wire, (b - a,)) for a, b in cuts]
    own = sizes[group.index(rank)]
    return (*all_to_all(rank, group, sizes, [own] * len(group)), *all_gather(group, own))


def lossy_scatter(rank: int, group: Group, counts: Sequence[Sequence[int]], wire: str) -> Verbs:
    """`wires.scattered_sums`: counts[i] are the elements of each tensor that group[i] keeps."""
    block = block_of(wire)
    sizes = [
        message_bytes(wire, (sum(whole_blocks(count, block) for count in row),)) for row in counts
    ]
    return all_to_all(rank, group, sizes, [sizes[group.index(rank)]] * len(group))
