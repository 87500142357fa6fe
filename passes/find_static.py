"""Find the nodes that depend on sizes, buffers and constants only (rope tables, masks, positions).

They are recomputed on every stage that uses them and never sent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from plancc.dsl.diagnostics import Report
from plancc.ir.graph import Graph
from plancc.passes.base import Unit


def static_nodes(graph: Graph) -> frozenset[str]:
    """Names of the nodes that no input and no parameter reaches."""
    live = {value.name for value in graph.inputs}
    live |= {name for name, param in graph.params.items() if param.kind == "param"}
    live.add("")
    found = set()
    for node in graph.nodes:
        moving = node.target == "plancc.cache_append.default" or any(r in live for r in node.refs())
        if moving:
            live.update(out.name for out in node.outs)
        else:
            found.add(node.name)
    return frozenset(found)


@dataclass(frozen=True)
class FindStatic:
    """Mark the static nodes of the graph."""

    name: ClassVar[str] = "find-static"

    def run(self, unit: Unit, report: Report) -> Unit:
        """Fill `static`."""
        return replace(unit, static=static_nodes(unit.graph))
