"""Text of graphs, layouts and instruction lists: what `--print-after` and golden files show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plancc.ir.layout import CutLeaf, Layout, LocalTree, Part, Prod
from plancc.ir.program import (
    Collective,
    Compute,
    Free,
    Held,
    ProgramSet,
    RankProgram,
    Recv,
    Send,
    Transfer,
)


def tree_text(tree: LocalTree, names: Mapping[int, str]) -> str:
    """`heads/tp*head_dim`: leaves by name, with the axes that cut them."""
    if isinstance(tree, CutLeaf):
        axes = "".join(f"/{part_text(part)}" for part in tree.parts)
        return names.get(tree.id, f"d{tree.id}") + axes
    if isinstance(tree, Prod):
        return "*".join(group_text(kid, names) for kid in tree.kids) or "1"
    return "+".join(tree_text(kid, names) for kid in tree.kids)


def part_text(part: Part) -> str:
    """`tp`; `tp[2x4]` for a factor of an axis: two, four apart; `tp:block` for another rule."""
    text = part.axis if part.whole_axis else f"{part.axis}[{part.count}x{part.stride}]"
    return text if part.rule == "balanced" else f"{text}:{part.rule}"


def group_text(tree: Any, names: Mapping[int, str]) -> str:
    """A factor of a product, in brackets where it is a sum."""
    text = tree_text(tree, names)
    return f"({text})" if "+" in text else text


def layout_text(layout: Layout, names: Mapping[int, str]) -> str:
    """`[batch, seq, ffn/tp]`, and the axes of a pending sum."""
    dims = ", ".join(tree_text(dim, names) for dim in layout.dims)
    pending = "+".join(part.axis for part in layout.partial)
    return f"[{dims}]" + (f" partial {pending}" if pending else "")


def held_text(held: Held, names: Mapping[int, str]) -> str:
    """`x: float32[batch, seq]`."""
    dtype = str(held.dtype).removeprefix("torch.")
    return f"{held.name}: {dtype}{layout_text(held.layout, names)}"


def instruction_text(step: Any, names: Mapping[int, str]) -> str:
    """One instruction on one line."""
    if isinstance(step, Compute):
        outs = ", ".join(held_text(h, names) for h in step.outs)
        return f"{outs} = {step.target}"
    if isinstance(step, Collective):
        over = "+".join(part.axis for part in step.parts)
        return f"{held_text(step.out, names)} = {step.kind} {step.operand} over {over}"
    if isinstance(step, Send):
        return f"send {step.operand} to {step.edge.target}"
    if isinstance(step, Recv):
        return f"{held_text(step.out, names)} = receive from {step.edge.source}"
    if isinstance(step, Transfer):
        way = f"{step.edge.source} -> {step.edge.target}"
        return f"{held_text(step.out, names)} = transfer {step.operand}: {way}"
    assert isinstance(step, Free)
    return f"free {', '.join(step.names)}"


def program_text(program: RankProgram) -> str:
    """A whole rank program."""
    names = program.leaf_names
    lines = [f"program {program.name} {program.phase} of {len(program.ranks)} ranks"]
    lines += [f"  weight {held_text(w.held, names)}" for w in program.weights]
    lines += [f"  {instruction_text(step, names)}" for step in program.instructions]
    lines += [f"  output {name} = {held.name}" for name, held in program.outputs.items()]
    return "\n".join(lines)


def set_text(programs: ProgramSet) -> str:
    """All programs of one phase and variant."""
    return "\n\n".join(program_text(p) for p in programs.programs)


def unit_text(unit: Any) -> str:
    """A unit of the pipeline, as far as it has come."""
    head = f"-- {unit.graph.phase}, variant {unit.variant.index} ({unit.variant.text})"
    if unit.programs is not None:
        return f"{head}\n{set_text(unit.programs)}"
    if unit.instructions:
        from plancc.ir.leaf_names import name_leaves

        names = name_leaves(unit.named)
        body = [
            f"  {' -> '.join(map(str, stages))}: {instruction_text(step, names)}"
            for stages, step in unit.instructions
        ]
    elif unit.layouts:
        body = [f"  {name}: {plan.stage}" for name, plan in unit.layouts.items()]
    elif unit.places:
        body = [
            f"  {name}: {placed.stage}  {placed.span or ''}" for name, placed in unit.places.items()
        ]
    else:
        body = [f"  {name}" for name in sorted(unit.static)]
    return "\n".join([head, *body])
