"""One rank of an artifact: loads its weights, runs its programs step by step, moves outputs about."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from plancc.runtime.artifact import Artifact
from plancc.runtime.balance import PacesUsed, Tables
from plancc.runtime.balance.balancer import Balancer
from plancc.runtime.comm import Comm
from plancc.runtime.dims import Dim, Ranges
from plancc.runtime.kv import KVCache
from plancc.runtime.loading import load_weights
from plancc.runtime.migrate import move_caches
from plancc.runtime.owners import Owners
from plancc.runtime.sizes import build_dim
from plancc.runtime.transport import Transport
from plancc.runtime.view import Members, View

MOVE_CACHE, GATHER_OUTPUT = 1, 2
"""Instruction numbers of the runner itself (the second one: one for each micro-batch)."""


@dataclass
class Sequence:
    """The state of one batch of sequences: how many positions are cached, and the cache per micro-batch."""

    past: int = 0
    row: Mapping[str, Any] | None = None
    caches: list[KVCache] = field(default_factory=list)
    owners: Owners = field(default_factory=Owners)
    paces: PacesUsed = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Placed:
    """One output of a step on this rank: a tensor per micro-batch (None off its stage), and its row."""

    row: Mapping[str, Any]
    pieces: tuple[Tensor | None, ...]
    batches: tuple[tuple[int, int], ...]
    env: Mapping[str, int]


class Runner:
    """Runs phases on one rank. `weights` reads checkpoint slices; `sizes` shrinks dims by name."""

    view_class = View
    comm_class = Comm

    def __init__(
        self,
        artifact: Artifact,
        transport: Transport,
        weights: Any,
        *,
        sizes: Mapping[str, int] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.artifact = artifact
        self.transport = transport
        self.source = weights
        self.sizes = dict(sizes or {})
        self.dtype = dtype
        self.tables = Tables()
        self.balance = Balancer(self)
        self.exact = False  # whether wire types of the plan are left out
        self._ready: dict[str, tuple[View, Comm, dict[str, Tensor]]] = {}
        self._shared: dict[str, Tensor] = {}
        self.moved = 0

    def rebind(self, transport: Transport) -> None:
        """Go on over another transport of the same rank; weights and programs stay loaded."""
        self.transport = transport
        for _, comm, _ in self._ready.values():
            comm.transport = transport

    def run(
        self,
        phase: str,
        inputs: Mapping[str, Tensor],
        sequence: Sequence | None = None,
        *,
        variant: int | None = None,
        probe: Any = None,
    ) -> dict[str, Placed]:
        """One step on global inputs [B, T, ...]; updates `sequence`. Outputs stay where they are made."""
        sequence = sequence or Sequence()
        first = next(iter(inputs.values()))
        batch, tokens = first.shape[0], first.shape[1] if first.dim() > 1 else 1
        env = {"batch": batch, "seq_len": sequence.past + tokens}
        env["tokens"] = env["batch"] * env["seq_len"]
        row, program = self.artifact.program(phase, self.transport.rank, env, variant)
        view, comm, weights = self.ready(program)
        self.transport.program = program["file"]
        step = probe(program["file"]) if probe else self.artifact.step(program["file"])
        bounds = split_batch(batch, row["microbatches"])
        while len(sequence.caches) < len(bounds):
            sequence.caches.append(KVCache())
        if sequence.row is None:
            sequence.paces = self.balance.paces(row)
        self.tables.paces.used = sequence.paces
        comm.base = 0  # what the runner itself moves belongs to no program
        self.switch(sequence, row, view, comm, bounds)
        comm.base = self.artifact.base(row)
        sequence.owners.extend(tokens)
        view.owners = sequence.owners

        def start(index: int) -> Any:
            lo, hi = bounds[index]
            view.batch, view.tokens, view.past = hi - lo, tokens, sequence.past
            given = [inputs[name][lo:hi].to(view.device) for name in program["inputs"]]
            return step(view, comm, weights, sequence.caches[index], *given)

        found: dict[str, list[Tensor | None]] = {}
        with self.balance.working(row, [hi - lo for lo, hi in bounds], tokens):
            for result in take_turns(start, len(bounds)):
                for name, value in result.items():
                    found.setdefault(name, []).append(value)
        self.transport.program = ""
        sizes = {"T": tokens, "P": sequence.past}
        sequence.past += tokens
        sequence.row = row
        self.balance.after(row)
        return self.collect(row, found, tuple(bounds), sizes)

    def switch(
        self, sequence: Sequence, row: Mapping[str, Any], view: View, comm: Comm, bounds
    ) -> None:
        """Give the cache to its owners under `row`, where that is another variant than before."""
        old, past = sequence.row, sequence.past
        before = sequence.owners
        sequence.owners = Owners(before)
        sequence.owners.keep([view.part(text) for text in row["owned"]], past)
        if old is not None and old["variant"] != row["variant"]:
            self.moved += move_caches(
                view, comm, old, row, sequence.caches, bounds, past, MOVE_CACHE,
                (before, sequence.owners),
            )  # fmt: skip

    def input_name(self, phase: str) -> str:
        """The name of the first input of a phase."""
        rows = self.artifact.manifest["programs"]
        first = next(row for row in rows if row["phase"] == phase)
        return str(first["classes"][0]["inputs"][0])

    def collect(self, row, found, bounds, sizes) -> dict[str, Placed]:
        """Attach to each output the row that says on which stage and how it lies."""
        rows: dict[str, Any] = {}
        for cls in row["classes"]:
            rows.update(cls["outputs"])
        empty = (None,) * len(bounds)
        return {
            name: Placed(row, tuple(found.get(name, empty)), bounds, sizes)
            for name, row in rows.items()
        }

    def ready(self, program: Mapping[str, Any]) -> tuple[View, Comm, dict[str, Tensor]]:
        """The view, the verbs and the weights for one class; built once."""
        file = program["file"]
        if file not in self._ready:
            view = self.view_class(
                self.transport.rank, self.artifact.grids, program["mesh"],
                device=getattr(self.transport, "device", None), sizes=self.sizes, dtype=self.dtype,
            )  # fmt: skip
            view.tables = self.tables
            weights = load_weights(
                program["weights"], view, self.source, self.artifact, self._shared, self.dtype
            )
            view.exact = self.exact
            view.nodes = tuple(self.artifact.manifest.get("nodes", ()))
            comm = self.comm_class(self.transport, view)
            self._ready[file] = (view, comm, self.prepared(weights, program))
        return self._ready[file]

    def prepared(self, weights: dict[str, Tensor], program: Mapping[str, Any]) -> dict[str, Tensor]:
        """The weights of one class (`program` is its row) as its programs want them."""
        return weights

    def located(self, output: Placed) -> list[tuple[tuple[int, int], tuple[Ranges, ...], Tensor]]:
        """This rank's pieces of an output: (batch range, index ranges a dim, tensor) per micro-batch."""
        view = self.view_on(output.row["stage"]["mesh"])
        found = []
        for piece, (lo, hi) in zip(output.pieces, output.batches, strict=True):
            if piece is not None:
                env = {**output.env, "B": hi - lo}
                dims = [build_dim(view, tree, env) for tree in output.row["dims"]]
                ranges = tuple(d.ranges(view.coord_of(view.rank)) for d in dims)
                found.append(((lo, hi), ranges, piece))
        return found

    def view_on(self, mesh: str) -> View:
        """A view on the world with `mesh` as its own."""
        view = View(
            self.transport.rank, self.artifact.grids, mesh, sizes=self.sizes, dtype=self.dtype
        )
        view.tables = self.tables
        return view

    def everywhere(self, output: Placed) -> Tensor:
        """The whole output on every rank that takes part (shape [B, ...])."""
        view = self.view_on(output.row["stage"]["mesh"])
        comm = Comm(self.transport, view)
        source = view.stage(output.row["stage"]["mesh"], **output.row["stage"]["coords"])
        ranks = getattr(self.transport, "members", None) or range(self.transport.world)
        world = Members("world", "", tuple(ranks))
        pieces = []
        for index, (piece, (lo, hi)) in enumerate(zip(output.pieces, output.batches, strict=True)):
            env = {**output.env, "B": hi - lo}
            has = [build_dim(view, tree, env) for tree in output.row["dims"]]
            wants = [Dim.leaf(d.total, (), lambda part: None) for d in has]
            at = GATHER_OUTPUT + index
            if piece is None:
                dtype = view.dtype_of(output.row["dtype"])
                pieces.append(comm.recv(dtype, source, has, world, wants, at))
            else:
                pieces.append(comm.transfer(piece, source, has, world, wants, at))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def take_turns(start: Callable[[int], Any], count: int) -> list[dict[str, Any]]:
    """Run `count` micro-batches; programs that pause (generators) take turns at their pauses.

    `start(index)` begins one: it gives the results, or a generator whose first part has not run yet. Each
    first part runs before the next micro-batch starts, since it reads the sizes of its own.
    """
    results: list[dict[str, Any]] = [{} for _ in range(count)]
    running: list[tuple[int, Iterator[None]]] = []
    for index in range(count):
        begun = start(index)
        if isinstance(begun, Mapping):
            results[index] = dict(begun)
        elif not finished(begun, index, results):
            running.append((index, begun))
    while running:
        running = [(i, one) for i, one in running if not finished(one, i, results)]
    return results


def finished(one: Iterator[None], index: int, results: list[dict[str, Any]]) -> bool:
    """Go on with one micro-batch to its next pause; True at its end, with the results kept."""
    try:
        next(one)
    except StopIteration as end:
        results[index] = dict(end.value)
        return True
    return False


def split_batch(batch: int, count: int) -> list[tuple[int, int]]:
    """Balanced, non-empty micro-batches of a batch: at most `count`."""
    count = max(1, min(count, batch))
    return [(batch * i // count, batch * (i + 1) // count) for i in range(count)]
