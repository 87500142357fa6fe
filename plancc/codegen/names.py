"""How programs and manifests write parts, ranks, weights and plan lines."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from plancc.ir.layout import Part
from plancc.ir.program import Edge, Origin, RankProgram

SPECIAL = {
    "plancc.cache_append.default": "kv.append({given})",
    "plancc.seed.default": "r.seed({given})",
    "plancc.seats.default": "{given}.seats",
    "plancc.placed_experts.default": "r.experts({given})",
    "plancc.linear_later.default": "ops.linear_later({given}, r.later)",
}
"""Operators that are methods of what a program is given, or take something from it."""


def function_call(target: str, args: list[str]) -> str:
    """The call of a graph's operator with arguments written as text."""
    given = ", ".join(args)
    special = SPECIAL.get(target)
    if special is not None:
        return special.format(given=given)
    namespace, _, rest = target.partition(".")
    if namespace == "plancc":
        return f"ops.{rest.removesuffix('.default')}({given})"
    return f"{target}({given})" if namespace == "aten" else f"torch.ops.{target}({given})"


def edge_options(edge: Edge) -> str:
    """The channel and wire type of a transfer, as further arguments."""
    channel = f", channel={edge.channel}" if edge.channel else ""
    return channel + (f", wire={edge.lossy!r}" if edge.lossy else "")


def plan_line(origin: Origin) -> str:
    """`plan fa_pool.plan:28`: the file's name without its folder, so that programs do not depend on it."""
    assert origin.span is not None
    return f"plan {PurePath(origin.span.source.name).name}:{origin.span.line}"


def part_text(part: Part, mesh: str) -> str:
    """A part as the runtime reads it: `"tp"`, `"moe.ep"`, `"tp/2%4"` (a factor), `"sp:block"`."""
    text = part.axis if part.mesh == mesh else f"{part.mesh}.{part.axis}"
    if not part.whole_axis:
        text += f"/{part.stride}%{part.count}"
    return repr(text if part.rule == "balanced" else f"{text}:{part.rule}")


def rule_word(rule: str) -> str:
    """A part's rule in the name of a dim: `block`, or the layer whose experts a table places."""
    word, _, rest = rule.partition("+")
    return f"layer{rest.partition('+')[0]}" if word == "placed" else word


def weight_key(program: RankProgram, weight: Any) -> str:
    """The key of a weight in `w`: its checkpoint name; with the stage where a class holds it twice."""
    name = weight.fqns[0] if weight.fqns else weight.held.source
    twice = sum(w.fqns == weight.fqns for w in program.weights) > 1
    return f"{name}@{weight.held.stage}" if twice else str(name)


def ranks_text(ranks: tuple[int, ...]) -> str:
    """`ranks 0-7, 12`."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return f"rank {text}" if len(ranks) == 1 else f"ranks {text}"
