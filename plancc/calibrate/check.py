"""Predicted against measured: the errors of a set of steps, and whether plans keep their order."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from plancc.calibrate.point import Point, Truth
from plancc.simulate.errors import SimulateError
from plancc.simulate.rows import Row, make_row
from plancc.simulate.subject import Subject


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


@dataclass(frozen=True, slots=True)
class Score:
    """Mean and largest absolute error of some steps, and how many pairs of a contest keep their order."""

    steps: int
    mean: float
    worst: float
    ordered: int
    pairs: int


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
    kept = sum(
        (a.predicted - b.predicted) * (a.measured - b.measured) > 0 for a, b in pairs
    )  # fmt: skip
    return Score(len(errors), statistics.fmean(errors), max(errors), kept, len(pairs))


def contests(checked: Iterable[Checked]) -> Iterable[tuple[Checked, Checked]]:
    """All pairs of steps that do the same work."""
    by_contest: dict[str, list[Checked]] = {}
    for one in checked:
        by_contest.setdefault(one.contest, []).append(one)
    for rivals in by_contest.values():
        yield from combinations(rivals, 2)
