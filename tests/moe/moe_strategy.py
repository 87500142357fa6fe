"""Random ratios, axes, splits, top-k and routers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod

from hypothesis import strategies as st
from lowered import moe
from moe_plans import Plan, mesh, overlap

from plancc.ir.graph import Graph
from plancc.passes.capture import capture

BALANCED = " (block = balanced)"


@dataclass(frozen=True)
class Drawn:
    """One case: a plan's text, the model's sizes, and what its routers prefer."""

    text: str
    sizes: tuple[tuple[str, int], ...]
    bias: tuple[float, ...]
    noise: float


@cache
def model_of(sizes: tuple[tuple[str, int], ...]) -> Graph:
    """The captured model of some sizes."""
    return capture(moe(hidden=24, heads=6, vocab=50, **dict(sizes)))


@st.composite
def axes(draw: st.DrawFn, names: str, most: int) -> dict[str, int]:
    """Up to three axes of at most `most` ranks together."""
    sizes = draw(
        st.lists(st.sampled_from([1, 2, 2, 3, 3, 4, 5, 6, 7]), min_size=1, max_size=len(names))
        .filter(lambda s: prod(s) <= most)
    )  # fmt: skip
    return dict(zip(names, sizes, strict=False))


@st.composite
def attention(draw: st.DrawFn, mesh_axes: Mapping[str, int]) -> tuple[str, str]:
    """(rules of everything, rules of attention): each axis cuts sequences, positions, heads or nothing."""
    every, own, used = [], [], set()
    for axis in mesh_axes:
        rule = draw(st.sampled_from(["batch", "batch", "seq", "heads", "own seq", "none"]))
        if rule in used:
            continue
        used |= {rule} | ({"seq", "own seq"} if "seq" in rule else set())
        if rule in ("batch", "seq"):
            every.append(f"split {rule} over {axis}{BALANCED}")
        elif rule != "none":
            own.append(f"split {rule.split()[-1]} over {axis}{BALANCED}")
    return "; ".join(every), "; ".join(own)


@st.composite
def experts(draw: st.DrawFn, mesh_axes: Mapping[str, int]) -> str:
    """Rules of the experts: each axis cuts experts or ffn, or holds copies."""
    rules, used = [], set()
    kinds = ["experts"] * 4 + ["ffn", "none"]
    names = list(mesh_axes)
    if len(names) > 1 and draw(st.integers(0, 5)) == 0:
        return f"split experts over {', '.join(names)}{BALANCED}"
    for axis in names:
        rule = draw(st.sampled_from(kinds))
        if rule not in used and rule != "none":
            used.add(rule)
            rules.append(f"split {rule} over {axis}{BALANCED}")
    return "; ".join(rules)


@st.composite
def cases(draw: st.DrawFn, phase: str) -> Drawn:
    """A plan for a small mixture, for inference or for training."""
    count = draw(st.integers(2, 9))
    k = draw(st.sampled_from([1, 2, 2, 2, 3, count]).filter(lambda n: n <= count))
    sizes = {
        "layers": draw(st.integers(1, 2)), "experts": count, "top_k": k,
        "kv_heads": draw(st.sampled_from([6, 3, 2, 1])), "ffn": draw(st.sampled_from([4, 6, 7])),
    }  # fmt: skip
    attn = draw(axes("abc", 8))
    every, own = draw(attention(attn))
    kind = draw(st.sampled_from(["apart"] * 4 + ["same", "shared", "one"]))
    moe_axes = {} if kind == "one" else draw(axes("xy", 6))
    first = {"apart": None, "same": 0, "shared": draw(st.integers(0, prod(attn.values()))),
             "one": None}[kind]  # fmt: skip
    rules = draw(experts(moe_axes or attn))
    depth = draw(st.sampled_from([0, 0, 2, 2, 3])) if kind == "apart" else 0
    batch, tokens = draw(st.integers(1, 5)), draw(st.integers(1, 7))
    if phase == "train":
        batch = max(batch, depth)
    head = f"model m {{ mode = {'train' if phase == 'train' else 'infer'}; "
    head += f"batch in {batch}..{batch}; seq_len in 1..{tokens} }}"
    extra = ""
    if phase == "train" and draw(st.booleans()):
        extra = draw(st.sampled_from(["place layers.* { recompute = true }\n", *state(every)]))
    plan = Plan(
        attn, moe_axes, "moe", every, own, rules, "route = top(" + str(k) + ")", first, head,
        extra + (overlap(depth) if depth and mesh else ""),
    )  # fmt: skip
    bias = draw(st.lists(st.sampled_from([0.0, 0.0, 0.5, 1.0, 3.0, 9.0]), min_size=count,
                         max_size=count))  # fmt: skip
    ordered = tuple(
        b + 0.01 * e for e, b in enumerate(bias)
    )  # never equal: ties have no right answer
    noise = draw(st.sampled_from([0.0, 0.2, 1.0, 1.0]))
    return Drawn(plan.text, tuple(sorted(sizes.items())), ordered, noise)


def state(every: str) -> list[str]:
    """Lines that shard the state of attention over an axis with data of its own on each rank."""
    kinds = ("optim", "grads, optim", "params, grads, optim")
    found = [rule.split()[3] for rule in every.split("; ") if rule]
    return [f"place layers.*.self_attn {{ split {k} over {a} }}\n" for k in kinds for a in found]
