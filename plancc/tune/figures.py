"""The sizes of a model and the rates of its hardware that closed forms are made of."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from plancc.codegen.python import SHORT
from plancc.dsl.plan import Call, ResolvedPlan, Setting
from plancc.ir.graph import Graph
from plancc.ir.shape import NamedGraph, leaves
from plancc.passes.anchors import ATTENTION
from plancc.passes.check_facts import model_facts
from plancc.simulator.hardware import Hardware, needed
from plancc.tune.forms import TuneError


@dataclass(frozen=True, slots=True)
class Figures:
    """A transformer in numbers. `attention` and `ffn` count parameters of one layer's projections and of one
    of its experts (a dense model has one); a token takes `top_k` experts. `itemsize` is in bytes.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    attention: float
    ffn: float
    experts: int
    top_k: int
    itemsize: int
    dtype: str

    @property
    def cached(self) -> int:
        """Bytes of keys and values that a token leaves in a layer."""
        return 2 * self.kv_heads * self.head_dim * self.itemsize


@dataclass(frozen=True, slots=True)
class Rates:
    """What a device reaches: FLOP/s of products and of attention, bytes/s of reading weights and keys."""

    matmul: float
    attention: float
    weights: float
    keys: float


def figures_of(named: NamedGraph, plan: ResolvedPlan) -> Figures:
    """The figures of a model; TuneError if no attention, hidden size or FFN was found in it."""
    facts = {name: sizes[-1] for name, sizes in model_facts(named).items()}
    facts |= attention_facts(named.graph)
    missing = [name for name in ("layers", "heads", "hidden", "ffn") if name not in facts]
    if missing:
        raise TuneError(f"the closed form needs the model's {', '.join(missing)}, which it has not")
    inner, heads = leaves_of(named, "ffn"), leaves_of(named, "heads", "kv_heads")
    sizes = {"ffn": 0, "attention": 0}
    params = [p for p in named.graph.params.values() if p.kind == "param"]
    for param in params:
        own = {leaf.id for tree in named.shapes[param.value.name] for leaf in leaves(tree)}
        kind = "ffn" if own & inner else "attention" if own & heads else ""
        if kind:
            sizes[kind] += prod(int(n) for n in param.value.shape)
    dtype = next((p.value.dtype for p in params if p.value.dtype.is_floating_point), torch.float32)
    layers, experts = facts["layers"], facts.get("experts", 1)
    return Figures(
        layers, facts["hidden"], facts["heads"], facts["kv_heads"], facts["head_dim"],
        sizes["attention"] / layers, sizes["ffn"] / layers / experts, experts,
        chosen(plan, experts), dtype.itemsize, SHORT[dtype],
    )  # fmt: skip


def attention_facts(graph: Graph) -> dict[str, int]:
    """Heads, heads of keys and the size of a head of the first attention; nothing where there is none."""
    values = {out.name: out for node in graph.nodes for out in node.outs}
    for node in graph.nodes:
        if node.target in ATTENTION:
            queries, keys = (values[ref.name].shape for ref in node.args[:2])
            return {"heads": int(queries[1]), "kv_heads": int(keys[1]), "head_dim": int(keys[-1])}
    return {}


def leaves_of(named: NamedGraph, *names: str) -> set[int]:
    """The classes of dims that some names stand for, in all modules."""
    return {leaf.id for a in named.anchors if a.name in names for leaf in a.leaves}


def chosen(plan: ResolvedPlan, experts: int) -> int:
    """How many experts a token is sent to: as the plan routes, else all of them."""
    for place in plan.places:
        for rule in place.rules:
            if isinstance(rule, Setting) and rule.name == "route" and isinstance(rule.value, Call):
                return int(rule.value.args[0])
    return experts


def rates_of(hardware: Hardware, dtype: str) -> Rates:
    """What the slowest device reaches in `dtype`; ClusterError where its file lacks a constant."""
    kinds = list({kind.name: kind for kind in hardware.kinds}.values())
    found = [
        (
            needed(kind, "flops", dtype) * needed(kind, "efficiency", "matmul"),
            needed(kind, "flops", dtype) * needed(kind, "efficiency", "attention"),
            kind.bandwidth * needed(kind, "streaming", "matmul"),
            kind.bandwidth * needed(kind, "streaming", "attention"),
        )
        for kind in kinds
    ]
    return Rates(*(min(column) for column in zip(*found, strict=True)))
