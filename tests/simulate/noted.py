"""Run plans with all ranks in this process, note every call of the transport, and predict them.

A call is noted as the `Verb` that its tensors say it is, so that kinds, groups, sizes, bytes given, and bytes
to and from each other rank are all compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from lowered import Lowered
from torch import Tensor

from plancc.ir.program import Compute, ProgramSet, RankProgram
from plancc.passes.base import Unit
from plancc.runtime.artifact import STRIDE
from plancc.runtime.comm import Comm
from plancc.runtime.lane import Lane
from plancc.runtime.loading import Loaded
from plancc.runtime.local import run_local
from plancc.runtime.meter import _COUNTS
from plancc.runtime.owners import Owners
from plancc.runtime.runner import GATHER_OUTPUT, MOVE_CACHE, Runner
from plancc.runtime.runner import Sequence as Running
from plancc.runtime.training.recorder import Unrecorded
from plancc.runtime.training.step import TrainRunner
from plancc.simulator.forms import Verb
from plancc.simulator.moved import cache_verbs, output_verbs, outputs_of, parts_of
from plancc.simulator.place import Place, Sizes
from plancc.simulator.routing import EVEN, Observed, Routing
from plancc.simulator.verbs import ProgramVerbs
from plancc.verification.cases import choose_case
from plancc.verification.reference import buffers_of, random_params

Steps = Sequence[tuple[str, Mapping[str, Tensor]]]
Calls = Mapping[int, Counter[Verb]]
"""Instruction number -> its calls, over all micro-batches."""


class Noting:
    """A transport around another that notes (number, Verb) of each call between ranks."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.rank, self.world, self.device = inner.rank, inner.world, inner.device
        self.counters, self.members = inner.counters, inner.members
        self.set_position, self.barrier = inner.set_position, inner.barrier
        self.calls: list[tuple[int, Verb]] = []

    @property
    def program(self) -> str:
        """The name of the rank's program."""
        return self.inner.program

    @program.setter
    def program(self, name: str) -> None:
        self.inner.program = name

    def lane(self) -> Lane:
        """A lane whose calls are noted too."""
        return Lane(self, False)

    def note(
        self, kind: str, group: tuple[int, ...], size: int, args: tuple[Any, ...], at: int,
        sends: Sequence[tuple[int, int]] = (), takes: Sequence[tuple[int, int]] = (),
    ) -> None:  # fmt: skip
        """Keep a call, unless it is with nobody else."""
        sends, takes = (tuple((r, n) for r, n in x if r != self.rank and n) for x in (sends, takes))
        if kind == "exchange":
            group = tuple(sorted({self.rank, *(r for r, _ in (*sends, *takes))}))
        if len(group) > 1:
            given = _COUNTS[kind](self.rank, *args)[1]
            self.calls.append((at, Verb(kind, group, size, given, sends, takes)))

    def all_reduce(self, x: Tensor, group: Any, at: int) -> Tensor:
        """Noted."""
        self.note("all_reduce", group, x.nbytes, (x, group, at), at)
        return self.inner.all_reduce(x, group, at)

    def all_gather(self, x: Tensor, group: Any, shapes: Any, at: int) -> list[Tensor]:
        """Noted."""
        self.note("all_gather", group, x.nbytes, (x, group, shapes, at), at)
        return self.inner.all_gather(x, group, shapes, at)

    def reduce_scatter(self, parts: Any, group: Any, at: int) -> Tensor:
        """Noted."""
        size = sum(x.nbytes for x in parts)
        self.note("reduce_scatter", group, size, (parts, group, at), at)
        return self.inner.reduce_scatter(parts, group, at)

    def all_to_all(self, parts: Any, group: Any, shapes: Any, at: int) -> list[Tensor]:
        """Noted."""
        sends = [(rank, x.nbytes) for rank, x in zip(group, parts, strict=True)]
        item = parts[0].element_size()
        takes = [(rank, prod(shape) * item) for rank, shape in zip(group, shapes, strict=True)]
        size = sum(n for _, n in sends)
        self.note("all_to_all", group, size, (parts, group, shapes, at), at, sends, takes)
        return self.inner.all_to_all(parts, group, shapes, at)

    def exchange(self, sends: Any, recvs: Any, at: int, channel: int = 0) -> list[Tensor]:
        """Noted."""
        given = [(rank, x.nbytes) for rank, x in sends]
        taken = [(rank, prod(shape) * dtype.itemsize) for rank, shape, dtype in recvs]
        size = sum(n for _, n in given)
        self.note("exchange", (), size, (sends, recvs, at, channel), at, given, taken)
        return self.inner.exchange(sends, recvs, at, channel)


@dataclass(frozen=True)
class Noted:
    """What one rank did in one step: calls of the program and of the runner, rows that were routed.

    `routes` are (instruction number, rows by target) in order, `old` the row of the step before and
    `before` its tables, `owners` the tables of this one.
    """

    row: Mapping[str, Any]
    tokens: int
    past: int
    owners: Owners
    batches: tuple[int, ...]
    calls: Sequence[tuple[int, Verb]]
    routes: Sequence[tuple[int, dict[int, int]]]
    old: Mapping[str, Any] | None = None
    before: Owners = field(default_factory=Owners)


