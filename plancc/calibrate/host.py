"""The seconds of Python around kernels: what is left of steps of tiny decoders, few layers against many."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plancc.api as api
from plancc.calibrate.point import DECODE, TRAIN, Point
from plancc.calibrate.toy import Toy
from plancc.calibrate.truth import measure
from plancc.simulate.cluster import parse_cluster
from plancc.simulate.place import Place, Sizes
from plancc.simulate.script import operator, python_calls
from plancc.simulate.subject import Subject
from plancc.simulate.work import ProgramWork

PLAN = """plan toy, edition 1
mesh base[tp = 1] on local
place ** on base
"""
LAYERS = (1, 9)
BATCH, TOKENS, PAST = 1, 8, 40
STEPS = 33


@dataclass(frozen=True, slots=True)
class Toys:
    """A step of a tiny decoder: seconds of its programs and of the rest, and what they are made of.

    `kernels` are seconds that the file already says of its calls, `calls` how many calls of Python there
    are, `parameters` how many the optimizer steps.
    """

    programs: float
    rest: float
    kernels: float
    calls: int
    parameters: int


def host_seconds(document: Mapping[str, Any], backend: str, quick: bool) -> dict[str, float]:
    """The constants HOST of a cluster file that has none yet."""
    steps = STEPS // 3 if quick else STEPS
    decode, train = (
        [toys(layers, phase, document, backend, steps) for layers in LAYERS]
        for phase in (DECODE, TRAIN)
    )
    instruction, recorded = (between(pair, "programs") for pair in (decode, train))
    parameter = between(train, "rest")
    return {
        "instruction": instruction, "recorded": recorded, "parameter": parameter,
        "step": left(decode[0], instruction, 0.0), "train_step": left(train[0], recorded, parameter),
    }  # fmt: skip


def between(pair: list[Toys], what: str) -> float:
    """Seconds that each further call (or parameter, of the rest) takes beside its kernels; not negative."""
    few, many = pair
    if what == "rest":
        return max(0.0, (many.rest - few.rest) / (many.parameters - few.parameters))
    seconds = many.programs - few.programs - (many.kernels - few.kernels)
    return max(0.0, seconds / (many.calls - few.calls))


def left(toy: Toys, call: float, parameter: float) -> float:
    """What a step takes beside kernels, calls and parameters; not negative."""
    known = toy.kernels + toy.calls * call + toy.parameters * parameter
    return max(0.0, toy.programs + toy.rest - known)


def toys(
    layers: int, phase: str, document: Mapping[str, Any], backend: str, steps: int
) -> Toys:
    """Compile a tiny decoder for one rank, and run it."""
    point = (
        Point(DECODE, BATCH, 1, PAST, backend, steps) if phase == DECODE
        else Point(TRAIN, BATCH, TOKENS, 0, backend, steps)
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="plancc-toy-") as folder:
        plan = Path(folder) / "toy.plan"
        plan.write_text(PLAN)
        built = api.compile(
            plan, Toy(layers), Path(folder) / "artifact", verify=False,
            for_="train" if phase == TRAIN else "infer",
        )  # fmt: skip
        truth = measure(built.artifact, point)
        subject = Subject(built.compiled, parse_cluster(document))
    kernels, calls = kernels_of(subject, point)
    params = sum(1 for _ in Toy(layers).parameters())
    return Toys(truth.computing[0], truth.busy[0] - truth.computing[0], kernels, calls, params)


def kernels_of(subject: Subject, point: Point) -> tuple[float, int]:
    """Seconds of the kernels of a step of one rank, and how many calls of Python make them."""
    unit = subject.unit(point.phase, point.batch, point.past + point.tokens)
    assert unit.programs is not None
    (program,) = unit.programs.programs
    sizes = Sizes(point.batch, point.tokens, point.past)
    works = ProgramWork(program).works(Place(0, subject.compiled.world.grids, sizes))
    seconds, calls = 0.0, 0
    for step, made in zip(program.instructions, works, strict=True):
        calls += python_calls(step, made)
        name = operator(step, made)
        seconds += sum(subject.hardware.seconds(0, work, name) for work in made)
    return seconds, calls
