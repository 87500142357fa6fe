"""Cut the forward into segments: runs of local calls that autograd records and that are reversed as one.

A segment ends where one of its values leaves the rank, or needs a sum over ranks on its way back. What comes
from outside enters as a leaf, so that gradients pass between segments in the open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from plancc.ir.graph import Ref
from plancc.ir.layout import Layout, Stage
from plancc.ir.program import (
    Collective,
    Compute,
    Held,
    Instruction,
    Leaf,
    Merge,
    Recording,
    Transfer,
    operands,
)
from plancc.passes.gradients.activity import Entry
from plancc.passes.gradients.states import State, States

KEYED = "plancc.attention_over_keys.default"
Region = tuple[Stage, str]
"""What is computed again in the backward: calls of one stage under one name."""


@dataclass
class Segment:
    """Recorded calls of one stage: what enters, what they make, and where the last one stands."""

    stage: Stage
    first: Compute
    leaves: dict[tuple[str, State], Held] = field(default_factory=dict)
    outs: list[str] = field(default_factory=list)
    weights: dict[str, None] = field(default_factory=dict)
    last: int = 0
    open: bool = True
    region: Region | None = None
    layer: int | None = None


@dataclass(frozen=True, slots=True)
class Crossing:
    """A communication with a gradient (or attention over cut keys with its merges), at an entry."""

    step: Collective | Transfer | Compute
    last: int
    merges: tuple[Merge, ...] = ()
    region: Region | None = None


@dataclass
class Names:
    """Local names that are taken."""

    taken: set[str]

    def fresh(self, wanted: str) -> str:
        """`wanted`, or with a number."""
        name, count = wanted, 1
        while name in self.taken:
            count += 1
            name = f"{wanted}_{count}"
        self.taken.add(name)
        return name


class Forward:
    """The forward instructions with leaves, and the events that the backward reverses."""

    def __init__(
        self, entries: Sequence[Entry], helds: Mapping[str, Held], weights: Mapping[str, Held],
        active: frozenset[str], states: States, names: Names, regions: Mapping[int, Region],
        layers: Mapping[str, int | None],
    ) -> None:  # fmt: skip
        self.helds, self.weights, self.active = helds, weights, active
        self.states, self.names, self.layers = states, names, layers
        self.out: list[Entry] = []
        self.again: dict[Region, list[Entry]] = {}
        self.region: Region | None = None
        self.events: list[Segment | Crossing] = []
        self.current: dict[Stage, Segment] = {}
        self.made: dict[str, Segment] = {}
        self.followers = followers(entries)
        for index, (stages, step) in enumerate(entries):
            self.enter(regions.get(index), stages)
            self.visit(index, stages, step)
        self.enter(None, ())

    def enter(self, region: Region | None, stages: tuple[Stage, ...]) -> None:
        """Go on inside or outside a region: what is computed again is not recorded at first."""
        if region == self.region:
            return
        if self.region is not None:
            self.out.append(((self.region[0],), Recording(True, self.region[0])))
        self.region = region
        if region is not None:
            self.out.append(((region[0],), Recording(False, region[0])))

    def emit(self, stages: tuple[Stage, ...], step: Instruction, plain: Instruction | None) -> None:
        """Append an entry: `step` where it is recorded, `plain` where that is left to the backward."""
        if self.region is None:
            self.out.append((stages, step))
            return
        self.again.setdefault(self.region, []).append((stages, step))
        if plain is not None:
            self.out.append((stages, plain))

    def visit(self, index: int, stages: tuple[Stage, ...], step: Instruction) -> None:
        """Rewrite one forward entry."""
        names = [n for n in dict.fromkeys(operands(step)) if n in self.active]
        if isinstance(step, Compute) and step.target == KEYED and names:
            self.keyed(index, stages, step, names)
        elif isinstance(step, Compute) and any(h.name in self.active for h in step.outs):
            self.compute(index, stages, step, names)
        else:
            if isinstance(step, (Collective, Transfer)) and names:
                self.leave(names)
                self.events.append(Crossing(step, index, (), self.region))
            self.emit(stages, step, step)

    def keyed(self, index: int, stages: tuple[Stage, ...], step: Compute, names: list[str]) -> None:
        """Attention over this rank's keys: its backward is a call of its own, so nothing is recorded."""
        self.leave(names)
        merges, at = [], step.outs[0].name
        while at in self.followers:
            merge = self.followers[at]
            merges.append(merge)
            at = merge.out.name
        self.events.append(Crossing(step, index, tuple(merges)))
        stage = stages[0]
        self.out.append((stages, Recording(False, stage)))
        self.out.append((stages, step))
        self.out.append((stages, Recording(True, stage)))

    def compute(
        self, index: int, stages: tuple[Stage, ...], step: Compute, names: list[str]
    ) -> None:
        """A recorded call: in the stage's segment, or in a new one."""
        segment = self.segment(stages[0], step, names)
        renamed: dict[str, str] = {}
        for name in names:
            maker = self.made.get(name)
            if self.is_direct(name):
                segment.weights[name] = None
                continue
            if maker is segment:
                continue
            if maker is not None and maker.stage != segment.stage:
                maker.open = False
            renamed[name] = self.leaf(segment, name, self.states.given[(index, name)], step).name
        self.emit(stages, rename(step, renamed) if renamed else step, step)
        for held in step.outs:
            if held.name in self.active:
                self.made[held.name] = segment
                segment.outs.append(held.name)
        segment.last = index

    def segment(self, stage: Stage, step: Compute, names: list[str]) -> Segment:
        """The segment that a call belongs to: no value that is summed on its way back stays inside one."""
        found = self.current.get(stage)
        layer = self.layers.get(step.node)
        same = found is not None and (found.region, found.layer) == (self.region, layer)
        if found is not None and found.open and same:
            inside = [n for n in names if self.made.get(n) is found]
            if not any(self.states.forks(n) for n in inside):
                return found
        if found is not None:
            found.open = False
        found = Segment(stage, step, region=self.region, layer=layer)
        self.current[stage] = found
        self.events.append(found)
        return found

    def is_direct(self, name: str) -> bool:
        """Whether a weight is used as it is: its gradient accumulates in one state."""
        return name in self.weights and len(self.states.of[name]) == 1

    def leaf(self, segment: Segment, name: str, state: State, step: Compute) -> Held:
        """`name` as it enters a segment."""
        key = (name, state)
        if key not in segment.leaves:
            held = self.helds[name]
            leaf = replace(held, name=self.names.fresh(f"{name}_x"), stage=segment.stage)
            segment.leaves[key] = leaf
            self.emit((segment.stage,), Leaf(name, leaf, step.origin), None)
        return segment.leaves[key]

    def leave(self, names: Sequence[str]) -> None:
        """Values leave their segments: no later call may join those."""
        for name in names:
            if name in self.made:
                self.made[name].open = False


