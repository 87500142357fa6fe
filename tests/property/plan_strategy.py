"""Random plans: meshes, splits, stages, chains, shared devices, guards; most are sensible."""

from __future__ import annotations

from math import prod

from hypothesis import strategies as st
from small_models import MODELS, patterns

KINDS = ("one_mesh", "stages", "chain", "shared", "variants")
AXES = ("a", "b", "c")
BLOCKS = ("", " (block = balanced)", " (block = ceil(batch / 2))")


@st.composite
def meshes(
    draw: st.DrawFn, name: str, first: int, most: int = 24
) -> tuple[str, dict[str, int], int]:
    """The line of one mesh, its axes, and how many devices it has."""
    sizes = draw(
        st.lists(st.sampled_from([1, 2, 2, 2, 3, 3, 4, 5, 6]), min_size=1, max_size=3)
        .filter(lambda s: prod(s) <= most)
    )  # fmt: skip
    axes = dict(zip(AXES, sizes, strict=False))
    text = ", ".join(f"{a} = {n}" for a, n in axes.items())
    total = prod(sizes)
    return f"mesh {name}[{text}] on local[{first}:{first + total}]", axes, total


@st.composite
def jobs(draw: st.DrawFn, model: str, axes: dict[str, int], count: int) -> list[str]:
    """Up to `count` places that split or replicate something over one or two axes."""
    known = patterns(model)
    lines = []
    for _ in range(draw(st.integers(1, count))):
        target = draw(st.sampled_from(list(known)))
        rules = []
        for axis in draw(
            st.lists(st.sampled_from(list(axes)), min_size=1, max_size=2, unique=True)
        ):
            dim = draw(st.sampled_from(known[target]))
            if draw(st.integers(0, 7)) == 0:
                axis = ", ".join(axes)
            verb = draw(st.sampled_from(["split"] * 7 + ["replicate"]))
            block = draw(st.sampled_from(BLOCKS[:2])) if verb == "split" else ""
            rules.append(f"{verb} {dim} over {axis}{block}")
            if "," in axis:
                break
        lines.append(f"place {target} {{ {'; '.join(rules)} }}")
    return lines


def usual(draw: st.DrawFn, model: str, axes: dict[str, int]) -> list[str]:
    """What a sensible plan begins with, on a random axis each."""
    feed = "layers.*.moe" if model.startswith("moe") else "layers.*.mlp"
    lines = [
        f"place ** {{ split batch over {draw(st.sampled_from(list(axes)))} }}",
        f"place layers.*.self_attn {{ split heads over {draw(st.sampled_from(list(axes)))} }}",
        f"place {feed} {{ split ffn over {draw(st.sampled_from(list(axes)))} }}",
        f"place embed_tokens, lm_head {{ split vocab over {draw(st.sampled_from(list(axes)))} }}",
    ]
    return [line for line in lines if draw(st.booleans())]


@st.composite
def plans(draw: st.DrawFn, kind: str) -> tuple[str, str]:
    """(model, plan text) of one kind."""
    model = draw(st.sampled_from(list(MODELS)))
    most = 24 if kind == "one_mesh" else 12
    head = ["plan random, edition 1"]
    line, axes, total = draw(meshes("m0", 0, most))
    grids, body, tail = [line], ["place ** on m0"], []
    if kind == "variants":
        head.append("model small { seq_len in 1..64 }")
    if kind == "stages":
        axis = draw(st.sampled_from(list(axes)))
        body.append(f"place layers.* {{ split layers over {axis} }}")
        if draw(st.booleans()):
            body.append(f"place embed_tokens on m0[{axis} = 0]")
            norm = "final_layernorm" if model == "phi" else "norm"
            body.append(f"place {norm}, lm_head on m0[{axis} = -1]")
        if draw(st.booleans()):
            tail.append(f"pipeline over m0.{axis} {{ microbatches = {draw(st.integers(2, 6))} }}")
        rest = {a: n for a, n in axes.items() if a != axis}
        axes = axes if draw(st.integers(0, 9)) == 0 else rest
    if kind in ("chain", "shared"):
        for number in range(draw(st.integers(1, 2))):
            first = total if kind == "chain" else draw(st.integers(0, total - 1))
            line, more, size = draw(meshes(f"m{number + 1}", first, max(1, min(8, 24 - total))))
            grids.append(line)
            total = max(total, first + size)
            target = draw(
                st.sampled_from([t for t in patterns(model) if t != "**" and "weight" not in t])
            )
            fixed = draw(st.sampled_from([None, None, None, *more]))
            at = f"[{fixed} = {more[fixed] - 1}]" if fixed else ""
            body.append(f"place {target} on m{number + 1}{at}")
            axes = {a: n for a, n in axes.items() if a in more and a != fixed}
    places = [*usual(draw, model, axes), *draw(jobs(model, axes, 4))] if axes else []
    if kind == "variants":
        bound = draw(st.sampled_from(["seq_len > 9", "seq_len <= 11", "phase == decode"]))
        places += [f"when {bound} {{", *draw(jobs(model, axes, 3)), "}"]
    return model, "\n".join([*head, *grids, *body, *places, *tail, ""])
