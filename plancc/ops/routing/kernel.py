"""The one interface of routing kernels: the guards and the gradients that hold for all of them.

A raw kernel sees only non-empty contiguous tensors, never records gradients and never adds with
atomics: `take` and `combine` are each other's gradient, and both give the same bits every time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Count = Callable[[Tensor, int], Tensor]
Permute = Callable[[Tensor, int], tuple[Tensor, Tensor]]
Take = Callable[[Tensor, Tensor], Tensor]
Combine = Callable[[Tensor, Tensor, int, Tensor | None], Tensor]
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True, slots=True)
class Kernel:
    """One routing kernel; `devices` is empty for any, `probe` says why it is not present.

    `interpreted` kernels run step by step for tests: they are taken by name only.
    """

    name: str
    devices: tuple[str, ...]
    probe: Callable[[], str | None]
    raw_count: Count
    raw_permute: Permute
    raw_take: Take
    raw_combine: Combine
    dtypes: tuple[torch.dtype, ...] = FLOATS
    interpreted: bool = False

    def lacks(self, device: str, dtype: torch.dtype) -> str | None:
        """Say which of the needs the declared properties do not meet, or None."""
        if self.devices and device not in self.devices:
            return f"runs on {', '.join(self.devices)}, not on {device}"
        if dtype not in self.dtypes and dtype not in WHOLE:
            return f"has no {str(dtype).removeprefix('torch.')}"
        return None

    def count(self, owners: Tensor, n: int) -> Tensor:
        """Return [n] int64: how many distinct tokens have a choice on each rank.

        owners [t, k] int64 is the rank 0..n-1 of each choice, or -1 for none. Raises ValueError
        for another shape or dtype and, on the CPU, for an owner out of range.
        """
        self._check_owners(owners, n)
        if not owners.numel():
            return owners.new_zeros(n)
        return self.raw_count(owners.contiguous(), n)

    def permute(self, owners: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Return the rows to send (token indices int64, by rank, ascending in each) and `count`.

        A token is there once for each rank that hosts any of its choices. Raises as `count`.
        """
        self._check_owners(owners, n)
        if not owners.numel():
            return owners.new_zeros(0), owners.new_zeros(n)
        return self.raw_permute(owners.contiguous(), n)

    def take(self, x: Tensor, rows: Tensor) -> Tensor:
        """Return [m, h]: the tokens `rows` [m] of x [t, h] (any dtype); differentiable in x.

        Raises ValueError for another shape and, on the CPU, for a row out of range.
        """
        self._check_rows(rows, x, x.shape[0] if x.dim() else 0)
        return _Take.apply(x, rows, self)

    def combine(
        self, rows: Tensor, values: Tensor, tokens: int, weights: Tensor | None = None
    ) -> Tensor:
        """Return [tokens, h]: the sum of values [m, h] by token, each times its weight [m].

        Sums follow the order of `rows` (by rank, as from `permute`), in float32 for halves.
        Differentiable in values and weights. Raises ValueError as `take`, and for whole numbers.
        """
        self._check_rows(rows, values, tokens)
        if not values.is_floating_point():
            raise ValueError(f"combine takes floating point values, not {values.dtype}")
        if rows.shape[0] != values.shape[0]:
            raise ValueError(f"{rows.shape[0]} rows for {values.shape[0]} values")
        if weights is not None and weights.shape != rows.shape:
            raise ValueError(f"weights {list(weights.shape)} for {rows.shape[0]} rows")
        return _Combine.apply(values, weights, rows, tokens, self)

    def _check_owners(self, owners: Tensor, n: int) -> None:
        if owners.dim() != 2 or owners.dtype != torch.int64:
            raise ValueError(f"owners are int64 [t, k], not {owners.dtype} {list(owners.shape)}")
        if n < 1:
            raise ValueError(f"{n} ranks: at least one")
        self._check_device(owners)
        _check_range(owners, -1, n, "owner")

    def _check_rows(self, rows: Tensor, values: Tensor, tokens: int) -> None:
        if values.dim() != 2:
            raise ValueError(f"tokens are rows of [t, h], not {list(values.shape)}")
        if rows.dim() != 1 or rows.dtype != torch.int64:
            raise ValueError(f"rows are int64 [m], not {rows.dtype} {list(rows.shape)}")
        if tokens < 0:
            raise ValueError(f"{tokens} tokens")
        self._check_device(values)
        _check_range(rows, 0, tokens, "row")

    def _check_device(self, x: Tensor) -> None:
        lack = self.lacks(x.device.type, x.dtype)
        if lack:
            raise ValueError(f"kernel `{self.name}` {lack}")


def _check_range(x: Tensor, low: int, end: int, what: str) -> None:
    """Refuse indices out of low .. end - 1 on the CPU; elsewhere that would stop the device."""
    if x.device.type != "cpu" or not x.numel():
        return
    least, most = (int(edge) for edge in x.aminmax())
    if least < low or most >= end:
        raise ValueError(f"{what} {least if least < low else most} is not in {low}..{end - 1}")


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, kernel: Kernel) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.tokens, ctx.kernel = x.shape[0], kernel
        return _take(kernel, x, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (rows,) = ctx.saved_tensors
        return _combine(ctx.kernel, rows, grad, ctx.tokens, None), None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weights: Tensor | None, rows: Tensor, tokens: int, kernel: Kernel
    ) -> Tensor:
        ctx.save_for_backward(rows, weights, None if weights is None else values)
        ctx.kernel = kernel
        return _combine(kernel, rows, values, tokens, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        rows, weights, values = ctx.saved_tensors
        taken = _take(ctx.kernel, grad, rows)
        if weights is None:
            return taken, None, None, None, None
        exact = taken.to(sum_type(values.dtype))
        own = (exact * weights.to(exact.dtype).unsqueeze(1)).to(values.dtype)
        share = (exact * values.to(exact.dtype)).sum(1).to(weights.dtype)
        return own, share, None, None, None


def sum_type(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which values of `dtype` are added: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def _take(kernel: Kernel, x: Tensor, rows: Tensor) -> Tensor:
    if not (rows.numel() and x.numel()):
        return x.new_zeros((rows.shape[0], x.shape[1]))
    return kernel.raw_take(x.contiguous(), rows.contiguous())


def _combine(
    kernel: Kernel, rows: Tensor, values: Tensor, tokens: int, weights: Tensor | None
) -> Tensor:
    if not values.numel():
        return values.new_zeros((tokens, values.shape[1]))
    weights = None if weights is None else weights.contiguous()
    return kernel.raw_combine(rows.contiguous(), values.contiguous(), tokens, weights)
