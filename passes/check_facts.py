"""Hold what the plan's model block states against the traced model (P311), and read the facts off it."""

from __future__ import annotations

from math import prod

from plancc.dsl.diagnostics import Report
from plancc.dsl.plan import ResolvedPlan
from plancc.ir.shape import Anchor, NamedGraph
from plancc.passes.match_targets import Modules
from plancc.passes.name_dims import Hint

SIZED = ("heads", "kv_heads", "head_dim", "hidden", "ffn", "vocab", "experts")


def model_facts(named: NamedGraph) -> dict[str, tuple[int, ...]]:
    """Every size that a named dim has in the model (several where modules differ), and the layers."""
    found: dict[str, set[int]] = {}
    for anchor in named.anchors:
        size = anchor_size(anchor)
        if anchor.name in SIZED and size is not None:
            found.setdefault(anchor.name, set()).add(size)
    out = {name: tuple(sorted(sizes)) for name, sizes in found.items()}
    layers = Modules(named.graph).layer_count
    return {"layers": (layers,), **out} if layers else out


def anchor_size(anchor: Anchor) -> int | None:
    """The product of an anchor's leaves; None if one is symbolic."""
    sizes = [leaf.size for leaf in anchor.leaves]
    return prod(int(s) for s in sizes) if all(isinstance(s, int) for s in sizes) else None


def check_facts(plan: ResolvedPlan, named: NamedGraph, report: Report) -> None:
    """P311 for each stated fact that no module of the model bears out."""
    facts = model_facts(named)
    for name, stated in plan.facts.items():
        actual = facts.get(name)
        if actual is None or not isinstance(stated, int) or stated in actual:
            continue
        report.error(
            "P311",
            f"`{name} = {stated}` differs from the model, which has {', '.join(map(str, actual))}",
            plan.fact_spans.get(name),
            label=f"the traced model has {actual[0]}",
            help=["correct the line, or delete it: facts are read off the model"],
        )


def named_hints(plan: ResolvedPlan, named_by: Modules) -> tuple[Hint, ...]:
    """The dims that the plan names itself, as hints for `name_dims`."""
    out = []
    for rule in plan.dims:
        for value in sorted(named_by.parameters(rule.pattern)):
            fqn = named_by.graph.params[value].fqns[0]
            out.append(Hint(fqn.rpartition(".")[0], rule.name, fqn, rule.index))
    return tuple(out)
