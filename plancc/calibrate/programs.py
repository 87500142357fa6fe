"""Rows of measured calls, and the seconds of Python, from runs of decoders of several widths."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from plancc.calibrate.point import DECODE, PREFILL, TRAIN, Point
from plancc.calibrate.samples import Sample
from plancc.calibrate.toy import Width
from plancc.ir.program import Backward
from plancc.simulator.hardware import Hardware
from plancc.simulator.script import as_measured, operator, python_calls, whole

BY_OPERATOR = ("memory", "attention")
"""The kinds of work that operators do differently: matrix products are all alike."""
Rows = dict[str, dict[str, list[list[float]]]]
"""Operator (or kind of work) -> dtype -> [FLOPs, bytes, seconds]."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Which decoders run what: `widths` the inference of `points`, `trained` the steps of `training`.

    `split` runs the inference under tensor parallelism and with attention elsewhere, `experts` with experts:
    for the operators that only such programs have.
    All but the quick ones have more weights than caches hold.
    """

    widths: tuple[Width, ...]
    split: Width
    experts: Width
    points: tuple[Point, ...]
    trained: tuple[Width, ...]
    training: tuple[Point, ...]


def points(quick: bool, backend: str) -> Plan:
    """The runs of a calibration: prefills of 16 to 512 rows, decodes of 1 to 32, training steps."""
    if quick:
        return Plan(
            (Width(1, 64, 1, 176, 260), Width(2, 256, 4, 704, 512)), Width(1, 64, 2, 176, 260),
            Width(1, 64, 1, 64, 260, experts=4),
            (Point(DECODE, 2, 1, 32, backend, 5), Point(PREFILL, 2, 32, 0, backend, 3)),
            (Width(1, 64, 1, 176, 260),), (Point(TRAIN, 1, 32, 0, backend, 3),),
        )  # fmt: skip
    shapes = ((1, 16), (1, 64), (1, 200), (4, 128))
    decodes = ((1, 64), (1, 500), (2, 128), (4, 256), (8, 128), (16, 64), (32, 64))
    return Plan(
        (
            Width(20, 256, 4, 704, 1024), Width(20, 512, 2, 352, 1024), Width(6, 512, 8, 1408, 4096),
            Width(4, 1024, 4, 704, 2048), Width(2, 1024, 16, 2816, 8192),
        ),
        Width(6, 512, 8, 1408, 4096), Width(2, 512, 4, 1024, 1024, experts=8),
        (
            *(Point(PREFILL, batch, tokens, 0, backend, 5) for batch, tokens in shapes),
            *(Point(DECODE, batch, 1, past, backend, 9) for batch, past in decodes),
        ),
        (Width(2, 512, 2, 352, 1024), Width(2, 512, 8, 1408, 4096)),
        tuple(Point(TRAIN, batch, tokens, 0, backend, 5) for batch, tokens in ((1, 32), (4, 64))),
    )  # fmt: skip


def rows_of(samples: Iterable[Sample]) -> Rows:
    """Rows of the operators that were sampled; equal calls are one row, with the median of their seconds.

    "memory" has the medians over memory-bound operators, for those that were not sampled.
    """
    found: dict[tuple[str, str], dict[tuple[int, int], list[float]]] = {}
    for sample in samples:
        works = [work for each in sample.works for work in each]
        if len(sample.steps) != 1 or not works:
            continue
        name = operator(sample.steps[0])
        if len(works) > 1 and not name:
            continue
        work = whole(works) if len(works) > 1 else works[0]
        names = {work.kind} if len(works) == 1 else set()
        if name and (len(works) > 1 or work.kind in BY_OPERATOR):
            names.add(name)
        for name in names:
            rows = found.setdefault((name, work.dtype), {})
            rows.setdefault((work.flops, work.moved), []).append(sample.seconds)
    out: Rows = {}
    for (name, dtype), rows in found.items():
        out.setdefault(name, {})[dtype] = [
            [flops, size, statistics.median(seconds)]
            for (flops, size), seconds in sorted(rows.items())
        ]
    return out


def instruction_seconds(samples: Iterable[Sample]) -> float:
    """The median seconds of an instruction without a kernel: a view."""
    found = [
        sample.seconds for sample in samples
        if len(sample.steps) == 1 and not any(sample.works) and python_calls(sample.steps[0], ())
    ]  # fmt: skip
    return statistics.median(found) if found else 0.0


def autograd_seconds(samples: Sequence[Sample], hardware: Hardware) -> Mapping[str, float]:
    """What autograd adds to a call that it records, and to each kernel that it runs backwards.

    The means of what samples of training take beyond what `hardware` says of their works.
    """
    left = {"recorded": 0.0, "backward": 0.0}
    calls = {"recorded": 0, "backward": 0}
    for sample in samples:
        backwards = any(isinstance(step, Backward) for step in sample.steps)
        name = "backward" if backwards else "recorded"
        left[name] += sample.seconds - known_seconds(sample, hardware)
        calls[name] += sum(map(python_calls, sample.steps, sample.works))
    return {name: max(0.0, left[name] / max(1, calls[name])) for name in left}


def known_seconds(sample: Sample, hardware: Hardware) -> float:
    """What a file says of the works of a sample, and of its instructions without works."""
    found = 0.0
    for step, works in zip(sample.steps, sample.works, strict=True):
        name = operator(step)
        for work in as_measured(hardware, 0, step, works):
            found += hardware.seconds(0, work, name)
        if not works:
            found += hardware.host(0, "instruction") * python_calls(step, works)
    return found


@dataclass(frozen=True, slots=True)
class Steps:
    """A training step of a decoder: seconds behind its programs; parameters, and bytes that Adam moves."""

    seconds: float
    parameters: int
    bytes: int


def optimizer_seconds(few: Steps, many: Steps, wide: Steps) -> tuple[dict[str, float], list[float]]:
    """What follows the programs of a training step: HOST constants, and a row of Adam's kernels.

    `few` and `many` have parameters so small that only their number counts; `wide` has large ones.
    """
    each = max(0.0, (many.seconds - few.seconds) / (many.parameters - few.parameters))
    step = max(0.0, few.seconds - few.parameters * each)
    left = max(wide.seconds - step - wide.parameters * each, 1e-9)
    return {"parameter": each, "train_step": step}, [0, wide.bytes, left]
