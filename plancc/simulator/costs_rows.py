"""Costs of users' own operators, from the rows that they registered.

A row that contracts a label of two operands ("m i, i o -> m o") is a product: 2 FLOPs for each combination of
its labels, and as many for each gradient. Any other row is bound by its bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from plancc.passes.rows.call import schema
from plancc.passes.rows.notation import Pattern, Side, Slot, expand
from plancc.simulator.costs_memory import Works, moved, reread, sizes, touched
from plancc.simulator.costs_products import Shape, product
from plancc.simulator.local_call import Call, Local, tensors


def user_forward(call: Call) -> Works:
    """The kernel of a user's operator."""
    shape = shape_of(call)
    if shape is None:
        return touched(call)
    return product(shape, sum(x.nbytes for x in call.ins), sizes(call.outs), call.dtype)


def user_backward(call: Call) -> Works:
    """A kernel for each gradient of a product; one for all of them of anything else."""
    shape = shape_of(call)
    if shape is None:
        return reread(call)
    found: Works = ()
    given = sizes(call.outs) + sum(x.nbytes for x in call.ins)
    for x, need in zip(call.ins, call.needs, strict=True):
        if need and len(x.shape) > 1:
            found += product(shape, given - x.nbytes, x.size, call.dtype)
        elif need:
            found += moved(call, sizes(call.outs), x.size)
    return found


def shape_of(call: Call) -> Shape | None:
    """(batch, m, n, k) of a row that is a product; None of another."""
    operands = operand_tensors(call)
    ranks = tuple(None if x is None else len(x.shape) for x in operands)
    pattern = expand(call.extra["row"], ranks, tuple(len(x.shape) for x in call.outs))
    size: dict[str, int] = {}
    sides = [(side, x) for side, x in zip(pattern.ins, operands, strict=False) if x is not None]
    for side, x in (*sides, *zip(pattern.outs, call.outs, strict=True)):
        for slot, count in zip(side.slots, x.shape, strict=True):
            bind(slot, count, size)
    names = [names_of(side) for side, _ in sides if not side.addend]
    return dims(names, pattern, size)


def dims(names: Sequence[set[str]], pattern: Pattern, size: Mapping[str, int]) -> Shape | None:
    """The labels of a product in its four roles; None where two operands contract none."""
    out = set().union(*(names_of(side) for side in pattern.outs))
    twice = {name for at, one in enumerate(names) for other in names[:at] for name in one & other}
    inner = twice - out
    if not inner:
        return None
    left = next(one for one in names if one & inner)

    def many(found: set[str]) -> int:
        return prod(size[name] for name in found)

    rest = out - twice
    return many(twice & out), many(rest & left), many(rest - left), many(inner)


def names_of(side: Side) -> set[str]:
    """The labels of one operand or result."""
    return {name for slot in side.slots for one in (slot, *slot.parts) for name in one.names}


def bind(slot: Slot, count: int, size: dict[str, int]) -> None:
    """Find the sizes of the labels of one dim; of several unknown ones the first takes all."""
    if slot.parts:
        known = [prod(size.get(name, 1) for name in part.names) for part in slot.parts]
        open_parts = [p for p in slot.parts if not all(name in size for name in p.names)]
        closed = sum(n for n, p in zip(known, slot.parts, strict=True) if p not in open_parts)
        for part in open_parts:
            bind(part, (count - closed) // len(open_parts), size)
        return
    for name in slot.names:
        if name[0].isdigit():
            size.setdefault(name, int(name.partition(".")[0]))
    unknown = [name for name in slot.names if name not in size]
    rest = prod(size[name] for name in slot.names if name in size)
    for name in unknown:
        size[name] = count // max(1, rest)
        rest = count


def operand_tensors(call: Call) -> list[Local | None]:
    """The tensors of a call in the order of its schema, None for those that are absent."""
    found: list[Local | None] = []
    for one in schema(call.target) or ():
        if one.is_tensor:
            value = call.arg(one.name)
            found.extend(tensors(value) if value is not None else [None])
    return found
