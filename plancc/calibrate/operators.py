"""The local calls that are measured: matrix products, attention, memory-bound calls, as programs make them.

What a program has just made is warm in the caches, and its weights are not: a case takes turns among copies
of what stands for weights or cached keys and values, until all of them are larger than any cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from math import prod
from typing import Any

import torch
from torch import Tensor

from plancc import ops
from plancc.simulator.forms import Work

aten = torch.ops.aten
COLD = 128 << 20
"""Bytes that copies of a weight take up together."""
MOST_COPIES = 256
HEAD_DIM = 64


@dataclass(frozen=True, slots=True)
class Case:
    """A call of an operator to time, and the work that it is."""

    name: str
    operator: str
    work: Work
    call: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Which sizes are measured.

    `rows` are those of x in a product x [m, k] times a weight [n, k] of `weights` (n, k); `batched` (batch,
    m, n, k); `prefills` (heads, tokens) and `decodes` (batch, heads, cached tokens) of attention; `streams`
    the bytes that memory-bound calls move.
    """

    rows: tuple[int, ...]
    weights: tuple[tuple[int, int], ...]
    batched: tuple[tuple[int, int, int, int], ...]
    prefills: tuple[tuple[int, int], ...]
    decodes: tuple[tuple[int, int, int], ...]
    streams: tuple[int, ...]


