"""Record a generation: when each rank was in which verb of the transport, and for which micro-batch.

A record is plain data, one for each rank; `plancc.show.measured` joins them into timelines. Times are
those of the host's monotonic clock, which all processes of a host share.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from plancc.runtime.artifact import Artifact, load_artifact
from plancc.runtime.deploy import Deployment
from plancc.runtime.generate import Generated, generate
from plancc.runtime.loading import open_weights
from plancc.runtime.local import run_local
from plancc.runtime.runner import Placed, Runner
from plancc.runtime.runner import Sequence as Running
from plancc.runtime.transport import Group, Transport
from plancc.runtime.wrapped import VERBS, Wrapped

START = 0
"""The instruction number of the meeting before the first step."""

Call = dict[str, Any]
"""One call of a verb: verb, at, batch, begin, end; group of a meeting; size: bytes of this rank's operand.

`sends` and `takes` are [rank, bytes, channel] of an exchange, `sends` [rank, bytes, 0] of an all_to_all
and a reduce_scatter; other ranks only.
"""
Record = dict[str, Any]
"""rank; batch and tokens of the prompt; steps: [phase, variant, begin, end]; calls."""


class Recorder(Wrapped):
    """A transport around another that writes down every call which meets other ranks.

    `batch` is the micro-batch that runs. What a lane does beside the computation is not recorded: only
    programs for training start anything there.
    """

    def __init__(self, inner: Transport) -> None:
        super().__init__(inner)
        self.batch = 0
        self.calls: list[Call] = []
        for verb in VERBS:
            setattr(self, verb, partial(self._noted, verb, getattr(inner, verb)))

    def _noted(self, verb: str, call: Callable[..., Any], *args: Any) -> Any:
        facts = _FACTS[verb](self.rank, *args)
        if len(facts.get("group", ())) == 1 or not (facts.get("group") or facts["moves"]):
            return call(*args)
        at = args[2] if verb == "exchange" else args[-1]
        begin = time.perf_counter()
        try:
            return call(*args)
        finally:
            facts |= {"verb": verb, "at": at, "batch": self.batch}
            self.calls.append(facts | {"begin": begin, "end": time.perf_counter()})


def _sum(rank: int, x: Tensor, group: Group, at: int) -> Call:
    return {"group": group, "size": x.nbytes}


def _gather(rank: int, x: Tensor, group: Group, shapes: Any, at: int) -> Call:
    return {"group": group, "size": x.nbytes}


def _parts(rank: int, parts: Sequence[Tensor], group: Group, *rest: Any) -> Call:
    sends = [[to, x.nbytes, 0] for to, x in zip(group, parts, strict=True) if to != rank]
    return {"group": group, "size": sum(x.nbytes for x in parts), "sends": sends}


def _exchange(
    rank: int, sends: Sequence[tuple[int, Tensor]],
    recvs: Sequence[tuple[int, tuple[int, ...], torch.dtype]], at: int, channel: int = 0,
) -> Call:  # fmt: skip
    """Messages without elements are not sent, and those to itself meet nobody."""
    given = [[to, x.nbytes, channel] for to, x in sends if x.numel() and to != rank]
    taken = [
        [source, torch.Size(shape).numel() * dtype.itemsize, channel]
        for source, shape, dtype in recvs
        if torch.Size(shape).numel() and source != rank
    ]
    size = sum(row[1] for row in given)
    return {"sends": given, "takes": taken, "size": size, "moves": bool(given or taken)}


def _barrier(rank: int, group: Group, at: int) -> Call:
    return {"group": group, "size": 0}


_FACTS: Mapping[str, Callable[..., Call]] = {
    "all_reduce": _sum, "all_gather": _gather, "reduce_scatter": _parts, "all_to_all": _parts,
    "exchange": _exchange, "barrier": _barrier,
}  # fmt: skip


class RecordingRunner(Runner):
    """A runner that tells its recorder which micro-batch runs, and keeps when steps began and ended."""

    def __init__(self, artifact: Artifact, recorder: Recorder, weights: Any) -> None:
        super().__init__(artifact, recorder, weights)  # type: ignore[arg-type]
        self.recorder = recorder
        self.steps: list[list[Any]] = []

    def run(
        self, phase: str, inputs: Mapping[str, Tensor], sequence: Running | None = None, *,
        variant: int | None = None, probe: Any = None,
    ) -> dict[str, Placed]:  # fmt: skip
        """As `Runner.run`."""
        begin = time.perf_counter()
        marked = probe or self._marked
        found = super().run(phase, inputs, sequence, variant=variant, probe=marked)
        row = sequence.row if sequence is not None else None
        self.steps.append([phase, row["variant"] if row else 0, begin, time.perf_counter()])
        self.recorder.batch = 0
        return found

    def _marked(self, file: str) -> Callable[..., Any]:
        """The step function of a program; its calls are the micro-batches, one after the other."""
        step = self.artifact.step(file)
        numbers = iter(range(2**31))

        def start(*args: Any) -> Any:
            number = self.recorder.batch = next(numbers)
            found = step(*args)
            return found if isinstance(found, Mapping) else self._taking_turns(found, number)

        return start

    def _taking_turns(self, program: Iterator[None], number: int) -> Generator[None, None, Any]:
        """A program that pauses: whenever it goes on, its micro-batch is the one that runs."""
        while True:
            self.recorder.batch = number
            try:
                pause = next(program)
            except StopIteration as end:
                return end.value
            yield pause


def recorded(
    artifact: Artifact, transport: Transport, weights: Any, ids: Tensor, new_tokens: int
) -> tuple[Generated, Record]:
    """Generate on one rank, and the record of it. A step ends when this rank has the new token.

    Weights are read, and all ranks have met, before the first step begins.
    """
    recorder = Recorder(transport)
    runner = RecordingRunner(artifact, recorder, weights)
    prepare(runner, ids.shape[0], ids.shape[1])

    def on_step(state: Running, index: int) -> None:
        runner.steps[-1][-1] = time.perf_counter()

    found = generate(runner, ids, new_tokens, on_step=on_step)
    record = {
        "rank": transport.rank, "batch": ids.shape[0], "tokens": ids.shape[1],
        "steps": runner.steps, "calls": recorder.calls,
    }  # fmt: skip
    return found, record


def prepare(runner: RecordingRunner, batch: int, prompt: int) -> None:
    """Load the programs and weights of prefill and the first decode step, then meet all ranks."""
    transport, artifact = runner.recorder.inner, runner.artifact
    for phase, seq_len in (("prefill", prompt), ("decode", prompt + 1)):
        env = {"batch": batch, "seq_len": seq_len, "tokens": batch * seq_len}
        _, program = artifact.program(phase, transport.rank, env)
        runner.ready(program)
        artifact.step(program["file"])
    members: Group = getattr(transport, "members", None) or tuple(range(transport.world))
    transport.barrier(members, START)


def record_local(
    artifact: Artifact, ids: Tensor, new_tokens: int, weights: Any = None
) -> tuple[Generated, list[Record]]:
    """Generate with every rank as a thread of this process; the records of all ranks."""
    artifact.admit(ids.shape[0], ids.shape[1], new_tokens)
    held = Deployment(artifact, weights).weights
    found = run_local(
        artifact.world, lambda t: recorded(artifact, t, held, ids, new_tokens),
        describe=artifact.describe,
    )  # fmt: skip
    return found[0][0], [record for _, record in found]


def record_rank(transport: Transport, payload: Mapping[str, Any]) -> dict[str, Any]:
    """Entry of a launched process, as `deploy.run_rank`; its `trace` is the record."""
    torch.set_num_threads(int(payload.get("threads", 1)))
    artifact = load_artifact(payload["folder"])
    ids = torch.tensor(payload["ids"], dtype=torch.long)
    found, record = recorded(
        artifact, transport, open_weights(artifact), ids, payload["new_tokens"]
    )
    return {**found.json(), "trace": record}


def record_processes(
    artifact: Artifact, ids: Tensor, new_tokens: int, time_limit: float = 60.0
) -> tuple[dict[str, Any], list[Record]]:
    """Generate with every rank as a process of this host (gloo): what rank 0 says, and all records."""
    from plancc.runtime.launch import launch

    artifact.admit(ids.shape[0], ids.shape[1], new_tokens)
    payload = {
        "folder": str(artifact.folder.resolve()), "ids": ids.tolist(), "new_tokens": new_tokens,
    }  # fmt: skip
    found = launch(
        artifact.world, "plancc.runtime.record:record_rank", payload, backend="gloo",
        time_limit=time_limit, describe=artifact.describe,
    )  # fmt: skip
    records = [one.pop("trace") for one in found]
    return found[0], records
