"""What a search found, as plain data (the keys of `plancc tune --json`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from math import inf
from typing import Any

from plancc.tune.bench import Bench
from plancc.tune.forms import Attempt, Metric, at_case, joint, peak_bytes
from plancc.tune.front import pareto
from plancc.tune.pools import PoolSize
from plancc.tune.ratio import Ratio
from plancc.tune.search import Trail
from plancc.tune.space import ordered
from plancc.tune.threshold import Threshold

KEYS = {
    "predicted": "true: nothing was run",
    "plan": "name of the plan", "cluster": "name of the cluster",
    "metric": "what was made best: tpot, ttft, step, tps, memory or time",
    "best": "the best setting over all cases by the geometric mean, or null: set, meshes (devices)",
    "cases": "one object per phase, batch and length: phase, batch, seq_len, best, front, counts, pools",
    "cases.best": "the best setting of the case, or null: set, row (as `simulate --json` has it)",
    "cases.front": "settings that no other beats in both time and memory, fastest first",
    "cases.counts": "settings of distinct plans: fits, does_not_fit, not_simulated (reason -> how many)",
    "cases.pools": "each size of the pools here: sizes, fits, seconds, memory_gb, taken, set (or null)",
    "searched": "how far the search went, see below",
    "searched.values": "parameter -> the values that were looked at",
    "searched.values_left_out": "parameter -> how many values of its domain were not among them",
    "searched.skipped": "parameters without a domain, left as they are",
    "searched.settings": "all combinations of these values",
    "searched.tried": "how many of them were tried", "searched.left_out": "how many were not",
    "searched.complete": "whether none was left out",
    "searched.stopped": "the limit that ended the search, or an empty text",
    "searched.descents": "starts that coordinate descent followed to their end",
    "searched.simulated": "settings that were lowered and simulated",
    "searched.same": "settings that make the same plan as an earlier one",
    "searched.refused": "code -> count and an example (set, reason); `devices`: the cluster has too few",
    "ratios": "with --ratio: one object per case: ratio of devices, best setting of each, closed form",
    "thresholds": "with --threshold: one object per batch: crossovers of pool sizes, best value, times",
    "assumptions": "the sentences that the prediction stands on",
}  # fmt: skip
"""Every key of the JSON document, and what it says. Times are in seconds, memory in GB (1e9 bytes)."""


def search_facts(
    bench: Bench, trail: Trail, metric: Metric, pools: Sequence[Sequence[PoolSize]]
) -> dict[str, Any]:
    """A search: the best setting, every case with its front, and how far it went."""
    best = trail.best(joint(metric))
    return {
        **head(bench), "metric": metric.name,
        "best": None if best is None else {**setting_facts(best), "meshes": dict(best.meshes)},
        "cases": [
            {**case_facts(bench, trail, metric, number), "pools": [pool_facts(p) for p in rows]}
            for number, rows in enumerate(pools)
        ],
        "searched": searched_facts(trail),
        "assumptions": list(bench.notes),
    }  # fmt: skip


def head(bench: Bench) -> dict[str, Any]:
    """What every document begins with."""
    return {"predicted": True, "plan": bench.plan.stem, "cluster": bench.cluster.name}


def setting_facts(attempt: Attempt) -> dict[str, Any]:
    """A setting, and the words that set it."""
    return {"set": dict(attempt.sets)}


def case_facts(bench: Bench, trail: Trail, metric: Metric, number: int) -> dict[str, Any]:
    """The best setting of one case and its front of time against memory."""
    best = trail.best(at_case(metric, number))
    distinct = [a for a in trail.tried.values() if a.cells and a.same_as is None]
    fits = sum(a.cells[number].fits for a in distinct)
    return {
        **asdict(bench.cases[number]),
        "best": None if best is None else with_row(best, number),
        "front": [with_row(attempt, number) for attempt in front_of(trail, number)],
        "counts": {
            "fits": fits,
            "does_not_fit": sum(a.cells[number].row is not None for a in distinct) - fits,
            "not_simulated": dict(
                Counter(a.cells[number].problem for a in distinct if a.cells[number].problem)
            ),
        },
    }


def front_of(trail: Trail, number: int) -> list[Attempt]:
    """The front of one case."""

    def costs(attempt: Attempt) -> tuple[float, ...]:
        row = attempt.cells[number].row
        assert row is not None
        return row.seconds or inf, peak_bytes(row)

    fitting = [a for a in trail.nearest() if a.cells and a.cells[number].fits]
    return pareto(fitting, costs)


def picks(metric: Metric) -> Callable[[Trail], list[Attempt]]:
    """All settings of a trail that are told: the best of all cases and of each, and the fronts."""

    def picked(trail: Trail) -> list[Attempt]:
        """What is told."""
        cases = range(max((len(a.cells) for a in trail.tried.values()), default=0))
        bests = [trail.best(joint(metric)), *(trail.best(at_case(metric, n)) for n in cases)]
        return [a for a in bests if a is not None] + [a for n in cases for a in front_of(trail, n)]

    return picked


def with_row(attempt: Attempt, number: int) -> dict[str, Any]:
    """A setting with its row."""
    row = attempt.cells[number].row
    assert row is not None
    return {**setting_facts(attempt), "row": row.json()}


def searched_facts(trail: Trail) -> dict[str, Any]:
    """How far a search went."""
    return {
        "values": {knob.name: list(ordered(knob)) for knob in trail.space.knobs},
        "values_left_out": {k.name: k.left_out for k in trail.space.knobs if k.left_out},
        "skipped": list(trail.space.skipped),
        "settings": trail.space.size, "tried": len(trail.tried), "left_out": trail.left_out,
        "complete": trail.complete, "stopped": trail.stopped, "descents": trail.descents,
        "simulated": trail.simulated, "same": trail.same,
        "refused": {
            code: {
                "count": count, "set": dict(trail.example(code).sets),
                "reason": trail.example(code).reason,
            }
            for code, count in trail.refused.items()
        },
    }  # fmt: skip


def pool_facts(one: PoolSize) -> dict[str, Any]:
    """One size of the pools at a case."""
    row = one.cell.row
    return {
        "sizes": dict(one.sizes), "fits": one.cell.fits,
        "seconds": row.seconds if row is not None else None,
        "memory_gb": peak_bytes(row) / 1e9 if row is not None else None,
        "taken": one.taken, "set": None if one.sets is None else dict(one.sets),
    }  # fmt: skip


def ratio_facts(bench: Bench, found: Iterable[tuple[Ratio, Trail]]) -> dict[str, Any]:
    """The ratios of every case."""
    return {
        **head(bench),
        "ratios": [
            {
                **asdict(ratio.case), "devices": ratio.devices, "fewer": ratio.fewer,
                "splits": [
                    {
                        "attention": split.attention, "experts": split.experts,
                        **setting_facts(split.attempt), "row": split.row.json(),
                    }
                    for split in ratio.splits
                ],
                "closed_form": None if ratio.closed is None else asdict(ratio.closed),
                "searched": searched_facts(trail),
            }
            for ratio, trail in found
        ],
        "assumptions": list(bench.notes),
    }  # fmt: skip


def threshold_facts(bench: Bench, found: Iterable[Threshold]) -> dict[str, Any]:
    """The thresholds of every batch; null where a number is infinite (never)."""
    return {
        **head(bench),
        "thresholds": [finite({**asdict(one), "crossovers": [
            {**asdict(c), "sizes": dict(c.sizes)} for c in one.crossovers
        ], "steps": [{"seq_len": n, "sizes": dict(sizes)} for n, sizes in one.steps]}) for one in found],
        "assumptions": list(bench.notes),
    }  # fmt: skip


def finite(value: Any) -> Any:
    """Plain data with None in place of infinity, which JSON has not."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if value == inf else value
