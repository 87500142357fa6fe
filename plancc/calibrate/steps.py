"""One rank of a measured run: steps of an artifact as `plancc run` and `plancc train` make them, one by one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from plancc.calibrate.point import DECODE, TRAIN, WARM, Point
from plancc.runtime.artifact import Artifact, load_artifact
from plancc.runtime.loading import open_weights
from plancc.runtime.runner import Runner, Sequence
from plancc.runtime.training.feed import Feed, feed_of_rank
from plancc.runtime.training.job import Job
from plancc.runtime.training.loop import Training
from plancc.runtime.transport import Transport

LINE_UP = 21
"""Instruction number of the barrier before a measured step."""

Mark = tuple[float, float, float, float]
"""When a step began, when its programs had ended, when all of it had (seconds of the host's monotonic
clock), and the seconds that the rank spent on a core."""


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


def run_marks(
    artifact: Artifact, transport: Transport, point: Point, weights: Any
) -> list[Mark]:  # fmt: skip
    """Prefills of `point.tokens`, or decode steps the middle one of which finds `point.past` cached."""
    runner = Runner(artifact, transport, weights)
    generator = torch.Generator().manual_seed(0)
    vocab = vocabulary(artifact)
    if point.phase == DECODE:
        step = _decoding(runner, torch.randint(vocab, (point.batch, point.prompt), generator=generator))
    else:
        ids = torch.randint(vocab, (point.batch, point.tokens), generator=generator)

        def step() -> float:
            return one_step(runner, "prefill", ids, Sequence())[0]

    with torch.no_grad():
        return marks_of(transport, step, point.steps)


def _decoding(runner: Runner, prompt: Tensor) -> Callable[[], float]:
    """A decode step behind `prompt`, one position further at each call."""
    state = Sequence()
    token: Tensor | None = None

    def step() -> float:
        nonlocal token
        if token is None:
            _, token = one_step(runner, "prefill", prompt, state)
        ended, token = one_step(runner, "decode", token.unsqueeze(1), state)
        return ended

    return step


def one_step(runner: Runner, phase: str, ids: Tensor, state: Sequence) -> tuple[float, Tensor]:
    """Run one step as generation does: when the programs had ended, and the next tokens [B]."""
    placed = runner.run(phase, {runner.input_name(phase): ids}, state)
    ended = time.perf_counter()
    return ended, runner.everywhere(placed["next_token"])


class _Stamped(Training):
    """A training that knows when the programs of its last step had ended."""

    ended = 0.0

    def agree(self, found: Any, seconds: float = 0.0) -> tuple[float, int]:
        """As always; the programs have just ended."""
        self.ended = time.perf_counter()
        return super().agree(found, seconds)


def train_marks(
    artifact: Artifact, transport: Transport, point: Point, job: Job, feed: Feed
) -> list[Mark]:
    """Whole training steps: programs, agreement on the loss, optimizer, weights brought up to date."""
    training = _Stamped(artifact, transport, job, feed)

    def step() -> float:
        training.train_step()
        return training.ended

    return marks_of(transport, step, point.steps)


def marks_of(transport: Transport, step: Callable[[], float], count: int) -> list[Mark]:
    """Make WARM steps and then `count` measured ones, each from a barrier on."""
    everyone = tuple(range(transport.world))
    clock = time.thread_time if transport.device.type == "cpu" and in_threads(transport) else time.process_time
    marks = []
    for index in range(WARM + count):
        transport.barrier(everyone, LINE_UP)
        settle(transport.device)
        begin, busy = time.perf_counter(), clock()
        ended = step()
        settle(transport.device)
        if index >= WARM:
            marks.append((begin, ended, time.perf_counter(), clock() - busy))
    return marks


def in_threads(transport: Transport) -> bool:
    """Whether ranks are threads of this process."""
    from plancc.runtime.local import LocalTransport

    return isinstance(transport, LocalTransport)


def settle(device: torch.device) -> None:
    """Wait until a GPU has done what was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def vocabulary(artifact: Artifact) -> int:
    """How many token ids the model knows."""
    from plancc.runtime.prompts import vocabulary as known

    return known(artifact)
