"""Estimate the peak memory of every class of ranks and hold it against the budgets (P602).

Weights are exact for the largest share; activations follow the order of instructions and frees;
the KV cache counts every position of the largest declared input. For training see estimate_training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from plancc.dsl.diagnostics import Report
from plancc.dsl.plan import ResolvedPlan
from plancc.ir.graph import BATCH, PAST, TOKENS
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
from plancc.passes.estimate_training import activations, gradient_bytes, optimizer_bytes
from plancc.passes.value_sizes import held_bytes, layout_elements

__all__ = ["EstimateMemory", "Memory", "held_bytes", "layout_elements", "program_memory"]

CACHE, SLICE = "plancc.cache_append.default", "aten.slice.Tensor"


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on the fullest rank of one class; `kept` of the activations wait for backwards to come."""

    weights: int
    cache: int
    activations: int
    gradients: int = 0
    optimizer: int = 0
    kept: int = 0
    microbatches: int = 0  # of which activations are kept

    @property
    def total(self) -> int:
        """All together."""
        return self.weights + self.cache + self.activations + self.gradients + self.optimizer


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
    if program.sections:
        found = activations(program, programs, env)
        return Memory(
            weights, 0, found.kept + found.transient, gradient_bytes(program, env),
            optimizer_bytes(program, env), found.kept, found.microbatches,
        )  # fmt: skip
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
            parts_text(memory, f"batch {batch} x seq_len {seq}", unit.training is not None),
            f"{unit.graph.phase} of {program.name}, variant {unit.variant.text}",
        ],
        help=[
            "split params, grads, optim over more devices, recompute, or lower the declared batch or seq_len"
            if unit.training is not None
            else "cut the weights or the cache over more devices, or lower the declared batch or seq_len"
        ],
    )  # fmt: skip


def parts_text(memory: Memory, given: str, training: bool) -> str:
    """What takes the room, for inputs of `given` size."""
    weights = f"weights {gigabytes(memory.weights)}"
    if not training:
        return (
            f"{weights}, kv_cache {gigabytes(memory.cache)} ({given}), "
            f"activations {gigabytes(memory.activations)}"
        )
    plural = "es" if memory.microbatches != 1 else ""
    return (
        f"{weights}, gradients {gigabytes(memory.gradients)}, optimizer "
        f"{gigabytes(memory.optimizer)} (Adam in fp32), activations {gigabytes(memory.kept)} kept for "
        f"{memory.microbatches} micro-batch{plural} ({given}) "
        f"and {gigabytes(memory.activations - memory.kept)} at work"
    )


def gigabytes(count: float) -> str:
    """`17.7GB`, `3.2MB`, `0.5kB`."""
    if count >= 1e8:
        return f"{count / 1e9:.1f}GB"
    return f"{count / 1e6:.1f}MB" if count >= 1e5 or not count else f"{count / 1e3:.1f}kB"
