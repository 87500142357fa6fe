"""Plant faults: in the instructions of rank programs, an artifact's text, the weights read."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lowered import SCRATCH, Lowered
from torch import Tensor

from plancc.codegen.manifest import write_artifact
from plancc.ir.graph import Ref
from plancc.ir.program import Collective, Compute, Instruction, ProgramSet, RankProgram
from plancc.passes.check_programs import program_problems
from plancc.runtime.artifact import load_artifact
from plancc.runtime.loading import Loaded
from plancc.runtime.runner import Runner
from plancc.verification import Verification, VerifyResult

Change = Callable[[RankProgram], RankProgram]


def programs_of(lowered: Lowered) -> ProgramSet:
    """The programs of the last phase that was compiled."""
    programs = lowered.compiled.units[-1].programs
    assert programs is not None
    return programs


def planted(lowered: Lowered, change: Change, only: Sequence[int] | None = None) -> Lowered:
    """The same with `change` applied to all programs of the last phase, or to those at `only`."""
    *others, unit = lowered.compiled.units
    old = programs_of(lowered)
    changed = tuple(
        change(p) if only is None or i in only else p for i, p in enumerate(old.programs)
    )
    unit = replace(unit, programs=replace(old, programs=changed))
    compiled = replace(lowered.compiled, units=(*others, unit))
    folder = Path(tempfile.mkdtemp(dir=SCRATCH.name)) / "artifact"
    write_artifact(
        folder, compiled.plan, compiled.world, compiled.sets, compiled.graph,
        {"weights": {"kind": "seed", "seed": 0}},
    )  # fmt: skip
    return Lowered(compiled, load_artifact(folder))


def checked(lowered: Lowered) -> list[str]:
    """What the static check says of the programs."""
    return program_problems(programs_of(lowered))


def caught(lowered: Lowered) -> bool:
    """Whether the check or the verification sees that the programs are wrong."""
    return bool(checked(lowered)) or not lowered.verify().ok


def swapped(old: Any, new: Any) -> Change:
    """Programs with one instruction replaced by another, or dropped."""

    def change(program: RankProgram) -> RankProgram:
        steps = (new if step == old else step for step in program.instructions)
        return replace(program, instructions=tuple(s for s in steps if s is not None))

    return change


def collectives(lowered: Lowered, *kinds: str) -> Iterator[Collective]:
    """The collectives of all programs, each once, in order."""
    seen: list[Collective] = []
    for program in programs_of(lowered).programs:
        for step in program.instructions:
            wanted = isinstance(step, Collective) and (not kinds or step.kind in kinds)
            if wanted and step not in seen:
                seen.append(step)
    yield from seen


def missing(step: Collective) -> Compute:
    """What stands in the place of a collective that was forgotten: its operand, as it is."""
    return Compute("aten.clone.default", (Ref(step.operand),), {}, (step.out,), step.origin)


def holders(lowered: Lowered, step: Instruction) -> list[int]:
    """The places of the programs that have an instruction."""
    return [i for i, p in enumerate(programs_of(lowered).programs) if step in p.instructions]


def edited(lowered: Lowered, file: str, old: str, new: str, *, seal: bool = True) -> Path:
    """A copy of the artifact with one `old` of a file replaced; with `seal`, hashes made good."""
    folder = Path(tempfile.mkdtemp(dir=SCRATCH.name)) / "artifact"
    shutil.copytree(lowered.artifact.folder, folder)
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1))
    if seal:
        manifest = json.loads((folder / "manifest.json").read_text())
        del manifest["seal"]
        manifest["files"][file] = hashlib.sha256((folder / file).read_bytes()).hexdigest()
        manifest["seal"] = hashlib.sha256(json.dumps(manifest, indent=1).encode()).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    return folder


class Shifted(Loaded):
    """Weights of which one slice is read one index further on (round the end)."""

    def __init__(self, plain: Loaded, fqn: str, dim: int) -> None:
        super().__init__(plain.params, plain.buffers)
        self.fqn, self.dim = fqn, dim

    def read(self, fqn: str, ranges: Sequence[tuple[tuple[int, int], ...]]) -> Tensor:
        """The slice, shifted for the one parameter."""
        if fqn != self.fqn:
            return super().read(fqn, ranges)
        whole = self.params[fqn].roll(-1, self.dim)
        return Loaded({fqn: whole}, {}).read(fqn, ranges)


def verified_with_shift(lowered: Lowered, fqn: str, dim: int, rank: int) -> VerifyResult:
    """The verification in which one rank reads one parameter one index further on."""

    class Faulty(Verification):
        def runner(self, transport: Any) -> Runner:
            plain = Loaded(self.params, self.buffers)
            source = Shifted(plain, fqn, dim) if transport.rank == rank else plain
            return Runner(self.artifact, transport, source, dtype=torch.float64)

    return Faulty(lowered.compiled, lowered.artifact).run()
