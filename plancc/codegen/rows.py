"""Which rows of a batch the ranks of a training program read: where each use of an input cuts it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from plancc.codegen.manifest import tree_json
from plancc.dsl.plan import Variant
from plancc.ir.program import Collective, Free, ProgramSet, RankProgram, operands


def batch_cuts(sets: Sequence[tuple[Variant, ProgramSet]]) -> dict[str, list[Any]]:
    """Program file -> tree of the rows that it reads, [] if none; programs that read all have no entry."""
    found = {}
    for variant, programs in sets:
        for number, program in enumerate(programs.programs):
            cut = batch_cut(program)
            if cut is not None:
                found[f"{programs.phase}_v{variant.index}_c{number}.py"] = cut
    return found


def batch_cut(program: RankProgram) -> list[Any] | None:
    """The one tree by which every use of every input [B, ...] cuts its rows; None: there are others."""
    inputs = {held.name for held in program.inputs if held.layout.dims}
    trees: list[list[Any]] = []
    for step in program.instructions:
        if isinstance(step, Free) or not inputs.intersection(operands(step)):
            continue
        if not isinstance(step, Collective) or step.kind != "shard":
            return None
        if any(part.rule == "loaded" for part in step.parts):
            return None  # other rows from step to step
        tree = tree_json(step.out.layout.dims[0], program.leaf_names)
        if tree not in trees:
            trees.append(tree)
    if len(trees) > 1:
        return None
    return trees[0] if trees else []
