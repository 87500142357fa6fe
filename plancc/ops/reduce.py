"""Mean over a part of the dims' elements: divided by the global count, so shards sum up."""

from __future__ import annotations

import torch
from torch import Tensor


def partial_mean(x: Tensor, dim: list[int], keepdim: bool, count: int) -> Tensor:
    """Return the sum over `dim` divided by `count`; of integers there is no mean (RuntimeError)."""
    if not (x.is_floating_point() or x.is_complex()):
        raise RuntimeError(f"no mean of {x.dtype}")
    return torch.sum(x, dim, keepdim) / count


torch.library.define(
    "plancc::partial_mean", "(Tensor x, int[] dim, bool keepdim, int count) -> Tensor"
)
torch.library.impl("plancc::partial_mean", "CompositeImplicitAutograd", partial_mean)
