"""One axis must not cut two dims of one tensor: what a name that stands for several dims could ask for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from plancc.dsl.diagnostics import Report
from plancc.ir.layout import CutLeaf, Layout, LocalTree, Part, Prod, cut_tree
from plancc.ir.shape import NamedGraph
from plancc.passes.base import Placed


def may_clash(active: Mapping[tuple[str, int], tuple[Part, ...]]) -> bool:
    """Whether two dims of a node are cut by one axis at all (parts of one dim beside each other may be)."""
    return any(meeting(a, b) for a, b in combinations(active.values(), 2))


def clashing_axis(layout: Layout) -> str | None:
    """An axis that cuts two dims of a layout, or two factors of one dim; None if there is none."""
    found: list[str] = []

    def pairs(groups: Sequence[tuple[Part, ...]]) -> None:
        found.extend(axis for a, b in combinations(groups, 2) for axis in meeting(a, b))

    def walk(tree: LocalTree) -> tuple[Part, ...]:
        if isinstance(tree, CutLeaf):
            return tree.parts
        groups = [walk(kid) for kid in tree.kids]
        if isinstance(tree, Prod):
            pairs(groups)
        return tuple(dict.fromkeys(part for group in groups for part in group))

    pairs([walk(dim) for dim in layout.dims])
    return found[0] if found else None


def meeting(a: Iterable[Part], b: Iterable[Part]) -> list[str]:
    """The axes of which both use one coordinate of the ranks."""
    return [x.axis for x in a for y in b if x.meets(y)]


def report_twice(
    layouts: Mapping[str, Layout], placed: Placed, named: NamedGraph, report: Report
) -> None:
    """P304 for the first value of a node that one axis would cut twice."""
    for value, layout in layouts.items():
        axis = clashing_axis(layout)
        if axis is not None:
            report_clash(axis, value, placed, named, report)
            return


def report_stored(named: NamedGraph, rules: Mapping[str, Placed], report: Report) -> None:
    """P304 for parameters that a place of their own would store so."""
    for value, placed in rules.items():
        cuts = {leaf: parts for leaf, (parts, _) in placed.cuts.items()}
        shape = (
            cut_tree(t, lambda p, leaf, by=cuts: by.get(leaf.id, ())) for t in named.shapes[value]
        )
        report_twice({value: Layout(tuple(shape))}, placed, named, report)


def report_clash(axis: str, value: str, placed: Placed, named: NamedGraph, report: Report) -> None:
    """P304, and how to say which dim is meant."""
    param = named.graph.params.get(value)
    name = param.fqns[0] if param is not None and param.fqns else value
    report.error(
        "P304", f"axis `{axis}` would cut two dims of `{name}` at once", placed.span,
        notes=["the name that is split stands for both of them here"],
        help=["split fewer modules, or name one of the dims: model { dim NAME = FQN[INDEX] }"],
    )  # fmt: skip
