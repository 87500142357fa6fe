"""Estimate the peak memory of every class of ranks and hold it against the budgets (P602).

Weights are exact for the largest share; activations follow the order of instructions and frees;
the KV cache counts every position of the largest declared input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import sympy

from plancc.dsl.diagnostics import Report
from plancc.dsl.plan import ResolvedPlan, Variant
from plancc.ir.graph import BATCH, PAST, TOKENS, Size
from plancc.ir.layout import CutLeaf, Layout, LocalTree, Prod
from plancc.ir.mesh import mesh_of
from plancc.ir.program import Compute, Free, Held, ProgramSet, RankProgram, produced
from plancc.passes.base import Unit


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on the fullest rank of one class."""

    weights: int
    cache: int
    activations: int

    @property
    def total(self) -> int:
        """All three together."""
        return self.weights + self.cache + self.activations


@dataclass(frozen=True)
class EstimateMemory:
    """Report P602 where a class does not fit its budget."""

    name: ClassVar[str] = "estimate-memory"

    def run(self, unit: Unit, report: Report) -> Unit:
        """Check the programs of `unit` against the budgets of its meshes."""
        assert unit.programs is not None
        for program in unit.programs.programs:
            budget = budget_of(unit.plan, program)
            if budget is None:
                continue
            memory = program_memory(program, unit.programs, largest_input(unit.plan, unit.variant))
            if memory.total > budget:
                over(report, unit, program, memory, budget)
        return unit


def budget_of(plan: ResolvedPlan, program: RankProgram) -> int | None:
    """The sum of the budgets of the meshes that a class lives on; None if one has none."""
    budgets = [plan.meshes[name].budget for name in {mesh_of(s.mesh) for s in program.stages}]
    found = [b for b in budgets if b is not None]
    return sum(found) if found and len(found) == len(budgets) else None


def largest_input(plan: ResolvedPlan, variant: Variant) -> tuple[int, int]:
    """(batch, seq_len) of the largest input in a variant; 1 where nothing is declared."""
    sizes = []
    for name in ("batch", "seq_len"):
        bounds = variant.bounds.get(name) or plan.inputs.get(name)
        fact = plan.facts.get(name)
        sizes.append(bounds[1] if bounds else fact if isinstance(fact, int) else 1)
    return sizes[0], sizes[1]


def program_memory(program: RankProgram, programs: ProgramSet, largest: tuple[int, int]) -> Memory:
    """The peak of one class for an input of `largest` (batch, seq_len)."""
    batch, seq = largest
    new = 1 if programs.phase == "decode" else seq
    micro = -(-batch // max(1, min(programs.microbatches, batch)))
    env = {BATCH: micro, TOKENS: new, PAST: seq - new}
    weights = sum(held_bytes(w.held, env) for w in program.weights)
    cache = sum(
        held_bytes(held, {**env, BATCH: batch}) for held in cached(program)
    )
    live, size, peak = {}, 0, 0
    skip = {held.name for held in cached(program)}
    for step in program.instructions:
        if isinstance(step, Free):
            size -= sum(live.pop(name, 0) for name in step.names)
            continue
        for held in produced(step):
            if held.name not in skip:
                live[held.name] = held_bytes(held, env)
                size += live[held.name]
        peak = max(peak, size)
    return Memory(weights, cache, peak)


def cached(program: RankProgram) -> list[Held]:
    """The keys and values that stay in the cache."""
    return [
        held
        for step in program.instructions
        if isinstance(step, Compute) and step.target == "plancc.cache_append.default"
        for held in step.outs
    ]


def held_bytes(held: Held, env: Mapping[sympy.Symbol, int]) -> int:
    """Bytes of a value on the rank with the largest share."""
    return layout_elements(held.layout, env) * held.dtype.itemsize


def layout_elements(layout: Layout, env: Mapping[sympy.Symbol, int]) -> int:
    """Elements on the rank with the largest share."""
    total = 1
    for dim in layout.dims:
        total *= tree_size(dim, env)
    return total


def tree_size(tree: LocalTree, env: Mapping[sympy.Symbol, int]) -> int:
    """The largest local size of one dim."""
    if isinstance(tree, CutLeaf):
        size = size_of(tree.size, env)
        for part in tree.parts:
            size = -(-size // part.count)
        return size
    total = 1 if isinstance(tree, Prod) else 0
    for kid in tree.kids:
        inner = tree_size(kid, env)  # type: ignore[arg-type]
        total = total * inner if isinstance(tree, Prod) else total + inner
    return total


def size_of(size: Size, env: Mapping[sympy.Symbol, int]) -> int:
    """A global size with numbers for its symbols."""
    if isinstance(size, int):
        return size
    return env[size] if size in env else int(size.subs(env))


def over(report: Report, unit: Unit, program: RankProgram, memory: Memory, budget: int) -> None:
    """P602, with what takes the room."""
    mesh = unit.plan.meshes[mesh_of(program.stages[0].mesh)]
    setting = next((s for s in mesh.settings if s.name == "budget"), None)
    batch, seq = largest_input(unit.plan, unit.variant)
    report.error(
        "P602",
        f"`{mesh.name}` needs {gigabytes(memory.total)} on each device, "
        f"{gigabytes(memory.total - budget)} over its budget",
        setting.span if setting else mesh.span, label=gigabytes(budget),
        notes=[
            f"weights {gigabytes(memory.weights)}, kv_cache {gigabytes(memory.cache)} "
            f"(batch {batch} x seq_len {seq}), activations {gigabytes(memory.activations)}",
            f"{unit.graph.phase} of {program.name}, variant {unit.variant.text}",
        ],
        help=["cut the weights or the cache over more devices, or lower the declared batch or seq_len"],
    )  # fmt: skip


def gigabytes(count: float) -> str:
    """`17.7GB`."""
    return f"{count / 1e9:.1f}GB" if count >= 1e8 else f"{count / 1e6:.1f}MB"
