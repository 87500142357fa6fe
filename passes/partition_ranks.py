"""Cut the global instruction list into one program per class of ranks, and free values after last use."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from plancc.dsl.diagnostics import Report
from plancc.ir.layout import Layout, Stage, cut_tree
from plancc.ir.leaf_names import name_leaves
from plancc.ir.mesh import mesh_of
from plancc.ir.program import (
    Accumulate,
    Backward,
    Bucket,
    Collective,
    Compute,
    Free,
    Held,
    Instruction,
    Leaf,
    Merge,
    ProgramSet,
    RankProgram,
    Recording,
    Recv,
    Section,
    Send,
    TakeGrad,
    Transfer,
    Weight,
    operands,
    produced,
)
from plancc.passes.base import Unit
from plancc.passes.overlap_transfers import overlapped
from plancc.passes.plan_schedule import pipeline_schedule


@dataclass(frozen=True)
class PartitionRanks:
    """Ranks that belong to the same stages share one program."""

    name: ClassVar[str] = "partition-ranks"

    def run(self, unit: Unit, report: Report) -> Unit:
        """Fill `programs`."""
        unit = with_channels(unit) if unit.training else unit
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
                unit.graph.phase,
                variant.index,
                variant.text,
                programs,
                microbatches(unit),
                pipeline_schedule(unit.plan) if unit.training else None,
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
    mine, sections = sectioned(unit, key)
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


def sectioned(unit: Unit, key: tuple[Stage, ...]) -> tuple[list[Instruction], list[Section]]:
    """What the ranks of `key` do, in order; of a training unit also where each of its functions begins."""
    if unit.training is None:
        return mine_of(unit.instructions, key), []
    depth = depths(unit)
    chunks = sorted({depth[stage] for stage in key if stage in depth})
    found: list[Instruction] = []
    sections = []
    for kind, entries, order in (
        ("forward", unit.instructions, chunks),
        ("backward", unit.training.backward, list(reversed(chunks))),
    ):
        for chunk in order:
            here = {stage for stage in key if depth.get(stage) == chunk}
            sections.append(Section(kind, chunk, len(found)))
            found += [s for s in mine_of(entries, key, here)]
    for kind, entries in (("reduce", unit.training.reduce), ("refresh", unit.training.refresh)):
        sections.append(Section(kind, 0, len(found)))
        found += mine_of(entries, key)
    return found, sections


def with_channels(unit: Unit) -> Unit:
    """The unit with a channel of its own for every distance that values skip in the pipeline."""
    depth = depths(unit)

    def entry(
        stages: tuple[Stage, ...], step: Instruction
    ) -> tuple[tuple[Stage, ...], Instruction]:
        if not isinstance(step, (Send, Recv, Transfer)):
            return stages, step
        edge = step.edge
        far = abs(depth.get(edge.source, 0) - depth.get(edge.target, 0))
        if far < 2:
            return stages, step
        return stages, replace(step, edge=replace(edge, channel=edge.channel + 2 * (far - 1)))

    assert unit.training is not None
    training = replace(
        unit.training, backward=tuple(entry(*e) for e in unit.training.backward),
        reduce=tuple(entry(*e) for e in unit.training.reduce),
    )  # fmt: skip
    return replace(
        unit, instructions=tuple(entry(*e) for e in unit.instructions), training=training
    )


def depths(unit: Unit) -> dict[Stage, int]:
    """The place of every stage in the plan's pipeline; 0 for all without one."""
    stages = stages_of(unit)
    if not unit.plan.pipelines:
        return dict.fromkeys(stages, 0)
    pipeline = unit.plan.pipelines[0]
    if pipeline.chain:
        order = {mesh: index for index, mesh in enumerate(pipeline.chain)}
        return {s: order.get(mesh_of(s.mesh), 0) for s in stages}
    assert pipeline.axis is not None
    size = unit.plan.meshes[str(pipeline.mesh)].axis(pipeline.axis).size
    return {s: dict(s.coords).get(pipeline.axis, 0) + size * s.chunk for s in stages}


def mine_of(
    entries: Iterable[tuple[tuple[Stage, ...], Instruction]], key: tuple[Stage, ...],
    here: Collection[Stage] | None = None,
) -> list[Instruction]:  # fmt: skip
    """The instructions of the ranks of `key`; with `here` only those that belong to these of its stages."""
    seen = [side(step, key) for stages, step in entries if set(stages) & set(key)]
    found = [step for step in seen if step is not None]
    return found if here is None else [step for step in found if place_of(step) in here]


def place_of(step: Instruction) -> Stage:
    """The stage to which an instruction of a class belongs: the receiving one of a receive."""
    if isinstance(step, Send):
        return step.edge.source
    if isinstance(step, (Recv, Transfer)):
        return step.edge.target
    if isinstance(step, Compute):
        return step.outs[0].stage
    if isinstance(step, (Collective, Merge, Leaf, TakeGrad, Bucket)):
        return step.out.stage
    assert isinstance(step, (Backward, Accumulate, Recording))
    return step.stage


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
