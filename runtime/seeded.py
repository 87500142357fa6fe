"""Weights out of nothing: random, but the same for the same seed, name and place.

A tensor is made of blocks of rows, each from its own generator, so that a slice costs the blocks
that it touches, and is the same on every rank whatever the split.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import product

import numpy as np
import torch
from torch import Tensor

from plancc.runtime.weights import Ranges, WeightsError, check_ranges, check_table, join_pieces

BLOCK = 1 << 20  # elements
KINDS = ("matrix", "norm", "bias", "zeros", "ones")
NORMS = ("weight", "gamma", "scale", "running_var")


class SeededWeights:
    """Random weights from a seed and a table: name -> (shape, dtype, kind).

    Kinds: `matrix` has a standard deviation of 1/sqrt(last dim), `norm` lies around 1, `bias`
    around 0, `zeros` and `ones` are constant; "" lets name and shape decide. Integers are zeros.
    """

    def __init__(
        self, seed: int, table: Mapping[str, tuple[Sequence[int], torch.dtype, str]]
    ) -> None:
        """Take over the table; WeightsError for kinds that do not exist."""
        self._seed = seed
        self._table = {
            fqn: (tuple(shape), dtype, kind or guess_kind(fqn, shape, dtype))
            for fqn, (shape, dtype, kind) in table.items()
        }
        problems = [
            f"weight `{fqn}` is of kind `{kind}`; there are {', '.join(KINDS)}"
            for fqn, (_, _, kind) in self._table.items()
            if kind not in KINDS
        ]
        if problems:
            raise WeightsError(problems)

    def names(self) -> list[str]:
        """List all tensors, sorted."""
        return sorted(self._table)

    def shape(self, fqn: str) -> tuple[int, ...]:
        """Return the whole tensor's shape; WeightsError if there is none of this name."""
        return self._row(fqn)[0]

    def dtype(self, fqn: str) -> torch.dtype:
        """Return the tensor's dtype; WeightsError if there is none of this name."""
        return self._row(fqn)[1]

    def read(self, fqn: str, ranges: Ranges) -> Tensor:
        """Return the slice that `ranges` describes, as a fresh contiguous tensor."""
        shape, dtype, kind = self._row(fqn)
        check_ranges(fqn, shape, ranges)
        if kind in ("zeros", "ones"):
            size = [sum(high - low for low, high in pieces) for pieces in ranges]
            return torch.full(size, float(kind == "ones")).to(dtype)
        mean, deviation = _moments(kind, shape)
        noise = join_pieces(ranges, torch.float32, lambda block: self._noise(fqn, shape, block))
        return noise.mul_(deviation).add_(mean).to(dtype)

    def check(self, table: Mapping[str, tuple[Sequence[int], torch.dtype | None]]) -> None:
        """Raise one WeightsError for all that `table` (name -> shape, dtype or None) misses."""
        check_table(self, table)

    def _row(self, fqn: str) -> tuple[tuple[int, ...], torch.dtype, str]:
        if fqn not in self._table:
            raise WeightsError([f"weight `{fqn}` is missing"])
        return self._table[fqn]

    def _noise(self, fqn: str, shape: tuple[int, ...], block: Sequence[tuple[int, int]]) -> Tensor:
        """Return standard normal noise, float32, at one (low, high) for each dim."""
        if not shape:
            return torch.from_numpy(_rows(self._seed, fqn, 0, 1, 1).copy()).view(())
        *outer, last = shape
        out = torch.empty([high - low for low, high in block])
        flat = out.view(-1, out.shape[-1])
        at = 0
        for low, high in _row_runs(outer, block[:-1]):
            for rows in self._blocks(fqn, low, high, last, math.prod(outer)):
                flat[at : at + len(rows)] = rows[:, slice(*block[-1])]
                at += len(rows)
        return out

    def _blocks(self, fqn: str, low: int, high: int, last: int, total: int) -> Iterator[Tensor]:
        """Give the rows from low to high of a tensor seen as total x last, block by block."""
        step = max(1, BLOCK // last)
        for number in range(low // step, (high - 1) // step + 1):
            first = number * step
            rows = _rows(self._seed, fqn, number, min(step, total - first), last)
            yield torch.from_numpy(rows[max(low - first, 0) : high - first])


def guess_kind(fqn: str, shape: Sequence[int], dtype: torch.dtype) -> str:
    """Guess from name and shape what a tensor is: one of KINDS."""
    if not dtype.is_floating_point:
        return "zeros"
    if len(shape) > 1:
        return "matrix"
    return "norm" if fqn.rpartition(".")[2] in NORMS else "bias"


def _moments(kind: str, shape: Sequence[int]) -> tuple[float, float]:
    if kind == "matrix":
        return 0.0, 1 / math.sqrt(max(shape[-1], 1))
    return (1.0, 0.1) if kind == "norm" else (0.0, 0.02)


def _row_runs(outer: Sequence[int], block: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Give the runs of consecutive rows that a block of the outer dims consists of."""
    if not outer:
        yield 0, 1
        return
    strides = [math.prod(outer[i + 1 :]) for i in range(len(outer))]
    for spot in product(*(range(low, high) for low, high in block[:-1])):
        base = sum(i * stride for i, stride in zip(spot, strides, strict=False))
        yield base + block[-1][0], base + block[-1][1]


@lru_cache(maxsize=4)
def _rows(seed: int, fqn: str, number: int, rows: int, last: int) -> np.ndarray:
    """Make a block of a tensor; the caller must not change it."""
    text = f"{seed} {fqn} {number}".encode()
    key = int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")
    generator = np.random.Generator(np.random.Philox(key=key))
    return generator.standard_normal((rows, last), dtype=np.float32)
