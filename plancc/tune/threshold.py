"""The threshold of an attention pool: from how many tokens in flight it pays, and what to set.

The closed form (closed_forms.pool_tokens) stands beside the crossover found by simulation, for each size of
the pool. What decides is batch x length, so every batch has a threshold of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import exp, inf, log

from plancc.dsl import load_plan
from plancc.dsl.errors import PlanError
from plancc.dsl.plan import ResolvedPlan
from plancc.dsl.variants import UNBOUNDED
from plancc.simulator.compare import crossings, narrowed
from plancc.simulator.errors import SimulateError
from plancc.simulator.rows import Row
from plancc.simulator.step import Outcome
from plancc.simulator.subject import Subject
from plancc.tune.bench import Bench
from plancc.tune.closed_forms import pool_hop, pool_tokens
from plancc.tune.figures import figures_of, rates_of
from plancc.tune.forms import Case, Sets, TuneError
from plancc.tune.pools import (
    OneVariant,
    Sizes,
    pool_axes,
    regimes,
    sizes_at,
    sizes_of,
)
from plancc.tune.space import Knob

LENGTHS = 13
"""Lengths that are looked at, evenly in log space, before crossings are narrowed down."""
NEAR = 1.01
"""Pool sizes that take at most this much longer than the fastest are kept from one length to the next."""


@dataclass(frozen=True, slots=True)
class Crossover:
    """When one pool size pays for one batch, against the base alone. Lengths in tokens; infinity: never.

    `hop` is the seconds of a layer's way to the pool and back by the closed form, `closed` its tokens in
    flight. `searched` is the length from which the simulated pool is the faster one (0: from the shortest
    length on), `lost` whether it is slower again further up.
    """

    sizes: Sizes
    devices: int
    hop: float
    closed: float
    searched: float
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Threshold:
    """The best value of the parameter for one batch, by the geometric mean of the time over all lengths.

    `best` is None where no value fits at every length that some pool size fits at. `seconds` are such means:
    of the best, of the plan's own value, of the base alone (infinity where it does not fit), and of `steps`:
    (length from which, pool sizes) if the plan took at each length the fastest. From `full` on the base alone
    does not fit in memory; at the lengths `left_out` nothing does.
    """

    phase: str
    batch: int
    name: str
    crossovers: tuple[Crossover, ...]
    lengths: tuple[int, ...]
    best: str | None
    seconds: float = inf
    own: str = ""
    own_seconds: float = inf
    base_seconds: float = inf
    full: float = inf
    left_out: tuple[int, ...] = ()
    steps: tuple[tuple[int, Sizes], ...] = ()
    steps_seconds: float = inf


def find_thresholds(
    bench: Bench, knob: Knob, phase: str, batches: Sequence[int], low: int, high: int
) -> tuple[Threshold, ...]:
    """The threshold of every batch, for lengths low..high, or as far as the plan and the model admit them.

    Raises TuneError where the plan admits no lengths from `low` on, or has no pool that can be empty.
    """
    found = []
    for batch in batches:
        longest = Case(phase, batch, min(high, admitted(bench, knob, batch)))
        if longest.seq_len <= low:
            raise TuneError(
                f"with batch {batch} the plan and the model admit no length beyond {longest.seq_len}"
            )
        subjects = regimes(bench, ((knob.name, knob.start),), longest)
        found.append(Lengths(bench, knob, longest, subjects, low).threshold())
    return tuple(found)


def admitted(bench: Bench, knob: Knob, batch: int) -> int:
    """The longest sequences of a batch by the plan's ranges and the model's positions."""
    plan, report = load_plan(bench.plan, {**bench.fixed, knob.name: knob.start})
    if plan is None:
        raise PlanError(report.diagnostics)
    found = [
        plan.inputs.get("seq_len", (1, UNBOUNDED))[1],
        plan.inputs.get("tokens", (1, UNBOUNDED))[1] // batch,
        bench.graph.limits.get("T", UNBOUNDED),
    ]
    return min(found)


@dataclass
class Lengths:
    """All pool sizes of a plan over some lengths, for one batch. `longest` is the case of the longest one."""

    bench: Bench
    knob: Knob
    longest: Case
    subjects: Mapping[Sizes, OneVariant]
    low: int
    known: dict[tuple[Sizes, int], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find the base alone."""
        empty = [sizes for sizes in self.subjects if not any(size for _, size in sizes)]
        if not empty or len(self.subjects) < 2:
            raise TuneError(
                "a threshold needs a pool that is empty for some inputs and not for others"
            )
        self.base = empty[0]
        self.named = {
            sizes: renamed(subject, str(sizes)) for sizes, subject in self.subjects.items()
        }

    def row_of(
        self, subject: Subject, phase: str, batch: int, seq_len: int
    ) -> tuple[Row, Outcome | None]:
        """The row of one length; SimulateError where the plan does not admit it."""
        cell = self.bench.cell(subject, Case(phase, batch, seq_len))
        if cell.row is None:
            raise SimulateError(cell.problem)
        return cell.row, None

    def seconds(self, sizes: Sizes, seq_len: int) -> float:
        """The time of one pool size at one length; infinity where it does not fit."""
        key = sizes, seq_len
        if key not in self.known:
            cell = self.bench.cell(self.named[sizes], replace(self.longest, seq_len=seq_len))
            fits = cell.row is not None and cell.row.fits
            self.known[key] = cell.row.seconds or inf if cell.row is not None and fits else inf
        return self.known[key]

    def crossover(self, sizes: Sizes) -> Crossover:
        """When one pool size pays."""
        case, base = self.longest, self.named[self.base]
        found = crossings(
            base, self.named[sizes], case.phase, case.batch, self.low, case.seq_len, self.row_of
        )
        gains = [c for c in found if c.faster == self.named[sizes].plan.name]
        first = self.seconds(sizes, self.low) < self.seconds(self.base, self.low)
        searched = 0.0 if first else float(gains[0].seq_len) if gains else inf
        hop, closed, devices = self.closed(sizes)
        lost = any(c not in gains for c in found)
        return Crossover(sizes, devices, hop, closed, searched, lost)

    def full_from(self, lengths: Sequence[int]) -> float:
        """The length from which the base alone does not fit; infinity if it always does."""
        full = [n for n in lengths if self.seconds(self.base, n) == inf]
        if not full or full[0] == lengths[0]:
            return float(full[0]) if full else inf
        low = lengths[lengths.index(full[0]) - 1]
        return float(narrowed(low, full[0], lambda n: int(self.seconds(self.base, n) == inf), 0))

    def closed(self, sizes: Sizes) -> tuple[float, float, int]:
        """(seconds of the hop, tokens in flight, devices of the pool) by the closed form."""
        subject = self.subjects[sizes]
        plan, world = subject.plan, subject.compiled.world
        figures = figures_of(subject.compiled.named, plan)
        pools = {mesh.name for mesh, _ in pool_axes(plan)}
        ranks = {
            name: world.grids[grid].ranks
            for (name, index), grid in world.names.items()
            if index == subject.index
        }
        pool = sorted({r for name in pools if name in ranks for r in ranks[name]})
        base = sorted({r for name in ranks if name not in pools for r in ranks[name]} - set(pool))
        hop = pool_hop(figures, subject.hardware, base, pool, self.longest.batch)
        keys = rates_of(subject.hardware, figures.dtype).keys
        return hop, pool_tokens(figures, keys, hop, len(base), len(pool)), len(pool)

    def threshold(self) -> Threshold:
        """The crossovers of all sizes, and the best value of the parameter."""
        crossovers = tuple(self.crossover(s) for s in self.subjects if s != self.base)
        turns = {int(c.searched) for c in crossovers if 0 < c.searched < inf}
        lengths = sorted({*even(self.low, self.longest.seq_len), *turns, *(n - 1 for n in turns)})
        lengths = [n for n in lengths if n >= self.low]
        some = [n for n in lengths if any(self.seconds(s, n) < inf for s in self.subjects)]
        values = {text: self.mean(text, some) for text in self.values(turns, lengths)}
        # Of equals the one that takes devices the latest.
        best = min(values, key=lambda text: (values[text], -int(text)), default=None)
        found = best if best is not None and values[best] < inf else None
        return Threshold(
            self.longest.phase, self.longest.batch, self.knob.name, crossovers, tuple(lengths), found,
            values[best] if best is not None else inf, self.knob.start, self.mean(self.knob.start, some),
            mean([self.seconds(self.base, n) for n in some]),
            self.full_from(lengths), tuple(n for n in lengths if n not in some), self.steps(some),
            mean([min(self.seconds(s, n) for s in self.subjects) for n in some]),
        )  # fmt: skip

    def fastest(self, seq_len: int, last: Sizes | None = None) -> Sizes:
        """The fastest pool sizes at a length; `last` if they are as fast within NEAR."""
        best = min(self.subjects, key=lambda sizes: (self.seconds(sizes, seq_len), sizes))
        least = self.seconds(best, seq_len)
        return last if last and self.seconds(last, seq_len) <= least * NEAR else best

    def steps(self, lengths: Sequence[int]) -> tuple[tuple[int, Sizes], ...]:
        """From which length on which pool sizes are the fastest."""
        found: list[tuple[int, Sizes]] = []
        for left, right in pairwise((lengths[0], *lengths) if lengths else ()):
            last = found[-1][1] if found else None
            sizes = self.fastest(right, last)
            if last is None:
                found.append((right, sizes))
            elif sizes != last:
                found.append((self.turn(left, right, last, sizes), sizes))
        return tuple(found)

    def turn(self, left: int, right: int, last: Sizes, sizes: Sizes) -> int:
        """The length from which some pool sizes are faster than the last ones, from `left` on."""
        if self.seconds(last, left) > self.seconds(sizes, left):
            return left
        return narrowed(
            left, right, lambda n: int(self.seconds(last, n) > self.seconds(sizes, n)), 0
        )

    def values(self, turns: set[int], lengths: Sequence[int]) -> list[str]:
        """The values to weigh: those of the parameter, and those by which it turns at one of the lengths."""
        numbers = [int(text) for text in self.knob.values if text.isdecimal()]
        if len(numbers) < len(self.knob.values):
            raise TuneError(f"`{self.knob.name}` is no number: it cannot be a threshold")
        near = {n for n in (*turns, *lengths) for n in (n - 1, n)}
        inside = {n for n in near if min(numbers) <= n <= max(numbers)}
        return [str(n) for n in sorted({*numbers, *inside})]

    def mean(self, text: str, lengths: Sequence[int]) -> float:
        """The geometric mean of the time over lengths, of the plan with one value of the parameter."""
        plan = self.plan(text)
        if plan is None:
            return inf
        times = []
        for seq_len in lengths:
            sizes = sizes_at(plan, replace(self.longest, seq_len=seq_len))
            times.append(self.seconds(sizes, seq_len) if sizes in self.named else inf)
        return mean(times)

    def plan(self, text: str) -> ResolvedPlan | None:
        """The plan with one value of the parameter; None where it is refused."""
        return load_plan(self.bench.plan, {**self.bench.fixed, self.knob.name: text})[0]


