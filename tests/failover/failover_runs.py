"""Runs whose ranks are killed: tiny models and plans, and who kills whom when."""

from __future__ import annotations

import functools
import os
import pydoc_data.topics
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plancc
from plancc.failover import spare_programs
from plancc.runtime.artifact import load_artifact
from plancc.runtime.failover import Event, Spares, train_with_failover
from plancc.runtime.failover.drive import Course
from plancc.runtime.training.loop import Outcome
from plancc.training import prepare, request_of, saved_run

ROOT = Path(__file__).parents[2]
TEXT = pydoc_data.topics.__file__
MODELS = str(ROOT / "examples" / "models.py")
MOE = {
    "hidden": "24", "ffn": "16", "heads": "4", "kv_heads": "2", "vocab": "260", "layers": "2",
    "experts": "4", "max_len": "256",
}  # fmt: skip
DENSE = {"layers": "2", "hidden": "24", "heads": "4", "ffn": "30", "vocab": "260", "max_len": "64"}
_ASIDE = tempfile.TemporaryDirectory()

SEPARATED = (ROOT / "examples" / "ma_separation.plan").read_text()
"""Without the wire types, which are out of every claim of equality."""
EXACT = (
    SEPARATED.replace("  grad_dtype = int8(block = 128)", "  #")
    .replace("; dtype = int8(block = 128, error_feedback = true)", "")
)  # fmt: skip
SMALL = (
    EXACT.replace("experts = 16", "experts = 4")
    .replace("rep = 2, hp = 2, sp = 3", "rep = 2, hp = 1, sp = 1").replace("ep = 4", "ep = 2")
    .replace("h100[0:12]", "h100[0:2]").replace("h100[12:16]", "h100[2:4]")
)  # fmt: skip
DATA = "plan data, edition 1\nmesh base[dp = {0}] on local\nplace ** on base {{ split batch over dp }}\n"
ZERO = (
    "plan zero, edition 1\nmodel m { mode = train }\nmesh base[dp = 2, z = 2] on local\n"
    "place ** on base { split batch over dp, z }\nplace ** { split optim over z }\n"
)
PLANS = {
    "whole": (EXACT, "moe", {**MOE, "experts": "16"}),
    "compressed": (SEPARATED, "moe", {**MOE, "experts": "16"}),
    "small": (SMALL, "moe", MOE),
    "sp": (
        SMALL.replace("sp = 1", "sp = 2").replace("0:2", "0:4").replace("2:4", "4:6"),
        "moe",
        MOE,
    ),
    "dp2": (DATA.format(2), "dense", DENSE),
    "dp3": (DATA.format(3), "dense", DENSE),
    "zero": (ZERO, "dense", DENSE),
    "zero_dp": (ZERO.replace("optim over z", "optim over dp"), "dense", DENSE),
    "tp": ((ROOT / "examples" / "tp.plan").read_text(), "dense", DENSE),
}


@functools.cache
def folder(name: str, for_: str = "train", precision: str | None = None) -> Path:
    """A compiled plan of PLANS."""
    from plancc.api import DTYPES

    text, model, args = PLANS[name]
    plan = Path(_ASIDE.name) / f"{name}.plan"
    plan.write_text(text)
    out = Path(_ASIDE.name) / f"{name}-{for_}-{precision}"
    plancc.compile(
        plan, f"{MODELS}:{model}", out, model_args=args, for_=for_, verify=False,
        dtype=DTYPES[precision] if precision else None,
    )  # fmt: skip
    return out


@functools.cache
def spares(name: str, for_: str = "train", precision: str | None = None) -> Spares:
    """Its programs for fewer replicas."""
    found = load_artifact(folder(name, for_, precision))
    aside = Path(_ASIDE.name) / f"{name}-{for_}-{precision}-fewer"
    return spare_programs(found, aside, verify=False)


def settings(**wanted: Any) -> dict[str, Any]:
    """A run on 8 x 32 tokens in float64."""
    return {
        "data": TEXT, "batch": 8, "seq_len": 32, "lr": 3e-3, "clip": 1.0, "precision": "fp64",
        **wanted,
    }  # fmt: skip


def undisturbed(name: str, **wanted: Any) -> Any:
    """The same run with nobody killed."""
    precision = wanted.get("precision")
    compiled = precision if precision in ("bf16", "fp16") else None
    return plancc.train(folder(name, "train", compiled), **settings(**wanted))


