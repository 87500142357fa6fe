"""What instructions of emitted programs take where they stand, beside the work that they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plancc.api as api
from plancc.calibrate.point import Point
from plancc.calibrate.probed import Laps
from plancc.calibrate.toy import Decoder
from plancc.codegen.python import emit_program
from plancc.dsl.errors import Bug
from plancc.ir.program import Free, Instruction, RankProgram, produced
from plancc.passes.run_programs import parts_of
from plancc.simulator.forms import Work
from plancc.simulator.place import Place, Sizes, owned_parts
from plancc.simulator.work import ProgramWork

ALONE = """plan alone, edition 1
mesh base[tp = 1] on local
place ** on base
"""
SPLIT = """plan split, edition 1
mesh base[tp = 2] on local
place ** on base
place embed_tokens, lm_head { split vocab over tp }
place layers.*.attn { split heads over tp }
place layers.*.mlp { split ffn over tp }
"""
EXPERTS = """plan experts, edition 1
mesh base[dp = 2] on local
place ** on base { split batch over dp }
place layers.*.mlp.experts { split experts over dp; route = top(2) }
"""
APART = """plan apart, edition 1
mesh base[tp = 1] on local[0:1]
mesh fa[sp = 2] on local[1:3]
place ** on base
place op attention in layers.*.attn on fa {
  split kv_seq over sp (block = ceil(seq_len / sp))
  combine out by logsumexp over sp (tree = [node, pod])
}
"""
"""Plans that decoders run under: alone, split over two ranks, routed experts, attention elsewhere."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds from one value of a program to the next: the instructions in between and their works."""

    function: str
    steps: tuple[Instruction, ...]
    works: tuple[tuple[Work, ...], ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Runs:
    """The samples of all programs so far, and the seconds around decode steps."""

    inference: tuple[Sample, ...] = ()
    training: tuple[Sample, ...] = ()
    around: tuple[float, ...] = ()


@dataclass(frozen=True)
class Compiled:
    """A decoder compiled under a plan: its artifact, grids, programs and probed files by phase and rank."""

    folder: Path
    grids: Mapping[str, Any]
    programs: Mapping[tuple[str, int], RankProgram]
    probed: Mapping[tuple[str, int], Path]
    ranks: int

    def run(self, point: Point) -> dict[str, Any]:
        """What a process is told of a run."""
        files = [str(self.probed[point.phase, rank]) for rank in range(self.ranks)]
        return {"folder": str(self.folder), "probed": files, "point": point.json()}


def compiled(model: Decoder, training: bool, home: Path, plan_text: str = ALONE) -> Compiled:
    """Compile a decoder into the folder `home`, with probes beside it."""
    home.mkdir(parents=True)
    plan = home / "toy.plan"
    plan.write_text(plan_text)
    built = api.compile(
        plan, model, home / "artifact", verify=False, for_="train" if training else "infer"
    )
    programs: dict[tuple[str, int], RankProgram] = {}
    probed: dict[tuple[str, int], Path] = {}
    for unit in built.compiled.units:
        assert unit.programs is not None
        phase = unit.graph.phase
        for number, program in enumerate(unit.programs.programs):
            path = home / f"probed_{phase}_{number}.py"
            path.write_text(emit_program(program, "toy", probes=True))
            programs |= {(phase, rank): program for rank in program.ranks}
            probed |= {(phase, rank): path for rank in program.ranks}
    world = built.compiled.world
    return Compiled(built.folder, world.grids, programs, probed, world.size)


def samples(found: Compiled, point: Point, ranks: Sequence[Laps]) -> Iterator[Sample]:
    """The samples of a run on all ranks."""
    for rank, laps in enumerate(ranks):
        yield from samples_of(found, point, rank, laps)


def samples_of(found: Compiled, point: Point, rank: int, laps: Laps) -> Iterator[Sample]:
    """The samples of one rank. Bug where its program has other probes than it should have."""
    program = found.programs[point.phase, rank]
    place = Place(
        rank, found.grids, Sizes(point.batch, point.tokens, point.past), owned_parts(program)
    )  # fmt: skip
    works = ProgramWork(program).works(place)
    at = 0
    for name, steps in parts_of(program):
        rest = iter(laps.get(name, ()))
        since: list[int] = []
        for step in steps:
            if not isinstance(step, Free):
                since.append(at)
            at += 1
            values = produced(step)
            if values and name in laps:
                seconds = sum(next(rest) for _ in values)
                chosen = [program.instructions[i] for i in since]
                yield Sample(name, tuple(chosen), tuple(works[i] for i in since), seconds)
                since = []
        if next(rest, None) is not None:
            raise Bug(f"{name} has more probes than values")
