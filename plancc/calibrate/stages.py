"""The stages of a calibration that run programs: decoders, inference and training, what is around them."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

import plancc.api as api
from plancc.calibrate import probed
from plancc.calibrate.document import Findings, document
from plancc.calibrate.machine import usable_cores
from plancc.calibrate.point import DECODE, TRAIN, Point
from plancc.calibrate.probed import AROUND
from plancc.calibrate.programs import (
    Plan,
    Rows,
    Steps,
    autograd_seconds,
    instruction_seconds,
    optimizer_seconds,
    points,
    rows_of,
)
from plancc.calibrate.request import Request, started
from plancc.calibrate.samples import (
    ALONE,
    APART,
    EXPERTS,
    SPLIT,
    Compiled,
    Sample,
    compiled,
    samples,
)
from plancc.calibrate.toy import Decoder, Width
from plancc.calibrate.truth import measure
from plancc.runtime.view import dtype_named
from plancc.simulator.cluster import parse_cluster

TINY = (Width(1, 16, 1, 16, 260, 16), Width(9, 16, 1, 16, 260, 16))
WIDE = Width(2, 512, 8, 1408, 4096)
QUICK_WIDE = Width(1, 128, 2, 352, 260)
ADAM_WORDS = 7
Stage = tuple[str, Callable[[Findings], Findings]]


class Runs:
    """The samples so far, which the last stages work on, and seconds around decode steps."""

    def __init__(self) -> None:
        self.inference: list[Sample] = []
        self.training: list[Sample] = []
        self.around: list[float] = []


def program_stages(request: Request, threads: int) -> list[Stage]:
    """The stages that run programs; training only in the first dtype."""
    plan, runs = points(request.quick, request.backend), Runs()
    texts = [(ALONE, width) for width in plan.widths]
    texts += [(SPLIT, plan.split), (APART, plan.split), (EXPERTS, plan.experts)]
    found: list[Stage] = [
        (
            title(f"{dtype} decoder", width, text),
            partial(infer, request, plan, width, dtype, text, threads, runs),
        )
        for dtype in request.dtypes
        for text, width in texts
    ]
    found += [
        (
            title("training of a decoder", width, ALONE),
            partial(train, request, plan, width, threads, runs),
        )
        for width in plan.trained
    ]
    return [*found, ("training steps", partial(optimize, request, runs))]


def title(what: str, width: Width, text: str) -> str:
    """A decoder in few words, and how it is placed."""
    return f"{what} {width.layers} x {width.hidden}, {width.heads} heads, {text.split()[1][:-1]}"


def infer(
    request: Request, plan: Plan, width: Width, dtype: str, text: str, threads: int, runs: Runs,
    found: Findings,
) -> Findings:  # fmt: skip
    """Prefills and decode steps of one decoder under a plan: more rows."""
    chosen = plan.points if text == ALONE else plan.points[::2]
    with tempfile.TemporaryDirectory(prefix="plancc-decoder-") as folder:
        model = Decoder(width).to(dtype_named(dtype))
        decoder = compiled(model, False, Path(folder) / "decoder", text)
        laps = all_laps(request, decoder, chosen, threads)
    for point, one in zip(chosen, laps, strict=True):
        runs.inference += samples(decoder, point, one)
        if point.phase == DECODE and text == ALONE:
            runs.around += one[0][AROUND]
    rows = rows_of(runs.inference)
    host = {
        "instruction": instruction_seconds(runs.inference),
        "step": statistics.median(runs.around),
    }
    return replace(found, rows=rows, host={**found.host, **host})


def train(
    request: Request, plan: Plan, width: Width, threads: int, runs: Runs, found: Findings
) -> Findings:
    """Forward and backward of one decoder: what autograd adds."""
    with tempfile.TemporaryDirectory(prefix="plancc-decoder-") as folder:
        model = Decoder(width).to(dtype_named(request.dtypes[0]))
        decoder = compiled(model, True, Path(folder) / "decoder")
        laps = all_laps(request, decoder, plan.training, threads)
        for point, one in zip(plan.training, laps, strict=True):
            runs.training += samples(decoder, point, one)
    hardware = parse_cluster(document(found)).place([0])
    return replace(found, host={**found.host, **autograd_seconds(runs.training, hardware)})


def all_laps(
    request: Request, decoder: Compiled, chosen: Sequence[Point], threads: int
) -> list[list[probed.Laps]]:
    """The laps of all points, by rank: of this process, or the means of a process a core."""
    told = [decoder.run(point) for point in chosen]
    if request.backend == "local":
        return [probed.laps_of(one, threads) for one in told]
    payload = {"runs": told, "threads": threads}
    ranks = started(request.backend, usable_cores(), "plancc.calibrate.probed:run_rank", payload)
    return [
        [probed.joined(laps) for laps in zip(*runs, strict=True)]
        for runs in zip(*ranks, strict=True)
    ]


def optimize(request: Request, runs: Runs, found: Findings) -> Findings:
    """Training steps of tiny decoders and a wide one: what is behind the programs."""
    wide = QUICK_WIDE if request.quick else WIDE
    few, many, large = (behind(request, width) for width in (*TINY, wide))
    host, row = optimizer_seconds(few, many, large)
    rows: Rows = {**found.rows, "adam": {"f32": [row]}}
    return replace(found, rows=rows, host={**found.host, **host})


def behind(request: Request, width: Width) -> Steps:
    """What one rank does behind the programs of a training step, in seconds on a core."""
    point = Point(TRAIN, 1, 16, 0, request.backend, 5 if request.quick else 15)
    with tempfile.TemporaryDirectory(prefix="plancc-decoder-") as folder:
        plan = Path(folder) / "one.plan"
        plan.write_text(ALONE)
        model = Decoder(width)
        built = api.compile(plan, model, Path(folder) / "artifact", verify=False, for_="train")
        truth = measure(built.artifact, point)
    count = sum(p.numel() for p in model.parameters())
    size = count * ADAM_WORDS * torch.float32.itemsize
    return Steps(truth.busy[0] - truth.computing[0], len(list(model.parameters())), size)
