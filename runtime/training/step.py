"""One training step on one rank: micro-batches in the order of the schedule, then gradients reduced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from plancc.runtime.artifact import ArtifactError
from plancc.runtime.balance.balancer import placed_text
from plancc.runtime.dims import within
from plancc.runtime.owners import Owners
from plancc.runtime.pieces import cut
from plancc.runtime.runner import Placed, Runner, split_batch
from plancc.runtime.training.recorder import Recorder, Unrecorded
from plancc.runtime.training.slices import (
    OwnedSlice,
    first_holder,
    first_rows,
    first_stage,
    slice_ranges,
    slice_shape,
)

Action = tuple[str, int, int]
"""(F, B, I or W, chunk, micro-batch)."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step gives on one rank.

    `loss` is None off the stage that makes it; `gradients` are reduced, by weight key, laid out as the
    class's manifest says.
    """

    loss: Tensor | None
    gradients: Mapping[str, Tensor]
    row: Mapping[str, Any]
    cls: Mapping[str, Any]


@dataclass
class MicroBatch:
    """What one micro-batch keeps from its forward to its backward."""

    lo: int
    hi: int
    kept: SimpleNamespace = field(default_factory=SimpleNamespace)
    later: dict[int, list[Callable[[], None]]] = field(default_factory=dict)


@dataclass
class Call:
    """One call of a function of the program for one micro-batch, under way if it pauses."""

    kind: str
    chunk: int
    batch: MicroBatch
    last: bool
    running: Iterator[None] | None = None
    results: dict[str, Tensor] = field(default_factory=dict)

    @property
    def later(self) -> list[Callable[[], None]]:
        """The weights' parts of linear layers that wait for W."""
        return self.batch.later.setdefault(self.chunk, [])

    def set(self, view: Recorder) -> None:
        """Let the rank's view be that of this call."""
        view.batch = self.batch.hi - self.batch.lo
        view.later, view.last = self.later, self.last

    def resume(self, view: Recorder) -> None:
        """Go on to the next pause, or to the end."""
        assert self.running is not None
        self.set(view)
        try:
            next(self.running)
        except StopIteration as end:
            self.results, self.running = dict(end.value), None


