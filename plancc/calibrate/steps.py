"""One rank of a measured run: steps of an artifact, one by one, as `plancc run` and `plancc train` do."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from plancc.calibrate.point import DECODE, TRAIN, WARM, Point
from plancc.runtime.artifact import Artifact, load_artifact
from plancc.runtime.loading import open_weights
from plancc.runtime.local import LocalTransport
from plancc.runtime.prompts import vocabulary
from plancc.runtime.runner import Runner, Sequence
from plancc.runtime.training.feed import Feed, feed_of_rank
from plancc.runtime.training.job import Job
from plancc.runtime.training.loop import Training
from plancc.runtime.transport import Transport

LINE_UP = 21
"""Instruction number of the barrier before a measured step."""

Stamp = tuple[float, float]
"""Seconds of the host's monotonic clock, and those that the rank has spent on a core."""
Mark = tuple[Stamp, Stamp, Stamp]
"""When a step began, when its programs had ended, when all of it had."""


def run_rank(transport: Transport, payload: Mapping[str, Any]) -> list[Mark]:
    """Entry of a launched process: the marks of this rank's steps."""
    torch.set_num_threads(int(payload["threads"]))
    point = Point.from_json(payload["point"])
    artifact = load_artifact(payload["folder"])
    if point.phase == TRAIN:
        job = Job.from_json(payload["job"])
        feed = feed_of_rank(artifact, job, transport.rank, None)
        return train_marks(artifact, transport, point, job, feed)
    return run_marks(artifact, transport, point, open_weights(artifact))


class Watch:
    """Takes stamps: of ranks that are threads, each thread's own."""

    def __init__(self, transport: Transport) -> None:
        self.device = transport.device
        self._busy = core_clock(transport)

    def stamp(self) -> Stamp:
        """Now, once a GPU has done what was queued."""
        settle(self.device)
        return time.perf_counter(), self._busy()


def run_marks(artifact: Artifact, transport: Transport, point: Point, weights: Any) -> list[Mark]:
    """Prefills of `point.tokens`, or decode steps the middle one of which finds `point.past` cached."""
    runner, watch = Runner(artifact, transport, weights), Watch(transport)
    generator = torch.Generator().manual_seed(0)
    vocab = vocabulary(artifact)
    length = point.prompt if point.phase == DECODE else point.tokens
    ids = torch.randint(vocab, (point.batch, length), generator=generator)
    state, token = Sequence(), ids

    def decode() -> Stamp:
        nonlocal token
        if token is ids:
            _, token = one_step(runner, watch, "prefill", ids, state)
        ended, token = one_step(runner, watch, "decode", token.unsqueeze(1), state)
        return ended

    def prefill() -> Stamp:
        return one_step(runner, watch, "prefill", ids, Sequence())[0]

    with torch.no_grad():
        step = decode if point.phase == DECODE else prefill
        return marks_of(transport, watch, step, point.steps)


def one_step(
    runner: Runner, watch: Watch, phase: str, ids: Tensor, state: Sequence
) -> tuple[Stamp, Tensor]:
    """Run one step as generation does: when the programs had ended, and the next tokens [B]."""
    placed = runner.run(phase, {runner.input_name(phase): ids}, state)
    ended = watch.stamp()
    return ended, runner.everywhere(placed["next_token"])


class _Stamped(Training):
    """A training that knows when the programs of its last step had ended."""

    watch: Watch
    ended: Stamp = (0.0, 0.0)

    def agree(self, found: Any, seconds: float = 0.0) -> tuple[float, int]:
        """As always; the programs have just ended."""
        self.ended = self.watch.stamp()
        return super().agree(found, seconds)


def train_marks(
    artifact: Artifact, transport: Transport, point: Point, job: Job, feed: Feed
) -> list[Mark]:
    """Whole training steps: programs, agreement on the loss, optimizer, weights brought up to date."""
    training = _Stamped(artifact, transport, job, feed)
    training.watch = Watch(transport)

    def step() -> Stamp:
        training.train_step()
        return training.ended

    return marks_of(transport, training.watch, step, point.steps)


def marks_of(
    transport: Transport, watch: Watch, step: Callable[[], Stamp], count: int
) -> list[Mark]:
    """Make WARM steps and then `count` measured ones, each from a barrier on."""
    everyone = tuple(range(transport.world))
    marks = []
    for _ in range(WARM + count):
        transport.barrier(everyone, LINE_UP)
        begin = watch.stamp()
        ended = step()
        marks.append((begin, ended, watch.stamp()))
    return marks[WARM:]


def core_clock(transport: Transport) -> Callable[[], float]:
    """The seconds that a rank has spent on a core: as a thread, or as a process."""
    return time.thread_time if isinstance(transport, LocalTransport) else time.process_time


def settle(device: torch.device) -> None:
    """Wait until a GPU has done what was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