class Killer:
    """Kills ranks where they stand. `at(rank, word)` waits until an instruction of that word is run."""

    def __init__(self) -> None:
        self.course: Course | None = None
        self.pids: set[int] = set()
        self.scratch: Path | None = None

    def opened(self, course: Course) -> None:
        """Take note of a run that begins."""
        self.course, self.scratch = course, course.crew.scratch

    def kill(self, rank: int) -> None:
        """Kill a rank wherever it stands."""
        assert self.course is not None
        os.kill(self.course.crew.pids[rank], signal.SIGKILL)

    def later(self, rank: int, seconds: float) -> None:
        """Kill it after a time."""
        threading.Timer(seconds, lambda: self.kill(rank)).start()

    def at(self, rank: int, *words: str) -> None:
        """Kill it at an instruction whose description has one of the words."""
        threading.Thread(target=self._lurk, args=(rank, words), daemon=True).start()

    def _lurk(self, rank: int, words: tuple[str, ...]) -> None:
        assert self.course is not None
        crew = self.course.crew
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                pid = crew.pids[rank]
                if not self._stands(rank, words):
                    time.sleep(0.0005)
                    continue
                os.kill(pid, signal.SIGSTOP)
                there = self._stands(rank, words)
                os.kill(pid, signal.SIGKILL if there else signal.SIGCONT)
                if there:
                    return
            except (KeyError, ValueError, ProcessLookupError, AttributeError, IndexError):
                time.sleep(0.005)

    def _stands(self, rank: int, words: tuple[str, ...]) -> bool:
        assert self.course is not None
        crew = self.course.crew
        place = crew.seats.index(rank)
        at = crew.beacons.read(place).instruction
        return at is not None and any(word in crew.describe(place, at) for word in words)


class Told:
    """What a run told, in order. `steps` has what to do after a step, `acts` what to do in turn when a
    replica is back: at once, or `patience` steps later."""

    def __init__(self, killer: Killer, patience: int = 0) -> None:
        self.killer = killer
        self.patience = patience
        self.rows: list[dict[str, Any]] = []
        self.events: list[Event] = []
        self.steps: dict[int, Callable[[], None]] = {}
        self.acts: list[Callable[[], None]] = []

    def row(self, row: dict[str, Any]) -> None:
        """Take a row; do what is due at its step."""
        self.rows.append(row)
        self.steps.pop(row["step"], lambda: None)()

    def event(self, event: Event) -> None:
        """Take an event; whenever all are back, do the next thing."""
        self.events.append(event)
        if event.what == "back" and self.acts:
            act = self.acts.pop(0)
            if self.patience:
                self.steps[event.step + self.patience] = act
            else:
                act()

    @property
    def losses(self) -> list[float]:
        """The losses, step by step."""
        return [row["loss"] for row in self.rows]

    def said(self, what: str) -> list[Event]:
        """The events of one kind."""
        return [event for event in self.events if event.what == what]


def train(name: str, told: Told, *, rejoin: bool = True, **wanted: Any) -> Outcome:
    """Train with failover; every process and file of the run is gone afterwards."""
    precision = wanted.get("precision")
    compiled = precision if precision in ("bf16", "fp16") else None
    given = spares(name, "train", compiled)
    full = settings(**wanted)
    return go_through(
        given, request_of(full.pop("data"), {**full, "backend": "gloo"}), told, rejoin
    )


def resume(name: str, told: Told, **wanted: Any) -> Outcome:
    """Go on from a checkpoint, with failover."""
    request = request_of([], {"resume": True, "backend": "gloo", **wanted})
    return go_through(spares(name), request, told, True)


def go_through(given: Spares, request: Any, told: Told, rejoin: bool) -> Outcome:
    """Run a request."""
    job = prepare(given.full, request, saved_run(request)).job
    limit = min(60.0, request.time_limit)
    try:
        return train_with_failover(
            given, job, told.row, told.event, rejoin=rejoin, time_limit=limit,
            opened=told.killer.opened,
        )  # fmt: skip
    finally:
        nothing_left(told.killer)


def nothing_left(killer: Killer) -> None:
    """Assert that a run left no process and no file."""
    import multiprocessing

    assert killer.course is not None and killer.scratch is not None
    assert not killer.course.crew.workers and not killer.scratch.exists()
    assert not [p for p in multiprocessing.active_children() if p.name.startswith("rank ")]


def largest_difference(one: str | Path, other: str | Path) -> float:
    """The largest difference of all tensors of two checkpoints."""
    from plancc.runtime.checkpoint import Checkpoint
    from plancc.runtime.weights import whole

    first, second = Checkpoint.open(one), Checkpoint.open(other)
    assert first.names() == second.names()
    return max(
        float((first.read(n, whole(first.shape(n))) - second.read(n, whole(first.shape(n)))).abs().max())
        for n in first.names()
    )  # fmt: skip
