"""Simulate the points: plans are compiled once, and every row says what it is a row of."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch

from papers.cases import CASES, CLUSTER, HERE, Case, Point
from plancc.compiler import compile_graph
from plancc.dsl import load_plan
from plancc.dsl.errors import PlanError
from plancc.ir.graph import Graph
from plancc.models import load_model
from plancc.passes.capture import capture
from plancc.simulator.actors import FEW
from plancc.simulator.cluster import Cluster, read_cluster
from plancc.simulator.rows import UTILISATION, Row, make_row
from plancc.simulator.subject import Subject

Record = dict[str, Any]
Say = Callable[[str], None]
PHASES = {"decode": ("decode", "prefill"), "prefill": ("decode", "prefill"), "train": ("train",)}
"""What is compiled for a point of a phase."""


@cache
def hardware(settings: str = "", preset: str = "honest") -> Cluster:
    """The cluster of the page, with some constants changed."""
    cluster = read_cluster(CLUSTER, HERE.parent).preset(preset)
    return cluster.with_(*settings.split()) if settings else cluster


@cache
def graph_of(model: str, args: str) -> Graph:
    """A model of models.py, captured in bf16."""
    options = dict(word.split("=") for word in args.split())
    return capture(load_model(f"{HERE / 'models.py'}:{model}", options, torch.bfloat16).module)


@cache
def subject_of(case: Case, phases: tuple[str, ...], few: int = FEW) -> Subject:
    """A case, compiled and placed on its hardware; PlanError if the plan is wrong.

    Ranks that do the same are one actor beyond `few` of them, see `Subject`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{case.plan}.plan"
        path.write_text(case.text, "utf-8")
        sets = dict(word.split("=") for word in case.sets.split())
        plan, report = load_plan(str(path), sets)
    if plan is None:
        raise PlanError(report.diagnostics)
    compiled = compile_graph(plan, graph_of(case.model, case.args), report, phases=phases)
    return Subject(compiled, hardware(case.hardware, case.preset), few=few)


def subject_at(point: Point, few: int | None = None) -> Subject:
    """The subject of a point; `few` by default what is fast where it makes no difference."""
    case = CASES[point.case]
    alike = case.model == "dense" and point.phase == "decode" and not case.hardware
    return subject_of(case, PHASES[point.phase], (0 if alike else FEW) if few is None else few)


def row_of(point: Point, few: int | None = None) -> Row:
    """One point."""
    count = point.micro or None
    subject = subject_at(point, few)
    return make_row(subject, point.phase, point.batch, point.seq_len, microbatches=count)[0]


def record_of(point: Point, row: Row) -> Record:
    """A row as it is stored: under the case's name, without what the case says."""
    found = row.json()
    for name in ("plan", "variant"):
        del found[name]
    return {"case": point.case, "asked": point.micro, **rounded(found)}


def rounded(value: Any) -> Any:
    """Numbers with nine digits: what differs in the tenth is not told apart."""
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return value


def measure(wanted: Sequence[Point], say: Say = print) -> Record:
    """All points; the content of results.json."""
    records = []
    said: dict[str, None] = {}
    slow = (0.0, "")
    begun = time.monotonic()
    for at, point in enumerate(wanted, 1):
        now = time.monotonic()
        records.append(record_of(point, row_of(point)))
        slow = max(slow, (time.monotonic() - now, str(point)))
        case = CASES[point.case]
        if not case.hardware and case.preset == Case.preset:
            said.update(dict.fromkeys(subject_at(point).assumptions))
        if at % 100 == 0:
            say(f"{at} of {len(wanted)} points, {time.monotonic() - begun:.0f} s")
    say(
        f"{len(wanted)} points, {time.monotonic() - begun:.0f} s; the slowest {slow[0]:.1f} s: {slow[1]}"
    )
    return {"facts": facts(list(said)), "rows": records}


def facts(assumptions: list[str]) -> Record:
    """What all rows have in common."""
    cluster = hardware()
    return {
        "predicted": True,
        "cluster": CLUSTER,
        "constants": {name: cluster.values[name] for name in sorted(cluster.values)},
        "parameters": {
            "dense": parameters("dense", ""), "moe": parameters("moe", "ffn=16384"),
        },
        "utilisation": UTILISATION,
        "assumptions": assumptions,
        "cases": {name: asdict(case) for name, case in CASES.items()},
    }  # fmt: skip


def parameters(model: str, args: str) -> int:
    """How many parameters a model has."""
    return sum(count(p.value.shape) for p in graph_of(model, args).params.values())


def count(shape: Sequence[Any]) -> int:
    """The elements of a shape."""
    found = 1
    for size in shape:
        found *= int(size)
    return found


def stored_text(found: Record) -> str:
    """results.json, one line a row."""
    rows = ",\n".join(json.dumps(row) for row in found["rows"])
    return f'{{"facts": {json.dumps(found["facts"], indent=1)},\n"rows": [\n{rows}\n]}}\n'
