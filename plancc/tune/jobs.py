"""Try settings in several processes: each opens the plan and the model itself and answers line by line.

Orders and answers are JSON on pipes. What is tried, and in which order it is told, is that of one process.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import plancc
from plancc.models import load_model
from plancc.passes.capture import capture
from plancc.simulator.cluster import Cluster, read_cluster
from plancc.simulator.routing import EVEN, Skewed
from plancc.tune.bench import Admitted, Bench
from plancc.tune.forms import Attempt, Case, Sets, TuneError, attempt_of


@dataclass(frozen=True, slots=True)
class Order:
    """What a search is about, in plain values. `dtype` is torch's name of it ("bfloat16"), "": the model's.

    `hardware` sets constants of the cluster, `skew` is that of a router (0: even); see Bench for the rest.
    """

    plan: str
    model: str
    cluster: str
    cases: tuple[Case, ...]
    phases: tuple[str, ...] | None = None
    fixed: Mapping[str, str] = field(default_factory=dict)
    model_args: Mapping[str, str] = field(default_factory=dict)
    dtype: str = ""
    preset: str = "honest"
    hardware: tuple[str, ...] = ()
    skew: float = 0.0
    lockstep: bool = False


def open_cluster(order: Order) -> Cluster:
    """The cluster with its preset and settings; ClusterError."""
    cluster = read_cluster(order.cluster, Path(order.plan).parent).preset(order.preset)
    return cluster.with_(*order.hardware) if order.hardware else cluster


def open_bench(order: Order) -> Bench:
    """Capture the model and read the cluster. Raises ModelError, ClusterError."""
    cluster = open_cluster(order)
    dtype = getattr(torch, order.dtype) if order.dtype else None
    graph = capture(load_model(order.model, dict(order.model_args), dtype).module)
    return Bench(
        Path(order.plan), graph, cluster, order.cases, order.phases, order.fixed,
        Skewed(order.skew) if order.skew else EVEN, order.lockstep,
    )  # fmt: skip


def order_of(data: Mapping[str, Any]) -> Order:
    """An order out of its JSON."""
    phases = data["phases"]
    return Order(**{
        **data,
        "cases": tuple(Case(**case) for case in data["cases"]),
        "phases": None if phases is None else tuple(phases),
        "hardware": tuple(data["hardware"]),
    })  # fmt: skip


class Helper:
    """One process that tries settings."""

    def __init__(self, order: Order) -> None:
        folder = str(Path(plancc.__file__).parents[1])
        path = os.pathsep.join(p for p in (folder, os.environ.get("PYTHONPATH")) if p)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "plancc.tune.helper"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self.say(asdict(order))

    def say(self, data: Any) -> None:
        """One line to the process."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(data) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self.fail()

    def ask(self, sets: Sets) -> tuple[Attempt, list[str]]:
        """What a setting gives, and what predictions stand on; TuneError if the process is gone."""
        assert self.process.stdout is not None
        self.say(sets)
        line = self.process.stdout.readline()
        if not line:
            self.fail()
        answer = json.loads(line)
        return attempt_of(answer["attempt"]), answer["notes"]

    def fail(self) -> None:
        """The process is gone."""
        raise TuneError(f"a process of --jobs ended with code {self.process.wait()}")

    def close(self) -> None:
        """Send it home."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class Helpers:
    """Several processes for one bench, as a context."""

    def __init__(self, bench: Bench, order: Order, jobs: int) -> None:
        self.bench, self.order, self.jobs = bench, order, jobs

    def __enter__(self) -> Helpers:
        """Start them."""
        self.all = [Helper(self.order) for _ in range(self.jobs)]
        self.free: queue.SimpleQueue[Helper] = queue.SimpleQueue()
        for helper in self.all:
            self.free.put(helper)
        self.pool = ThreadPoolExecutor(self.jobs)
        return self

    def __exit__(self, *_: object) -> None:
        """End them."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        for helper in self.all:
            helper.close()

    def tries(self, wanted: Sequence[Sets]) -> Iterator[Attempt]:
        """Try settings, several at a time; told in the order asked for."""
        bench = self.bench
        under_way: dict[str, Future[tuple[Attempt, list[str]]]] = {}
        admitted = []
        for sets in wanted:
            found = bench.admitted(sets)
            if isinstance(found, Admitted) and found.key not in under_way:
                under_way[found.key] = self.pool.submit(self.ask, sets)
            admitted.append(found)
        try:
            for found in admitted:
                yield self.told(found, under_way) if isinstance(found, Admitted) else found
        finally:
            for future in under_way.values():
                future.cancel()

    def told(
        self, one: Admitted, under_way: Mapping[str, Future[tuple[Attempt, list[str]]]]
    ) -> Attempt:
        """The answer for a setting; of a plan that was asked for before, that answer."""
        attempt, notes = under_way[one.key].result()
        self.bench.notes.update(dict.fromkeys(notes))
        if attempt.sets != one.sets:
            return replace(attempt, sets=one.sets, same_as=attempt.sets)
        self.bench.plans[one.key] = attempt
        return attempt

    def ask(self, sets: Sets) -> tuple[Attempt, list[str]]:
        """Let the next free process try a setting."""
        helper = self.free.get()
        try:
            return helper.ask(sets)
        finally:
            self.free.put(helper)
