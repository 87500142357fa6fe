"""What instructions of emitted programs take where they stand, beside the work that they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
from plancc.simulate.forms import Work
from plancc.simulate.place import Place, Sizes
from plancc.simulate.work import ProgramWork

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


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds from one value of a program to the next: the instructions in between and their works."""

    function: str
    steps: tuple[Instruction, ...]
    works: tuple[tuple[Work, ...], ...]
    seconds: float


@dataclass(frozen=True)
class Compiled:
    """A decoder compiled for ranks of one program: its artifact, grids, and a probed program a phase."""

    folder: Path
    grids: Mapping[str, Any]
    programs: Mapping[str, RankProgram]
    probed: Mapping[str, Path]

    def run(self, point: Point) -> dict[str, Any]:
        """What a process is told of a run."""
        return {
            "folder": str(self.folder), "probed": str(self.probed[point.phase]),
            "point": point.json(),
        }  # fmt: skip


def compiled(model: Decoder, training: bool, home: Path, plan_text: str = ALONE) -> Compiled:
    """Compile a decoder into the folder `home`, with probes beside it."""
    home.mkdir(parents=True)
    plan = home / "toy.plan"
    plan.write_text(plan_text)
    built = api.compile(
        plan, model, home / "artifact", verify=False, for_="train" if training else "infer"
    )
    programs, probed = {}, {}
    for unit in built.compiled.units:
        assert unit.programs is not None
        (programs[unit.graph.phase],) = unit.programs.programs
        path = probed[unit.graph.phase] = home / f"probed_{unit.graph.phase}.py"
        path.write_text(emit_program(programs[unit.graph.phase], "toy", probes=True))
    return Compiled(built.folder, built.compiled.world.grids, programs, probed)


def samples(found: Compiled, point: Point, laps: Laps) -> Iterator[Sample]:
    """The samples of a run. Bug where its program has other probes than it should have."""
    program = found.programs[point.phase]
    sizes = Sizes(point.batch, point.tokens, point.past)
    works = ProgramWork(program).works(Place(0, found.grids, sizes))
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
