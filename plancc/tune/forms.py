"""The data of a search: what is asked, the settings that were tried, and what each gave."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import inf, log
from typing import Any

from plancc.simulator.rows import TIMES, Row

Sets = tuple[tuple[str, str], ...]
"""One setting: (parameter, text as `--set` takes it), in the order of the plan."""

DEVICES = "devices"
"""The code of a setting that needs devices which the cluster has not."""


class TuneError(Exception):
    """A search that cannot be made, for reasons that lie with what was asked; exit code 1."""


@dataclass(frozen=True, slots=True)
class Case:
    """One input that a plan is tuned for. `phase` is prefill, decode, train or forward."""

    phase: str
    batch: int
    seq_len: int

    def __str__(self) -> str:
        return f"{self.phase}, batch {self.batch} x {self.seq_len}"


@dataclass(frozen=True, slots=True)
class Metric:
    """What is to be made best. `phases` are those that it can be asked for, `title` is for people."""

    name: str
    title: str
    phases: tuple[str, ...]

    def of(self, cell: Cell) -> float:
        """What a cell costs by this metric, less is better; infinity where it does not fit."""
        row = cell.row
        if row is None or not row.fits or row.seconds is None or not row.tps:
            return inf
        if self.name == "memory":
            return peak_bytes(row)
        return 1 / row.tps if self.name == "tps" else row.seconds


METRICS = {
    metric.name: metric
    for metric in (
        Metric("tpot", "least time per output token", ("decode",)),
        Metric("ttft", "least time to the first token", ("prefill",)),
        Metric("step", "least time of a step", ("train", "forward")),
        Metric("tps", "most tokens per second", tuple(TIMES)),
        Metric("memory", "least memory on the fullest device", tuple(TIMES)),
        Metric("time", "least time", tuple(TIMES)),
    )
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One setting at one case: its row, or the `problem` for which there is none."""

    row: Row | None
    problem: str = ""

    @property
    def fits(self) -> bool:
        """Whether it was simulated."""
        return self.row is not None and self.row.fits


@dataclass(frozen=True, slots=True)
class Attempt:
    """What a setting gave: a cell for each case, or why the plan refused it.

    `code` is that of the first diagnostic, or DEVICES; "" where the plan took it. `same_as` is the earlier
    setting that makes the same plan. `meshes` counts the devices of each mesh.
    """

    sets: Sets
    cells: tuple[Cell, ...] = ()
    code: str = ""
    reason: str = ""
    same_as: Sets | None = None
    meshes: Mapping[str, int] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        """Plain data, which `attempt_of` reads."""
        found = asdict(self)
        found["cells"] = [
            {"row": cell.row.json() if cell.row else None, "problem": cell.problem}
            for cell in self.cells
        ]
        return found


Cost = Callable[[Attempt], float]
"""What is made least."""


def attempt_of(data: Mapping[str, Any]) -> Attempt:
    """The attempt of `Attempt.json`."""
    cells = [Cell(Row(**c["row"]) if c["row"] else None, c["problem"]) for c in data["cells"]]
    same = data["same_as"]
    return Attempt(
        sets_of(data["sets"]), tuple(cells), data["code"], data["reason"],
        None if same is None else sets_of(same), data["meshes"],
    )  # fmt: skip


def sets_of(pairs: Sequence[Sequence[str]]) -> Sets:
    """Settings out of plain lists."""
    return tuple((name, text) for name, text in pairs)


def peak_bytes(row: Row) -> float:
    """Memory on the fullest device of any mesh, in bytes."""
    return max(row.memory_gb.values(), default=0.0) * 1e9


def joint(metric: Metric) -> Cost:
    """What an attempt costs in all cases, in their geometric mean; infinity unless all fit.

    Of several cases it is the mean's logarithm, of one the cost itself, so that the least differences count.
    """

    def cost(attempt: Attempt) -> float:
        """Less is better."""
        costs = [metric.of(cell) for cell in attempt.cells]
        if not costs or inf in costs:
            return inf
        return costs[0] if len(costs) == 1 else sum(map(log, costs)) / len(costs)

    return cost


def at_case(metric: Metric, number: int) -> Cost:
    """What an attempt costs in one case."""
    return lambda attempt: metric.of(attempt.cells[number]) if attempt.cells else inf


def set_words(sets: Sets) -> str:
    """`--set tp=2 --set dp=4`."""
    return " ".join(f"--set {name}={text}" for name, text in sets)