class TrainRunner(Runner):
    """A runner of training programs. Weights are leaves whose gradients accumulate.

    `accumulate` times as many micro-batches as the plan has go into one step.
    """

    view_class = Recorder
    comm_class = Unrecorded

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._slices: dict[Any, Tensor] = {}
        self._calls: list[Call] = []
        self.accumulate = 1

    def step(
        self, inputs: Mapping[str, Tensor], *, variant: int | None = None, probe: Any = None
    ) -> StepResult:
        """Forward and backward of all micro-batches of global `inputs` ([B, T, ...]; `scale` []).

        Gradients start from zero. Raises ArtifactError for a batch with fewer sequences than
        micro-batches.
        """
        first = next(iter(inputs.values()))
        batch, tokens = first.shape[0], first.shape[1] if first.dim() > 1 else 1
        env = {"batch": batch, "seq_len": tokens, "tokens": batch * tokens}
        row, cls = self.artifact.program("train", self.transport.rank, env, variant)
        view, comm, weights = self.ready(cls)
        comm.base = self.artifact.base(row)
        self.transport.program = cls["file"]
        module = probe(cls["file"]) if probe else self.artifact.module(cls["file"])
        view.owners = Owners(Owners())
        view.owners.keep([view.part(text) for text in row["owned"]], 0)
        view.owners.extend(tokens)
        view.tokens, view.past = tokens, 0
        count = row["microbatches"] * self.accumulate
        batches = [MicroBatch(lo, hi) for lo, hi in split(batch, count)]
        for weight in weights.values():
            weight.grad = None
        self.tables.paces.used = self.balance.paces(row)
        size = row["microbatches"]
        groups = [batches[at : at + size] for at in range(0, count, size)]
        sizes = [one.hi - one.lo for one in batches]
        with torch.enable_grad(), self.balance.working(row, sizes, tokens):
            losses = [
                loss
                for group in groups
                for loss in self.run_actions(row, cls, module, group, inputs, group is groups[-1])
            ]
        with torch.no_grad():
            view.batch = batch
            gradients = module.reduce(view, comm, weights, SimpleNamespace())
            gradients = self.balance.summed(cls, gradients)
        self.transport.program = ""
        loss = torch.stack([x.detach() for x in losses]).sum() if losses else None
        return StepResult(loss, gradients, row, cls)

    def run_actions(
        self, row: Mapping[str, Any], cls: Mapping[str, Any], module: ModuleType,
        batches: list[MicroBatch], inputs: Mapping[str, Tensor], final: bool,
    ) -> list[Tensor]:  # fmt: skip
        """Run the rank's part of the schedule once; the losses that it made.

        `final` says that no other group of micro-batches follows in this step.
        """
        losses: list[Tensor] = []
        todo = actions(row, cls)
        ends = {chunk: place for place, (kind, chunk, _) in enumerate(todo) if kind in ("B", "I")}
        for place, (kind, chunk, index) in enumerate(todo):
            call = Call(kind, chunk, batches[index], final and ends.get(chunk) == place)
            self.begin(call, cls, module, inputs)
            if index + 1 < row.get("turns", 1) and call.running is not None:
                continue
            losses += self.finish(cls)
        return losses

    def begin(
        self, call: Call, cls: Mapping[str, Any], module: ModuleType, inputs: Mapping[str, Tensor]
    ) -> None:
        """Call a function of the program; one that pauses runs to its first pause."""
        view, comm, weights = self.ready(cls)
        call.set(view)
        one, found = call.batch, {}
        if call.kind == "F":
            given = [sliced(inputs[name], one, view) for name in cls["inputs"]]
            found = function(module, "forward", call.chunk)(view, comm, weights, one.kept, *given)
        elif call.kind in ("B", "I"):
            found = function(module, "backward", call.chunk)(view, comm, weights, one.kept)
        if isinstance(found, Mapping):
            call.results = dict(found)
        else:
            call.running = found
            call.resume(view)
        self._calls.append(call)

    def finish(self, cls: Mapping[str, Any]) -> list[Tensor]:
        """Let the calls that were begun take turns until all have ended; the losses that they gave."""
        view, _, _ = self.ready(cls)
        calls, self._calls = self._calls, []
        while any(call.running is not None for call in calls):
            for call in calls:
                if call.running is not None:
                    call.resume(view)
        for call in calls:
            if call.kind in ("B", "W"):
                for compute in call.later:
                    compute()
                call.later.clear()
        return [x.detach() for call in calls for x in call.results.values()]

    def owned(self, batch: int, tokens: int) -> list[OwnedSlice]:
        """What this rank's optimizer updates for steps on [batch, tokens]; call `refresh` after it did.

        Slices lie as the gradients of `step` do, under the same keys.
        """
        row, cls = self.program_for(batch, tokens)
        _, _, weights = self.ready(cls)
        out = []
        for weight in cls["weights"]:
            key = weight["key"]
            if key not in cls["gradients"]:
                continue
            place = cls["gradients"][key]
            view = self.view_on(place["stage"]["mesh"])
            name = (weight["fqns"] or [key])[0]
            counts = first_stage(row, name, weight) and first_holder(view, place)
            ranges = slice_ranges(view, place, view.rank)
            mine = self.slice_of(weight, place, weights[key])
            once = first_rows(view, place)
            counts = counts and once != ()
            out.append(OwnedSlice(key, name, slice_shape(view, place), ranges, mine, counts, once))
        return out

    def slice_of(
        self, weight: Mapping[str, Any], place: Mapping[str, Any], whole: Tensor
    ) -> Tensor:
        """The tensor that the optimizer updates: the weight itself, or a slice of it (ZeRO-1 and -2)."""
        if place["dims"] == weight["dims"]:
            return whole
        view = self.view_on(place["stage"]["mesh"])
        had = slice_ranges(view, weight, view.rank)
        mine = slice_ranges(view, place, view.rank)
        if had == mine:
            return whole
        key = (weight["key"], placed_text(place) or mine[0] if mine else (), mine[1:])
        if key not in self._slices:
            spots = tuple(within(a, b) for a, b in zip(had, mine, strict=True))
            self._slices[key] = cut(whole.detach(), spots).clone()
        return self._slices[key]

    def refresh(self, batch: int, tokens: int) -> None:
        """Bring what the optimizer updated into the weights that are computed with."""
        row, cls = self.program_for(batch, tokens)
        view, comm, weights = self.ready(cls)
        comm.base = self.artifact.base(row)
        self.transport.program = cls["file"]
        found = {
            weight["key"]: self.slice_of(weight, cls["gradients"][weight["key"]], weights[weight["key"]])
            for weight in cls["weights"]
            if weight["key"] in cls["gradients"]
        }  # fmt: skip
        with torch.no_grad():
            self.artifact.module(cls["file"]).refresh(view, comm, weights, found)
        self.transport.program = ""

    def program_for(self, batch: int, tokens: int) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """The (variant, class) rows of this rank for steps on [batch, tokens]."""
        env = {"batch": batch, "seq_len": tokens, "tokens": batch * tokens}
        return self.artifact.program("train", self.transport.rank, env)

    def located_gradients(self, found: StepResult) -> list[tuple[str, tuple, Tensor]]:
        """(weight's name, index ranges a dim, tensor) of this rank's reduced gradients."""
        names = {w["key"]: (w["fqns"] or [w["key"]])[0] for w in found.cls["weights"]}
        out = []
        for key, tensor in found.gradients.items():
            row = found.cls["gradients"][key]
            view = self.view_on(row["stage"]["mesh"])
            out.append((names[key], slice_ranges(view, row, view.rank), tensor))
        return out

    def placed_loss(self, found: StepResult) -> Placed | None:
        """Where the loss lies."""
        rows = [cls["outputs"]["loss"] for cls in found.row["classes"] if cls["outputs"]]
        return Placed(rows[0], (found.loss,), ((0, 1),), {}) if rows else None

    def prepared(self, weights: dict[str, Tensor], program: Mapping[str, Any]) -> dict[str, Tensor]:
        """Those that have a gradient as leaves; buffers and others record nothing.

        A tied weight that two stages of this rank hold alike becomes two, each with its own gradient.
        """
        seen: set[int] = set()
        for key in program.get("gradients", ()):
            tensor = weights[key]
            mine = tensor.clone() if id(tensor) in seen else tensor
            seen.add(id(tensor))
            weights[key] = mine.detach().requires_grad_()
        return weights


