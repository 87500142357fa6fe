"""What a compiled plan means: who lives where, the variants, traffic per block, memory per rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plancc.compiler import Compiled
from plancc.dsl.plan import ResolvedPlan
from plancc.ir.graph import BATCH, PAST, TOKENS
from plancc.ir.layout import Part
from plancc.ir.program import (
    Bucket,
    Collective,
    Instruction,
    Launch,
    Merge,
    Transfer,
    produced,
)
from plancc.ir.schedule import (
    bubble_share,
    draw_schedule,
    find_problems,
    makespan,
    peak_activations,
)
from plancc.passes.base import Unit
from plancc.passes.check_programs import LOCAL
from plancc.passes.estimate_memory import (
    Memory,
    gigabytes,
    held_bytes,
    largest_inputs,
    layout_elements,
    program_memory,
)
from plancc.passes.match_targets import Modules
from plancc.passes.plan_schedule import pipeline_schedule


@dataclass(frozen=True, slots=True)
class Traffic:
    """One kind of move in one part of the model: how often in a step, bytes given by one rank each."""

    where: str
    kind: str
    axes: str
    count: int
    bytes: int


def explain(compiled: Compiled) -> dict[str, Any]:
    """Everything that `plancc explain` shows, as plain data."""
    return {
        "plan": compiled.plan.name,
        "ranks": compiled.world.size,
        "meshes": [
            {"name": g.name, "axes": dict(g.axes), "ranks": list(g.ranks)}
            for g in compiled.world.grids.values()
        ],
        "variants": [
            {"index": v.index, "guard": v.text, "phase": v.phase} for v in compiled.plan.variants
        ],
        "phases": [phase_facts(unit) for unit in compiled.units],
        "schedule": schedule_facts(compiled.plan),
        "notes": [*compiled.notes, *(n.text for n in compiled.named.notes)],
    }


def phase_facts(unit: Unit) -> dict[str, Any]:
    """Who lives where, the traffic and the memory of one phase and variant."""
    assert unit.programs is not None
    largest = largest_inputs(unit)[0]
    return {
        "phase": unit.graph.phase,
        "variant": unit.variant.index,
        "input": {"batch": largest[0], "seq_len": largest[1]},
        "lives": lives(unit),
        "traffic": [
            {"where": t.where, "kind": t.kind, "axes": t.axes, "count": t.count, "bytes": t.bytes}
            for t in traffic(unit)
        ],
        "memory": [
            {
                "class": program.name, "ranks": len(program.ranks), "weights": m.weights,
                "cache": m.cache, "activations": m.activations, "total": m.total,
                **training_memory(unit, m),
            }
            for program in unit.programs.programs
            for m in (program_memory(program, unit.programs, largest),)
        ],
    }  # fmt: skip


def training_memory(unit: Unit, memory: Memory) -> dict[str, int]:
    """What only training takes; `kept` is the part of the activations that waits for backwards."""
    if unit.training is None:
        return {}
    return {
        "gradients": memory.gradients, "optimizer": memory.optimizer, "kept": memory.kept,
        "microbatches": memory.microbatches,
    }  # fmt: skip


def schedule_facts(plan: ResolvedPlan) -> dict[str, Any] | None:
    """The schedule of the plan's pipeline as training runs it; None without one."""
    found = pipeline_schedule(plan)
    if found is None or find_problems(found):
        return None
    return {
        "name": found.name, "stages": found.stages, "virtual": found.virtual,
        "microbatches": found.batches, "time": makespan(found), "bubbles": bubble_share(found),
        "peak_activations": list(peak_activations(found)),
        "rows": [[found.label(action) for action in row] for row in found.rows],
    }  # fmt: skip


def schedule_text(plan: ResolvedPlan, width: int = 160) -> str:
    """The schedule drawn, lines cut at `width`; empty without a pipeline."""
    found = pipeline_schedule(plan)
    if found is None or find_problems(found):
        return ""
    lines = draw_schedule(found).splitlines()
    cut = [line if len(line) <= width else f"{line[: width - 4]} ..." for line in lines]
    return "\n".join(["pipeline, as training runs it", *(f"  {line}" for line in cut)])


def lives(unit: Unit) -> list[dict[str, Any]]:
    """Modules grouped by stage and cuts, layers folded together."""
    modules = Modules(unit.graph)
    rows: dict[tuple[str, str], dict[str, None]] = {}
    assert unit.named is not None
    names = {leaf.id: a.name for a in reversed(unit.named.anchors) for leaf in a.leaves}
    for node in unit.graph.nodes:
        plan = unit.layouts.get(node.name)
        if plan is None:
            continue
        jobs = sorted(
            {
                f"{names.get(leaf, 'dim')} over {'.'.join(p.axis for p in parts)}"
                for leaf, (parts, _) in unit.places[node.name].cuts.items()
                if uses(unit, node.name, leaf)
            }
        )
        where = fold(node.path, modules)
        rows.setdefault((str(plan.stage), ", ".join(jobs) or "whole"), {})[where] = None
    return [
        {"on": stage, "split": jobs, "modules": list(found)}
        for (stage, jobs), found in rows.items()
    ]


def uses(unit: Unit, node: str, leaf: int) -> bool:
    """Whether a node really has the leaf that its place would cut."""
    from plancc.ir.layout import cuts

    plan = unit.layouts[node]
    return any(
        found.id == leaf and found.parts
        for layout in (*plan.operands, *plan.outs)
        for dim in layout.dims
        for found in cuts(dim)
    )


