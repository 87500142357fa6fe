"""The `triton` routing kernel: launches of the programs in `programs`, which is loaded on use.

With TRITON_INTERPRET=1 the programs run step by step without a GPU, for tests.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from plancc.ops.routing.kernel import Kernel, sum_type
from plancc.ops.routing.plain import by_token

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_TOKENS = 256  # tokens of one program in `count` and `permute`
_COLUMNS = 1024  # columns of one program in `take` and `combine`, at most


def _probe() -> str | None:
    if find_spec("triton") is None:
        return "package `triton` is not installed"
    if INTERPRETED or torch.cuda.is_available():
        return None
    return "no CUDA device, and TRITON_INTERPRET is not 1"


def _launch(name: str, grid: tuple[int, int], *args: Tensor | int, **sizes: int) -> None:
    """Run a program on the device of its first argument; Triton takes the current one."""
    program = getattr(import_module("plancc.ops.routing.programs"), name)
    with torch.cuda.device_of(args[0]):
        program[grid](*args, **sizes)


def _blocks(owners: Tensor, n: int) -> Tensor:
    """Return [n, blocks] int64: the distinct tokens of each rank in each block of tokens."""
    tokens, choices = owners.shape
    found = owners.new_empty((n, -(-tokens // _TOKENS)))
    _launch(
        "count_blocks", (found.shape[1], n), owners, found, tokens, found.shape[1],
        CHOICES=choices, WIDE=_power(choices), BLOCK=_TOKENS,
    )  # fmt: skip
    return found


def _count(owners: Tensor, n: int) -> Tensor:
    return _blocks(owners, n).sum(1)


def _permute(owners: Tensor, n: int) -> tuple[Tensor, Tensor]:
    found = _blocks(owners, n)
    ends = found.flatten().cumsum(0)
    rows = owners.new_empty(int(ends[-1]))
    tokens, choices = owners.shape
    _launch(
        "write_rows", (found.shape[1], n),
        owners, ends - found.flatten(), rows, tokens, found.shape[1],
        CHOICES=choices, WIDE=_power(choices), BLOCK=_TOKENS,
    )  # fmt: skip
    return rows, found.sum(1)


def _take(x: Tensor, rows: Tensor) -> Tensor:
    width = x.shape[1]
    out = x.new_empty((rows.shape[0], width))
    block = min(_power(width), _COLUMNS)
    _launch("take_rows", (rows.shape[0], -(-width // block)), x, rows, out, width, BLOCK=block)
    return out


def _combine(rows: Tensor, values: Tensor, tokens: int, weights: Tensor | None) -> Tensor:
    width = values.shape[1]
    out = values.new_empty((tokens, width))
    order, starts = by_token(rows, tokens)
    block = min(_power(width), _COLUMNS)
    _launch(
        "combine_rows", (tokens, -(-width // block)),
        values, order if weights is None else weights, order, starts, out, width,
        WEIGHTED=weights is not None, DOUBLE=sum_type(values.dtype) == torch.float64, BLOCK=block,
    )  # fmt: skip
    return out


def _power(size: int) -> int:
    """Return the power of two from `size`: the lengths that Triton knows."""
    return 1 << (size - 1).bit_length()


TRITON = Kernel(
    "triton",
    devices=("cuda", "cpu") if INTERPRETED else ("cuda",),
    probe=_probe,
    raw_count=_count,
    raw_permute=_permute,
    raw_take=_take,
    raw_combine=_combine,
    interpreted=INTERPRETED,
)