def function(module: ModuleType, kind: str, chunk: int) -> Callable[..., dict[str, Tensor]]:
    """A function of a training program."""
    found: Callable[..., dict[str, Tensor]] = getattr(module, f"{kind}_{chunk}")
    return found


def actions(row: Mapping[str, Any], cls: Mapping[str, Any]) -> list[Action]:
    """What a class runs, in order: the actions of the schedule on its chunks, or all, one by one."""
    chunks = [s["chunk"] for s in cls["sections"] if s["kind"] == "forward"]
    schedule = row.get("schedule")
    if schedule is None:
        count, turns = row["microbatches"], row.get("turns", 1)
        return [
            (kind, chunk, index)
            for first in range(0, count, turns)
            for kind, order in (("F", chunks), ("B", chunks[::-1]))
            for chunk in order
            for index in range(first, min(first + turns, count))
        ]
    order = schedule["order"]
    return [(kind, chunk, index) for kind, chunk, index in order if chunk in chunks]


def split(batch: int, count: int) -> list[tuple[int, int]]:
    """Balanced micro-batches; ArtifactError where one would be empty."""
    if batch < count:
        raise ArtifactError(f"a batch of {batch} has fewer sequences than {count} micro-batches")
    return split_batch(batch, count)


def sliced(x: Tensor, one: MicroBatch, view: Recorder) -> Tensor:
    """The rows of one micro-batch; a scalar is the same for all."""
    return (x[one.lo : one.hi] if x.dim() else x).to(view.device)
