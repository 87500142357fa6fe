"""Runs of emitted programs that take the time of every instruction: what a call costs where it stands."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from plancc.calibrate.point import DECODE, TRAIN, WARM, Point
from plancc.runtime.artifact import Artifact, load_artifact, load_program
from plancc.runtime.loading import open_weights
from plancc.runtime.local import run_local
from plancc.runtime.prompts import vocabulary
from plancc.runtime.runner import Runner
from plancc.runtime.runner import Sequence as Running
from plancc.runtime.training.step import TrainRunner
from plancc.runtime.transport import Transport

AT = 24
"""Instruction number of the barrier before each run."""
Laps = dict[str, list[float]]
"""Function of a program -> median seconds between one probe and the next."""


class Stamps:
    """What a probed program calls behind every value: keeps the seconds since the probe before it."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.found: dict[str, list[list[float]]] = {}
        self.lap: list[float] = []
        self.last = 0.0

    def begin(self, function: str) -> None:
        """A function begins."""
        self.lap = []
        self.found.setdefault(function, []).append(self.lap)
        self.last = self.now()

    def __call__(self, name: str, value: object) -> None:
        """A value is there."""
        now = self.now()
        self.lap.append(now - self.last)
        self.last = self.now()

    def medians(self, warm: int) -> Laps:
        """The medians over all calls of each function but the first `warm`, less what a stamp takes."""
        self.begin("")
        for _ in range(1000):
            self("", None)
        empty = statistics.median(self.found.pop("")[0])
        return {
            name: [max(0.0, statistics.median(at) - empty) for at in zip(*laps[warm:], strict=True)]
            for name, laps in self.found.items()
        }


def probing(path: Path, stamps: Stamps) -> Any:
    """The functions of a probed program file, which begin a lap each."""

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(view: Any, *rest: Any) -> Any:
            view.probe = stamps
            stamps.begin(name)
            return function(view, *rest)

        return run

    module = load_program(path)
    found = {n: f for n, f in vars(module).items() if callable(f) and f.__module__ == module.__name__}
    return SimpleNamespace(**{name: timed(name, function) for name, function in found.items()})


def run_rank(transport: Transport, payload: Mapping[str, Any]) -> list[Laps]:
    """Entry of a process: every run that `payload` names, begun together with the other processes."""
    torch.set_num_threads(int(payload["threads"]))
    everyone = tuple(range(transport.world))
    found = []
    for run in payload["runs"]:
        transport.barrier(everyone, AT)
        found.append(laps_of(run, int(payload["threads"])))
    return found


def laps_of(run: Mapping[str, Any], threads: int) -> Laps:
    """One run in this process: {"folder": of the artifact of one rank, "probed": file, "point": ...}."""
    point = Point.from_json(run["point"])
    artifact = load_artifact(run["folder"])
    stamps = Stamps(time.thread_time if threads == 1 else time.perf_counter)
    module = probing(Path(run["probed"]), stamps)
    run_local(1, lambda transport: steps(artifact, transport, point, module))
    return stamps.medians(WARM)


def steps(artifact: Artifact, transport: Transport, point: Point, module: Any) -> None:
    """Make the point's steps, warm-up included, with the probed program."""
    generator = torch.Generator().manual_seed(0)
    length = point.prompt if point.phase == DECODE else point.tokens
    shape = (point.batch, length)
    ids = torch.randint(vocabulary(artifact), shape, generator=generator)
    if point.phase == TRAIN:
        train(TrainRunner(artifact, transport, open_weights(artifact)), ids, point, module)
        return
    runner = Runner(artifact, transport, open_weights(artifact))
    state = Running()

    def run(phase: str, given: Tensor, probe: Any = None) -> Tensor:
        placed = runner.run(phase, {runner.input_name(phase): given}, state, probe=probe)
        return runner.everywhere(placed["next_token"]).unsqueeze(1)

    with torch.no_grad():
        if point.phase == DECODE:
            ids = run("prefill", ids)
        for _ in range(WARM + point.steps):
            if point.phase != DECODE:
                state = Running()
            found = run(point.phase, ids, lambda file: module.step)
            ids = found if point.phase == DECODE else ids


def train(runner: TrainRunner, ids: Tensor, point: Point, module: Any) -> None:
    """Forward and backward steps, without an optimizer."""
    scale = torch.tensor(1.0 / ids.numel())
    for _ in range(WARM + point.steps):
        runner.step({"input_ids": ids, "targets": ids, "scale": scale}, probe=lambda file: module)


def joined(ranks: Sequence[Laps]) -> Laps:
    """The mean over processes."""
    first = ranks[0]
    return {
        name: [statistics.fmean(at) for at in zip(*(laps[name] for laps in ranks), strict=True)]
        for name in first
    }
