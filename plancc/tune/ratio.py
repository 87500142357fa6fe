"""The ratio of attention to expert devices: the balance in closed form, beside the best of a search.

Groups are meshes of the plan. The closed form (closed_forms.balance) knows only their sizes; the search has
all that the plan says: how attention is cut, what travels, what overlaps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

from plancc.dsl import load_plan
from plancc.simulator.rows import Row
from plancc.tune.bench import Bench
from plancc.tune.closed_forms import Balance, balance
from plancc.tune.figures import figures_of, rates_of
from plancc.tune.forms import METRICS, Attempt, Case, TuneError, at_case
from plancc.tune.search import Limits, Trail, Tries, confirm, search
from plancc.tune.space import Space

GROUPS = 2


@dataclass(frozen=True, slots=True)
class Split:
    """The best setting of one ratio: devices of the attention mesh and of the expert mesh."""

    attention: int
    experts: int
    attempt: Attempt
    row: Row

    def __str__(self) -> str:
        """`12:4`."""
        return f"{self.attention}:{self.experts}"


@dataclass(frozen=True, slots=True)
class Ratio:
    """The ratios of one case, for as many devices as the plan uses at most.

    `splits` are sorted by time, the best first; `fewer` counts fitting settings of fewer devices. `closed` is
    None where fewer than two devices are used.
    """

    case: Case
    devices: int
    splits: tuple[Split, ...]
    fewer: int
    closed: Balance | None


def find_ratio(
    bench: Bench, space: Space, tries: Tries, meshes: Sequence[str], limits: Limits
) -> tuple[tuple[Ratio, Trail], ...]:
    """Search the space for each case alone, by time: `meshes` are that of attention and that of the experts.

    Raises TuneError for meshes that the plan has not, and where no setting fits.
    """
    found = []
    for number, case in enumerate(bench.cases):
        trail = search(space, tries, at_case(METRICS["time"], number), limits)
        confirm(trail, lambda t, n=number: best_of(t, n, meshes), bench.whole)  # type: ignore[misc]
        found.append((ratio_of(bench, trail, number, meshes, case), trail))
    return tuple(found)


def ratio_of(bench: Bench, trail: Trail, number: int, meshes: Sequence[str], case: Case) -> Ratio:
    """The best setting of each ratio, among those that use the most devices."""
    groups = grouped(trail, number, meshes)
    if not groups:
        return Ratio(case, 0, (), 0, None)
    most = max(sum(key) for key in groups)
    splits = splits_of(groups, number)
    fewer = sum(len(attempts) for key, attempts in groups.items() if sum(key) < most)
    closed = closed_form(bench, splits[0], case, most) if most >= GROUPS else None
    return Ratio(case, most, splits, fewer, closed)


def splits_of(
    groups: Mapping[tuple[int, int], Sequence[Attempt]], number: int
) -> tuple[Split, ...]:
    """The best setting of each ratio of the most devices, the fastest first."""
    most = max(map(sum, groups), default=0)
    found = []
    for (attention, experts), attempts in groups.items():
        if attention + experts == most:
            best = min(attempts, key=lambda attempt: fitting(attempt, number).seconds or inf)
            found.append(Split(attention, experts, best, fitting(best, number)))
    return tuple(sorted(found, key=lambda split: split.row.seconds or inf))


def best_of(trail: Trail, number: int, meshes: Sequence[str]) -> list[Attempt]:
    """The setting that is told as the best."""
    return [split.attempt for split in splits_of(grouped(trail, number, meshes), number)[:1]]


def grouped(
    trail: Trail, number: int, meshes: Sequence[str]
) -> dict[tuple[int, int], list[Attempt]]:
    """(devices of attention, of experts) -> what fits there, without repeats."""
    found: dict[tuple[int, int], list[Attempt]] = {}
    for attempt in trail.nearest():
        for mesh in meshes if attempt.meshes else ():
            if mesh not in attempt.meshes:
                known = ", ".join(attempt.meshes)
                raise TuneError(f"the plan has no mesh `{mesh}`; it has {known}")
        if attempt.cells and attempt.cells[number].fits and attempt.same_as is None:
            attention, experts = (attempt.meshes[mesh] for mesh in meshes)
            found.setdefault((attention, experts), []).append(attempt)
    return found


def closed_form(bench: Bench, split: Split, case: Case, devices: int) -> Balance:
    """The balance of the model on the devices and with the micro-batches of one setting."""
    resolved, report = load_plan(bench.plan, {**bench.fixed, **dict(split.attempt.sets)})
    assert resolved is not None
    subject = bench.subject(bench.compiled(resolved, report))
    figures = figures_of(subject.compiled.named, resolved)
    rates = rates_of(subject.hardware, figures.dtype)
    turns = split.row.microbatches
    return balance(figures, rates, case.phase, case.batch, case.seq_len, devices, turns)


def fitting(attempt: Attempt, number: int) -> Row:
    """The row of a setting that fits."""
    row = attempt.cells[number].row
    assert row is not None and row.seconds is not None
    return row