def renamed(subject: OneVariant, name: str) -> OneVariant:
    """The same programs under another name, by which comparisons call it."""
    compiled = subject.compiled
    plan = replace(compiled.plan, name=name)
    return OneVariant(
        replace(compiled, plan=plan), subject.cluster, subject.routing, index=subject.index
    )


def even(low: int, high: int) -> list[int]:
    """Some lengths from low to high, evenly in log space."""
    ratio = (high / low) ** (1 / (LENGTHS - 1))
    return sorted({min(high, round(low * ratio**i)) for i in range(LENGTHS)})


def mean(times: Sequence[float]) -> float:
    """The geometric mean; infinity if one is, or if there are none."""
    if not times or inf in times:
        return inf
    return exp(sum(map(log, times)) / len(times))


def threshold_knob(bench: Bench, knobs: Sequence[Knob], phase: str) -> Knob:
    """The one parameter that moves the lengths from which pools are taken; TuneError for none or several."""
    found = [knob for knob in knobs if len(variants_by(bench, knob, phase)) > 1]
    if len(found) == 1:
        return found[0]
    names = ", ".join(knob.name for knob in found)
    raise TuneError(
        f"several parameters move the pool: {names}; name one, as in --threshold {found[0].name}"
        if found else "no parameter moves the inputs from which a pool is taken"
    )  # fmt: skip


def variants_by(bench: Bench, knob: Knob, phase: str) -> set[object]:
    """The different (inputs, pool sizes) that values of a parameter make."""
    found: set[object] = set()
    for text in knob.values:
        plan, _ = load_plan(bench.plan, {**bench.fixed, knob.name: text})
        if plan is not None:
            rows = [
                (sizes_of(plan, v), tuple(sorted(v.bounds.items())))
                for v in plan.variants if v.phase in (None, phase)
            ]  # fmt: skip
            found.add(tuple(rows) if any(pool_axes(plan)) else ())
    return found


def set_words_of(threshold: Threshold) -> Sets:
    """The setting of a threshold."""
    return ((threshold.name, threshold.best or threshold.own),)
