"""Pieces of tensors: what a rank brings to a checkpoint, and whether they cover the tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from plancc.dsl.errors import Bug
from plancc.runtime.weights import DTYPES, Ranges, WeightsError

CODES = {dtype: code for code, dtype in DTYPES.items()}


class CheckpointError(WeightsError):
    """A checkpoint cannot be saved, opened or used; carries every problem that was found."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A rank's slice of the tensor `name`, whose whole shape is `shape`.

    `tensor` is what lies at `ranges`: for each dim the (low, high) pieces, joined in this order.
    """

    name: str
    shape: tuple[int, ...]
    ranges: Ranges
    tensor: Tensor


def check_piece(piece: Piece) -> None:
    """Raise Bug unless the tensor is of a dtype that can be stored and fits its ranges."""
    name, shape, ranges = piece.name, piece.shape, piece.ranges
    if piece.tensor.dtype not in CODES:
        raise Bug(f"`{name}` has dtype {piece.tensor.dtype}, which a checkpoint cannot hold")
    if not name or name == "__metadata__":
        raise Bug(f"`{name}` cannot be the name of a tensor")
    inside = len(ranges) == len(shape) and all(
        0 <= low <= high <= size
        for size, row in zip(shape, ranges, strict=True)
        for low, high in row
    )
    if not inside or any(_repeats(row) for row in ranges):
        raise Bug(f"`{name}` of shape {list(shape)} has no piece {ranges}")
    if tuple(piece.tensor.shape) != extent(ranges):
        found = list(piece.tensor.shape)
        raise Bug(f"`{name}` at {ranges} needs shape {list(extent(ranges))}, not {found}")


def _repeats(row: Sequence[tuple[int, int]]) -> bool:
    filled = sorted((low, high) for low, high in row if low < high)
    return any(b[0] < a[1] for a, b in pairwise(filled))


def extent(ranges: Ranges) -> tuple[int, ...]:
    """Return the shape of the slice that the ranges describe."""
    return tuple(sum(high - low for low, high in row) for row in ranges)


def is_box(ranges: Ranges) -> bool:
    """Say whether the slice is one block: one (low, high) in each dim."""
    return all(len(row) == 1 for row in ranges)


def overlaps(row: Sequence[tuple[int, int]], low: int, high: int) -> Iterator[tuple[int, int, int]]:
    """Give where a dim's joined pieces meet (low, high): (start, stop, start in (low, high))."""
    base = 0
    for first, last in row:
        start, stop = max(first, low), min(last, high)
        if start < stop:
            yield base + start - first, base + stop - first, start - low
        base += last - first


def cover(
    shape: Sequence[int], pieces: Sequence[Ranges]
) -> tuple[tuple[tuple[int, int], ...] | None, bool]:
    """Return a block of the tensor that no piece has, or None; and whether any pieces overlap."""
    if 0 in shape or (len(pieces) == 1 and extent(pieces[0]) == tuple(shape)):
        return None, False
    bounds = [
        sorted({0, size}.union(*(edges for p in pieces for edges in p[dim])))
        for dim, size in enumerate(shape)
    ]
    at = [{edge: i for i, edge in enumerate(edges)} for edges in bounds]
    count = np.zeros([len(edges) - 1 for edges in bounds], np.int32)
    for ranges in pieces:
        cells = [
            [i for low, high in row for i in range(at[dim][low], at[dim][high])]
            for dim, row in enumerate(ranges)
        ]
        count[np.ix_(*(np.array(c, np.intp) for c in cells))] += 1
    if count.all():
        return None, bool(count.max() > 1)
    first = np.argwhere(count == 0)[0]
    return tuple((edges[i], edges[i + 1]) for edges, i in zip(bounds, first, strict=True)), False


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Say whether two tensors hold the same bits (NaNs and signed zeros told apart)."""
    return torch.equal(as_bytes(a), as_bytes(b))


def as_bytes(x: Tensor) -> Tensor:
    """Return the tensor's bytes in row-major order, on the CPU; without a copy where possible."""
    return x.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1).view(torch.uint8)


def nbytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    """Return how many bytes a tensor takes."""
    return math.prod(shape) * dtype.itemsize
