"""Costs of expert layers: grouped products over the rows that a router sends, which `Routing` tells.

As `plancc::experts` computes them: rows are gathered by expert, go through gate and up, the activation and
down, are weighted and added up by token. Only the weights of experts in use are read.
"""

from __future__ import annotations

from dataclasses import dataclass

from plancc.dsl.errors import Bug
from plancc.simulator.costs_memory import Works, moved
from plancc.simulator.forms import Work
from plancc.simulator.local_call import Call, Local

X, SHARE, WIDE, DOWN = 0, 2, 3, 4
"""The places of tokens, their weights, gate-up and down among the operands."""


@dataclass(frozen=True, slots=True)
class Layer:
    """The numbers of one call: rows that come, choices, experts in use; widths of the two products."""

    rows: float
    picks: float
    used: float
    hidden: int
    wide: int
    inner: int
    out: int
    width: int  # bytes of a number
    dtype: str

    def bytes(self, *counts: float) -> int:
        """Bytes of so many numbers."""
        return round(sum(counts) * self.width)

    def product(self, n: int, k: int, read: int, written: int) -> Works:
        """[m, k] x [k, n] for each expert in use, where all m together are the choices."""
        flops = round(2 * self.picks * n * k)
        if not flops:
            return ()
        used = max(1, round(self.used))
        shape = (used, max(1, round(self.picks / used)), n, k)
        return (Work("matmul", flops, read, written, self.dtype, shape),)

    @property
    def wide_weights(self) -> float:
        """Numbers in gate and up of the experts in use."""
        return self.used * self.wide * self.hidden

    @property
    def down_weights(self) -> float:
        """Numbers in down of the experts in use."""
        return self.used * self.inner * self.out


def layer_of(call: Call) -> Layer:
    """The numbers of a call; Bug for one without its rows."""
    if call.routed is None:
        raise Bug(f"`{call.target}` without its rows")
    wide, down = call.ins[WIDE].shape, call.ins[DOWN].shape
    if call.arg("transposed", False):
        wide, down = (wide[0], wide[2], wide[1]), (down[0], down[2], down[1])
    routed, x = call.routed, call.outs[0]
    return Layer(
        routed.rows, routed.picks, min(routed.used, wide[0]), wide[2], wide[1], down[2],
        down[1], x.dtype.itemsize, call.dtype,
    )  # fmt: skip


def experts(call: Call) -> Works:
    """Gather, gate and up, activation, down, weighted sum by token."""
    one = layer_of(call)
    picks = one.picks
    rows, wide = picks * one.hidden, picks * one.wide
    inner, found = picks * one.inner, picks * one.out
    return (
        *moved(call, 0, one.bytes(one.rows * one.out)),
        *moved(call, one.bytes(rows), one.bytes(rows)),
        *one.product(one.wide, one.hidden, one.bytes(rows, one.wide_weights), one.bytes(wide)),
        *moved(call, one.bytes(wide), one.bytes(inner)),
        *one.product(one.out, one.inner, one.bytes(inner, one.down_weights), one.bytes(found)),
        *moved(call, one.bytes(found), one.bytes(found)),
        *moved(call, one.bytes(2 * found), one.bytes(found)),
    )


def experts_back(call: Call) -> Works:
    """The same backwards: two products for each, as far as x and weights have gradients.

    The gradients of all experts' weights are put together to one (the backward of `unbind`).
    """
    if not any(call.needs):
        return ()
    one = layer_of(call)
    picks = one.picks
    rows, wide = picks * one.hidden, picks * one.wide
    inner, found = picks * one.inner, picks * one.out
    works = moved(call, one.bytes(found), one.bytes(found))
    works += moved(call, one.bytes(2 * found), one.bytes(found))
    if call.needs[DOWN]:
        works += one.product(
            one.inner, one.out, one.bytes(found, inner), one.bytes(one.down_weights)
        )
        works += stacked(call, call.ins[DOWN])
    works += one.product(one.inner, one.out, one.bytes(found, one.down_weights), one.bytes(inner))
    works += moved(call, one.bytes(inner, wide), one.bytes(wide))
    if call.needs[WIDE]:
        works += one.product(
            one.hidden, one.wide, one.bytes(wide, rows), one.bytes(one.wide_weights)
        )
        works += stacked(call, call.ins[WIDE])
    if call.needs[X]:
        works += one.product(
            one.hidden, one.wide, one.bytes(wide, one.wide_weights), one.bytes(rows)
        )
        works += moved(call, one.bytes(2 * rows), one.bytes(rows, one.rows * one.hidden))
    return works


def stacked(call: Call, weight: Local) -> Works:
    """The gradients of the experts' matrices in one tensor."""
    return moved(call, weight.size, weight.size)
