"""Is the routing of a router sound? Experts that exist, weights that are numbers.

On the CPU the answer is there at once; on CUDA `start_check` only queues a reduction, and
`Check.finish` waits for it, so that a caller may look a step later or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


class RoutingError(ValueError):
    """A router chose an expert that does not exist, or gave a weight that is no finite number."""


@dataclass(frozen=True, slots=True)
class Check:
    """A check under way: `wrong` [] bool becomes known on the device of the routing."""

    index: Tensor
    weight: Tensor
    experts: int
    wrong: Tensor

    def finish(self) -> None:
        """Wait for the answer; raise RoutingError naming the first wrong token and its value."""
        if self.wrong.item():
            raise RoutingError(_describe(self.index, self.weight, self.experts))


def start_check(index: Tensor, weight: Tensor, experts: int) -> Check:
    """Queue the check of index, weight [t, k] against experts 0 .. experts - 1; nothing waits.

    Raises RoutingError at once for shapes that do not fit and for an index of another kind.
    """
    if index.shape != weight.shape or index.dim() != 2:
        raise RoutingError(
            f"a routing is index [t, k] and weight [t, k], not {list(index.shape)} and "
            f"{list(weight.shape)}"
        )
    if index.dtype not in (torch.int64, torch.int32) or not weight.is_floating_point():
        raise RoutingError(f"index is {index.dtype} and weight {weight.dtype}: whole, floating")
    index, weight = index.detach(), weight.detach()
    if not index.numel():
        return Check(index, weight, experts, torch.zeros((), dtype=torch.bool))
    least, most = index.aminmax()
    low, high = weight.aminmax()  # a NaN anywhere makes both NaN
    wrong = (least < 0) | (most >= experts) | ~torch.isfinite(low) | ~torch.isfinite(high)
    return Check(index, weight, experts, wrong)


def check_routing(index: Tensor, weight: Tensor, experts: int) -> None:
    """Raise RoutingError unless index [t, k] is in 0 .. experts - 1 and weight [t, k] is finite."""
    start_check(index, weight, experts).finish()


def _describe(index: Tensor, weight: Tensor, experts: int) -> str:
    outside = (index < 0) | (index >= experts)
    bad = (outside | ~torch.isfinite(weight)).nonzero()
    token, choice = bad[0].tolist()
    rest = f"; {len(bad)} choices are wrong" if len(bad) > 1 else ""
    expert = int(index[token, choice])
    if outside[token, choice]:
        return f"token {token} chose expert {expert}, experts are 0..{experts - 1}{rest}"
    value = float(weight[token, choice])
    return f"token {token} has weight {value} for expert {expert}, not a finite number{rest}"
