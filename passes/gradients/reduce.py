"""The end of a training step: gradients summed over the ranks that hold a weight, in buckets.

What a gradient is pending over follows from how the weight was used; the moves follow from where the
optimizer keeps it. Weights that several stages hold (tied ones) are summed across the stages too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from plancc.dsl.plan import Call, ResolvedPlan
from plancc.ir.graph import Ref
from plancc.ir.layout import Layout, Move, Stage, plan_moves
from plancc.ir.mesh import mesh_of
from plancc.ir.program import (
    Accumulate,
    Bucket,
    Collective,
    Compute,
    Edge,
    Held,
    Origin,
    Store,
    TakeGrad,
    TakeSlice,
    Transfer,
)
from plancc.passes.estimate_memory import held_bytes
from plancc.passes.gradients.activity import Entry
from plancc.passes.gradients.reverse import split_pending
from plancc.passes.gradients.segments import Names
from plancc.passes.gradients.states import State

BUCKET_BYTES = 32_000_000
BUCKETED = ("all_reduce", "reduce_scatter", "all_gather")


@dataclass
class Path:
    """A value on its way through moves."""

    held: Held
    moves: list[Move]


@dataclass
class Buckets:
    """Moves of many values, those alike made together."""

    names: Names
    limits: Mapping[Any, int] = field(default_factory=dict)  # (mesh, axis) -> bytes of a bucket
    wires: Mapping[Any, str] = field(default_factory=dict)  # (mesh, axis) -> type on the wire
    out: list[Entry] = field(default_factory=list)

    def run(self, paths: Sequence[Path], suffix: str) -> None:
        """Make all moves of `paths`, level by level; each path ends at its last value."""
        while any(path.moves for path in paths):
            groups: dict[Any, list[Path]] = {}
            for path in paths:
                if path.moves:
                    move = path.moves[0]
                    key = (path.held.stage, move.kind, move.parts, path.held.dtype)
                    groups.setdefault(key, []).append(path)
            for (stage, kind, parts, _), members in groups.items():
                if kind not in BUCKETED:
                    for path in members:
                        self.single(stage, path, suffix)
                    continue
                limit = min(
                    (self.limits.get((mesh_of(p.mesh), p.axis), BUCKET_BYTES) for p in parts),
                    default=BUCKET_BYTES,
                )
                for bucket in chunks(members, limit):
                    self.bucket(stage, kind, parts, bucket, suffix)

    def single(self, stage: Stage, path: Path, suffix: str) -> None:
        """A move of one value: a slice of what is whole here already."""
        move = path.moves.pop(0)
        name = self.names.fresh(f"{path.held.name}_{suffix}")
        out = replace(path.held, name=name, layout=move.after)
        origin = Origin("", "", None)
        step = Collective(move.kind, path.held.name, out, move, move.parts, origin)
        self.out.append(((stage,), step))
        path.held = out

    def bucket(self, stage: Stage, kind: str, parts: State, paths: list[Path], suffix: str) -> None:
        """One bucket."""
        moves = tuple(path.moves.pop(0) for path in paths)
        outs = tuple(
            replace(p.held, name=self.names.fresh(f"{p.held.name}_{suffix}"), layout=m.after)
            for p, m in zip(paths, moves, strict=True)
        )
        wire = wire_of(self.wires, parts) if suffix != "full" else ""
        step = Bucket(
            kind, tuple(p.held.name for p in paths), outs, moves, parts, Origin("", "", None), wire
        )
        self.out.append(((stage,), step))
        for path, out in zip(paths, outs, strict=True):
            path.held = out


def wire_of(wires: Mapping[Any, str], parts: State) -> str:
    """The type in which gradients travel along `parts`, if the plan gives one."""
    found = {wires.get((mesh_of(part.mesh), part.axis), "") for part in parts}
    return next(iter(found)) if len(found) == 1 else ""


def chunks(paths: Iterable[Path], limit: int) -> Iterable[list[Path]]:
    """Consecutive paths of at most `limit` bytes together (a larger one alone)."""
    found: list[Path] = []
    size = 0
    for path in paths:
        mine = held_bytes(path.held, {})
        if found and size + mine > limit:
            yield found
            found, size = [], 0
        found.append(path)
        size += mine
    if found:
        yield found


@dataclass
class Reduction:
    """Builds the reduce section: `gradients` maps a weight's local name to its final gradient."""

    names: Names
    owned: Mapping[
        str, Layout
    ]  # weight -> layout in which its gradient and optimizer state are kept
    buckets: Buckets
    edges: int = 0
    early: list[Entry] = field(default_factory=list)  # what ends the backward of each micro-batch
    out: list[Entry] = field(default_factory=list)
    refresh: list[Entry] = field(default_factory=list)
    gradients: dict[str, Held] = field(default_factory=dict)

    def run(
        self, weights: Mapping[str, Held], states: Mapping[str, State], early: Collection[str]
    ) -> None:
        """Take, sum and scatter the gradients of all weights; `states` says how they are pending.

        Those of `early` are scattered after each micro-batch, and only slices add up.
        """
        self.scatter(weights, states, early)
        paths: dict[str, Path] = {}
        for name, held in reversed(weights.items()):
            sliced = name in early
            layout = self.owned[name] if sliced else Layout(held.layout.dims, states[name])
            grad = self.gradient(held, layout)
            self.out.append(((held.stage,), TakeGrad(name, grad, sliced)))
            paths[name] = path_to(grad, self.owned[name])
        self.buckets.out = self.out
        self.buckets.run(list(paths.values()), "sum")
        homes: dict[str, list[str]] = {}
        for name in weights:
            homes.setdefault(weights[name].source, []).append(name)
        for names in homes.values():
            if len(names) > 1:
                self.tie(names, paths)
        self.gradients = {name: paths[name].held for name in weights}
        self.gather(weights)

    def gradient(self, held: Held, layout: Layout) -> Held:
        """The gradient of a weight in some layout."""
        name = self.names.fresh(f"d_{held.name}")
        return replace(held, name=name, layout=layout, source=f"grad {held.source}")

    def scatter(
        self, weights: Mapping[str, Held], states: Mapping[str, State], early: Collection[str]
    ) -> None:
        """Sum and scatter the gradients of one micro-batch, and add the slices up."""
        paths = []
        for name, held in reversed(weights.items()):
            if name in early:
                grad = self.gradient(held, Layout(held.layout.dims, states[name]))
                self.early.append(((held.stage,), TakeGrad(name, grad)))
                paths.append((name, path_to(grad, self.owned[name])))
        self.buckets.out = self.early
        self.buckets.run([path for _, path in paths], "slice")
        for name, path in paths:
            stage, origin = path.held.stage, Origin(weights[name].source, "", None)
            self.early.append(((stage,), Accumulate(name, path.held.name, stage, origin, True)))

    def gather(self, weights: Mapping[str, Held]) -> None:
        """Bring the slices that the optimizer updated into the weights."""
        paths = {}
        for name, held in weights.items():
            if self.owned[name] != held.layout:
                mine = replace(held, name=self.names.fresh(f"p_{name}"), layout=self.owned[name])
                self.refresh.append(((held.stage,), TakeSlice(name, mine)))
                paths[name] = Path(mine, list(plan_moves(self.owned[name], held.layout)))
        self.buckets.out = self.refresh
        self.buckets.run(list(paths.values()), "full")
        for name, path in paths.items():
            stage = path.held.stage
            self.refresh.append(((stage,), Store(name, path.held.name, stage)))

    def tie(self, names: list[str], paths: dict[str, Path]) -> None:
        """Sum the gradients of a weight that several stages hold: all get all, and add in one order."""
        parts = {name: paths[name].held for name in names}
        for target in names:
            total: Held | None = None
            home = parts[target]
            for source in names:
                held = parts[source] if source == target else self.send(parts[source], home)
                total = held if total is None else self.add(total, held, home)
            assert total is not None
            paths[target].held = total

    def send(self, held: Held, like: Held) -> Held:
        """A gradient on another stage, laid out as the one there."""
        before, after = held.layout, like.layout
        edge = Edge(
            self.edges, held.stage, like.stage, held.source, before, after, held.dtype, channel=1
        )  # fmt: skip
        self.edges += 1
        out = replace(like, name=self.names.fresh(f"{like.name}_other"))
        step = Transfer(held.name, out, edge, Origin("", "", None))
        self.out.append(((like.stage, held.stage), step))
        return out

    def add(self, a: Held, b: Held, like: Held) -> Held:
        out = replace(like, name=self.names.fresh(f"{like.name}_tied"))
        args = (Ref(a.name), Ref(b.name))
        step = Compute("aten.add.Tensor", args, {}, (out,), Origin("", "", None))
        self.out.append(((like.stage,), step))
        return out


def bucket_limits(plan: ResolvedPlan) -> dict[tuple[str, str], int]:
    """(mesh, axis) -> bytes of a bucket, as `comm grads over m.a { overlap = async(bucket = n) }` says."""
    found = {}
    for comm in plan.comms:
        for setting in comm.settings:
            value = setting.value
            stated = setting.name == "overlap" and isinstance(value, Call)
            if stated and "grads" in comm.tensors and "bucket" in value.options:
                found[str(comm.mesh), str(comm.axis)] = int(value.options["bucket"])
    return found


def path_to(held: Held, layout: Layout) -> Path:
    """The moves that bring a gradient into its final layout."""
    start = Layout(held.layout.dims, split_pending(held.layout, layout))
    return Path(held, list(plan_moves(start, layout)))
