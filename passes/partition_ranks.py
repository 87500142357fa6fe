"""Cut the global instruction list into one program per class of ranks, and free values after last use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from plancc.dsl.diagnostics import Report
from plancc.ir.layout import Layout, Stage, cut_tree
from plancc.ir.leaf_names import name_leaves
from plancc.ir.program import (
    Compute,
    Free,
    Held,
    Instruction,
    ProgramSet,
    RankProgram,
    Recv,
    Section,
    Send,
    Transfer,
    Weight,
    operands,
    produced,
)
from plancc.passes.base import Unit
from plancc.passes.cut_sections import Cut, cut_sections, late_weights
from plancc.passes.overlap_transfers import in_turns
from plancc.passes.plan_schedule import pipeline_schedule


@dataclass(frozen=True)
class PartitionRanks:
    """Ranks that belong to the same stages share one program."""

    name: ClassVar[str] = "partition-ranks"

    def run(self, unit: Unit, report: Report) -> Unit:
        """Fill `programs`."""
        cut = cut_sections(unit, report) if unit.training else None
        report.raise_errors()
        schedule = pipeline_schedule(unit.plan) if unit.training else None
        if cut is not None and schedule is not None and schedule.splits:
            cut = late_weights(unit, cut)
        stages = stages_of(unit)
        members: dict[tuple[Stage, ...], list[int]] = {}
        inside = {s: frozenset(unit.world.grids[s.mesh].members(dict(s.coords))) for s in stages}
        for rank in range(unit.world.size):
            key = tuple(s for s in stages if rank in inside[s])
            members.setdefault(key, []).append(rank)
        assert unit.named is not None
        names = name_leaves(unit.named)
        programs = tuple(
            build(unit, cut, key, tuple(ranks), names) for key, ranks in members.items()
        )
        variant = unit.variant
        return replace(
            unit,
            programs=ProgramSet(
                unit.graph.phase,
                variant.index,
                variant.text,
                programs,
                microbatches(unit),
                schedule,
                tuple(unit.balance.values()),
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
    batches = in_turns(unit.plan, None).values()
    return max([1, *(p.microbatches for p in unit.plan.pipelines), *batches])


def build(
    unit: Unit, cut: Cut | None, key: tuple[Stage, ...], ranks: tuple[int, ...],
    names: Mapping[int, str],
) -> RankProgram:  # fmt: skip
    """The program of the ranks that live on exactly the stages of `key`."""
    mine, sections = sectioned(unit, cut, key)
    weights: tuple[Weight, ...] = tuple(w for s in key for w in unit.weights.get(s, ()))
    inputs = input_values(unit, key)
    outputs: dict[str, Held] = {}
    made = {h.name: h for i in mine for h in produced(i)}
    made.update({h.name: h for h in inputs})
    for output, (name, stage) in unit.outputs.items():
        if stage in key:
            outputs[output] = made[name]
    grads: dict[str, Held] = {}
    if unit.training is not None:
        found = {w.held.name for w in weights}
        grads = {n: h for n, h in unit.training.gradients.items() if n in found}
    keep = {h.name for h in (*outputs.values(), *inputs, *grads.values())}
    keep |= {w.held.name for w in weights}
    slots = sum(
        1 for i in mine if isinstance(i, Compute) and i.target == "plancc.cache_append.default"
    )
    steps, starts = free_dead(mine, keep)
    return RankProgram(
        " + ".join(map(str, key)) or "idle", key, ranks, unit.graph.phase, unit.variant.index,
        inputs, weights, tuple(steps), outputs, slots, names,
        tuple(replace(s, start=starts[s.start]) for s in sections), grads,
    )  # fmt: skip


def sectioned(
    unit: Unit, cut: Cut | None, key: tuple[Stage, ...]
) -> tuple[list[Instruction], list[Section]]:
    """What the ranks of `key` do, in order; of a training unit also where each of its functions begins."""
    if unit.training is None or cut is None:
        return [step for _, step in mine_of(unit.instructions, key)], []
    parts = {
        "forward": [(cut.forward_depths[at], s) for at, s in mine_of(cut.forward, key)],
        "backward": [(cut.backward_depths[at], s) for at, s in mine_of(cut.backward, key)],
    }
    chunks = sorted({depth for found in parts.values() for depth, _ in found})
    found: list[Instruction] = []
    sections = []
    for kind, order in (("forward", chunks), ("backward", list(reversed(chunks)))):
        for chunk in order:
            sections.append(Section(kind, chunk, len(found)))
            found += [step for depth, step in parts[kind] if depth == chunk]
    for kind, entries in (("reduce", unit.training.reduce), ("refresh", unit.training.refresh)):
        sections.append(Section(kind, 0, len(found)))
        found += [step for _, step in mine_of(entries, key)]
    return found, sections


def mine_of(
    entries: Iterable[tuple[tuple[Stage, ...], Instruction]], key: tuple[Stage, ...]
) -> list[tuple[int, Instruction]]:
    """(position, instruction) of the ranks of `key`."""
    seen = [
        (at, side(step, key)) for at, (stages, step) in enumerate(entries) if set(stages) & set(key)
    ]
    return [(at, step) for at, step in seen if step is not None]


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


def free_dead(mine: list[Instruction], keep: set[str]) -> tuple[list[Instruction], list[int]]:
    """The instructions with a Free after the last use of each value; unused results go at once.

    Also the new position of each instruction (and of the end).
    """
    last: dict[str, int] = {}
    for index, instruction in enumerate(mine):
        for held in produced(instruction):
            last[held.name] = index
        for name in operands(instruction):
            last[name] = index
    dead: dict[int, list[str]] = {}
    for name, index in last.items():
        if name not in keep:
            dead.setdefault(index, []).append(name)
    out: list[Instruction] = []
    starts: list[int] = []
    for index, instruction in enumerate(mine):
        starts.append(len(out))
        out.append(instruction)
        if index in dead:
            out.append(Free(tuple(dead[index])))
    return out, [*starts, len(out)]
