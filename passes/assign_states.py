"""Give every trained parameter the axes over which its state is cut (ZeRO), and every node its recomputation.

In: a training unit. Out: `states` by parameter, `recompute` by node. Reports P301, P304, P317.
The stages of ZeRO are words: `optim` (1), `grads, optim` (2), `params, grads, optim` (3); Rajbhandari et al.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from plancc.dsl.diagnostics import Report
from plancc.dsl.plan import Job, Place, Setting
from plancc.dsl.vocabulary import DIMS
from plancc.ir.layout import Part
from plancc.ir.mesh import World
from plancc.passes.base import StateCut, Unit
from plancc.passes.match_targets import Cover, Matcher

NESTED = (
    frozenset({"optim"}), frozenset({"grads", "optim"}), frozenset({"params", "grads", "optim"}),
)  # fmt: skip
ATTENTION = ("plancc.attention.default", "plancc.attention_over_keys.default")


@dataclass(frozen=True)
class AssignStates:
    """Apply the plan's state rules and `recompute` settings top to bottom."""

    name: ClassVar[str] = "assign-states"

    def run(self, unit: Unit, report: Report) -> Unit:
        """Fill `states` and `recompute` of a unit of phase "train"."""
        if unit.graph.phase != "train":
            return unit
        work = _States(unit, Matcher(unit.plan, unit.graph, unit.variant), report)
        return replace(unit, states=work.states(), recompute=work.recompute())


class _States:
    def __init__(self, unit: Unit, matcher: Matcher, report: Report) -> None:
        self.unit, self.matcher, self.report = unit, matcher, report
        self.world: World = unit.world
        self.reported: set[int] = set()

    def covers(self, path: str, value: str = "") -> Iterator[Cover]:
        """The places that cover a module (or a parameter in it) as a whole, in plan order."""
        modules = self.matcher.modules
        seen: set[int] = set()
        for place in self.matcher.places:
            for target in place.targets:
                if target.kind != "module" or id(place) in seen:
                    continue
                scope = self.matcher._scope(target, path)
                if scope is None and value and value in modules.parameters(target.pattern):
                    scope = path
                if scope is not None:
                    seen.add(id(place))
                    yield Cover(place, scope)

    def states(self) -> dict[str, tuple[StateCut, ...]]:
        """Parameter -> its state cuts, major to minor."""
        cache: dict[str, tuple[StateCut, ...]] = {}
        out = {}
        named = self.named_patterns()
        for value, param in self.unit.graph.params.items():
            if param.kind != "param":
                continue
            path = param.fqns[0].rpartition(".")[0]
            if value in named:
                out[value] = self.resolve(path, value)
                continue
            if path not in cache:
                cache[path] = self.resolve(path, "")
            out[value] = cache[path]
        return {value: cuts for value, cuts in out.items() if cuts}

    def named_patterns(self) -> frozenset[str]:
        """Parameters that some place names themselves."""
        found: set[str] = set()
        for place in self.matcher.places:
            for target in place.targets:
                if target.kind == "module" and not self.matcher.module_set(target.pattern):
                    found |= self.matcher.modules.parameters(target.pattern)
        return frozenset(found)

    def resolve(self, path: str, value: str) -> tuple[StateCut, ...]:
        """Fold the cascade for the parameters of one module."""
        mesh: str | None = None
        jobs: dict[str, Job] = {}
        for cover in self.covers(path, value):
            place = cover.place
            if place.mesh is not None:
                grid = self.world.names[(place.mesh, self.matcher.variant)]
                if grid != mesh:
                    jobs.clear()
                mesh = grid
            for rule in place.rules:
                if isinstance(rule, Job) and any(DIMS.get(d) == "state" for d in rule.dims):
                    self.apply(rule, mesh, jobs)
        if mesh is None:
            return ()
        grid_of = self.world.grids[mesh]
        return tuple(
            StateCut(
                frozenset(jobs[axis].dims), Part(mesh, axis, 1, size, size),
                jobs[axis].options, jobs[axis].span,
            )
            for axis, size in grid_of.axes
            if axis in jobs
        )  # fmt: skip

    def apply(self, rule: Job, mesh: str | None, jobs: dict[str, Job]) -> None:
        """One state rule: its axes take it over."""
        if rule.verb == "split":
            self.check(rule)
        for axis in rule.axes:
            if mesh is None:
                continue
            if axis not in self.world.grids[mesh].sizes:
                self.report_once(
                    rule, "P301", f"mesh `{mesh}` has no axis `{axis}`",
                    f"its axes are: {', '.join(self.world.grids[mesh].sizes)}",
                )  # fmt: skip
            elif rule.verb == "replicate":
                jobs.pop(axis, None)
            else:
                jobs[axis] = rule

    def check(self, rule: Job) -> None:
        """P317: sets of state dims that no stage of ZeRO has."""
        if frozenset(rule.dims) not in NESTED:
            self.report_once(
                rule, "P317", f"`split {', '.join(rule.dims)}` is no stage of ZeRO",
                "write `optim`, `grads, optim`, or `params, grads, optim`",
            )  # fmt: skip

    def report_once(self, rule: Job, code: str, text: str, help: str) -> None:
        if id(rule) not in self.reported:
            self.reported.add(id(rule))
            self.report.error(code, text, rule.span, help=[help])

    def recompute(self) -> Mapping[str, str]:
        """Node -> the region that is computed again in the backward; regions are runs of one name."""
        whole = {s.name: s.value for p in self.unit.plan.pipelines for s in p.settings}.get(
            "recompute", False
        )
        cache: dict[str, str] = {}
        out = {}
        for node in self.unit.graph.nodes:
            if node.path not in cache:
                cache[node.path] = self.wish(node.path, whole)
            kind, _, scope = cache[node.path].partition(" ")
            if kind == "full" or (kind == "selective" and node.target in ATTENTION):
                out[node.name] = scope if kind == "full" else node.name
        return out

    def wish(self, path: str, whole: object) -> str:
        """`full SCOPE`, `selective` or `` for the nodes of one module."""
        layer = self.matcher.modules.layer_index(path)
        inside = "" if layer is None else f"{self.matcher.modules.layer_list}.{layer}"
        found, scope = (whole, inside) if inside else (False, "")
        for cover in self.covers(path):
            for setting in settings(cover.place):
                found, scope = setting.value, cover.scope or inside or path
        if found in (True, "full"):
            return f"full {scope}" if scope else ""
        return "selective" if found == "selective" else ""


def settings(place: Place) -> Iterator[Setting]:
    """The `recompute` settings of a place."""
    for rule in place.rules:
        if isinstance(rule, Setting) and rule.name == "recompute":
            yield rule
