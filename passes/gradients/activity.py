"""Which values carry gradients: those that a parameter reaches and that reach the loss."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from plancc.ir.layout import Stage
from plancc.ir.program import Held, Instruction, operands, produced

Entry = tuple[tuple[Stage, ...], Instruction]


def active_names(entries: Sequence[Entry], weights: Iterable[Held], loss: str) -> frozenset[str]:
    """The local names of values with a gradient. `weights` are the trainable ones."""
    reached = {held.name for held in weights}
    for _, step in entries:
        if any(name in reached for name in operands(step)):
            reached.update(h.name for h in produced(step) if is_continuous(h.dtype))
    needed = {loss}
    for _, step in reversed(entries):
        if any(held.name in needed for held in produced(step)):
            needed.update(operands(step))
    return frozenset(reached & needed)


def is_continuous(dtype: torch.dtype) -> bool:
    """Whether values of a type have gradients: floating and complex ones."""
    return dtype.is_floating_point or dtype.is_complex
