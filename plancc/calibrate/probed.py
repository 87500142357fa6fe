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
"""Function of a program -> median seconds between one probe and the next; AROUND -> those around it."""
AROUND = "around"


class Stamps:
    """What a probed program calls behind every value: keeps the seconds since the probe before it."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.found: dict[str, list[list[float]]] = {}
        self.lap: list[float] = []
        self.last = 0.0
        self.inside = 0.0

    def begin(self, function: str) -> None:
        """A function begins."""
        self.lap = []
        self.found.setdefault(function, []).append(self.lap)
        self.last = self.now()

    def around(self, step: Callable[[], object]) -> None:
        """Make a step: what it takes outside of the program's functions is kept, too."""
        self.inside = 0.0
        began = self.now()
        step()
        self.found.setdefault(AROUND, []).append([self.now() - began - self.inside])

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
            began = stamps.now()
            stamps.begin(name)
            found = function(view, *rest)
            stamps.inside += stamps.now() - began
            return found

        return run

    module = load_program(path)
    found = {
        n: f for n, f in vars(module).items() if callable(f) and f.__module__ == module.__name__
    }
    return SimpleNamespace(**{name: timed(name, function) for name, function in found.items()})


def run_rank(transport: Transport, payload: Mapping[str, Any]) -> list[list[Laps]]:
    """Entry of a process: every run that `payload` names, begun together with the other processes."""
    torch.set_num_threads(int(payload["threads"]))
    everyone = tuple(range(transport.world))
    found = []
    for run in payload["runs"]:
        transport.barrier(everyone, AT)
        found.append(laps_of(run, int(payload["threads"])))
    return found


def laps_of(run: Mapping[str, Any], threads: int) -> list[Laps]:
    """One run in this process, by rank: {"folder": of the artifact, "probed": file a rank, "point": ...}."""
    point = Point.from_json(run["point"])
    artifact = load_artifact(run["folder"])

    def one(transport: Transport) -> Laps:
        stamps = Stamps(time.thread_time if threads == 1 else time.perf_counter)
        module = probing(Path(run["probed"][transport.rank]), stamps)
        steps(artifact, transport, point, module, stamps)
        return stamps.medians(WARM)

    return run_local(artifact.world, one)


def steps(
    artifact: Artifact, transport: Transport, point: Point, module: Any, stamps: Stamps
) -> None:
    """Make the point's steps, warm-up included, with the probed program."""
    generator = torch.Generator().manual_seed(0)
    length = point.prompt if point.phase == DECODE else point.tokens
    shape = (point.batch, length)
    ids = torch.randint(vocabulary(artifact), shape, generator=generator)
    if point.phase == TRAIN:
        runner = TrainRunner(artifact, transport, open_weights(artifact))
        given = {"input_ids": ids, "targets": ids, "scale": torch.tensor(1.0 / ids.numel())}
        for _ in range(WARM + point.steps):
            stamps.around(lambda: runner.step(given, probe=lambda file: module))
        return
    with torch.no_grad():
        generation(Runner(artifact, transport, open_weights(artifact)), ids, point, module, stamps)


def generation(runner: Runner, ids: Tensor, point: Point, module: Any, stamps: Stamps) -> None:
    """Prefills of `ids`, or decode steps behind them."""
    state, token = Running(), ids

    def run(phase: str, given: Tensor, probe: Any) -> None:
        nonlocal token
        placed = runner.run(phase, {runner.input_name(phase): given}, state, probe=probe)
        token = runner.everywhere(placed["next_token"]).unsqueeze(1)

    decodes = point.phase == DECODE
    if decodes:
        run("prefill", ids, None)
    for _ in range(WARM + point.steps):
        state = state if decodes else Running()
        stamps.around(lambda: run(point.phase, token if decodes else ids, lambda file: module.step))


def joined(ranks: Sequence[Laps]) -> Laps:
    """The mean over processes."""
    first = ranks[0]
    return {
        name: [statistics.fmean(at) for at in zip(*(laps[name] for laps in ranks), strict=True)]
        for name in first
    }