def find_regions(entries: Sequence[Entry], recompute: Mapping[str, str]) -> dict[int, Region]:
    """Entry -> region. A move belongs to the region of those who use its result, if that is one."""
    found: dict[int, Region] = {}
    if not recompute:
        return found
    users: dict[str, set[Region | None]] = {}
    for index in range(len(entries) - 1, -1, -1):
        stages, step = entries[index]
        region: Region | None = None
        if isinstance(step, Compute) and step.target != KEYED and step.node in recompute:
            region = (stages[0], recompute[step.node])
        elif isinstance(step, Collective):
            wanted = users.get(step.out.name, {None})
            region = next(iter(wanted)) if len(wanted) == 1 else None
        if region is not None:
            found[index] = region
        for name in operands(step):
            users.setdefault(name, set()).add(region)
    return found


def followers(entries: Sequence[Entry]) -> dict[str, Merge]:
    """Partial result -> the merge that takes it."""
    return {step.operand: step for _, step in entries if isinstance(step, Merge)}


def rename(step: Compute, names: Mapping[str, str]) -> Compute:
    """A call with other operands."""

    def fix(arg: Any) -> Any:
        if isinstance(arg, Ref):
            return Ref(names.get(arg.name, arg.name))
        if isinstance(arg, (tuple, list)):
            return tuple(fix(a) for a in arg)
        return arg

    return replace(step, args=fix(step.args), kwargs={k: fix(v) for k, v in step.kwargs.items()})


def gradient_of(held: Held, name: str, state: State, stage: Stage) -> Held:
    """The gradient of a value: laid out as the value, pending over `state`."""
    return Held(name, f"grad {held.source}", Layout(held.layout.dims, state), held.dtype, stage)