FULL = Sizes(
    (1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    ((64, 64), (256, 256), (512, 512), (1408, 512), (1024, 1024), (2048, 2048)),
    (
        (2, 64, 256, 256),
        (8, 1, 256, 256),
        (8, 16, 256, 256),
        (8, 64, 512, 512),
        (16, 128, 128, 128),
    ),
    ((1, 16), (4, 32), (4, 64), (8, 128), (8, 256), (8, 512), (16, 1024)),
    ((1, 1, 16), (1, 4, 128), (1, 8, 512), (4, 8, 512), (8, 16, 1024)),
    tuple(1 << power for power in range(8, 28, 2)),
)
FEW = Sizes(
    (1, 64, 512), ((1024, 1024), (2048, 2048)), ((8, 64, 512, 512),), ((8, 256), (16, 512)),
    ((8, 16, 512),), (1 << 12, 1 << 27),
)  # fmt: skip
"""Enough for peaks, where calls are measured in programs."""
SMALL = Sizes(
    (1, 8, 64), ((64, 64), (256, 256), (512, 512)), ((4, 16, 64, 64),), ((2, 16), (4, 128)),
    ((1, 2, 16), (1, 8, 256)), (1 << 8, 1 << 14, 1 << 20),
)  # fmt: skip


def cases(
    kind: str, sizes: Sizes, dtype: torch.dtype, short: str, device: torch.device
) -> Iterator[Case]:
    """The cases of a kind of work and a dtype (`short` in a cluster file), each made when it is its turn."""
    make = _Maker(dtype, short, device)
    if kind == "matmul":
        for n, k in sizes.weights:
            yield from (make.linear(m, n, k) for m in sizes.rows)
        yield from (make.batched(*shape) for shape in sizes.batched)
    elif kind == "attention":
        yield from (make.attention(1, heads, tokens, tokens) for heads, tokens in sizes.prefills)
        yield from (make.attention(b, heads, 1, cached) for b, heads, cached in sizes.decodes)
    else:
        for size in sizes.streams:
            yield from make.streams(size)


class _Maker:
    """Makes cases of one dtype on one device."""

    def __init__(self, dtype: torch.dtype, short: str, device: torch.device) -> None:
        self.dtype, self.short, self.device = dtype, short, device
        self.bytes = dtype.itemsize

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device).to(self.dtype)

    def turns(self, *shapes: Sequence[int]) -> Iterator[tuple[Tensor, ...]]:
        """Copies of some tensors without end, more than caches hold."""
        size = sum(prod(shape) for shape in shapes) * self.bytes
        count = max(2, min(MOST_COPIES, COLD // max(size, 1)))
        return cycle([tuple(self.random(*shape) for shape in shapes) for _ in range(count)])

    def linear(self, m: int, n: int, k: int) -> Case:
        """x [1, m, k] times a weight [n, k]."""
        x, weights = self.random(1, m, k), self.turns((n, k))
        work = self.product(1, m, n, k)
        name = f"linear {m} x {k} x {n}"
        return Case(name, "linear", work, lambda: aten.linear.default(x, *next(weights)))

    def batched(self, batch: int, m: int, n: int, k: int) -> Case:
        """x [batch, m, k] times weights [batch, k, n]."""
        x, weights = self.random(batch, m, k), self.turns((batch, k, n))
        work = self.product(batch, m, n, k)
        name = f"bmm {batch} x {m} x {k} x {n}"
        return Case(name, "bmm", work, lambda: aten.bmm.default(x, *next(weights)))

    def product(self, batch: int, m: int, n: int, k: int) -> Work:
        """The work of a product [batch, m, k] x [batch, k, n]."""
        return Work(
            "matmul", 2 * batch * m * n * k, self.bytes * batch * (m * k + n * k),
            self.bytes * batch * m * n, self.short, (batch, m, n, k),
        )  # fmt: skip

    def attention(self, batch: int, heads: int, queries: int, keys: int) -> Case:
        """Causal attention of the last `queries` of `keys` positions."""
        q = self.random(batch, heads, queries, HEAD_DIM)
        cached = self.turns(*[(batch, heads, keys, HEAD_DIM)] * 2)
        seen = queries * keys - queries * (queries - 1) // 2
        flops = 4 * batch * heads * HEAD_DIM * seen
        work = Work(
            "attention", flops, self.bytes * batch * heads * HEAD_DIM * (queries + 2 * keys),
            self.bytes * batch * heads * HEAD_DIM * queries, self.short,
            (batch, heads, queries, keys, HEAD_DIM),
        )  # fmt: skip
        scale = HEAD_DIM**-0.5
        return Case(
            f"attention {batch} x {heads} heads, {queries} of {keys}", "attention", work,
            lambda: ops.attention(q, *next(cached), scale=scale, causal=True),
        )  # fmt: skip

    def streams(self, size: int) -> Iterator[Case]:
        """Memory-bound calls of a decoder layer that move about `size` bytes."""
        for name, (operands, make) in STREAMS.items():
            width = min(HEAD_DIM * 8, max(8, size // self.bytes // (operands + 1)))
            rows = max(1, size // self.bytes // (operands + 1) // width)
            given = [self.random(1, rows, width) for _ in range(operands)]
            work = Work("memory", 0, operands * given[0].nbytes, given[0].nbytes, self.short)
            yield Case(f"{name} {rows} x {width}", name, work, make(*given))


def _copied(x: Tensor) -> Callable[[], Tensor]:
    heads = x.unflatten(-1, (2, -1)).transpose(1, 2).contiguous().transpose(1, 2)
    return lambda: aten.reshape.default(heads, x.shape)


def _normed(x: Tensor) -> Callable[[], Tensor]:
    weight, width = torch.ones(x.shape[-1], dtype=x.dtype, device=x.device), [x.shape[-1]]
    return lambda: aten.rms_norm.default(x, width, weight, 1e-5)


def _joined(x: Tensor) -> Callable[[], Tensor]:
    left, right = x.chunk(2, -1)
    return lambda: aten.cat.default([right, left], -1)


STREAMS: dict[str, tuple[int, Callable[..., Callable[[], Tensor]]]] = {
    "add": (2, lambda x, y: lambda: aten.add.Tensor(x, y)),
    "mul": (2, lambda x, y: lambda: aten.mul.Tensor(x, y)),
    "neg": (1, lambda x: lambda: aten.neg.default(x)),
    "silu": (1, lambda x: lambda: aten.silu.default(x)),
    "gelu": (1, lambda x: lambda: aten.gelu.default(x)),
    "reshape": (1, _copied),
    "cat": (1, _joined),
    "rms_norm": (1, _normed),
    "softmax": (1, lambda x: lambda: aten._softmax.default(x, -1, False)),
}
"""Operator -> how many operands of the result's size it reads, and what makes a call of them."""
