"""How the gradient of each value is pending: over which parts its contributions are partial sums.

Where a replicated value (or parameter) feeds computation that is cut over an axis, each rank has only its
share of the gradient; the sum over the axis is the conjugate of Megatron's `f` (Shoeybi et al., section 3).
A pending gradient may pass back through views and casts, so that q, k and v need one sum and not three.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import prod

from plancc.dsl.errors import Bug
from plancc.ir.graph import BATCH, PAST, TOKENS
from plancc.ir.layout import Layout, Part, cuts, pending_parts
from plancc.ir.program import Collective, Compute, Held, Merge, Transfer, operands
from plancc.passes.estimate_memory import layout_elements
from plancc.passes.gradients.activity import Entry

State = tuple[Part, ...]
"""Parts over which a gradient is pending; () for one that is complete on every rank."""

CAT = "aten.cat.default"
SAMPLE = {BATCH: 64, TOKENS: 64, PAST: 64}


@dataclass
class States:
    """The states in which consumers give gradients to each value, and what flows through each producer."""

    of: dict[str, dict[State, None]] = field(default_factory=dict)
    carried: dict[str, State] = field(
        default_factory=dict
    )  # value -> state its producer takes as is
    given: dict[tuple[int, str], State] = field(default_factory=dict)  # (entry, operand) -> state

    def add(self, entry: int, name: str, state: State) -> None:
        self.of.setdefault(name, {})[state] = None
        self.given[(entry, name)] = state

    def forks(self, name: str) -> bool:
        """Whether a value's gradient must be summed over ranks before its producer can use it."""
        return set(self.of.get(name, ())) != {self.carried.get(name, ())}


def gradient_states(
    entries: Sequence[Entry], helds: Mapping[str, Held], weights: Mapping[str, Held],
    active: frozenset[str], loss: str,
) -> States:  # fmt: skip
    """Walk back from the loss and find the states of all active values."""
    found = States()
    found.of[loss] = {(): None}
    for index in range(len(entries) - 1, -1, -1):
        step = entries[index][1]
        names = [n for n in dict.fromkeys(operands(step)) if n in active]
        if not names:
            continue
        if isinstance(step, Compute):
            compute_states(index, step, names, helds, weights, found)
        elif isinstance(step, Collective):
            pending = union(found.of.get(step.out.name, ()))
            lazy = step.operand in weights
            keep = kept_pending(pending, helds[step.operand].layout) if lazy else ()
            found.add(index, step.operand, keep)
        elif isinstance(step, (Transfer, Merge)):
            for name in names:
                found.add(index, name, ())
    return found


def compute_states(
    index: int, step: Compute, names: list[str], helds: Mapping[str, Held],
    weights: Mapping[str, Held], found: States,
) -> None:  # fmt: skip
    """The states that one local call gives its operands."""
    involved = [helds[n] for n in dict.fromkeys(operands(step))] + list(step.outs)
    varying = varying_parts(h.layout for h in involved)
    carry = carried_state(step, names, helds, weights, varying, found)
    for out in step.outs:
        found.carried[out.name] = carry
    for name in names:
        # what is put beside others gets its own slice back, complete
        rest = () if step.target == CAT else without(varying, own_parts(helds[name].layout))
        found.add(index, name, pending_parts((*carry, *rest)))


def carried_state(
    step: Compute, names: list[str], helds: Mapping[str, Held], weights: Mapping[str, Held],
    varying: State, found: States,
) -> State:  # fmt: skip
    """The pending state of the outputs that may flow back through a call unsummed.

    Only where that costs no bytes: one operand, no weight, not larger than the output.
    """
    states = {s for out in step.outs for s in found.of.get(out.name, ())}
    if len(states) != 1 or len(names) != 1 or names[0] in weights:
        return ()
    state = next(iter(states))
    if not state or any(a.meets(b) for a in state for b in varying):
        return ()
    before = layout_elements(helds[names[0]].layout, SAMPLE)
    after = sum(layout_elements(out.layout, SAMPLE) for out in step.outs if found.of.get(out.name))
    return state if before <= after else ()


def own_parts(layout: Layout) -> tuple[Part, ...]:
    """The groups that cut a value or over which it is pending."""
    found = [part.group for dim in layout.dims for leaf in cuts(dim) for part in leaf.parts]
    return (*found, *layout.partial)


def varying_parts(layouts: Iterable[Layout]) -> State:
    """The groups along which a call differs from rank to rank."""
    return without([part for layout in layouts for part in own_parts(layout)], ())


def without(parts: Iterable[Part], removed: Iterable[Part]) -> State:
    """The union of `parts` as groups, less what `removed` covers; an axis is split into factors."""
    axes: dict[tuple[str, str], list[Part]] = {}
    for part in parts:
        axes.setdefault((part.mesh, part.axis), []).append(part)
    taken = list(removed)
    left: list[Part] = []
    for axis, mine in axes.items():
        theirs = [p for p in taken if (p.mesh, p.axis) == axis]
        marks = sorted({x for p in (*mine, *theirs) for x in (p.stride, p.stride * p.count)})
        for low, high in pairwise(marks):
            if high % low:
                raise Bug(f"the factors of axis {axis[1]} do not nest: {mine} and {theirs}")
            atom = replace(mine[0], stride=low, count=high // low, rule="balanced")
            if any(atom.meets(p) for p in mine) and not any(atom.meets(p) for p in theirs):
                left.append(atom)
    return pending_parts(left)


def union(states: Iterable[State]) -> State:
    """All parts of several states together."""
    return without([part for state in states for part in state], ())


def kept_pending(state: State, layout: Layout) -> State:
    """What of a pending state can stay pending when a gradient takes on `layout`: weights sum last."""
    mine = [part.group for dim in layout.dims for leaf in cuts(dim) for part in leaf.parts]
    return without(state, mine)


def replicas(state: State) -> int:
    """Over how many ranks a state is pending."""
    return prod(part.count for part in state)
