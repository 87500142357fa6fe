"""How far predictions of the simulator are off on this machine: steps predicted, and steps run for real.

`python -m tests.benchmarks model` does all of it; `python -m tests.benchmarks.model table` predicts again the
steps that were measured last.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from plancc.calibrate.check import Checked, predict, score, seconds_of
from plancc.calibrate.machine import Machine, this_machine
from plancc.calibrate.measure import calibrate, save
from plancc.calibrate.pace import Pace
from plancc.calibrate.point import Truth
from plancc.calibrate.request import Request
from plancc.calibrate.truth import measure
from plancc.compiler import compile_graph
from plancc.dsl import load_plan
from plancc.models import load_model
from plancc.passes.capture import capture
from plancc.simulator.cluster import Cluster, read_cluster
from plancc.simulator.subject import Subject
from tests.benchmarks.model_cases import CASES, Case

HERE = Path(__file__).parent
KEPT = HERE / "model"
BACKENDS = ("local", "gloo")
CPU = torch.device("cpu")
LAUNCHES = 3
"""How often the ranks of a step are started; the middle one counts."""
THREADS = 1
"""That a rank computes with, of either backend."""
PARTS = {True: "looked at while the model was made", False: "nothing in the model was changed for"}


def clusters_here(folder: Path, pace: Pace) -> None:
    """Measure this machine into local.json and gloo.json."""
    for backend in BACKENDS:
        found = calibrate(
            Request(backend), lambda done, of, stage: tell(f"{done}/{of} {stage}"), pace
        )
        for warning in found.warnings:
            tell(f"WARNING: {warning}")
        save(found.document, folder / f"{backend}.json")


def truths(cases: Sequence[Case], pace: Pace) -> dict[str, Any]:
    """Run all steps: the machine, and what each step took, by its name."""
    found: dict[str, Any] = {
        "machine": this_machine(CPU, THREADS).json(),
        "steps": {},
    }
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            artifact = case.compiled(Path(folder))
            run = partial(measure, artifact, case.point)
            truth = middle([pace.steadily(run) for _ in range(LAUNCHES)])
        found["steps"][case.name] = truth.json()
        tell(
            f"{case.name}: {truth.seconds.median * 1e3:.1f} ms, quartiles {truth.seconds.noise:.0%} apart"
        )
    found["slower"] = pace.worst
    return found


def middle(found: Sequence[Truth]) -> Truth:
    """The one with the median seconds."""
    return sorted(found, key=lambda one: one.seconds.median)[len(found) // 2]


def checked(
    cases: Sequence[Case], measured: Mapping[str, Any], folder: Path
) -> Iterator[tuple[Case, Checked]]:
    """Predict the steps that were measured."""
    clusters = {backend: read_cluster(folder / f"{backend}.json") for backend in BACKENDS}
    for case in cases:
        truth = Truth.from_json(measured["steps"][case.name])
        row = predict(subject(case, clusters[case.point.backend]), case.point)
        yield case, Checked(case.name, case.contest, seconds_of(row), truth)


def subject(case: Case, cluster: Cluster) -> Subject:
    """A case's plan and model, compiled for a cluster."""
    resolved, report = load_plan(case.plan, case.sets)
    assert resolved is not None, report.diagnostics
    graph = capture(load_model(case.spec, case.args).module)
    phases = ("train",) if case.point.phase == "train" else None
    return Subject(compile_graph(resolved, graph, report, phases=phases), cluster)


def table(cases: Sequence[Case], measured: Mapping[str, Any], folder: Path) -> list[str]:
    """The lines of the table, and what the errors are."""
    found = list(checked(cases, measured, folder))
    lines = [
        "| step | predicted ms | measured ms (quartiles apart) | error |",
        "| --- | --- | --- | --- |",
    ]
    for known, title in PARTS.items():
        mine = [one for case, one in found if case.known == known]
        lines.append(f"| **{title}** | | | |")
        lines += [row_of(one) for one in mine]
        lines.append(f"| mean of {len(mine)} | | | {error_text(mine)} |")
    whole = score([one for _, one in found])
    order = f"Order kept in {whole.ordered} of {whole.pairs} pairs of plans that do the same work"
    if whole.turned:
        order += f"; the plans of the others were measured at most {max(whole.turned):.0%} apart"
    return [*lines, "", f"{order}."]


def row_of(one: Checked) -> str:
    """A line of the table."""
    noise = f"{one.truth.seconds.noise:.0%}"
    return (
        f"| {one.name} | {one.predicted * 1e3:.1f} | {one.measured * 1e3:.1f} ({noise}) "
        f"| {one.error:+.0%} |"
    )


def error_text(mine: Sequence[Checked]) -> str:
    """The mean absolute error of some steps, and the worst."""
    if not mine:
        return "none"
    result = score(mine)
    return f"{result.mean:.1%}, worst {result.worst:.0%}"


def section(keep: bool) -> list[str]:
    """Calibrate, run all steps, predict them: the table. `keep`: leave files and figures in KEPT."""
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(THREADS)
        folder = KEPT if keep else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pace = Pace(CPU)
        clusters_here(folder, pace)
        write(truths(CASES, pace), folder)
        return told(folder)


def told(folder: Path) -> list[str]:
    """The table of what was measured into a folder, and on which machine that was."""
    measured = json.loads((folder / "truth.json").read_text())
    machine = Machine(**measured["machine"])
    about = (
        "Steps that `plancc simulate` predicts with cluster files of `plancc calibrate`, against the same "
        f"steps run for real (the middle one of {LAUNCHES} launches, quartiles of its steps); steps were "
        f"{machine.about}, which was at most {measured['slower']:.0%} slower than at its best:"
    )
    return [about, "", *table(CASES, measured, folder)]


def write(found: Mapping[str, Any], folder: Path) -> None:
    """Keep what was measured, whole or not at all."""
    path = folder / "truth.json"
    aside = path.with_suffix(f".{os.getpid()}.part")
    aside.write_text(json.dumps(found, indent=1) + "\n")
    aside.replace(path)


def tell(text: str) -> None:
    """A line of progress."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def main() -> None:
    """One of the parts of `section`, on the files of a folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("what", choices=("calibrate", "measure", "table"))
    parser.add_argument(
        "--folder", type=Path, default=KEPT, help="of local.json, gloo.json, truth.json"
    )
    parser.add_argument("--only", default="", help="measure the steps whose names contain this")
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    if args.what == "calibrate":
        clusters_here(args.folder, Pace(CPU))
    elif args.what == "measure":
        found = truths([case for case in CASES if args.only in case.name], Pace(CPU))
        if args.only:
            kept = json.loads((args.folder / "truth.json").read_text())
            found["steps"] = {**kept["steps"], **found["steps"]}
        write(found, args.folder)
    else:
        print("\n".join(told(args.folder)))


if __name__ == "__main__":
    main()
