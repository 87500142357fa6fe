"""Triton programs of the `triton` routing kernel; no atomics, so every run gives the same bits.

Ranks take tokens in two passes: how many in each block of tokens, then, from the running sum of
these, where each block writes its own.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _found(owners, token, rank, tokens, CHOICES: tl.constexpr, WIDE: tl.constexpr):
    """Return 1 for each token of the block with any choice on `rank`, 0 for the others."""
    choice = tl.arange(0, WIDE)
    spot = token[:, None] * CHOICES + choice[None, :]
    inside = (token < tokens)[:, None] & (choice < CHOICES)[None, :]
    owner = tl.load(owners + spot, mask=inside, other=-1)
    return tl.max((owner == rank).to(tl.int32), axis=1)


@triton.jit
def count_blocks(
    owners, counts, tokens, blocks, CHOICES: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr
):
    """Write counts [n, blocks]: the distinct tokens of a rank in a block of `BLOCK` tokens."""
    block, rank = tl.program_id(0), tl.program_id(1)
    token = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    found = _found(owners, token, rank, tokens, CHOICES, WIDE)
    tl.store(counts + rank * blocks + block, tl.sum(found, axis=0).to(tl.int64))


@triton.jit
def write_rows(
    owners, starts, rows, tokens, blocks,
    CHOICES: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the tokens of a rank in a block to rows, from starts [n * blocks], ascending."""
    block, rank = tl.program_id(0), tl.program_id(1)
    token = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    found = _found(owners, token, rank, tokens, CHOICES, WIDE)
    place = tl.load(starts + rank * blocks + block) + tl.cumsum(found, axis=0) - found
    tl.store(rows + place, token, mask=found > 0)


@triton.jit
def take_rows(x, rows, out, width, BLOCK: tl.constexpr):
    """Copy the token rows[i] of x [t, width] to row i of out."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    token = tl.load(rows + row)
    value = tl.load(x + token * width + column, mask=inside)
    tl.store(out + row * width + column, value, mask=inside)


@triton.jit
def combine_rows(
    values, weights, order, starts, out, width,
    WEIGHTED: tl.constexpr, DOUBLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the sum of rows order[starts[i] .. starts[i + 1]] of values to row i of out."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    exact = tl.float64 if DOUBLE else tl.float32
    total = tl.zeros([BLOCK], dtype=exact)
    first, last = tl.load(starts + token), tl.load(starts + token + 1)
    for at in range(first, last):
        row = tl.load(order + at)
        value = tl.load(values + row * width + column, mask=inside, other=0.0).to(exact)
        if WEIGHTED:
            value = value * tl.load(weights + row).to(exact)
        total += value
    tl.store(out + token * width + column, total.to(out.dtype.element_ty), mask=inside)
