"""Cut the global instruction list into one program per class of ranks, and free values after last use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from plancc.dsl.diagnostics import Report
from plancc.ir.graph import Ref
from plancc.ir.layout import Layout, Stage, cut_tree
from plancc.ir.leaf_names import name_leaves
from plancc.ir.program import (
    Collective,
    Compute,
    Free,
    Held,
    Instruction,
    Merge,
    ProgramSet,
    RankProgram,
    Recv,
    Send,
    Transfer,
    Weight,
    produced,
)
from plancc.passes.base import Unit
from plancc.passes.overlap_transfers import overlapped


@dataclass(frozen=True)
class PartitionRanks:
    """Ranks that belong to the same stages share one program."""

    name: ClassVar[str] = "partition-ranks"

    def run(self, unit: Unit, report: Report) -> Unit:
        """Fill `programs`."""
        stages = stages_of(unit)
        members: dict[tuple[Stage, ...], list[int]] = {}
        inside = {s: frozenset(unit.world.grids[s.mesh].members(dict(s.coords))) for s in stages}
        for rank in range(unit.world.size):
            key = tuple(s for s in stages if rank in inside[s])
            members.setdefault(key, []).append(rank)
        assert unit.named is not None
        names = name_leaves(unit.named)
        programs = tuple(build(unit, key, tuple(ranks), names) for key, ranks in members.items())
        variant = unit.variant
        return replace(
            unit,
            programs=ProgramSet(
                unit.graph.phase, variant.index, variant.text, programs, microbatches(unit)
            ),
        )


def stages_of(unit: Unit) -> tuple[Stage, ...]:
    """Every stage, in order of first instruction."""
    seen: dict[Stage, None] = {}
    for stages, _ in unit.instructions:
        seen.update(dict.fromkeys(stages))
    return tuple(seen)


def microbatches(unit: Unit) -> int:
    """How many micro-batches the plan's pipeline and its overlapped edges want (1 without either).

    The same for every variant: a batch keeps its micro-batches, each with a cache of its own.
    """
    batches = overlapped(unit.plan, None, "batches").values()
    return max([1, *(p.microbatches for p in unit.plan.pipelines), *batches])


def build(
    unit: Unit, key: tuple[Stage, ...], ranks: tuple[int, ...], names: Mapping[int, str]
) -> RankProgram:
    """The program of the ranks that live on exactly the stages of `key`."""
    seen = [side(i, key) for stages, i in unit.instructions if set(stages) & set(key)]
    mine = [step for step in seen if step is not None]
    weights: tuple[Weight, ...] = tuple(w for s in key for w in unit.weights.get(s, ()))
    inputs = input_values(unit, key)
    outputs: dict[str, Held] = {}
    made = {h.name: h for i in mine for h in produced(i)}
    made.update({h.name: h for h in inputs})
    for output, (name, stage) in unit.outputs.items():
        if stage in key:
            outputs[output] = made[name]
    keep = {h.name for h in outputs.values()} | {w.held.name for w in weights}
    keep |= {h.name for h in inputs}
    slots = sum(
        1 for i in mine if isinstance(i, Compute) and i.target == "plancc.cache_append.default"
    )
    return RankProgram(
        " + ".join(map(str, key)) or "idle", key, ranks, unit.graph.phase, unit.variant.index,
        inputs, weights, tuple(free_dead(mine, keep)), outputs, slots, names,
    )  # fmt: skip


def side(instruction: Instruction, key: tuple[Stage, ...]) -> Instruction | None:
    """A transfer as this class sees it: a send, a receive, or both at the place of the receive."""
    if isinstance(instruction, Send):
        return None if instruction.edge.target in key else instruction
    if not isinstance(instruction, Transfer) or instruction.edge.source in key:
        whole = not isinstance(instruction, Transfer) or instruction.edge.target in key
        return instruction if whole else None
    return Recv(instruction.out, instruction.edge, instruction.origin)


def input_values(unit: Unit, key: tuple[Stage, ...]) -> tuple[Held, ...]:
    """Every input of the model, whole; each rank is given all of them."""
    assert unit.named is not None
    out = []
    for value in unit.graph.inputs:
        dims = tuple(cut_tree(t, lambda p, leaf: ()) for t in unit.named.shapes[value.name])
        out.append(
            Held(value.name, value.name, Layout(dims), value.dtype, key[0] if key else Stage(""))
        )
    return tuple(out)


def used(instruction: Instruction) -> tuple[str, ...]:
    """The local names that an instruction reads."""
    if isinstance(instruction, Compute):
        return tuple(refs((instruction.args, tuple(instruction.kwargs.values()))))
    if isinstance(instruction, (Collective, Send, Transfer)):
        return (instruction.operand,)
    if isinstance(instruction, Merge):
        return (instruction.operand, instruction.rows)
    return ()


def refs(arg: Any):
    """Names of the Refs inside nested arguments."""
    if isinstance(arg, Ref):
        yield arg.name
    elif isinstance(arg, (tuple, list)):
        for item in arg:
            yield from refs(item)


def free_dead(mine: list[Instruction], keep: set[str]) -> list[Instruction]:
    """The instructions with a Free after the last use of each value; unused results go at once."""
    last: dict[str, int] = {}
    for index, instruction in enumerate(mine):
        for held in produced(instruction):
            last[held.name] = index
        for name in used(instruction):
            last[name] = index
    dead: dict[int, list[str]] = {}
    for name, index in last.items():
        if name not in keep:
            dead.setdefault(index, []).append(name)
    out: list[Instruction] = []
    for index, instruction in enumerate(mine):
        out.append(instruction)
        if index in dead:
            out.append(Free(tuple(dead[index])))
    return out
