"""Attention kernels that return log-sum-exp: which there are, which are present, which to take.

A kernel is chosen by its declared properties alone; what no kernel offers is an error, never a
silent change of precision. `python -m plancc.ops.kernels` prints the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from plancc.ops.kernels.cpu import CPU_FLASH
from plancc.ops.kernels.cuda import CUDA_EFFICIENT, CUDA_FLASH, FA3, FA4, active
from plancc.ops.kernels.kernel import Kernel, empty
from plancc.ops.kernels.package import FLASH_ATTN
from plancc.ops.kernels.reference import MATH

__all__ = ["KERNELS", "Kernel", "Presence", "available", "choose", "empty", "get"]

KERNELS = (CPU_FLASH, CUDA_FLASH, FLASH_ATTN, FA3, FA4, CUDA_EFFICIENT, MATH)  # by preference
_ACTIVATED = {"FA3": FA3, "FA4": FA4}


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
                raise LookupError(f"kernel `{name}` is not present: {presence.missing}")
            return presence.kernel
    raise LookupError(f"no kernel `{name}`: {', '.join(kernel.name for kernel in KERNELS)}")


def choose(
    device: str | torch.device,
    dtype: torch.dtype,
    *,
    mask: bool = False,
    softcap: bool = False,
    backward: bool = False,
    head_dim: int = 0,
) -> Kernel:
    """Return the best present kernel that meets all needs, or raise LookupError with reasons.

    FA3 and FA4 change torch for the whole process, so they are taken only where the user has
    activated them, or asks by name.
    """
    kind = torch.device(device).type
    return _choose(kind, dtype, mask, softcap, backward, head_dim, active())


@cache
def _choose(
    device: str,
    dtype: torch.dtype,
    mask: bool,
    softcap: bool,
    backward: bool,
    head_dim: int,
    activated: str | None,
) -> Kernel:
    refused = []
    for presence in available():
        kernel = presence.kernel
        if kernel is CUDA_FLASH and activated in _ACTIVATED:
            kernel = _ACTIVATED[activated]
        elif kernel in (FA3, FA4):
            continue
        lack = presence.missing or kernel.lacks(
            device, dtype, mask=mask, softcap=softcap, backward=backward, head_dim=head_dim
        )
        if not lack:
            return kernel
        refused.append(f"{kernel.name}: {lack}")
    raise LookupError(f"no attention kernel for {dtype} on {device}: {'; '.join(refused)}")
