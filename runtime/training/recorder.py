"""What an emitted training program calls `r`: a view that also records segments and runs them backwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from plancc.runtime.comm import Comm
from plancc.runtime.view import View


class Recorder(View):
    """A rank's view with the verbs of training. `loss_scale` multiplies the loss's gradient (fp16).

    `started` holds the moves under way; `last` says that the running backward is the last of its section.
    """

    loss_scale = 1.0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.slices: dict[str, Tensor] = {}
        self.started: dict[str, Any] = {}
        self.last = False

    def leaf(self, x: Tensor) -> Tensor:
        """`x` without its history, with a gradient of its own: where a segment begins."""
        return x.detach().requires_grad_()

    def seed(self, loss: Tensor) -> Tensor:
        """The gradient with which the backward begins."""
        return torch.full_like(loss, self.loss_scale, requires_grad=False)

    def backward(
        self, outs: Sequence[Tensor], given: Sequence[Tensor], leaves: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Run the segment that made `outs` backwards; the gradients of its leaves.

        Gradients of weights accumulate in their `.grad`.
        """
        pairs = [(x, g) for x, g in zip(outs, given, strict=True) if x.requires_grad]
        if pairs:
            torch.autograd.backward([x for x, _ in pairs], [g for _, g in pairs])
        found = tuple(x.grad if x.grad is not None else torch.zeros_like(x) for x in leaves)
        for leaf in leaves:
            leaf.grad = None
        return found

    def accumulate(self, weight: Tensor, grad: Tensor) -> None:
        """Add to a weight's gradient what no segment accumulated."""
        grad = grad.detach()
        weight.grad = grad.clone() if weight.grad is None else weight.grad.add_(grad)

    def gradient(self, weight: Tensor) -> Tensor:
        """Take what has accumulated for a weight; it begins again from nothing."""
        found, weight.grad = weight.grad, None
        return found if found is not None else torch.zeros_like(weight, requires_grad=False)

    def accumulate_slice(self, key: str, grad: Tensor) -> None:
        """Add to the slice of a gradient that this rank keeps (ZeRO-2)."""
        known = self.slices.get(key)
        self.slices[key] = grad if known is None else known.add_(grad)

    def gradient_slice(self, key: str) -> Tensor:
        """Take the slice of a gradient that this rank kept."""
        return self.slices.pop(key)

    def store(self, weight: Tensor, x: Tensor) -> None:
        """Write into a weight that is computed with."""
        with torch.no_grad():
            weight.copy_(x)

    def release(self, x: Tensor) -> None:
        """Give the memory of a gathered weight back; recorded segments still refer to it.

        A view of something larger stays as it is.
        """
        storage = x.untyped_storage()
        if storage.nbytes() == x.numel() * x.element_size():
            storage.resize_(0)

    def restore(self, x: Tensor, source: Tensor) -> None:
        """Fill a released weight again."""
        storage = x.untyped_storage()
        if storage.nbytes() == 0:
            storage.resize_(x.numel() * x.element_size())
            with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(x):
                x.copy_(source)

    def record(self, on: bool) -> None:
        """Record computation from here on, or not."""
        torch.set_grad_enabled(on)


class Unrecorded(Comm):
    """The verbs of communication as training programs call them: their backward is written out."""


for _name, _verb in list(vars(Comm).items()):
    if _name[0] != "_" and callable(_verb):
        setattr(Unrecorded, _name, torch.no_grad()(_verb))
