"""Give every node its stage (mesh, fixed coordinates) and the parts that cut its leaves.

In: a named graph and a plan. Out: `places` by node, `param_rules` by parameter. Reports P301, P306,
P304, P307, P310, P312, P901.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import ClassVar

from plancc.dsl.diagnostics import Report
from plancc.dsl.plan import Combine, Expr, Job, Place
from plancc.dsl.schedules import check_layers
from plancc.dsl.sizes import part_sizes
from plancc.dsl.source import Span
from plancc.dsl.vocabulary import DIMS
from plancc.ir.layout import Part, Stage
from plancc.ir.mesh import Grid, World, mesh_of
from plancc.ir.shape import Anchor, NamedGraph, Tree, leaves
from plancc.passes.allot_parts import allot
from plancc.passes.base import Placed, Unit
from plancc.passes.give_chunks import give_chunks, layer_run
from plancc.passes.match_targets import Cover, Matcher
from plancc.passes.plan_schedule import virtual_stages
from plancc.passes.settle_glue import settle_glue
from plancc.passes.warn_uneven import warn_uneven


@dataclass
class _State:
    """The cascade for one node: what the rules so far say."""

    mesh: str | None = None
    coords: dict[str, int] = field(default_factory=dict)
    depth: set[str] = field(default_factory=set)  # axes whose coordinate a `split layers` chose
    jobs: dict[tuple[str, str], tuple[Job, str, str]] = field(default_factory=dict)
    combine: Combine | None = None
    span: Span | None = None


@dataclass(frozen=True)
class AssignPlaces:
    """Apply the plan's places top to bottom to every node."""

    name: ClassVar[str] = "assign-places"

    def run(self, unit: Unit, report: Report) -> Unit:
        """Fill `places` and `param_rules`."""
        assert unit.named is not None
        matcher = Matcher(unit.plan, unit.graph, unit.variant)
        work = _Assignment(unit.named, unit.world, matcher, report)
        work.check_patterns()
        places = give_chunks(unit, work.nodes(unit.static))
        rules = work.parameters()
        work.finish(places)
        settled = settle_glue(unit, places, rules)
        work.check_tied(settled)
        work.check_stored(settled, rules)
        return replace(unit, places=settled, param_rules=rules)


