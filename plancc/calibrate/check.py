"""Predicted against measured: the errors of a set of steps, and whether plans keep their order."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import plancc.api as api
from plancc.calibrate.machine import NOISY
from plancc.calibrate.point import DECODE, PREFILL, TRAIN, WARM, Point, Truth
from plancc.calibrate.truth import measure
from plancc.simulator.errors import SimulateError
from plancc.simulator.rows import Row, make_row
from plancc.simulator.subject import Subject

STEPS = {PREFILL: 9, DECODE: 25, TRAIN: 7}
"""How many steps of a phase are run."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A step that was predicted (seconds) and measured. Steps of one `contest` do the same work."""

    name: str
    contest: str
    predicted: float
    truth: Truth

    @property
    def measured(self) -> float:
        """The median of the measured seconds."""
        return self.truth.seconds.median

    @property
    def error(self) -> float:
        """How far the prediction is off: 0.1 is ten percent too long."""
        return self.predicted / self.measured - 1

    def __str__(self) -> str:
        """`tp, prefill 1 x 128: 40.4 ms measured on 2 ranks (gloo), 39.4 ms predicted, -2%`."""
        noise = self.truth.seconds.noise
        apart = f", quartiles {noise:.0%} apart" if noise > NOISY else ""
        return (
            f"{self.name}, {self.contest}: {self.measured * 1e3:.1f} ms measured on "
            f"{self.truth.ranks} ranks ({self.truth.point.backend}{apart}), "
            f"{self.predicted * 1e3:.1f} ms predicted, {self.error:+.0%}"
        )


@dataclass(frozen=True, slots=True)
class Score:
    """Mean and largest absolute error of some steps, and how many pairs of a contest keep their order.

    `turned` has for each of the other pairs how much slower the slower one was when measured.
    """

    steps: int
    mean: float
    worst: float
    pairs: int
    turned: tuple[float, ...]

    @property
    def ordered(self) -> int:
        """How many pairs keep their order."""
        return self.pairs - len(self.turned)


def point_of(row: Row, backend: str) -> Point:
    """The step that a row predicts, as it can be run. SimulateError for one that cannot."""
    past = row.seq_len - 1 if row.phase == DECODE else 0
    steps = STEPS.get(row.phase, 1)
    if row.phase == DECODE:
        steps = max(1, min(steps, 2 * (past - WARM - 1)))
    try:
        return Point(row.phase, row.batch, row.seq_len - past, past, backend, steps)
    except ValueError as problem:
        raise SimulateError(f"{row.phase} {row.batch} x {row.seq_len}: {problem}") from problem


def run_row(
    row: Row, backend: str, plan: str | Path, model: str, sets: Mapping[str, str],
    model_args: Mapping[str, str],
) -> Checked:  # fmt: skip
    """Compile the plan aside and run a predicted row's steps for real.

    SimulateError for what has no time or cannot be run, and what `compile` and `measure` raise.
    """
    point = point_of(row, backend)
    if row.seconds is None:
        raise SimulateError(f"{row.phase} {row.batch} x {row.seq_len}: {row.reason}")
    for_ = "train" if row.phase == TRAIN else "infer"
    with tempfile.TemporaryDirectory(prefix="plancc-check-") as folder:
        built = api.compile(
            plan, model, Path(folder) / "artifact", sets=sets, model_args=model_args,
            verify=False, for_=for_,
        )  # fmt: skip
        truth = measure(built.artifact, point)
    return Checked(row.plan, f"{row.phase} {row.batch} x {row.seq_len}", row.seconds, truth)


def predict(subject: Subject, point: Point) -> Row:
    """The predicted row of a point, as `plancc run` and `plancc train` would make its steps.

    SimulateError where the plan does not admit it, or it would not fit into memory.
    """
    row, _ = make_row(
        subject, point.phase, point.batch, point.past + point.tokens, lockstep=True
    )  # fmt: skip
    if not row.fits:
        raise SimulateError(row.reason)
    return row


def seconds_of(row: Row) -> float:
    """The seconds of a row that fits."""
    assert row.seconds is not None
    return row.seconds


def score(checked: Sequence[Checked]) -> Score:
    """The score of at least one step."""
    errors = [abs(one.error) for one in checked]
    pairs = list(contests(checked))
    turned = tuple(
        max(a.measured, b.measured) / min(a.measured, b.measured) - 1
        for a, b in pairs
        if (a.predicted - b.predicted) * (a.measured - b.measured) <= 0
    )
    return Score(len(errors), statistics.fmean(errors), max(errors), len(pairs), turned)


def contests(checked: Iterable[Checked]) -> Iterable[tuple[Checked, Checked]]:
    """All pairs of steps that do the same work."""
    by_contest: dict[str, list[Checked]] = {}
    for one in checked:
        by_contest.setdefault(one.contest, []).append(one)
    for rivals in by_contest.values():
        yield from combinations(rivals, 2)