def fold(path: str, modules: Modules) -> str:
    """A module path with its layer number as `*`."""
    index = modules.layer_index(path)
    if index is None:
        return path or "(root)"
    head = modules.layer_list
    return f"{head}.*{path[len(head) + 1 + len(str(index)) :]}"


def traffic(unit: Unit) -> list[Traffic]:
    """Moves by layer block and kind; the bytes are those one rank puts in, for the largest input."""
    modules = Modules(unit.graph)
    env = sizes(unit)
    entries = moves_of(unit)
    held = {out.name: out for step in entries for out in produced(step)}
    found: dict[tuple[str, str, str, int], int] = {}
    for step in entries:
        if isinstance(step, Collective) and step.kind not in LOCAL and step.move is not None:
            kind, axes = step.kind, "+".join(p.axis for p in step.parts)
            count = layout_elements(step.move.before, env) * step.out.dtype.itemsize
        elif isinstance(step, Bucket):
            kind, axes = step.kind, "+".join(p.axis for p in step.parts)
            elements = sum(layout_elements(move.before, env) for move in step.moves)
            count = elements * step.out.dtype.itemsize
        elif isinstance(step, Merge):
            kind, axes = "merge", part_text(step.part)
            count = layout_elements(held[step.operand].layout, env) * step.out_rows.dtype.itemsize
        elif isinstance(step, Transfer):
            kind, axes = "transfer", f"{step.edge.source} -> {step.edge.target}"
            count = held_bytes(step.out, env)
        else:
            continue
        key = (fold(step.origin.path, modules), kind, axes, count)
        found[key] = found.get(key, 0) + 1
    return [Traffic(w, k, a, times, size) for (w, k, a, size), times in found.items()]


def moves_of(unit: Unit) -> list[Instruction]:
    """The instructions of a unit: of a training one forward and backward of a micro-batch, and the end."""
    entries = list(unit.instructions)
    if unit.training is not None:
        entries += [*unit.training.backward, *unit.training.reduce, *unit.training.refresh]
    return [step.step if isinstance(step, Launch) else step for _, step in entries]


def part_text(part: Part) -> str:
    """`sp`, or `sp: 8 side by side`, `sp: 4 apart by 8` for a factor of an axis."""
    if part.whole_axis:
        return part.axis
    how = f"apart by {part.stride}" if part.stride > 1 else "side by side"
    return f"{part.axis}: {part.count} {how}"


def sizes(unit: Unit) -> Mapping[Any, int]:
    """Numbers for B, T and P at the largest declared input, per micro-batch."""
    batch, seq = largest_inputs(unit)[0]
    assert unit.programs is not None
    micro = -(-batch // max(1, min(unit.programs.microbatches, batch)))
    new = 1 if unit.graph.phase == "decode" else seq
    return {BATCH: micro, TOKENS: new, PAST: seq - new}


def explain_text(facts: Mapping[str, Any], drawing: str = "") -> str:
    """`explain` for people, with the drawing of its schedule."""
    lines = [f"{facts['plan']}: {facts['ranks']} ranks"]
    for mesh in facts["meshes"]:
        axes = ", ".join(f"{a} {n}" for a, n in mesh["axes"].items())
        lines.append(
            f"  mesh {mesh['name']}[{axes}]  ranks {mesh['ranks'][0]}..{mesh['ranks'][-1]}"
        )
    if len(facts["variants"]) > 1:
        lines.append("variants")
        lines += [f"  {v['index']}  {v['guard']}" for v in facts["variants"]]
    shown: dict[str, str] = {}
    for phase in facts["phases"]:
        body = "\n".join(phase_lines(phase))
        title = f"{phase['phase']}, variant {phase['variant']}"
        same = next((t for t, b in shown.items() if b == body), None)
        lines.append(f"{title}: as {same}" if same else title)
        if same is None:
            shown[title] = body
            lines.append(body)
    if drawing:
        lines.append(drawing)
    lines += [f"note: {note}" for note in facts["notes"]]
    return "\n".join(lines)


def phase_lines(phase: Mapping[str, Any]) -> list[str]:
    """The lines of one phase."""
    lines = []
    for row in phase["lives"]:
        text = ", ".join(row["modules"][:5]) + (" ..." if len(row["modules"]) > 5 else "")
        lines.append(f"  {row['on']:<18} {row['split']:<28} {text}")
    given = phase["input"]
    of = "step" if phase["phase"] != "train" else "micro-batch, and of the end of a step"
    lines.append(f"  traffic of one {of} (batch {given['batch']}, seq_len {given['seq_len']})")
    wide = max((len(row["axes"]) for row in phase["traffic"]), default=0)
    for row in phase["traffic"]:
        lines.append(
            f"    {row['count']:>4} x {row['kind']:<15} over {row['axes']:<{wide}} "
            f"{gigabytes(row['bytes']):>10} each  {row['where']}"
        )
    lines.append("  memory of the fullest rank")
    for row in phase["memory"]:
        lines.append(
            f"    {row['class']:<18} {gigabytes(row['total']):>10}  = weights {gigabytes(row['weights'])}"
            f"{memory_parts(row)}"
        )
    return lines


def memory_parts(row: Mapping[str, Any]) -> str:
    """What a class needs beside its weights."""
    if "optimizer" not in row:
        return (
            f" + kv cache {gigabytes(row['cache'])} + activations {gigabytes(row['activations'])}"
        )
    return (
        f" + gradients {gigabytes(row['gradients'])} + optimizer {gigabytes(row['optimizer'])}"
        f" + activations {gigabytes(row['activations'])} ({gigabytes(row['kept'])} of them kept for "
        f"{row['microbatches']} micro-batch{'es' if row['microbatches'] != 1 else ''})"
    )
