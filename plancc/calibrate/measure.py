"""Measure this machine, stage by stage: local calls, verbs of groups of ranks, programs of decoders."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from plancc.calibrate import collectives, works
from plancc.calibrate.clock import QUICK, THOROUGH, Effort
from plancc.calibrate.document import Findings, document
from plancc.calibrate.machine import disturbances, this_machine, usable_cores
from plancc.calibrate.pace import TRIES, Pace
from plancc.calibrate.request import CalibrationError, Request, started
from plancc.calibrate.stages import program_stages
from plancc.runtime.local import run_local

SIZES = tuple(8 << (3 * step) for step in range(8))
"""Bytes of an operand: 8 B to 16 MiB."""
QUICK_SIZES = (8, 4096, 262144)
LAUNCHES, SHORT = 4, Effort(0.004, 3, 1)
"""How often ranks are started as threads, whose turns may be on one core or on several, and each effort."""
WORK = ("matmul", "attention", "memory")

Told = Callable[[int, int, str], None]
"""Is told of each stage: how many are done, how many there are, what comes next."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """The cluster file as data, and why it may be wrong."""

    document: Mapping[str, Any]
    warnings: tuple[str, ...]


def calibrate(
    request: Request, told: Told = lambda done, of, next: None, pace: Pace | None = None
) -> Calibration:
    """Measure. Raises CalibrationError, RankFailure.

    A stage is measured again (but for quick calibrations) while the machine is slower than at its best, which
    `pace` knows.
    """
    device = torch.device("cuda" if request.backend == "nccl" else "cpu")
    ranks = group_sizes(request)
    threads = torch.get_num_threads() if request.backend == "local" else 1
    machine = this_machine(device, threads)
    found = Findings(machine, request.backend, [], [], gpus=gpus() if device.type == "cuda" else 0)
    stages: list[tuple[str, Callable[[Findings], Findings]]] = [
        (f"{kind} {dtype}", partial(with_calls, request, kind, dtype, threads))
        for dtype in request.dtypes for kind in WORK
    ]  # fmt: skip
    stages += [(f"{n} ranks that meet", partial(with_verbs, request, n, threads)) for n in ranks]
    if device.type == "cpu":
        stages += program_stages(request, threads)
    pace = pace or Pace(device)
    for at, (name, stage) in enumerate(stages):
        told(at, len(stages), name)
        found = pace.steadily(
            partial(stage, found),
            1 if request.quick else TRIES,
            partial(told, at, len(stages), f"{name}, again: the machine is slow"),
        )
    told(len(stages), len(stages), "")
    spreads = [w.seconds for w in found.works] + [e.seconds for e in found.exchanges]
    return Calibration(document(found), tuple(disturbances(machine, spreads, pace.worst)))


def with_calls(request: Request, kind: str, dtype: str, threads: int, found: Findings) -> Findings:
    """Calls of one kind of work: on as many ranks at a time as can compute at a time."""
    if request.backend == "local":
        ranks = [works.rows_of(dtype, kind, request.quick, torch.device("cpu"), threads)]
    else:
        payload = {"dtype": dtype, "kind": kind, "quick": request.quick, "threads": threads}
        world = found.gpus or usable_cores()
        ranks = started(request.backend, world, "plancc.calibrate.works:run_rank", payload)
    return replace(found, works=[*found.works, *works.joined(ranks, dtype)])


def with_verbs(request: Request, count: int, threads: int, found: Findings) -> Findings:
    """The verbs among `count` ranks."""
    payload = {
        "sizes": QUICK_SIZES if request.quick else SIZES, "threads": threads,
        "effort": asdict(
            QUICK if request.quick else SHORT if request.backend == "local" else THOROUGH
        ),
    }  # fmt: skip
    if request.backend == "local":
        launches = [
            run_local(count, lambda t: collectives.run_rank(t, payload))
            for _ in range(1 if request.quick else LAUNCHES)
        ]
        ranks = collectives.together(launches)
    else:
        told = started(request.backend, count, "plancc.calibrate.collectives:run_rank", payload)
        ranks = [collectives.Measured.from_json(one) for one in told]
    cores = {"local": 1, "gloo": usable_cores(), "nccl": 0}[request.backend]
    met = collectives.joined(ranks, cores)
    return replace(found, exchanges=[*found.exchanges, *met])


def gpus() -> int:
    """How many GPUs there are."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def group_sizes(request: Request) -> tuple[int, ...]:
    """The sizes of groups to measure; CalibrationError for what this machine cannot."""
    if request.backend != "nccl":
        return request.ranks
    count = gpus()
    if not count:
        raise CalibrationError(
            "nccl needs GPUs, and this host has none: try --backend gloo or local"
        )
    return tuple(n for n in request.ranks if n <= count)


def save(document: Mapping[str, Any], path: Path) -> None:
    """Write the file whole or not at all; CalibrationError where it cannot be written."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        aside.write_text(text_of(document), encoding="utf-8")
        aside.replace(path)
    except OSError as problem:
        aside.unlink(missing_ok=True)
        raise CalibrationError(f"cannot write {path}: {problem.strerror or problem}") from problem


def text_of(document: Mapping[str, Any]) -> str:
    """The file's text: JSON in which constants and rows take a line each."""
    return "\n".join(lines_of(document)) + "\n"


def lines_of(value: Any) -> list[str]:
    """The lines of a value: one for what holds no further values."""
    if not isinstance(value, (dict, list)) or not nested(value):
        return [json.dumps(value)]
    opened, closed = "{}" if isinstance(value, dict) else "[]"
    items: Sequence[tuple[str, Any]] = (
        [(f"{json.dumps(key)}: ", one) for key, one in value.items()]
        if isinstance(value, dict)
        else [("", one) for one in value]
    )
    lines = [opened]
    for at, (head, one) in enumerate(items):
        inner = lines_of(one)
        comma = "," if at + 1 < len(items) else ""
        lines += [f"  {head}{inner[0]}", *(f"  {line}" for line in inner[1:])]
        lines[-1] += comma
    lines.append(closed)
    return lines


def nested(value: Any) -> bool:
    """Whether something in it holds further values."""
    inner = value.values() if isinstance(value, dict) else value
    return any(isinstance(one, (dict, list)) for one in inner)
