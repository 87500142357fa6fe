"""Gradients of bf16 and fp16 weights summed over micro-batches in float32, and rounded once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from plancc.runtime.comm import Comm
from plancc.runtime.training.recorder import Recorder
from plancc.runtime.training.step import TrainRunner
from plancc.runtime.view import View

NARROW = (torch.bfloat16, torch.float16)


class ExactRecorder(Recorder):
    """A recorder that keeps a float32 sum of the gradients of each narrow weight."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.sums: dict[int, Tensor] = {}
        self.kept: dict[str, torch.dtype] = {}

    def follow(self, weight: Tensor) -> None:
        """Take a leaf's gradient into its sum whenever autograd has made one."""

        def take(leaf: Tensor) -> None:
            if leaf.grad is not None:
                grad, leaf.grad = leaf.grad, None
                self.add(leaf, grad)

        weight.register_post_accumulate_grad_hook(take)

    def add(self, weight: Tensor, grad: Tensor) -> None:
        """Add to a weight's sum."""
        known = self.sums.get(id(weight))
        if known is None:
            self.sums[id(weight)] = grad.detach().float()
        else:
            known.add_(grad.detach())

    def accumulate(self, weight: Tensor, grad: Tensor) -> None:
        """Add to a weight's gradient what no segment accumulated."""
        if weight.dtype in NARROW:
            self.add(weight, grad)
        else:
            super().accumulate(weight, grad)

    def gradient(self, weight: Tensor) -> Tensor:
        """Take what has accumulated for a weight, in its dtype; it begins again from nothing."""
        found = self.sums.pop(id(weight), None)
        return super().gradient(weight) if found is None else found.to(weight.dtype)

    def accumulate_slice(self, key: str, grad: Tensor) -> None:
        """Add to the slice of a gradient that this rank keeps (ZeRO-2)."""
        self.kept[key] = grad.dtype
        super().accumulate_slice(key, grad.float() if grad.dtype in NARROW else grad)

    def gradient_slice(self, key: str) -> Tensor:
        """Take the slice of a gradient that this rank kept."""
        return super().gradient_slice(key).to(self.kept.pop(key))


class ExactRunner(TrainRunner):
    """A runner of training programs with such sums."""

    view_class = ExactRecorder

    def ready(self, program: Mapping[str, Any]) -> tuple[View, Comm, dict[str, Tensor]]:
        """The view, the verbs and the weights for one class; built once."""
        new = program["file"] not in self._ready
        view, comm, weights = super().ready(program)
        if new and isinstance(view, ExactRecorder):
            leaves = {id(w): w for w in weights.values() if w.requires_grad}
            for leaf in leaves.values():
                if leaf.dtype in NARROW:
                    view.follow(leaf)
        return view, comm, weights
