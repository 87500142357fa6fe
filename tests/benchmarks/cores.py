"""Steps of ranks on gloo as they run, against the same ranks left to the system (`PLANCC_CORES=free`)."""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path
from unittest.mock import patch

import torch

from plancc.calibrate.machine import this_machine
from plancc.calibrate.truth import measure
from plancc.runtime.cores import FREE, SWITCH
from tests.benchmarks.model_cases import EXAMPLES, PLANS, TP, Case, decode, experts, one, prefill

ROUNDS = 5
CASES = (
    one(TP, prefill("gloo"), tp=2), one(TP, decode("gloo"), tp=2), one(TP, decode("gloo", 8), tp=4),
    one(EXAMPLES / "dp_tp.plan", prefill("gloo", 4, 64), dp=2, tp=2),
    one(PLANS / "fa.plan", decode("gloo")), one(PLANS / "stages.plan", prefill("gloo", 4, 64)),
    experts("expert_data_parallel.plan", prefill("gloo", 4, 64), True),
)  # fmt: skip


def section() -> list[str]:
    """Run the cases both ways by turns: the table."""
    about = this_machine(torch.device("cpu"), 1).about
    return [
        "A step on gloo ranks, which share cores as `plancc.runtime.cores` says, and with "
        f"`{SWITCH}={FREE}`: medians of {ROUNDS} launches each, by turns, and what the busiest rank "
        f"spent on a core; {about}:",
        "",
        "| step | ms (on a core) | left to the system | ratio |",
        "| --- | --- | --- | --- |",
        *(row_of(case) for case in CASES),
    ]


def row_of(case: Case) -> str:
    """Measure a case: its line."""
    found: dict[str, list[tuple[float, float]]] = {"": [], FREE: []}
    with tempfile.TemporaryDirectory() as folder:
        artifact = case.compiled(Path(folder))
        for _ in range(ROUNDS):
            for setting, rows in found.items():
                with patch.dict(os.environ, {SWITCH: setting}):
                    truth = measure(artifact, case.point)
                rows.append((truth.seconds.median * 1e3, max(truth.busy) * 1e3))
    (ours, on), (free, burnt) = (
        [statistics.median(column) for column in zip(*rows, strict=True)] for rows in found.values()
    )
    return f"| {case.name} | {ours:.1f} ({on:.1f}) | {free:.1f} ({burnt:.1f}) | {ours / free:.2f} |"
