"""Hold what the plan's model block states against the traced model (P311), and read the facts off it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod

import torch

from plancc.dsl.diagnostics import Report
from plancc.dsl.plan import Place, ResolvedPlan, Target
from plancc.ir.graph import Graph, Node
from plancc.ir.shape import Anchor, NamedGraph
from plancc.passes.match_targets import CANONICAL_OPS, Modules, op_matches
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
    check_type(plan, named, report)
    if "experts" not in facts:
        for name in sorted({"experts", "top_k", "groups", "group_top_k"} & set(plan.facts)):
            report.error(
                "P311", f"`{name}` is stated, but the model has no experts", plan.fact_spans.get(name),
                help=["delete the line"],
            )  # fmt: skip
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


TYPES = {
    torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"
}  # fmt: skip


def check_type(plan: ResolvedPlan, named: NamedGraph, report: Report) -> None:
    """P311 where the stated dtype is none of the parameters' own; nothing is ever converted."""
    found = {
        TYPES[p.value.dtype]
        for p in named.graph.params.values()
        if p.kind == "param" and p.value.dtype in TYPES
    }
    stated = plan.facts.get("dtype")
    if stated is not None and found and str(stated) not in found:
        report.error(
            "P311", f"`dtype = {stated}` differs from the model, which is in {', '.join(sorted(found))}",
            plan.fact_spans.get("dtype"),
            help=["the model decides: make it in that type, or delete the line"],
        )  # fmt: skip


def check_length(plan: ResolvedPlan, graph: Graph, report: Report) -> None:
    """P311 (warning) where the declared lengths go beyond the model's positions."""
    longest, declared = graph.limits.get("T"), plan.inputs.get("seq_len")
    if longest is not None and declared is not None and declared[1] > longest:
        report.warning(
            "P311", f"`seq_len` goes up to {declared[1]}, the model has {longest} positions",
            plan.fact_spans.get("seq_len"), help=["longer prompts are refused when they are run"],
        )  # fmt: skip


def check_operators(plan: ResolvedPlan, graph: Graph, report: Report) -> None:
    """P306 for each `op` target whose operator does not occur, or not where the target says."""
    modules = Modules(graph)
    for place in plan.places:
        for target in place.targets:
            if target.kind == "op" and not any(True for _ in operators(modules, place, target)):
                words = (replace(target, pattern=word) for word in CANONICAL_OPS)
                known = [
                    t.pattern for t in words if any(True for _ in operators(modules, place, t))
                ]
                report.error(
                    "P306", f"`{target.pattern}` matches no operator", target.span,
                    label="none here" if target.within else "none in the model",
                    help=[f"operators here: {', '.join(known) or 'none'}"],
                )  # fmt: skip


def operators(modules: Modules, place: Place, target: Target) -> Iterator[Node]:
    """The nodes of a forward graph that an `op` target names; a cache stands for its attention."""
    wanted = replace(target, pattern="attention") if target.pattern == "kv_cache" else target
    plain = replace(place, rules=())
    inside = None if target.within is None else modules.matching(target.within)
    for node in modules.graph.nodes:
        if op_matches(plain, wanted, node) and (inside is None or beneath(node.path, inside)):
            yield node


def beneath(path: str, modules: frozenset[str]) -> bool:
    """Whether a module path is one of `modules` or lies inside one."""
    while path and path not in modules:
        path = path.rpartition(".")[0]
    return path in modules


def named_hints(plan: ResolvedPlan, named_by: Modules) -> tuple[Hint, ...]:
    """The dims that the plan names itself, as hints for `name_dims`."""
    out = []
    for rule in plan.dims:
        for value in sorted(named_by.parameters(rule.pattern)):
            fqn = named_by.graph.params[value].fqns[0]
            out.append(Hint(fqn.rpartition(".")[0], rule.name, fqn, rule.index))
    return tuple(out)