def noting(kind: type[Comm], routes: list[tuple[int, dict[int, int]]]) -> type[Comm]:
    """A class of verbs that notes which rows go where."""

    class Watching(kind):  # type: ignore[valid-type, misc]
        def route(self, index: Any, *args: Any, at: int) -> Any:
            found = super().route(index, *args, at=at)
            routes.append((at, {rank: len(rows) for rank, rows in found.rows}))
            return found

    return Watching


def source_of(lowered: Lowered) -> Loaded:
    """Random weights in float32."""
    graph = lowered.compiled.graph
    return Loaded(random_params(graph, torch.float32), buffers_of(graph, torch.float32))


def inference(
    lowered: Lowered, unit: Unit | None = None, steps: Steps | None = None
) -> list[list[Noted]]:
    """Per rank, what it did in each step; every output is brought to all ranks.

    Without `steps` those of the unit's verification, the last one under its variant.
    """
    if steps is None:
        assert unit is not None
        steps = choose_case(unit, lowered.compiled.graph, torch.float32).steps
    source = source_of(lowered)

    def one(transport: Any) -> list[Noted]:
        noted, routes = Noting(transport), []
        runner = Runner(lowered.artifact, noted, source)
        runner.comm_class = noting(Comm, routes)
        state, found = Running(), []
        for number, (phase, inputs) in enumerate(steps):
            forced = unit is not None and number == len(steps) - 1
            past, old, before = state.past, state.row, deepcopy(state.owners)
            noted.calls, begin = [], len(routes)
            with torch.no_grad():
                variant = unit.variant.index if unit is not None and forced else None
                placed = runner.run(phase, inputs, state, variant=variant)
                for output in placed.values():
                    runner.everywhere(output)
            batches = next(iter(placed.values())).batches
            assert state.row is not None
            found.append(
                Noted(
                    state.row, state.past - past, past, deepcopy(state.owners),
                    tuple(hi - lo for lo, hi in batches), noted.calls, routes[begin:], old, before,
                )
            )  # fmt: skip
        return found

    return run_local(lowered.artifact.world, one)