class _Assignment:
    def __init__(self, named: NamedGraph, world: World, matcher: Matcher, report: Report) -> None:
        self.named = named
        self.world = world
        self.matcher = matcher
        self.report = report
        self.variant = matcher.variant
        self.virtual = virtual_stages(matcher.plan)
        self.anchors: dict[tuple[str, str], tuple[Anchor, ...]] = {}
        self.found: dict[int, bool] = {}
        self.jobs: dict[int, tuple[Job, str, str]] = {}
        self.warned: set[int] = set()
        self.bad_blocks: set[int] = set()
        self.bad_axes: set[tuple[str, str]] = set()
        self.fixed_axes: set[tuple[int, str]] = set()
        self.unplaced: dict[str, None] = {}

    def check_patterns(self) -> None:
        """P306: a pattern that names no module and no parameter."""
        modules = self.matcher.modules
        for place in self.matcher.places:
            for target in place.targets:
                pattern = target.pattern if target.kind == "module" else target.within
                if pattern is None or self.matcher.module_set(pattern):
                    continue
                if target.kind == "module" and modules.parameters(pattern):
                    continue
                report_no_match(self.report, pattern, target.span, modules.paths)

    def nodes(self, static: frozenset[str]) -> dict[str, Placed]:
        """The place of every node that is not static; static nodes are computed where they are used."""
        cache: dict[tuple[str, str], Placed | None] = {}
        out: dict[str, Placed] = {}
        for node in self.named.graph.nodes:
            if node.name in static:
                continue
            key = self.matcher.path_key(node)
            if key not in cache:
                cache[key] = self.resolve(self.matcher.covers(node), node.path)
            placed = cache[key]
            if placed is None:
                self.unplaced[node.path or "the model's root"] = None
            else:
                out[node.name] = placed
        return out

    def parameters(self) -> dict[str, Placed]:
        """Places whose pattern names a parameter itself: they fix how it is stored."""
        chosen: dict[str, dict[int, Place]] = {}
        for place in self.matcher.places:
            for target in place.targets:
                if target.kind == "module" and not self.matcher.module_set(target.pattern):
                    for name in self.matcher.modules.parameters(target.pattern):
                        chosen.setdefault(name, {})[id(place)] = place
        out: dict[str, Placed] = {}
        for name, places in chosen.items():
            path = self.named.graph.params[name].fqns[0].rpartition(".")[0]
            base = self.matcher._candidates(path)
            covers = [Cover(p, s) for p, t, s in base if t.kind == "module"]
            placed = self.resolve([*covers, *(Cover(p, path) for p in places.values())], path)
            if placed is not None:
                out[name] = placed
        return out

    def resolve(self, covers: Iterable[Cover], path: str) -> Placed | None:
        """Fold the cascade of `covers` into a stage and cuts."""
        state = _State()
        for cover in covers:
            self.apply(state, cover, path)
        if state.mesh is None:
            return None
        stage = Stage(state.mesh, tuple(sorted(state.coords.items())))
        return Placed(stage, self.cuts(state), state.span, state.combine)

    def apply(self, state: _State, cover: Cover, path: str) -> None:
        """One place of the cascade: `on` first, then its jobs."""
        place = cover.place
        if place.mesh is not None:
            grid = self.world.names[(place.mesh, self.variant)]
            if state.mesh is not None and grid != state.mesh:
                state.jobs.clear()
                state.combine = None
                state.coords.clear()
                state.depth.clear()
            state.mesh = grid
            state.coords.update(place.coords)
            state.depth.difference_update(place.coords)
            state.span = state.span or place.span
        for rule in place.rules:
            if isinstance(rule, Combine):
                state.combine = rule
            if not isinstance(rule, Job):
                continue
            for dim in rule.dims:
                self.apply_job(state, place, rule, dim, cover.scope, path)

    def apply_job(
        self, state: _State, place: Place, rule: Job, dim: str, scope: str, path: str
    ) -> None:
        """Replace the job of the same class on the same axis; `layers` fixes a coordinate."""
        kind = DIMS.get(dim, "flow")
        for axis in rule.axes:
            if state.mesh is None or not self.has_axis(state.mesh, axis, rule):
                continue
            if rule.verb == "replicate":
                state.jobs.pop((kind, axis), None)
                if kind == "depth" and axis in state.depth:
                    state.depth.remove(axis)
                    del state.coords[axis]
            elif kind == "depth":
                self.fix_depth(state, axis, path, rule)
                self.jobs[id(rule)] = (rule, dim, scope)
            elif axis in state.coords:
                where = path or "the root module"
                self.report_fixed(axis, rule, f"`{where}` has one fixed place on `{axis}`")
            elif kind == "flow":
                state.jobs.pop((kind, axis), None)
                state.jobs[(kind, axis)] = (rule, dim, scope)
                state.span = rule.span

    def fix_depth(self, state: _State, axis: str, path: str, rule: Job) -> None:
        index = self.matcher.modules.layer_index(path)
        self.found[id(rule)] = self.found.get(id(rule), False) or index is not None
        if index is None or state.mesh is None:
            return
        count = self.matcher.modules.layer_count
        stages = self.world.grids[state.mesh].sizes[axis]
        virtual = self.virtual.get((mesh_of(state.mesh), axis), 1)
        runs = stages * virtual
        if virtual > 1:
            check_layers(count, stages, virtual, rule.axis_spans[0], self.report)
        if virtual > 1 or "layers" not in self.matcher.plan.facts:
            self.warn_layers(rule, count, runs)
        state.coords[axis] = layer_run(index, count, runs) % stages
        state.depth.add(axis)
        state.span = rule.span

    def warn_layers(self, rule: Job, count: int, stages: int) -> None:
        """P303 for stages of unequal length, once a rule."""
        if count % stages:
            shares = ", ".join(f"{size} on {n}" for size, n in part_sizes(count, stages))
            self.report.warning(
                "P303",
                f"{count} layers over {stages} stages are uneven: {shares}",
                rule.axis_spans[0],
            )

    def has_axis(self, mesh: str, axis: str, rule: Job) -> bool:
        if axis in self.world.grids[mesh].sizes:
            return True
        if (mesh, axis) not in self.bad_axes:
            self.bad_axes.add((mesh, axis))
            known = ", ".join(self.world.grids[mesh].sizes)
            self.report.error(
                "P301", f"mesh `{mesh}` has no axis `{axis}`", rule.axis_spans[0],
                label=f"this target lives on `{mesh}`", help=[f"its axes are: {known}"],
            )  # fmt: skip
        return False

    def report_fixed(self, axis: str, rule: Job, note: str) -> None:
        """P304, once a rule: it splits over an axis on which its target has a fixed place."""
        if (id(rule), axis) not in self.fixed_axes:
            self.fixed_axes.add((id(rule), axis))
            self.report.error(
                "P304",
                f"axis `{axis}` is fixed and split at once",
                rule.axis_spans[0],
                notes=[note],
            )

    def check_loaded(self, axis: str, rule: Job, inside: bool) -> None:
        """P901, once a rule: rows are assigned within the share of another axis, or beside a pool."""
        pool = any(mesh.is_pool for mesh in self.matcher.plan.meshes.values())
        if (inside or pool) and (id(rule), axis) not in self.fixed_axes:
            self.fixed_axes.add((id(rule), axis))
            where = "within the share of another axis" if inside else "beside a pool"
            self.report.error("P901", f"assigning rows {where} is not supported yet", rule.span)

    def cuts(self, state: _State) -> Mapping[int, tuple[tuple[Part, ...], str | None]]:
        """The parts of each leaf, jobs in order of their axes on the mesh (major to minor)."""
        assert state.mesh is not None
        grid = self.world.grids[state.mesh]
        out: dict[int, tuple[tuple[Part, ...], str | None]] = {}
        for axis, size in grid.axes:
            job = state.jobs.get(("flow", axis))
            if job is None or axis in state.coords:
                continue
            rule, dim, scope = job
            anchors = self.lookup(scope, dim)
            if anchors and id(rule) not in self.warned:
                self.warned.add(id(rule))
                warn_uneven(self.matcher.plan, rule, dim, anchors, grid, self.report)
            self.found[id(rule)] = self.found.get(id(rule), False) or bool(anchors)
            self.jobs[id(rule)] = (rule, dim, scope)
            for anchor in anchors:
                block = self.block_rule(rule, anchor, grid)
                share = key_share(rule, block) if anchor.label == "s" else row_share(rule, block)
                for leaf, part in allot(anchor.leaves, grid.name, axis, size, share, out):
                    have = out.get(leaf.id, ((), None))[0]
                    if share == "loaded":
                        self.check_loaded(axis, rule, bool(have) and part not in have)
                    if part not in have:
                        out[leaf.id] = ((*have, part), anchor.label)
        return out

    def block_rule(self, rule: Job, anchor: Anchor, grid: Grid) -> str:
        """How a dim is cut, `balanced` or into `block`s of ceil(size / parts); P901 for other blocks."""
        value = rule.options.get("block", "balanced")
        if str(value) == "balanced":
            return "balanced"
        sizes = [leaf.size for leaf in anchor.leaves]
        if isinstance(value, Expr):
            fits = value.tree[:2] == ("call", "ceil") and not all(isinstance(s, int) for s in sizes)
        else:
            parts = prod(grid.sizes[axis] for axis in rule.axes if axis in grid.sizes)
            total = prod(s for s in sizes if isinstance(s, int))
            fits = all(isinstance(s, int) for s in sizes) and value == -(-total // parts)
        if not fits and id(rule) not in self.bad_blocks:
            self.bad_blocks.add(id(rule))
            shown = value.text if isinstance(value, Expr) else value
            self.report.error(
                "P901", f"blocks of {shown} are not supported yet", rule.span,
                label=f"the dim has {' x '.join(map(str, sizes))}",
                help=["write `balanced`, or the ceiling of the size divided by the axes"],
            )  # fmt: skip
        return "block"

    def lookup(self, scope: str, dim: str) -> tuple[Anchor, ...]:
        key = (scope, dim)
        if key not in self.anchors:
            self.anchors[key] = self.named.lookup(scope, dim)
        return self.anchors[key]

    def check_tied(self, places: Mapping[str, Placed]) -> None:
        """P312: a tied parameter whose users live on several stages is held by each of them."""
        homes: dict[str, dict[Stage, Placed]] = {}
        for node in self.named.graph.nodes:
            placed = places.get(node.name)
            for ref in node.refs() if placed else ():
                param = self.named.graph.params.get(ref)
                if placed is not None and param is not None and len(param.fqns) > 1:
                    homes.setdefault(ref, {})[placed.stage] = placed
        for value, stages in homes.items():
            if len(stages) > 1:
                names = " = ".join(self.named.graph.params[value].fqns)
                where = " and ".join(f"`{stage}`" for stage in stages)
                self.report.warning(
                    "P312", f"tied parameters {names} lie on {where}",
                    next(reversed(stages.values())).span, label="a second copy is held here",
                    help=["place both on one stage to hold them once"],
                )  # fmt: skip

    def check_stored(self, places: Mapping[str, Placed], rules: Mapping[str, Placed]) -> None:
        """P304 for a parameter that is stored cut over an axis that the stage of a user fixes."""
        for node in self.named.graph.nodes:
            placed = places.get(node.name)
            for ref in set(node.refs()) & set(rules) if placed else ():
                for part in cut_over(rules[ref], self.named.shapes[ref]):
                    if placed is not None and part.mesh == placed.stage.mesh:
                        self.check_free(part.axis, ref, placed.stage, rules[ref].span)

    def check_free(self, axis: str, value: str, stage: Stage, span: Span | None) -> None:
        if axis in dict(stage.coords):
            self.report.error(
                "P304", f"axis `{axis}` is fixed and split at once", span,
                notes=[f"`{self.named.graph.params[value].fqns[0]}` is used on `{stage}`"],
            )  # fmt: skip

    def finish(self, places: Mapping[str, Placed]) -> None:
        """P310 for jobs whose dim was found nowhere, P307 for nodes without a mesh."""
        for key, (rule, dim, scope) in self.jobs.items():
            if not self.found[key]:
                names = ", ".join(f"`{n}`" for n in self.named.names_at(scope)) or "none"
                where = f"`{scope}`" if scope else "the model"
                self.report.error(
                    "P310", f"{where} has no dim `{dim}`", rule.dim_spans[rule.dims.index(dim)],
                    label="not a dim of this target", help=[f"dims here: {names}"],
                )  # fmt: skip
        if self.unplaced:
            paths = list(self.unplaced)
            shown = ", ".join(paths[:6]) + (f" and {len(paths) - 6} more" if len(paths) > 6 else "")
            self.report.error(
                "P307", f"{len(paths)} module{'s have' if len(paths) > 1 else ' has'} no mesh", None,
                notes=[shown],
                help=["begin with a rule for everything: place ** on MESH"],
            )  # fmt: skip


def cut_over(placed: Placed, shape: Iterable[Tree]) -> Iterator[Part]:
    """The parts that a place cuts a value of this shape by."""
    for tree in shape:
        for leaf in leaves(tree):
            yield from placed.cuts.get(leaf.id, ((), None))[0]


def key_share(rule: Job, block: str) -> str:
    """How positions are shared out among the owners of keys: blocks, balanced, or zigzag."""
    zigzag = str(rule.options.get("layout")) == "zigzag"
    return f"owned+{'zigzag' if zigzag else block}"


def row_share(rule: Job, block: str) -> str:
    """How other dims are shared out: as their blocks say, or rows by the pace of those that take them."""
    return "loaded" if str(rule.options.get("assign")) == "least_loaded" else block


def report_no_match(report: Report, pattern: str, span: Span, paths: Iterable[str]) -> None:
    """P306 with the nearest module names."""
    from difflib import get_close_matches

    known = sorted(p for p in paths if p)
    generic = sorted({".".join("*" if s.isdigit() else s for s in p.split(".")) for p in known})
    close = get_close_matches(pattern, generic, n=1, cutoff=0.5)
    report.error(
        "P306", f"`{pattern}` matches no module", span, label=f"0 of {len(known)} modules",
        help=[f"did you mean `{close[0]}`?"] if close else ["`plancc explain` lists the modules"],
    )  # fmt: skip
