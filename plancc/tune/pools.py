"""Pool sizes: a plan as if its guards gave a pool another size, and the settings that do give it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from plancc.dsl import Report, load_plan
from plancc.dsl.errors import PlanError
from plancc.dsl.plan import Axis, Mesh, ResolvedPlan, Variant
from plancc.ir.mesh import axis_size
from plancc.passes.base import Unit
from plancc.simulator.subject import Subject
from plancc.tune.bench import Bench
from plancc.tune.forms import Case, Cell, Sets
from plancc.tune.space import Knob, ordered, with_text

Sizes = tuple[tuple[str, int], ...]
"""Pool axes, as in ("fa.sp", 8), in the order of the plan."""


@dataclass
class OneVariant(Subject):
    """A plan that takes one of its variants for every input."""

    index: int = 0

    def unit(self, phase: str, batch: int, seq_len: int) -> Unit:
        """The programs of the variant; SimulateError for inputs that no variant admits."""
        super().unit(phase, batch, seq_len)
        return self.compiled.unit(phase, self.index)


@dataclass(frozen=True, slots=True)
class PoolSize:
    """A pool size at one case: what it gives, and which setting has it there.

    `taken`: the tuned setting has it already. `sets` is None where no value of a parameter gives it; the
    plan itself must then be changed.
    """

    sizes: Sizes
    cell: Cell
    taken: bool
    sets: Sets | None


def pool_axes(plan: ResolvedPlan) -> Iterator[tuple[Mesh, Axis]]:
    """The axes whose size the inputs decide."""
    for mesh in plan.meshes.values():
        for axis in mesh.axes:
            if axis.steps:
                yield mesh, axis


def sizes_of(plan: ResolvedPlan, variant: Variant) -> Sizes:
    """The sizes of all pools in a variant."""
    return tuple(
        (f"{mesh.name}.{axis.name}", axis_size(mesh, axis, variant))
        for mesh, axis in pool_axes(plan)
    )


def sizes_at(plan: ResolvedPlan, case: Case) -> Sizes | None:
    """The pool sizes that a plan takes at a case; None where it does not admit it."""
    env = {"batch": case.batch, "seq_len": case.seq_len, "tokens": case.batch * case.seq_len}
    for variant in plan.variants:
        held = all(lo <= env[name] <= hi for name, (lo, hi) in variant.bounds.items())
        if held and variant.phase in (None, case.phase):
            return sizes_of(plan, variant)
    return None


def regimes(bench: Bench, sets: Sets, case: Case) -> dict[Sizes, OneVariant]:
    """The plan with every pool size that it can have, whatever the inputs are; PlanError if it is wrong.

    A size that no guard gives stands for the nearest one that some guard gives. Sizes that a pass refuses are
    left out. Of variants with the same sizes: the one whose guards are most as they are at `case`.
    """
    resolved, report = load_plan(bench.plan, {**bench.fixed, **dict(sets)})
    if resolved is None:
        raise PlanError(report.diagnostics)
    compiled = bench.compiled(resolved, report)
    here = bench.subject(compiled).unit(case.phase, case.batch, case.seq_len).variant.guards
    units = [unit for unit in compiled.units if unit.graph.phase == case.phase]
    units.sort(key=lambda unit: sum(unit.variant.guards[g] != held for g, held in here.items()))
    found: dict[Sizes, OneVariant] = {}
    for unit in units:
        held = OneVariant(compiled, bench.cluster, bench.routing, index=unit.variant.index)
        found.setdefault(sizes_of(resolved, unit.variant), held)
    for mesh, axis in pool_axes(resolved):
        for size in axis.steps:
            swapped(bench, resolved, (mesh, axis, size), found)
    return dict(sorted(found.items()))


def swapped(
    bench: Bench, plan: ResolvedPlan, wanted: tuple[Mesh, Axis, int],
    found: dict[Sizes, OneVariant],
) -> None:  # fmt: skip
    """Add the nearest regime with another size of one pool, if none has that size."""
    mesh, axis, size = wanted
    name = f"{mesh.name}.{axis.name}"
    given = {key: dict(key)[name] for key in found}
    used = [key for key, held in given.items() if held]
    if not size or size in given.values() or not used:
        return
    near = min(used, key=lambda key: abs(given[key] - size))
    settings = tuple(
        replace(s, value=size) if s.name == axis.name and s.value == given[near] else s
        for s in mesh.settings
    )
    changed = replace(plan, meshes={**plan.meshes, mesh.name: replace(mesh, settings=settings)})
    try:
        compiled = bench.compiled(changed, Report())
    except PlanError:
        return
    key = tuple((axis_name, size if axis_name == name else held) for axis_name, held in near)
    found[key] = OneVariant(compiled, bench.cluster, bench.routing, index=found[near].index)


def pool_sizes(bench: Bench, sets: Sets, case: Case, knobs: Sequence[Knob]) -> tuple[PoolSize, ...]:
    """What every pool size gives at one case under a setting; () for a plan without pools."""
    resolved, _ = load_plan(bench.plan, {**bench.fixed, **dict(sets)})
    if resolved is None or not any(pool_axes(resolved)):
        return ()
    here = sizes_at(resolved, case)
    return tuple(
        PoolSize(
            sizes, bench.cell(subject, case), sizes == here,
            sets if sizes == here else setting_for(bench, sets, case, sizes, knobs),
        )
        for sizes, subject in regimes(bench, sets, case).items()
    )  # fmt: skip


def setting_for(
    bench: Bench, sets: Sets, case: Case, sizes: Sizes, knobs: Sequence[Knob]
) -> Sets | None:
    """The setting that differs in one parameter and takes some pool sizes at a case; None if there is none.

    Between two values that are looked at, whole numbers are halved.
    """
    for knob in knobs:
        place = [name for name, _ in sets].index(knob.name)

        def taken(text: str, place: int = place) -> Sizes | None:
            tried = with_text(sets, place, text)
            plan, _ = load_plan(bench.plan, {**bench.fixed, **dict(tried)})
            return sizes_at(plan, case) if plan is not None else None

        text = value_for(ordered(knob), sizes, taken)
        if text is not None:
            return with_text(sets, place, text)
    return None


def value_for(
    values: Sequence[str], wanted: Sizes, taken: Callable[[str], Sizes | None]
) -> str | None:
    """A value that gives some sizes: one of `values`, or a number between two that give more and less."""
    seen = [(text, taken(text)) for text in values]
    exact = [text for text, sizes in seen if sizes == wanted]
    if exact:
        return exact[0]
    for (low, first), (high, last) in pairwise(seen):
        if first is None or last is None or not (low.isdecimal() and high.isdecimal()):
            continue
        if not min(first, last) < wanted < max(first, last):
            continue
        begin, end = int(low), int(high)
        while end - begin > 1:
            middle = (begin + end) // 2
            sizes = taken(str(middle))
            if sizes == wanted:
                return str(middle)
            if sizes is None:
                break
            begin, end = (middle, end) if (sizes < wanted) == (first < last) else (begin, middle)
    return None
