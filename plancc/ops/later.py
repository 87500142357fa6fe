"""A linear layer whose weight's gradient is computed later: what zero-bubble pipelines fill with.

Its backward gives the gradient of the input at once and leaves a `WeightGrad` behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, slots=True)
class WeightGrad:
    """The gradient of one weight that is still to be computed; call it once."""

    dout: Tensor
    x: Tensor
    weight: Tensor

    def __call__(self) -> None:
        """Add dout^T x to the weight's `.grad`, in place if there is one."""
        with torch.no_grad():
            dout, x = _rows(self.dout), _rows(self.x)
            if self.weight.grad is not None:
                self.weight.grad.addmm_(dout.t(), x)
            else:
                self.weight.grad = dout.t().mm(x)


def linear_later(x: Tensor, weight: Tensor, bias: Tensor | None, later: list[WeightGrad]) -> Tensor:
    """Return F.linear(x, weight, bias), whose backward appends the weight's part to `later`.

    Gradients of x [..., i] and bias [o] come at once; that of weight [o, i], a leaf, when the
    appended record is called. Hooks on the weight do not run. Raises ValueError for a weight that
    is computed and asks for a gradient.
    """
    if weight.requires_grad and not weight.is_leaf:
        raise ValueError("a weight whose gradient comes later must be a leaf")
    return _Linear.apply(x, weight, bias, later)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, later: list[WeightGrad]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.later = later
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias, _ = ctx.needs_input_grad
        if to_weight:
            ctx.later.append(WeightGrad(dout, x, weight))
        dx = _rows(dout).mm(weight).reshape(x.shape) if to_x else None
        return dx, None, _rows(dout).sum(0) if to_bias else None, None


def _rows(x: Tensor) -> Tensor:
    """Return x [..., v] as [n, v], also where v is 0."""
    return x.unsqueeze(0).flatten(0, -2)
