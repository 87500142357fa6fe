"""Cut training instructions into sections: which part of the pipeline's depth each instruction belongs to.

A stage of the pipeline has its own depth. Other stages (a pool, experts) work for several: each of their
instructions belongs to the part whose values it uses, so they run in step with the pipeline.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from plancc.dsl.diagnostics import Report
from plancc.ir.layout import Stage
from plancc.ir.mesh import mesh_of
from plancc.ir.program import (
    Await,
    Compute,
    Instruction,
    Launch,
    Recording,
    Recv,
    Send,
    TakeGrad,
    Transfer,
    operands,
    produced,
)
from plancc.passes.base import Entries, Unit

LINEAR, LATER = "aten.linear.default", "plancc.linear_later.default"


@dataclass(frozen=True, slots=True)
class Cut:
    """The forward and backward entries of a training unit, and the depth of each (parallel tuples)."""

    forward: Entries
    backward: Entries
    forward_depths: tuple[int, ...]
    backward_depths: tuple[int, ...]


def cut_sections(unit: Unit, report: Report) -> Cut:
    """The depths of all entries, transfers with their channels; P901 for values that go back."""
    assert unit.training is not None
    fixed = stage_depths(unit)
    forward = entry_depths(unit.instructions, fixed, back=False)
    backward = entry_depths(unit.training.backward, fixed, back=True)
    sides = dict(transfer_depths(unit.instructions, forward, fixed))
    sides |= transfer_depths(unit.training.backward, backward, fixed)
    if not report_returning(unit.instructions, sides, False, report):
        report_returning(unit.training.backward, sides, True, report)
    if not unit.plan.pipelines:
        return Cut(unit.instructions, unit.training.backward, forward, backward)
    channels = streams(sides, unit.plan.pipelines[0].virtual)
    return Cut(
        with_channels(unit.instructions, channels), with_channels(unit.training.backward, channels),
        forward, backward,
    )  # fmt: skip


def stage_depths(unit: Unit) -> dict[Stage, int]:
    """The place in the plan's pipeline of every stage that is part of it; 0 for all without a pipeline."""
    assert unit.training is not None
    entries = (*unit.instructions, *unit.training.backward)
    stages = dict.fromkeys(stage for found, _ in entries for stage in found)
    if not unit.plan.pipelines:
        return dict.fromkeys(stages, 0)
    pipeline = unit.plan.pipelines[0]
    if pipeline.chain:
        order = {mesh: index for index, mesh in enumerate(pipeline.chain)}
        return {s: order[mesh_of(s.mesh)] for s in stages if mesh_of(s.mesh) in order}
    assert pipeline.axis is not None
    size = unit.plan.meshes[str(pipeline.mesh)].axis(pipeline.axis).size
    return {
        s: dict(s.coords)[pipeline.axis] + size * s.chunk
        for s in stages
        if mesh_of(s.mesh) == pipeline.mesh and pipeline.axis in dict(s.coords)
    }


def entry_depths(entries: Entries, fixed: Mapping[Stage, int], *, back: bool) -> tuple[int, ...]:
    """The depth of each entry: its stage's, or that of the last value that it waits for.

    What waits for no value goes where it is first used.
    """
    last, first = (min, max) if back else (max, min)
    made: dict[str, int] = {}
    reached: dict[Stage, int] = {}
    found: list[int | None] = []
    for _, step in entries:
        stage = place_of(step)
        known = [made[name] for name in reads(step) if name in made]
        depth = fixed.get(stage, last(known) if known else None)
        if depth is None and (isinstance(step, TakeGrad) or getattr(step, "takes", ())):
            depth = reached.get(stage)
        if depth is not None:
            made.update(dict.fromkeys(makes(step), depth))
            reached[stage] = last(reached.get(stage, depth), depth)
        found.append(depth)
    wanted: dict[str, int] = {}
    ahead: dict[Stage, int] = {}
    arrives: dict[int, int] = {}
    for at in range(len(entries) - 1, -1, -1):
        step, depth = entries[at][1], found[at]
        stage = place_of(step)
        if depth is None:
            uses = [wanted[name] for name in makes(step) if name in wanted]
            depth = first(uses) if uses else ahead.get(stage, 0)
            if isinstance(step, Send):
                depth = arrives[step.edge.index]
            found[at] = depth
        if isinstance(step, Transfer):
            arrives[step.edge.index] = depth
        ahead[stage] = depth
        for name in reads(step):
            wanted[name] = first(wanted.get(name, depth), depth)
    return recorded(entries, [depth or 0 for depth in found])


def reads(step: Instruction) -> tuple[str, ...]:
    """The values that an entry uses, and the started move that it awaits."""
    return (step.handle,) if isinstance(step, Await) else operands(step)


