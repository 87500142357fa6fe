"""Costs of matrix products: 2 b m n k FLOPs of [b, m, k] x [b, k, n], and each gradient as many again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from plancc.simulator.costs_memory import Works, moved
from plancc.simulator.forms import Work
from plancc.simulator.local_call import Call, Local

Shape = tuple[int, int, int, int]
"""(batch, m, n, k)."""


def product(shape: Shape, read: int, written: int, dtype: str) -> Works:
    """The work of one matrix product, which reads and writes so many bytes."""
    flops = 2 * prod(shape)
    if not flops:
        return (Work("memory", 0, 0, written, dtype),) if written else ()
    return (Work("matmul", flops, read, written, dtype, shape),)


def one_product(call: Call, shape: Shape, left: int, right: int, added: int | None) -> Works:
    """The forward: operands number `left` and `right`, and perhaps an addend."""
    read = call.ins[left].nbytes + call.ins[right].nbytes
    read += call.ins[added].nbytes if added is not None else 0
    return product(shape, read, call.outs[0].size, call.dtype)


def two_products(call: Call, shape: Shape, left: int, right: int, added: int | None) -> Works:
    """The backward: [m, n] x [n, k] for the left operand, [n, m] x [m, k] for the right one.

    The gradient of an addend that was broadcast is a sum.
    """
    b, m, n, k = shape
    x, y, out = call.ins[left], call.ins[right], call.outs[0].size
    found: Works = ()
    if call.needs[left]:
        found += product((b, m, k, n), out + y.nbytes, x.size, call.dtype)
    if call.needs[right]:
        found += product((b, n, k, m), out + x.nbytes, y.size, call.dtype)
    if added is not None and call.needs[added] and call.ins[added].size < out:
        found += moved(call, out, call.ins[added].size)
    return found


def bias(call: Call, at: int) -> int | None:
    """The place of an addend among the operands, if there is one."""
    return at if len(call.ins) > at else None


def linear_shape(call: Call) -> Shape:
    """`linear`: x [..., k] times weight [n, k], or weight [k]."""
    x, weight = call.ins[:2]
    n = weight.shape[0] if len(weight.shape) > 1 else 1
    return 1, prod(x.shape[:-1]), n, x.shape[-1]


def linear(call: Call) -> Works:
    """x, weight, optional bias."""
    return one_product(call, linear_shape(call), 0, 1, bias(call, 2))


def linear_back(call: Call) -> Works:
    """Gradients of x, weight and bias."""
    return two_products(call, linear_shape(call), 0, 1, bias(call, 2))


def linear_now(call: Call) -> Works:
    """`linear_later`: the gradients of x and bias; that of the weight is left for later."""
    needs = tuple(need and at != 1 for at, need in enumerate(call.needs))
    return two_products(call_with(call, needs), linear_shape(call), 0, 1, bias(call, 2))


def linear_late(call: Call) -> Works:
    """What `linear_later` left: the gradient of the weight."""
    needs = tuple(need and at == 1 for at, need in enumerate(call.needs))
    return two_products(call_with(call, needs), linear_shape(call), 0, 1, None)


def call_with(call: Call, needs: tuple[bool, ...]) -> Call:
    """The call with other gradients wanted."""
    return Call(call.target, call.args, call.kwargs, call.ins, call.outs, needs)


def matmul_shape(x: Local, y: Local) -> Shape:
    """`matmul` by ranks: leading dims are broadcast; those of the left fold into m if the right has none."""
    k = x.shape[-1] if x.shape else 1
    if len(y.shape) <= 2:
        return 1, prod(x.shape[:-1]), y.shape[1] if len(y.shape) == 2 else 1, k
    m = x.shape[-2] if len(x.shape) > 1 else 1
    lead = broadcast(x.shape[:-2], y.shape[:-2])
    return prod(lead), m, y.shape[-1], k


def broadcast(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    """Two shapes as one, aligned at the right; a dim of size 1 fits any."""
    wide = max(len(a), len(b))
    left, right = (1,) * (wide - len(a)) + tuple(a), (1,) * (wide - len(b)) + tuple(b)
    return tuple(y if x == 1 else x for x, y in zip(left, right, strict=True))


def matmul(call: Call) -> Works:
    """`matmul`, `mm`, `bmm`, `mv`, `dot`."""
    return one_product(call, matmul_shape(*call.ins[:2]), 0, 1, None)


def matmul_back(call: Call) -> Works:
    """Gradients of both operands."""
    return two_products(call, matmul_shape(*call.ins[:2]), 0, 1, None)


def addmm(call: Call) -> Works:
    """`addmm`, `baddbmm`: the addend comes first."""
    return one_product(call, matmul_shape(*call.ins[1:3]), 1, 2, 0)


def addmm_back(call: Call) -> Works:
    """Gradients of both operands and of the addend."""
    return two_products(call, matmul_shape(*call.ins[1:3]), 1, 2, 0)


def convolution_shape(call: Call) -> Shape:
    """(groups, n * positions, out channels, in channels * window), both channels of one group."""
    x, weight, out = call.ins[0], call.ins[1], call.outs[0]
    groups = max(1, int(call.arg("groups", 1)))
    rows = out.shape[0] * prod(out.shape[2:]) if len(x.shape) == len(out.shape) else 0
    return groups, rows, weight.shape[0] // groups, prod(weight.shape[1:])


def convolution(call: Call) -> Works:
    """A convolution as the product of its windows with the kernels."""
    return one_product(call, convolution_shape(call), 0, 1, bias(call, 2))


def convolution_back(call: Call) -> Works:
    """Gradients of input, kernels and bias: each counts as the forward."""
    return two_products(call, convolution_shape(call), 0, 1, bias(call, 2))


@dataclass(frozen=True, slots=True)
class Term:
    """An operand of an einsum: its labels, bytes, and whether it has a gradient."""

    labels: str
    nbytes: int
    need: bool


@dataclass(frozen=True, slots=True)
class Pair:
    """Two terms contracted to one."""

    left: Term
    right: Term
    out: Term
    shape: Shape
    contracts: bool


def einsum_pairs(call: Call) -> Iterator[Pair]:
    """The products of an einsum, from left to right."""
    sides, result, size = equation(call)
    width = call.outs[0].dtype.itemsize
    needs = call.needs or (False,) * len(sides)
    terms = [
        Term(side, x.nbytes, need) for side, x, need in zip(sides, call.ins, needs, strict=True)
    ]
    left = terms[0]
    for at, right in enumerate(terms[1:], 1):
        rest = set(result).union(*(term.labels for term in terms[at + 1 :]))
        every = "".join(dict.fromkeys(left.labels + right.labels))
        both = [name for name in every if name in left.labels and name in right.labels]
        inner = [name for name in both if name not in rest]
        kept = "".join(name for name in every if name in rest)

        def many(names: Sequence[str]) -> int:
            return prod(size[name] for name in names)

        shape = (
            many([name for name in both if name in rest]),
            many([name for name in kept if name not in right.labels]),
            many([name for name in kept if name not in left.labels]),
            many(inner),
        )
        out = Term(kept, many(kept) * width, left.need or right.need)
        yield Pair(left, right, out, shape, bool(inner))
        left = out


def equation(call: Call) -> tuple[list[str], str, dict[str, int]]:
    """The labels of the operands and of the result, and their sizes; `...` becomes capital letters."""
    text = str(call.arg("equation")).replace(" ", "")
    given, arrow, result = text.partition("->")
    sides = given.split(",")
    if not arrow:
        seen = given.replace(",", "").replace(".", "")
        result = "..." * ("..." in given) + "".join(
            sorted(n for n in set(seen) if seen.count(n) == 1)
        )
    wide = max(
        len(x.shape) - len(side.replace("...", "")) for side, x in zip(sides, call.ins, strict=True)
    )
    lead = [chr(0x391 + at) for at in range(wide)]  # Greek letters: einsum has none
    size: dict[str, int] = {}
    written = []
    for side, x in zip(sides, call.ins, strict=True):
        own = len(x.shape) - len(side.replace("...", ""))
        side = side.replace("...", "".join(lead[wide - own :]))
        for name, count in zip(side, x.shape, strict=True):
            size[name] = max(size.get(name, 1), count) if count else 0
        written.append(side)
    return written, result.replace("...", "".join(lead)), size


def einsum(call: Call) -> Works:
    """An einsum: matrix products two by two, or kernels where nothing is contracted."""
    found: Works = ()
    for pair in einsum_pairs(call):
        read = pair.left.nbytes + pair.right.nbytes
        if pair.contracts:
            found += product(pair.shape, read, pair.out.nbytes, call.dtype)
        else:
            found += moved(call, read, pair.out.nbytes)
    return found or moved(call, call.ins[0].nbytes, call.outs[0].size)


def einsum_back(call: Call) -> Works:
    """Gradients of the terms of each product, the last product first."""
    found: Works = ()
    pairs = list(einsum_pairs(call))
    for pair in reversed(pairs):
        b, m, n, k = pair.shape
        for need, shape, other, own in (
            (pair.left.need, (b, m, k, n), pair.right, pair.left),
            (pair.right.need, (b, n, k, m), pair.left, pair.right),
        ):
            read = pair.out.nbytes + other.nbytes
            if need and pair.contracts:
                found += product(shape, read, own.nbytes, call.dtype)
            elif need:
                found += moved(call, read, own.nbytes)
    if not pairs and any(call.needs):
        return moved(call, call.outs[0].size, call.ins[0].size)
    return found
