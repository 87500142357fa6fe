"""Find the first value of a program that is not what one device computes: plan line, module, rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plancc.ir.graph import BATCH, PAST, TOKENS
from plancc.ir.program import Held, Origin, RankProgram, produced
from plancc.ir.shape import Leaf, Prod, Tree
from plancc.passes.base import Unit
from plancc.runtime.pieces import cut
from plancc.runtime.sizes import build_dim
from plancc.runtime.view import View


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where a run left the one-device model."""

    value: str
    path: str
    line: str
    plan_line: str
    rank: int
    error: float

    def __str__(self) -> str:
        where = f"{self.path or 'the root module'} ({self.line})"
        plan = f", {self.plan_line}" if self.plan_line else ""
        return (
            f"first wrong value: `{self.value}` of {where}{plan}, on rank {self.rank}, "
            f"off by {self.error:.3g}"
        )


Recorded = Sequence[Mapping[str, Tensor]]
"""For each rank, local name -> value."""


def first_divergence(
    unit: Unit,
    recorded: Recorded,
    views: Sequence[View],
    reference: Mapping[str, Tensor],
    tolerance: float,
    env: Mapping[str, int],
) -> Divergence | None:
    """Compare everything that was recorded with the reference, in program order.

    `reference` holds the forward graph's values over all positions; a phase sees the last T of them.
    """
    from plancc.codegen.manifest import layout_json

    assert unit.programs is not None and unit.named is not None
    shapes = unit.named.shapes
    by_name: dict[str, tuple[RankProgram, Held, Origin]] = {}
    for program in unit.programs.programs:
        for step in program.instructions:
            for held in produced(step):
                by_name.setdefault(held.name, (program, held, step.origin))
    order = [h.name for _, step in unit.instructions for h in produced(step)]
    for name in dict.fromkeys(order):
        if name not in by_name:
            continue
        program, held, origin = by_name[name]
        if held.source not in reference:
            continue
        expected = last_positions(reference[held.source], shapes[held.source], env)
        trees = layout_json(held.layout, program.leaf_names)
        members = views[0].stage(held.stage.mesh, **dict(held.stage.coords)).ranks
        for rank in members:
            found = pending_sum(held, recorded, rank, views)
            if found is None:
                continue
            dims = [build_dim(views[rank], tree, env) for tree in trees]
            part = cut(expected, tuple(d.ranges(views[rank].coord_of(rank)) for d in dims))
            error = difference(found, part)
            if error > tolerance * max(1.0, scale(expected)):
                span = str(origin.span) if origin.span else ""
                return Divergence(name, origin.path, origin.line, span, rank, error)
    return None


def pending_sum(held: Held, recorded: Recorded, rank: int, views: Sequence[View]) -> Tensor | None:
    """What a rank holds, or the sum over its peers; None if the run did not get there."""
    mine = recorded[rank].get(held.name)
    if mine is None or not held.layout.partial:
        return mine
    found = [recorded[r].get(held.name) for r in views[rank].peers(held.layout.partial).ranks]
    shares = [x for x in found if x is not None and x.shape == mine.shape]
    return torch.stack(shares).sum(0) if len(shares) == len(found) else None


def last_positions(full: Tensor, trees: Sequence[Tree], env: Mapping[str, int]) -> Tensor:
    """The new positions of a value over all positions: the last T of each leaf that runs over T."""
    if not env["P"]:
        return full
    for dim, tree in enumerate(trees):
        keep, size = new_indices(tree, env)
        if len(keep) < size:
            full = full.index_select(dim, torch.tensor(keep))
    return full


def new_indices(tree: Tree, env: Mapping[str, int]) -> tuple[list[int], int]:
    """The indices of the new positions in a dim of the reference, and the size of that dim."""
    if isinstance(tree, Leaf):
        total = env["P"] + env["T"]
        known = {BATCH: env["B"], TOKENS: total, PAST: 0}
        size = tree.size if isinstance(tree.size, int) else int(tree.size.subs(known))
        return list(range(size - env["T"] if tree.size == TOKENS else 0, size)), size
    product = isinstance(tree, Prod)
    found, size = ([0], 1) if product else ([], 0)
    for kid in tree.kids:
        inner, length = new_indices(kid, env)
        if product:
            found, size = [i * length + j for i in found for j in inner], size * length
        else:
            found, size = found + [size + j for j in inner], size + length
    return found, size


def difference(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference; infinite for other shapes or NaN."""
    if a.shape != b.shape:
        return float("inf")
    if a.numel() == 0:
        return 0.0
    if not a.is_floating_point():
        return float((a != b).any())
    same = (a == b) | (a.isnan() & b.isnan())
    gap = torch.where(same, torch.zeros_like(a, dtype=torch.float64), (a - b).abs().double())
    return float("inf") if bool(gap.isnan().any()) else float(gap.max())


def scale(x: Tensor) -> float:
    """Largest finite magnitude."""
    if not x.is_floating_point() or x.numel() == 0:
        return 0.0
    return float(x.abs().nan_to_num(0.0, 0.0, 0.0).max())
