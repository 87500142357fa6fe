"""Measure this machine, stage by stage: local calls, verbs of groups of ranks, Python around them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from plancc.calibrate import collectives, works
from plancc.calibrate.clock import QUICK, THOROUGH
from plancc.calibrate.collectives import Exchange
from plancc.calibrate.document import Findings, document
from plancc.calibrate.host import host_seconds
from plancc.calibrate.machine import disturbances, this_machine, usable_cores
from plancc.calibrate.works import Timed
from plancc.runtime.local import run_local

RANKS = (2, 3, 4, 8)
SIZES = tuple(8 << (3 * step) for step in range(8))
"""Bytes of an operand: 8 B to 16 MiB."""
QUICK_SIZES = (8, 4096, 262144)
WORK = ("matmul", "attention", "memory")
TIME_LIMIT = 120.0
"""Seconds that one measured call, or a lap of them, may take."""

Told = Callable[[int, int, str], None]
"""Is told of each stage: how many are done, how many there are, what comes next."""


class CalibrationError(Exception):
    """What was asked for cannot be measured here; the user's side, exit code 1."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to measure: the backend, group sizes of collectives, dtypes (short names), few sizes or all."""

    backend: str = "local"
    ranks: tuple[int, ...] = RANKS
    dtypes: tuple[str, ...] = ("f32",)
    quick: bool = False


@dataclass(frozen=True, slots=True)
class Calibration:
    """The cluster file as data, and why it may be wrong."""

    document: Mapping[str, Any]
    warnings: tuple[str, ...]


def calibrate(request: Request, told: Told = lambda done, of, next: None) -> Calibration:
    """Measure. Raises CalibrationError, RankFailure."""
    ranks = group_sizes(request)
    device = torch.device("cuda" if request.backend == "nccl" else "cpu")
    threads = torch.get_num_threads() if request.backend == "local" else 1
    machine = this_machine(device, threads)
    kinds = [(kind, dtype) for dtype in request.dtypes for kind in WORK]
    stages = [f"{kind} {dtype}" for kind, dtype in kinds]
    stages += [f"collectives of {count} ranks" for count in ranks]
    stages += [] if device.type == "cuda" else ["Python around calls"]
    done = iter(range(len(stages)))

    def next_stage() -> None:
        at = next(done)
        told(at, len(stages), stages[at])

    timed: list[Timed] = []
    for kind, dtype in kinds:
        next_stage()
        timed += local_calls(request, kind, dtype, threads)
    exchanges: list[Exchange] = []
    for count in ranks:
        next_stage()
        exchanges += verbs(request, count, threads)
    found = Findings(
        machine, request.backend, timed, exchanges,
        gpus=torch.cuda.device_count() if device.type == "cuda" else 0,
    )  # fmt: skip
    if device.type != "cuda":
        next_stage()
        found = with_host(found, host_seconds(document(found), request.backend, request.quick))
    told(len(stages), len(stages), "")
    spreads = [one.seconds for one in (*timed, *exchanges)]
    return Calibration(document(found), tuple(disturbances(machine, spreads)))


def with_host(found: Findings, host: Mapping[str, float]) -> Findings:
    """The findings with the seconds of Python."""
    return Findings(found.machine, found.backend, found.works, found.exchanges, host, found.gpus)


def group_sizes(request: Request) -> tuple[int, ...]:
    """The sizes of groups to measure; CalibrationError for what this machine cannot."""
    if request.backend != "nccl":
        return request.ranks
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise CalibrationError("nccl needs GPUs, and this host has none: try --backend gloo or local")
    return tuple(n for n in request.ranks if n <= count)


def local_calls(request: Request, kind: str, dtype: str, threads: int) -> list[Timed]:
    """The calls of one kind of work: on as many ranks at a time as can compute at a time."""
    payload = {"dtype": dtype, "kind": kind, "quick": request.quick, "threads": threads}
    if request.backend == "local":
        return works.joined([works.rows_of(dtype, kind, request.quick, torch.device("cpu"), threads)], dtype)
    world = torch.cuda.device_count() if request.backend == "nccl" else usable_cores()
    return works.joined(started(request.backend, world, "plancc.calibrate.works:run_rank", payload), dtype)


def verbs(request: Request, count: int, threads: int) -> list[Exchange]:
    """The verbs among `count` ranks."""
    payload = {
        "sizes": QUICK_SIZES if request.quick else SIZES, "threads": threads,
        "effort": asdict(QUICK if request.quick else THOROUGH),
    }  # fmt: skip
    if request.backend == "local":
        return collectives.joined(run_local(count, lambda t: collectives.run_rank(t, payload)))
    entry = "plancc.calibrate.collectives:run_rank"
    return collectives.joined(started(request.backend, count, entry, payload))


def started(backend: str, world: int, entry: str, payload: Mapping[str, Any]) -> list[Any]:
    """What the processes of all ranks return."""
    from plancc.runtime.launch import launch

    return launch(world, entry, dict(payload), backend=backend, time_limit=TIME_LIMIT)


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
