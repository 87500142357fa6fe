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
from plancc.dsl.plan import ResolvedPlan
from plancc.ir.graph import BATCH, PAST, TOKENS, Size
from plancc.ir.layout import APPEND_BLOCK, CutLeaf, Layout, LocalTree, Part, Prod
from plancc.ir.mesh import mesh_of
from plancc.ir.program import (
    Compute,
    Free,
    Held,
    ProgramSet,
    RankProgram,
    Recv,
    Transfer,
    produced,
)
from plancc.passes.base import Unit

CACHE, SLICE = "plancc.cache_append.default", "aten.slice.Tensor"


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
            needs = [(program_memory(program, unit.programs, i), i) for i in largest_inputs(unit)]
            memory, given = max(needs, key=lambda need: need[0].total)
            if memory.total > budget:
                over(report, unit, program, memory, given, budget)
        return unit


def budget_of(plan: ResolvedPlan, program: RankProgram) -> int | None:
    """The sum of the budgets of the meshes that a class lives on; None if one has none."""
    budgets = [plan.meshes[name].budget for name in {mesh_of(s.mesh) for s in program.stages}]
    found = [b for b in budgets if b is not None]
    return sum(found) if found and len(found) == len(budgets) else None


def largest_inputs(unit: Unit) -> tuple[tuple[int, int], ...]:
    """(batch, seq_len) of the largest inputs in a variant, the longest first; 1 where nothing is declared.

    Where `tokens` bounds their product: as long as can be, and as many sequences as can be.
    """
    lows, highs = {}, {}
    for name in ("batch", "seq_len", "tokens"):
        bounds = unit.variant.bounds.get(name) or unit.plan.inputs.get(name)
        fact = unit.plan.facts.get(name)
        lows[name], highs[name] = bounds or ((fact, fact) if isinstance(fact, int) else (1, None))
    batch = highs["batch"] or 1
    longest = highs["seq_len"] or 1
    seq = max(min(longest, unit.graph.limits.get("T", longest)), lows["seq_len"])
    most = highs["tokens"]
    if most is None or batch * seq <= most:
        return ((batch, seq),)
    long = max(1, min(seq, most // lows["batch"]))
    many = max(1, min(batch, most // lows["seq_len"]))
    return tuple(dict.fromkeys([(max(1, most // long), long), (many, max(1, most // many))]))


def program_memory(program: RankProgram, programs: ProgramSet, largest: tuple[int, int]) -> Memory:
    """The peak of one class for an input of `largest` (batch, seq_len)."""
    batch, seq = largest
    new = 1 if programs.phase == "decode" else seq
    micro = -(-batch // max(1, min(programs.microbatches, batch)))
    env = {BATCH: micro, TOKENS: new, PAST: seq - new}
    weights = sum(held_bytes(w.held, env) for w in program.weights)
    cache = sum(held_bytes(held, {**env, BATCH: batch}) for held in cached(program))
    live, size, peak = {}, 0, 0
    skip = {held.name for held in cached(program)}
    for step in program.instructions:
        if isinstance(step, Compute) and step.target == SLICE and step.args[0].name in skip:
            skip.update(held.name for held in step.outs)  # a view of the cache
        if isinstance(step, Free):
            size -= sum(live.pop(name, 0) for name in step.names)
            continue
        for held in produced(step):
            if held.name not in skip:
                live[held.name] = held_bytes(held, env)
                size += live[held.name]
        peak = max(peak, size)
    turns = min(programs.microbatches, batch) if takes_turns(program) else 1
    return Memory(weights, cache, peak * turns)


def takes_turns(program: RankProgram) -> bool:
    """Whether micro-batches run by turns, so that all of them are under way at once."""
    return any(isinstance(s, (Recv, Transfer)) and s.pause for s in program.instructions)


def cached(program: RankProgram) -> list[Held]:
    """The keys and values that stay in the cache."""
    return [
        held
        for step in program.instructions
        if isinstance(step, Compute) and step.target == CACHE
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
            size = share_of(size, part)
        return size
    total = 1 if isinstance(tree, Prod) else 0
    for kid in tree.kids:
        inner = tree_size(kid, env)  # type: ignore[arg-type]
        total = total * inner if isinstance(tree, Prod) else total + inner
    return total


def share_of(size: int, part: Part) -> int:
    """The largest share of one rank; owners of cached positions also take turns at blocks of new ones."""
    rule, _, first = part.rule.partition("+")
    fine = 2 if first == "zigzag" else 1
    most = fine * -(-size // (fine * part.count))
    return min(size, most + APPEND_BLOCK - 1) if rule == "owned" else most


def size_of(size: Size, env: Mapping[sympy.Symbol, int]) -> int:
    """A global size with numbers for its symbols."""
    if isinstance(size, int):
        return size
    return env[size] if size in env else int(size.subs(env))


def over(
    report: Report, unit: Unit, program: RankProgram, memory: Memory,
    given: tuple[int, int], budget: int,
) -> None:  # fmt: skip
    """P602, with what takes the room."""
    mesh = unit.plan.meshes[mesh_of(program.stages[0].mesh)]
    setting = next((s for s in mesh.settings if s.name == "budget"), None)
    batch, seq = given
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
    """`17.7GB`, `3.2MB`, `0.5kB`."""
    if count >= 1e8:
        return f"{count / 1e9:.1f}GB"
    return f"{count / 1e6:.1f}MB" if count >= 1e5 or not count else f"{count / 1e3:.1f}kB"
