"""Warn of splits that the model's own sizes make uneven (P303), or that copy kv heads (P308).

The language floor warns where the plan states the size; here it is read off the traced model.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from plancc.dsl.diagnostics import Report
from plancc.dsl.plan import Job, ResolvedPlan
from plancc.dsl.sizes import part_sizes
from plancc.dsl.vocabulary import SIZED_DIMS
from plancc.ir.mesh import Grid
from plancc.ir.shape import Anchor


def warn_uneven(
    plan: ResolvedPlan, rule: Job, dim: str, anchors: Iterable[Anchor], grid: Grid, report: Report
) -> None:
    """Report what one job does to the sizes of one dim."""
    if dim not in SIZED_DIMS or dim in plan.facts:
        return
    parts = prod(grid.sizes[axis] for axis in rule.axes if axis in grid.sizes)
    for sizes in sorted({tuple(leaf.size for leaf in a.leaves) for a in anchors}, key=str):
        if not all(isinstance(s, int) for s in sizes):
            continue
        total = prod(int(s) for s in sizes)  # type: ignore[arg-type]
        if total % parts and "block" not in rule.options:
            shares = ", ".join(f"{size} on {count}" for size, count in part_sizes(total, parts))
            report.warning(
                "P303", f"{total} {dim} over {parts} devices are uneven: {shares}",
                rule.axis_spans[0], label=f"{' x '.join(rule.axes)} = {parts}",
                help=["to say that this is meant: (block = balanced)"],
            )  # fmt: skip
        if dim == "heads" and len(sizes) > 1 and parts > int(sizes[0]):  # type: ignore[call-overload]
            report.warning(
                "P308", f"{sizes[0]} kv_heads cannot follow {total} heads over {parts} devices",
                rule.axis_spans[0], label=f"{' x '.join(rule.axes)} = {parts}",
                help=["several devices hold the same keys and values: attention is right, "
                      "the cache is not divided further"],
            )  # fmt: skip
