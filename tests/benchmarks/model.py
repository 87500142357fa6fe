"""How far predictions of the simulator are off on this machine: steps predicted, and steps run for real.

`python -m tests.benchmarks.model measure FILE` calibrates (unless clusters are given: `--clusters FOLDER`
with local.json and gloo.json) and runs all steps; what was measured goes into FILE. `... table FILE CLUSTERS`
predicts the steps of such a file again, and prints the table.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from plancc.calibrate.check import Checked, predict, score, seconds_of
from plancc.calibrate.machine import this_machine
from plancc.calibrate.measure import calibrate, save
from plancc.calibrate.point import Truth
from plancc.calibrate.request import Request
from plancc.calibrate.truth import measure
from plancc.compiler import compile_graph
from plancc.dsl import load_plan
from plancc.models import load_model
from plancc.passes.capture import capture
from plancc.simulate.cluster import Cluster, read_cluster
from plancc.simulate.subject import Subject
from tests.benchmarks.model_cases import CASES, Case

HERE = Path(__file__).parent
KEPT = HERE / "model"
BACKENDS = ("local", "gloo")


def clusters_here(folder: Path) -> None:
    """Measure this machine into local.json and gloo.json."""
    for backend in BACKENDS:
        found = calibrate(Request(backend), lambda done, of, stage: tell(f"{done}/{of} {stage}"))
        for warning in found.warnings:
            tell(f"WARNING: {warning}")
        save(found.document, folder / f"{backend}.json")


def truths(cases: Sequence[Case]) -> dict[str, Any]:
    """Run all steps: the machine, and what each step took, by its name."""
    import torch

    import plancc.api

    found: dict[str, Any] = {"machine": this_machine(torch.device("cpu"), 1).json(), "steps": {}}
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            built = plancc.api.compile(
                case.plan, case.spec, Path(folder) / "a", sets=case.sets, model_args=case.args,
                verify=False, for_="train" if case.point.phase == "train" else "infer",
            )  # fmt: skip
            truth = measure(built.artifact, case.point)
        found["steps"][case.name] = truth.json()
        tell(
            f"{case.name}: {truth.seconds.median * 1e3:.1f} ms, quartiles {truth.seconds.noise:.0%} apart"
        )
    return found


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
    for known, title in ((True, "looked at while the model was made"), (False, "not looked at")):
        mine = [(case, one) for case, one in found if case.known == known]
        if not mine:
            continue
        lines.append(f"| **{title}** | | | |")
        for _, one in mine:
            lines.append(
                f"| {one.name} | {one.predicted * 1e3:.1f} | {one.measured * 1e3:.1f} "
                f"({one.truth.seconds.noise:.0%}) | {one.error:+.0%} |"
            )
        result = score([one for _, one in mine])
        lines.append(
            f"| mean of {result.steps}, absolute | | | {result.mean:.1%} (worst {result.worst:.0%}) |"
        )
    whole = score([one for _, one in found])
    lines += [
        "",
        f"Order kept in {whole.ordered} of {whole.pairs} pairs of plans that do the same work.",
    ]
    return lines


def tell(text: str) -> None:
    """A line of progress."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def main() -> None:
    """Measure or tell."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("calibrate", "measure", "table"))
    parser.add_argument(
        "--folder", type=Path, default=KEPT, help="local.json, gloo.json and truth.json"
    )
    parser.add_argument("--only", default="", help="steps whose names contain this")
    args = parser.parse_args()
    cases = [case for case in CASES if args.only in case.name]
    path = args.folder / "truth.json"
    if args.what == "calibrate":
        clusters_here(args.folder)
    elif args.what == "measure":
        found = truths(cases)
        if path.exists() and args.only:
            kept = json.loads(path.read_text())
            found["steps"] = {**kept["steps"], **found["steps"]}
        aside = path.with_suffix(f".{os.getpid()}.part")
        aside.write_text(json.dumps(found, indent=1) + "\n")
        aside.replace(path)
    else:
        print("\n".join(table(cases, json.loads(path.read_text()), args.folder)))


if __name__ == "__main__":
    main()
