"""Attention cut along its keys: who holds which positions, and how partial results are merged.

A partial result over some keys is (out, logsumexp); it is no sum. Merging scatters the heads of the result
over the same ranks: each merges its share (FA Pool paper, section 3: inside the node, then across nodes).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from plancc.dsl.plan import Combine
from plancc.ir.layout import CutLeaf, Layout, Part, cuts
from plancc.ir.mesh import World
from plancc.ir.shape import Binding, NamedGraph, Tree, leaves
from plancc.passes.allot_parts import allot
from plancc.passes.base import MergeStep, Placed

KEY_RULE = "keys:"
Active = dict[tuple[str, int], tuple[Part, ...]]


def key_label(binding: Binding) -> str | None:
    """The label of the key positions where a row lets them be cut."""
    return next((r[len(KEY_RULE) :] for r in binding.rules if r.startswith(KEY_RULE)), None)


def cut_positions(binding: Binding, placed: Placed, named: NamedGraph) -> Active:
    """The key (and new) positions that the plan cuts at attention or at its cache."""
    label = key_label(binding)
    if label is None:
        return {}
    found: Active = {}
    for operand in (*binding.operands, *binding.outs):
        for leaf, mine in occurrences(named.shapes[operand.value], operand.labels):
            cut = placed.cuts.get(leaf.id)
            if mine == label and cut is not None and cut[1] == "s":
                found[(label, leaf.id)] = cut[0]
    if not found or "append:t" not in binding.rules:
        return found
    parts = next(iter(found.values()))
    fresh = tuple(replace(p, rule=p.rule.replace("owned", "fresh")) for p in parts)
    for operand in binding.operands:
        for leaf, mine in occurrences(named.shapes[operand.value], operand.labels):
            if mine == "t":
                found[("t", leaf.id)] = fresh
    return found


def occurrences(trees: tuple[Tree, ...], labels: tuple[tuple[str, ...], ...]):
    """(leaf, label) of every leaf occurrence."""
    for tree, mine in zip(trees, labels, strict=True):
        yield from zip(leaves(tree), mine, strict=True)


def merge_steps(
    before: Layout, keys: Part, combine: Combine | None, world: World, heads: Tree
) -> tuple[MergeStep, ...]:
    """The merges that bring partial results over `keys` together, heads scattered over its ranks."""
    tree = combine.options.get("tree") if combine is not None else None
    local = node_share(world, keys) if tree else 1
    plain = replace(keys, rule="balanced")
    if 1 < local < keys.count:
        inner = replace(plain, count=local)
        outer = replace(plain, stride=keys.stride * local, count=keys.count // local)
        parts = (inner, outer)
    else:
        parts = (plain,)
    steps = []
    layout = before
    for part in parts:
        changes = scatter(layout, part, heads)
        layout = with_heads(layout, changes)
        spread = tuple(p for added in changes.values() for p in added)
        steps.append(MergeStep(part, spread, layout))
    return tuple(steps)


def node_share(world: World, keys: Part) -> int:
    """How many neighbours along the key axis share a node with each other, everywhere on the mesh."""
    if not world.per_node:
        return 1
    grid = world.grids[keys.mesh]
    nodes: dict[tuple, list[int]] = {}
    for rank, at in grid.coords.items():
        others = tuple(i for a, i in at.items() if a != keys.axis)
        nodes.setdefault(others, []).append(world.devices[rank] // world.per_node)
    for share in range(keys.count, 1, -1):
        rows = [row[i : i + share] for row in nodes.values() for i in range(0, len(row), share)]
        if keys.count % share == 0 and all(len(set(row)) == 1 for row in rows):
            return share
    return 1


def scatter(layout: Layout, part: Part, heads: Tree) -> dict[int, tuple[Part, ...]]:
    """Leaf id of the heads dim -> the factors of `part` that further cut it."""
    taken = {leaf.id: (leaf.parts, None) for leaf in cuts(layout.dims[1])}
    found: dict[int, tuple[Part, ...]] = {}
    for leaf, share in allot(
        list(leaves(heads)), part.mesh, part.axis, part.count, "balanced", taken
    ):
        factor = replace(share, stride=share.stride * part.stride, size=part.size)
        found[leaf.id] = (*found.get(leaf.id, ()), factor)
    return found


def with_heads(layout: Layout, changes: Mapping[int, tuple[Part, ...]]) -> Layout:
    """The layout with the leaves of the heads dim further cut."""

    def add(tree):
        if isinstance(tree, CutLeaf):
            return CutLeaf(tree.id, tree.size, (*tree.parts, *changes.get(tree.id, ())))
        return type(tree)(tuple(add(kid) for kid in tree.kids))

    dims = list(layout.dims)
    dims[1] = add(dims[1])
    return Layout(tuple(dims))


def rows_layout(layout: Layout) -> Layout:
    """The layout of the logsumexp [B, H, T] beside an attention output [B, H, T, D]."""
    return Layout(layout.dims[:3])
