"""What a `Backward` runs: the recorded calls of its segment, and the sums of gradients in between.

Autograd records a call that uses a leaf, a trained weight, or what a recorded call made of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plancc.ir.instruction import Compute
from plancc.ir.program import Instruction, RankProgram, operands
from plancc.ir.recorded import Accumulate, Backward, Launch, Leaf, Recording, TakeGrad
from plancc.passes.gradients.activity import is_continuous

LATER = "plancc.linear_later.default"
DETACH = "aten.detach.default"
WEIGHT = 1
"""Where the weight stands among the operands of a linear layer."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recorded call: its place among the instructions, and which operands have a gradient."""

    at: int
    needs: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """What one `Backward` does.

    `calls` are run from the last to the first; `sums` are values whose gradients come from several uses
    (each once for every use but the first), `adds` weights that had a gradient already.
    """

    calls: tuple[Recorded, ...]
    sums: tuple[str, ...]
    adds: tuple[str, ...]


class Tape:
    """What autograd records of a program, and the gradients that are there when others come.

    `segments` and `accumulates` go by the place of their instruction; the latter says whether an
    `Accumulate` finds a gradient. `several`: a step has more than one micro-batch, and all but the first
    find the gradients of those before; the others are not told apart here.
    """

    def __init__(self, program: RankProgram, several: bool) -> None:
        self.steps: Sequence[Instruction] = program.instructions
        self.segments: dict[int, Segment] = {}
        self.accumulates: dict[int, bool] = {}
        self.needs = set(program.gradients)
        self.makers: dict[str, Recorded] = {}
        self.there = set(program.gradients) - taken_each_time(program) if several else set()
        on = bool(program.sections)
        for at, step in enumerate(self.steps):
            if isinstance(step, Recording):
                on = step.on
            elif isinstance(step, Compute) and on:
                self.record(at, step)
            else:
                self.see(at, step)

    def record(self, at: int, step: Compute) -> None:
        """Note a call that is recorded."""
        needs = tuple(name in self.needs for name in operands(step))
        if not any(needs) or step.target == DETACH:
            return
        for held in step.outs:
            if is_continuous(held.dtype):
                self.needs.add(held.name)
                self.makers[held.name] = Recorded(at, needs)

    def see(self, at: int, step: Instruction) -> None:
        """Note where segments begin and end, and where gradients come and go."""
        if isinstance(step, Leaf):
            self.needs.add(step.out.name)
        elif isinstance(step, Backward):
            self.segments[at] = self.segment(step)
        elif isinstance(step, Accumulate):
            self.accumulates[at] = self.arrives(step.weight)
        elif isinstance(step, TakeGrad):
            self.there.discard(step.weight)
        elif isinstance(step, Launch):
            self.there.difference_update(take.weight for take in step.takes)

    def segment(self, step: Backward) -> Segment:
        """The calls that lead from leaves and weights to the results of a segment."""
        calls: dict[int, Recorded] = {}
        uses = dict.fromkeys(step.outs, 1)
        todo = [self.makers[name] for name in step.outs if name in self.makers]
        while todo:
            one = todo.pop()
            if one.at in calls:
                continue
            calls[one.at] = one
            for name in self.differentiated(one):
                uses[name] = uses.get(name, 0) + 1
                if name in self.makers:
                    todo.append(self.makers[name])
        order = tuple(calls[at] for at in sorted(calls, reverse=True))
        sums = tuple(name for name, count in uses.items() for _ in range(count - 1))
        return Segment(order, sums, tuple(n for n in step.weights if n in uses and self.arrives(n)))

    def differentiated(self, one: Recorded) -> list[str]:
        """The operands of a call that get their gradients at once."""
        call = self.steps[one.at]
        late = WEIGHT if isinstance(call, Compute) and call.target == LATER else None
        pairs = enumerate(zip(operands(call), one.needs, strict=True))
        return [name for place, (name, need) in pairs if need and place != late]

    def arrives(self, weight: str) -> bool:
        """A gradient of a weight comes; whether there is one."""
        had = weight in self.there
        self.there.add(weight)
        return had


def taken_each_time(program: RankProgram) -> set[str]:
    """The weights whose gradient every micro-batch takes away: its slices are kept elsewhere."""
    return {
        step.weight
        for at, section in enumerate(program.sections)
        if section.kind == "backward"
        for step in program.section(at)
        if isinstance(step, TakeGrad)
    }
