"""A sum over a concatenation may be cut when every part of it is cut alike.

The row marks leaves that only some parts have (label `i'`) as whole: cutting just those would add the other
parts up more than once. Chunks of heads side by side are all cut by the same axis, so they may be cut.
"""

from __future__ import annotations

from collections.abc import Mapping

from plancc.ir.layout import Part
from plancc.ir.shape import Binding, NamedGraph, Prod, Sum, leaves
from plancc.passes.base import Placed

Active = dict[tuple[str, int], tuple[Part, ...]]


def cut_together(binding: Binding, placed: Placed, named: NamedGraph) -> Active:
    """(marked label, leaf id) -> parts, for concatenations all of whose parts are cut alike."""
    if not placed.cuts or not any(label.endswith("'") for label in binding.whole):
        return {}
    found: Active = {}
    for operand in binding.operands:
        for tree, labels in zip(named.shapes[operand.value], operand.labels, strict=True):
            at = 0
            for kid in tree.kids if isinstance(tree, Prod) else (tree,):
                count = sum(1 for _ in leaves(kid))
                mine = labels[at : at + count]
                at += count
                if isinstance(kid, Sum) and any(label.endswith("'") for label in mine):
                    alike = cut_alike(kid, mine, placed.cuts)
                    if alike is None:
                        return {}
                    found.update(alike)
    return found


def cut_alike(
    tree: Sum, labels: tuple[str, ...], cuts: Mapping[int, tuple[tuple[Part, ...], str | None]]
) -> Active | None:
    """The cuts of one concatenation; None unless every part has exactly one cut leaf, all by one part."""
    found: Active = {}
    shared: set[tuple[Part, ...]] = set()
    at = 0
    for kid in tree.kids:
        here = []
        for leaf in leaves(kid):
            if leaf.id in cuts and cuts[leaf.id][1] != "s":
                here.append((labels[at], leaf.id))
            at += 1
        if len(here) != 1:
            return None
        parts = cuts[here[0][1]][0]
        shared.add(parts)
        found[here[0]] = parts
    return found if len(shared) == 1 else None
