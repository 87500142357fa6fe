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


def program_stages(request: Request, threads: int) -> list[Stage]:
    """The stages that run programs; training only in the first dtype."""
    plan = points(request.quick, request.backend)
    texts = [(ALONE, width) for width in plan.widths]
    texts += [(SPLIT, plan.split), (APART, plan.split), (EXPERTS, plan.experts)]
    found: list[Stage] = [
        (
            title(f"{dtype} decoder", width, text),
            partial(infer, request, plan, width, dtype, text, threads),
        )
        for dtype in request.dtypes
        for text, width in texts
    ]
    found += [
        (
            title("training of a decoder", width, ALONE),
            partial(train, request, plan, width, threads),
        )
        for width in plan.trained
    ]
    return [*found, ("training steps", partial(optimize, request))]


def title(what: str, width: Width, text: str) -> str:
    """A decoder in few words, and how it is placed."""
    return f"{what} {width.layers} x {width.hidden}, {width.heads} heads, {text.split()[1][:-1]}"


def infer(
    request: Request, plan: Plan, width: Width, dtype: str, text: str, threads: int, found: Findings
) -> Findings:  # fmt: skip
    """Prefills and decode steps of one decoder under a plan: more rows."""
    chosen = plan.points if text == ALONE else plan.points[::2]
    with tempfile.TemporaryDirectory(prefix="plancc-decoder-") as folder:
        model = Decoder(width).to(dtype_named(dtype))
        decoder = compiled(model, False, Path(folder) / "decoder", text)
        laps = all_laps(request, decoder, chosen, threads)
    more, around = list(found.runs.inference), list(found.runs.around)
    for point, one in zip(chosen, laps, strict=True):
        more += samples(decoder, point, one)
        if point.phase == DECODE and text == ALONE:
            around += one[0][AROUND]
    runs = replace(found.runs, inference=tuple(more), around=tuple(around))
    host = {"instruction": instruction_seconds(more), "step": statistics.median(around)}
    return replace(found, rows=rows_of(more), host={**found.host, **host}, runs=runs)


def train(request: Request, plan: Plan, width: Width, threads: int, found: Findings) -> Findings:
    """Forward and backward of one decoder: what autograd adds."""
    with tempfile.TemporaryDirectory(prefix="plancc-decoder-") as folder:
        model = Decoder(width).to(dtype_named(request.dtypes[0]))
        decoder = compiled(model, True, Path(folder) / "decoder")
        laps = all_laps(request, decoder, plan.training, threads)
        more = list(found.runs.training)
        for point, one in zip(plan.training, laps, strict=True):
            more += samples(decoder, point, one)
    hardware = parse_cluster(document(found)).place([0])
    runs = replace(found.runs, training=tuple(more))
    return replace(found, host={**found.host, **autograd_seconds(more, hardware)}, runs=runs)


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


def optimize(request: Request, found: Findings) -> Findings:
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