def makes(step: Instruction) -> tuple[str, ...]:
    """The values that an entry gives, or the move that it starts."""
    if isinstance(step, Launch):
        return (step.handle,)
    return tuple(held.name for held in produced(step))


def recorded(entries: Entries, depths: list[int]) -> tuple[int, ...]:
    """`depths` where recording goes on again in the section in which it was switched off."""
    off: dict[Stage, int] = {}
    for at, (_, step) in enumerate(entries):
        if isinstance(step, Recording) and not step.on:
            off[step.stage] = depths[at]
        elif isinstance(step, Recording):
            depths[at] = off.get(step.stage, depths[at])
    return tuple(depths)


def transfer_depths(
    entries: Entries, depths: Sequence[int], fixed: Mapping[Stage, int]
) -> Iterator[tuple[int, tuple[int, int, bool]]]:
    """(edge, (depth of the sender, of the receiver, whether both are stages of the pipeline))."""
    sent: dict[int, int] = {}
    for (_, step), depth in zip(entries, depths, strict=True):
        if isinstance(step, Send):
            sent[step.edge.index] = depth
        if isinstance(step, Transfer):
            edge = step.edge
            plain = edge.source in fixed and edge.target in fixed
            yield edge.index, (sent[edge.index], depth, plain)


def report_returning(
    entries: Entries, sides: Mapping[int, tuple[int, int, bool]], back: bool, report: Report
) -> bool:
    """P901 for the first value that goes back to an earlier stage in the forward; whether there is one."""
    for _, step in entries:
        if not isinstance(step, Transfer):
            continue
        source, target, _ = sides[step.edge.index]
        if (source < target) if back else (source > target):
            edge = step.edge
            report.error(
                "P901",
                "training a pipeline that goes back to an earlier stage is not supported yet",
                step.origin.span,
                label=f"{edge.target} waits here for a value of {edge.source}",
                notes=[
                    f"{edge.value} is needed by {step.origin.path or 'the root module'} in stage "
                    f"{target} of the pipeline, and stage {source} makes it"
                ],
                help=["place modules on the pipeline in the order in which they run"],
            )  # fmt: skip
            return True
    return False


def streams(sides: Mapping[int, tuple[int, int, bool]], virtual: int) -> dict[int, int]:
    """Edge -> its stream of messages; 0 from a stage of the pipeline to the next.

    Messages of one stream come in the order of the schedule on both sides; others have their own.
    """

    def key(source: int, target: int, plain: bool) -> tuple[int, ...]:
        far = abs(source - target)
        if far == 0 or (plain and (virtual == 1 or far == 1)):
            return (far,)
        return (far, min(source, target))

    keys = {index: key(*side) for index, side in sides.items()}
    numbers = {found: number for number, found in enumerate(sorted({*keys.values()} - {(1,)}), 1)}
    return {index: numbers.get(found, 0) for index, found in keys.items()}


def with_channels(entries: Entries, channels: Mapping[int, int]) -> Entries:
    """The entries with each transfer on its channel."""

    def fixed(step: Instruction) -> Instruction:
        if not isinstance(step, (Send, Recv, Transfer)):
            return step
        edge = step.edge
        return replace(step, edge=replace(edge, channel=edge.channel + 2 * channels[edge.index]))

    return tuple((stages, fixed(step)) for stages, step in entries)


def place_of(step: Instruction) -> Stage:
    """The stage to which an instruction of a class belongs: the receiving one of a receive."""
    if isinstance(step, Send):
        return step.edge.source
    if isinstance(step, (Recv, Transfer)):
        return step.edge.target
    found = produced(step)
    stage: Stage = found[0].stage if found else step.stage  # type: ignore[union-attr]
    return stage


def late_weights(unit: Unit, cut: Cut) -> Cut:
    """The entries with the weights' part of linear layers left to the W actions of the schedule.

    Only of weights that are used as they are and whose gradient stays on the rank until the end of the
    step: those that are gathered or moved, or whose gradients are reduced on the way, are computed at once.
    """
    assert unit.training is not None
    taken = [step for _, step in unit.training.backward if isinstance(step, TakeGrad)]
    taken += [take for _, s in unit.training.backward if isinstance(s, Launch) for take in s.takes]
    direct = set(unit.training.gradients) - {take.weight for take in taken}

    def late(step: Instruction) -> Instruction:
        if not isinstance(step, Compute) or step.target != LINEAR:
            return step
        if getattr(step.args[1], "name", None) not in direct:
            return step
        args = (*step.args, None) if len(step.args) == 2 else step.args
        return replace(step, target=LATER, args=args)

    forward, backward = (
        tuple((stages, late(step)) for stages, step in entries)
        for entries in (cut.forward, cut.backward)
    )
    return replace(cut, forward=forward, backward=backward)
