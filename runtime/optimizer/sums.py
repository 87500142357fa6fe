"""Sums of gradients over micro-batches, in float32 where the gradients are narrower."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle


class GradientSums:
    """One sum for each name, made by the first gradient; the sums own their memory."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, name: str, grad: Tensor, *, own: bool = False) -> None:
        """Add a gradient; with `own` the caller gives its tensor away."""
        grad = grad.detach()
        if name in self.sums:
            self.sums[name].add_(grad)
        else:
            exact = torch.promote_types(grad.dtype, torch.float32)
            self.sums[name] = grad.to(exact, copy=not own)

    def follow(self, name: str, leaf: Tensor) -> RemovableHandle:
        """Take the leaf's `.grad` into the sums whenever autograd has made one; it is None then."""

        def take(leaf: Tensor) -> None:
            if leaf.grad is not None:
                grad, leaf.grad = leaf.grad, None
                self.add(name, grad, own=True)

        return leaf.register_post_accumulate_grad_hook(take)
