"""Routing of tokens to the ranks that host their experts: count, permute, take and combine.

One interface, two kernels: `plain` torch anywhere, `triton` on CUDA. `count`, `permute`, `take`
and `combine` below take the best kernel that is present; `python -m plancc.ops.routing` lists them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from plancc.ops.routing.fused import TRITON
from plancc.ops.routing.kernel import Kernel
from plancc.ops.routing.plain import PLAIN
from plancc.ops.routing.validity import Check, RoutingError, check_routing, start_check

__all__ = [
    "KERNELS", "Check", "Kernel", "Presence", "RoutingError", "available", "check_routing",
    "choose", "combine", "count", "get", "permute", "start_check", "take",
]  # fmt: skip

KERNELS = (TRITON, PLAIN)  # by preference


@dataclass(frozen=True, slots=True)
class Presence:
    """A kernel, and why it is not present (None: it is)."""

    kernel: Kernel
    missing: str | None


@cache
def available() -> tuple[Presence, ...]:
    """Return every kernel with the reason why it is missing, None for those that can run."""
    return tuple(Presence(kernel, kernel.probe()) for kernel in KERNELS)


def get(name: str) -> Kernel:
    """Return the kernel `name`, or raise LookupError if there is none or it is not present."""
    for presence in available():
        if presence.kernel.name == name:
            if presence.missing:
                raise LookupError(f"routing kernel `{name}` is not present: {presence.missing}")
            return presence.kernel
    raise LookupError(f"no routing kernel `{name}`: {', '.join(k.name for k in KERNELS)}")


def choose(device: str | torch.device, dtype: torch.dtype) -> Kernel:
    """Return the best present kernel for tensors of `dtype`, or raise LookupError with reasons."""
    return _choose(torch.device(device).type, dtype)


@cache
def _choose(device: str, dtype: torch.dtype) -> Kernel:
    refused = []
    for presence in available():
        kernel = presence.kernel
        lack = presence.missing or kernel.lacks(device, dtype)
        if not lack and kernel.interpreted:
            lack = "is interpreted, for tests: by name only"
        if not lack:
            return kernel
        refused.append(f"{kernel.name}: {lack}")
    raise LookupError(f"no routing kernel for {dtype} on {device}: {'; '.join(refused)}")


def count(owners: Tensor, n: int) -> Tensor:
    """Return [n] int64: how many distinct tokens have a choice on each rank (`Kernel.count`)."""
    return choose(owners.device, owners.dtype).count(owners, n)


def permute(owners: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return the rows to send, by rank, ascending in each, and their counts (`Kernel.permute`)."""
    return choose(owners.device, owners.dtype).permute(owners, n)


def take(x: Tensor, rows: Tensor) -> Tensor:
    """Return [m, h]: the tokens `rows` [m] of x [t, h]; differentiable (`Kernel.take`)."""
    return choose(x.device, x.dtype).take(x, rows)


def combine(rows: Tensor, values: Tensor, tokens: int, weights: Tensor | None = None) -> Tensor:
    """Return [tokens, h]: values [m, h] summed by token, in order of rows (`Kernel.combine`)."""
    return choose(values.device, values.dtype).combine(rows, values, tokens, weights)
