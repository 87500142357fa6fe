"""The instructions that only training programs have: recorded segments, gradients, buckets, moves ahead."""

from __future__ import annotations

from dataclasses import dataclass

from plancc.ir.instruction import Collective, Held, Origin
from plancc.ir.layout import Move, Part, Stage


@dataclass(frozen=True, slots=True)
class Leaf:
    """Where a segment of recorded computation begins: `operand` without its history, with a gradient of
    its own. Uses whose gradients are pending over different axes get a leaf each."""

    operand: str
    out: Held
    origin: Origin


@dataclass(frozen=True, slots=True)
class Backward:
    """Run the recorded segment that made `outs` backwards from their gradients `given`.

    `grads` are the gradients of its `leaves`; those of `weights` accumulate beside them.
    """

    outs: tuple[str, ...]
    given: tuple[str, ...]
    leaves: tuple[str, ...]
    grads: tuple[Held, ...]
    stage: Stage
    origin: Origin
    weights: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Accumulate:
    """Add `operand` to the gradient of a weight (a gradient that no segment accumulated).

    `sliced`: to the slice that this rank keeps (ZeRO-2), not to the gradient of the weight itself.
    """

    weight: str
    operand: str
    stage: Stage
    origin: Origin
    sliced: bool = False


@dataclass(frozen=True, slots=True)
class TakeGrad:
    """Take what has accumulated as the gradient of a weight: it begins again from nothing.

    `sliced`: the slice that this rank keeps (ZeRO-2).
    """

    weight: str
    out: Held
    sliced: bool = False


@dataclass(frozen=True, slots=True)
class Bucket:
    """One move made for several values at once: all_reduce, reduce_scatter or all_gather.

    The values are of one dtype and lie on one stage; they travel as `wire` if that is given.
    """

    kind: str
    operands: tuple[str, ...]
    outs: tuple[Held, ...]
    moves: tuple[Move, ...]
    parts: tuple[Part, ...]
    origin: Origin
    wire: str = ""

    @property
    def out(self) -> Held:
        """The first result: what tells stage and dtype."""
        return self.outs[0]


@dataclass(frozen=True, slots=True)
class TakeSlice:
    """A rank's slice of a weight as its optimizer left it (ZeRO-1 and -2)."""

    weight: str
    out: Held


@dataclass(frozen=True, slots=True)
class Store:
    """Write `operand` into a weight that is computed with."""

    weight: str
    operand: str
    stage: Stage


@dataclass(frozen=True, slots=True)
class Release:
    """Give back the memory of a gathered weight, which recorded segments still refer to."""

    operand: str
    stage: Stage


@dataclass(frozen=True, slots=True)
class Restore:
    """Fill a released weight again from `source`, before the segments that use it run backwards."""

    operand: str
    source: str
    stage: Stage


@dataclass(frozen=True, slots=True)
class Launch:
    """Start a move that runs beside the computation; `Await` gives its results.

    With `takes` the operands are gradients of weights, and only the last micro-batch starts it.
    """

    handle: str
    step: Collective | Bucket
    stage: Stage
    takes: tuple[TakeGrad, ...] = ()

    @property
    def origin(self) -> Origin:
        """That of the move."""
        return self.step.origin

    @property
    def kind(self) -> str:
        """That of the move."""
        return self.step.kind

    @property
    def parts(self) -> tuple[Part, ...]:
        """Those of the move."""
        return self.step.parts

    @property
    def out(self) -> Held:
        """The first result of the move."""
        return self.step.out


@dataclass(frozen=True, slots=True)
class Await:
    """The results of a move that was started before."""

    handle: str
    outs: tuple[Held, ...]
    stage: Stage


@dataclass(frozen=True, slots=True)
class Recording:
    """Whether computation is recorded for a backward from here on."""

    on: bool
    stage: Stage


@dataclass(frozen=True, slots=True)
class Section:
    """A function of a training program: its instructions begin at `start`.

    kind: forward | backward | reduce | refresh. `chunk` is the pipeline stage in depth order.
    """

    kind: str
    chunk: int
    start: int

    @property
    def name(self) -> str:
        """`forward_0`, `reduce`."""
        return f"{self.kind}_{self.chunk}" if self.kind in ("forward", "backward") else self.kind
