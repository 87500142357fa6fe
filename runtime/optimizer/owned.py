"""What an optimizer works on and gives: a rank's slices, pieces of its state, a step's report."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from plancc.dsl.errors import Bug
from plancc.runtime.weights import Ranges


@dataclass(frozen=True, slots=True)
class Owned:
    """One parameter's slice on this rank.

    `tensor` has the dtype that is computed with and is written in place after a step; `shape` is
    the whole parameter's, `ranges` what of it is here; of a slice that several ranks hold, exactly
    one `counts` in the global norm, or some `rows` of it (None: all) where only rows are held twice.
    """

    name: str
    tensor: Tensor
    shape: tuple[int, ...]
    ranges: Ranges
    counts: bool = True
    rows: tuple[int, ...] | None = None

    def counted(self, grad: Tensor) -> Tensor:
        """The part of a gradient that counts in the norm."""
        return grad if self.rows is None else grad[list(self.rows)]

    def check(self) -> None:
        """Raise Bug unless the tensor is as large as its ranges, and they lie in the shape."""
        held = tuple(sum(high - low for low, high in pieces) for pieces in self.ranges)
        inside = len(self.ranges) == len(self.shape) and all(
            0 <= low <= high <= size
            for pieces, size in zip(self.ranges, self.shape, strict=True)
            for low, high in pieces
        )
        if not inside or held != tuple(self.tensor.shape):
            raise Bug(
                f"`{self.name}` {self.shape}: {self.ranges} is not {tuple(self.tensor.shape)}"
            )
        if not self.tensor.is_floating_point():
            raise Bug(f"`{self.name}` is {self.tensor.dtype}: nothing to optimize")

    @property
    def empty(self) -> bool:
        """True if nothing of the parameter is here."""
        return math.prod(self.tensor.shape) == 0


@dataclass(frozen=True, slots=True)
class StatePiece:
    """A tensor of an optimizer's state.

    `kind` is "exp_avg", "master", "step", ...; `name` is the parameter's, "" for what belongs to no
    parameter. `whole` is True for a number that all slices of the parameter share; else the tensor
    is sliced as the parameter is.
    """

    kind: str
    name: str
    tensor: Tensor
    whole: bool


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step did: the gradient's global norm before clipping, its rate, the loss scale used.

    `skipped` steps (fp16 only) changed no parameter; their norm is not finite.
    """

    grad_norm: float
    lr: float
    scale: float
    skipped: bool