def training(lowered: Lowered, inputs: Mapping[str, Tensor], variant: int = 0) -> list[Noted]:
    """Per rank, what it did in one training step and the refresh behind it."""
    source = source_of(lowered)

    def one(transport: Any) -> Noted:
        noted, routes = Noting(transport), []
        runner = TrainRunner(lowered.artifact, noted, source)
        runner.comm_class = noting(Unrecorded, routes)
        batch, tokens = next(iter(inputs.values())).shape[:2]
        found = runner.step(inputs, variant=variant)
        runner.refresh(batch, tokens)
        count = found.row["microbatches"]
        sizes = [batch * (i + 1) // count - batch * i // count for i in range(count)]
        view, _, _ = runner.ready(found.cls)
        return Noted(found.row, tokens, 0, view.owners, tuple(sizes), noted.calls, routes)

    return run_local(lowered.artifact.world, one)


def by_instruction(lowered: Lowered, one: Noted) -> Calls:
    """The calls of a rank's program, by instruction."""
    base = lowered.artifact.base(one.row)
    found: dict[int, Counter[Verb]] = {}
    for at, verb in one.calls:
        if at >= STRIDE:
            found.setdefault(at - base, Counter())[verb] += 1
    return found


def programs_of(lowered: Lowered, row: Mapping[str, Any]) -> ProgramSet:
    """The programs of a row of the manifest."""
    programs = lowered.compiled.unit(row["phase"], row["variant"]).programs
    assert programs is not None
    return programs


def runner_differences(lowered: Lowered, noted: Sequence[Noted]) -> list[str]:
    """Ranks whose runner itself moved something else than predicted: outputs, and caches."""
    found = []
    for rank, one in enumerate(noted):
        have = Counter((at, verb) for at, verb in one.calls if at < STRIDE)
        want = Counter(runner_calls(lowered, rank, one))
        if have != want:
            found.append(f"rank {rank}\npredicted {want - have}\ncounted {have - want}")
    return found


def runner_calls(lowered: Lowered, rank: int, one: Noted) -> Iterator[tuple[int, Verb]]:
    """(number, call) of what the runner moves for one step, from layouts alone."""
    programs, grids = programs_of(lowered, one.row), lowered.compiled.world.grids
    sizes = [Sizes(batch, one.tokens, one.past) for batch in one.batches]
    if one.old is not None and one.old["variant"] != one.row["variant"]:
        after = Owners(one.before)
        after.keep(parts_of(programs), one.past)
        tables = (one.before, after)
        old = programs_of(lowered, one.old)
        for size in sizes:
            for verb in cache_verbs(old, programs, rank, grids, size, tables):
                yield MOVE_CACHE, verb
    for held in outputs_of(programs).values():
        for index, size in enumerate(sizes):
            for verb in output_verbs(held, Place(rank, grids, size), noted_ranks(lowered)):
                yield GATHER_OUTPUT + index, verb


def noted_ranks(lowered: Lowered) -> Sequence[int]:
    """All ranks."""
    return range(lowered.artifact.world)


def predicted(
    lowered: Lowered, programs: ProgramSet, noted: Sequence[Noted]
) -> Iterator[tuple[RankProgram, int, Calls]]:
    """(program, rank, calls by instruction) of every rank, from layouts and the step's sizes."""
    nodes = lowered.artifact.manifest["nodes"]
    grids = lowered.compiled.world.grids
    tables = routings(programs, noted, lowered)
    for program in programs.programs:
        by_batch = [ProgramVerbs(program, grids, nodes, table) for table in tables]
        for rank in program.ranks:
            yield program, rank, of_rank(program, rank, grids, by_batch, noted[rank])


def of_rank(
    program: RankProgram, rank: int, grids: Any, by_batch: Sequence[ProgramVerbs], one: Noted
) -> Calls:
    """What one rank's instructions call in a step: those of `reduce` and `refresh` once, moves that
    take gradients in the last micro-batch."""
    found: dict[int, Counter[Verb]] = {}
    ends = [(s.start, s.kind) for s in program.sections]
    once = min((start for start, kind in ends if kind in ("reduce", "refresh")), default=1 << 62)
    last = len(one.batches) - 1
    for number, (batch, verbs) in enumerate(zip(one.batches, by_batch, strict=True)):
        place = Place(rank, grids, Sizes(batch, one.tokens, one.past))
        place.view.owners = one.owners
        for at, (step, calls) in enumerate(
            zip(program.instructions, verbs.verbs(place), strict=True)
        ):
            if (at >= once or getattr(step, "takes", ())) and number != last:
                continue
            for verb in calls:
                found.setdefault(at, Counter())[verb] += 1
    return found


def routings(programs: ProgramSet, noted: Sequence[Noted], lowered: Lowered) -> Sequence[Routing]:
    """For each micro-batch, the rows that its routers sent."""
    count = len(noted[0].batches)
    tables: list[dict[tuple[str, int, int], int]] = [{} for _ in range(count)]
    for program in programs.programs:
        for rank in program.ranks:
            seen: Counter[int] = Counter()
            for at, rows in noted[rank].routes:
                step = program.instructions[at]
                assert isinstance(step, Compute)
                for target, number in rows.items():
                    tables[seen[at]][step.origin.path, rank, target] = number
                seen[at] += 1
    return [Observed(table) if table else EVEN for table in tables]


def differences(
    lowered: Lowered, programs: ProgramSet, noted: Sequence[Noted]
) -> list[tuple[int, int, str]]:
    """(rank, instruction, what differs) of all that was predicted otherwise than it was counted."""
    found = []
    for program, rank, want in predicted(lowered, programs, noted):
        have = by_instruction(lowered, noted[rank])
        for at in sorted({*want, *have}):
            if want.get(at, Counter()) != have.get(at, Counter()):
                text = (
                    f"{program.instructions[at]}\npredicted {want.get(at)}\ncounted {have.get(at)}"
                )
                found.append((rank, at, text))
    return found


def check_inference(
    lowered: Lowered, unit: Unit | None = None, steps: Steps | None = None
) -> list[list[Noted]]:
    """Every call of every step, on every rank, is as predicted."""
    found = inference(lowered, unit, steps)
    for number in range(len(found[0])):
        noted = [one[number] for one in found]
        wrong = differences(lowered, programs_of(lowered, noted[0].row), noted)
        assert not wrong, wrong[0]
        moved = runner_differences(lowered, noted)
        assert not moved, moved[0]
    assert any(step.calls for one in found for step in one)
    return found


def check_training(lowered: Lowered, batch: int, tokens: int) -> set[str]:
    """Every call of a step of every variant, on every rank, is as predicted; the kinds of calls."""
    kinds = set()
    for unit in lowered.compiled.units:
        found = training(lowered, step_inputs(lowered, batch, tokens), unit.variant.index)
        assert unit.programs is not None
        wrong = differences(lowered, unit.programs, found)
        assert not wrong, wrong[0]
        kinds |= {verb.kind for one in found for _, verb in one.calls}
    assert kinds
    return kinds


def step_inputs(lowered: Lowered, batch: int, tokens: int) -> Mapping[str, Tensor]:
    """Random ids and targets below 60."""
    ids = lowered.compiled.graph.inputs[0].name
    generator = torch.Generator().manual_seed(2)
    numbers = torch.randint(60, (2, batch, tokens), generator=generator)
    return {ids: numbers[0], "targets": numbers[1], "scale": torch.tensor(1.0 / (batch * tokens))}


def moved_caches(found: Sequence[Sequence[Noted]]) -> int:
    """How many messages gave cached keys and values to other owners."""
    return sum(at == MOVE_CACHE for one in found for step in one for at, _ in step.calls)
