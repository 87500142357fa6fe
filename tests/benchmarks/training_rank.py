"""One rank of a training benchmark: torch's step and plancc's in one process, turn by turn."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from plancc.runtime.artifact import load_artifact
from plancc.runtime.loading import open_weights
from plancc.runtime.training.step import TrainRunner
from plancc.runtime.transport import Counters, Transport
from tests.benchmarks.training_torch import STEPS, Step, adamw, counted

ROOT = Path(__file__).parents[2]
TRIED = 4
"""Steps before time is taken: enough for losses that show the updates of the first ones."""


def model_of(sizes: dict[str, int], weights: str) -> nn.Module:
    """The hand-written model with the same weights."""
    from safetensors.torch import load_file

    sys.path.insert(0, str(ROOT / "examples"))
    import models

    model = models.dense(**sizes)
    model.load_state_dict(load_file(weights))
    return model


def emitted(transport: Transport, artifact: str, batch: int, tokens: int) -> Step:
    """A step of the emitted programs; torch's AdamW on this rank's own slices."""
    found = load_artifact(artifact)
    runner = TrainRunner(found, transport, open_weights(found))
    owned = runner.owned(batch, tokens)
    mine = {one.key: one.tensor.detach() for one in owned}
    optimizer = adamw(mine.values())

    def step(ids: Tensor, targets: Tensor) -> float:
        scale = torch.tensor(1.0 / targets.numel())
        done = runner.step({"input_ids": ids, "targets": targets, "scale": scale})
        for key, tensor in mine.items():
            tensor.grad = done.gradients[key].detach()
        optimizer.step()
        optimizer.zero_grad()
        runner.refresh(batch, tokens)
        return float(done.loss) if done.loss is not None else float("nan")

    return step


def measure(transport: Transport, payload: dict[str, Any]) -> dict[str, Any]:
    """Entry of a launched process: seconds of both by round, losses, and what was sent in one step."""
    store = dist.FileStore(payload["store"], transport.world)
    dist.init_process_group(
        "gloo", store=store, rank=transport.rank, world_size=transport.world,
        timeout=timedelta(seconds=300),
    )  # fmt: skip
    try:
        return compare(transport, payload)
    finally:
        dist.destroy_process_group()


def compare(transport: Transport, payload: dict[str, Any]) -> dict[str, Any]:
    """Both sides on the same data: first the losses, then one step counted, then times."""
    batch, tokens, vocab = payload["batch"], payload["tokens"], payload["sizes"]["vocab"]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocab, (batch, tokens), generator=generator)
    targets = torch.randint(vocab, (batch, tokens), generator=generator)
    ours = emitted(transport, payload["artifact"], batch, tokens)
    theirs = STEPS[payload["torch"]](model_of(payload["sizes"], payload["weights"]))
    sides = {"ours": lambda: ours(ids, targets), "theirs": lambda: theirs(ids, targets)}
    losses = {name: [step() for _ in range(TRIED)] for name, step in sides.items()}
    with sent(transport) as mine:
        sides["ours"]()
    with counted() as counts:
        sides["theirs"]()
    seconds, work = take_turns(sides, payload["rounds"])
    return {
        "losses": losses, "seconds": seconds, "work": work,
        "calls": {"ours": mine.calls, "theirs": counts.calls},
        "bytes": {"ours": mine.bytes, "theirs": counts.bytes},
    }  # fmt: skip


@contextmanager
def sent(transport: Any) -> Iterator[Counters]:
    """What is sent inside; of exchanges only those that send something are calls."""
    exchange, empty = transport.exchange, 0

    def counting(sends: Any, *rest: Any) -> list[Tensor]:
        nonlocal empty
        empty += not sends
        found: list[Tensor] = exchange(sends, *rest)
        return found

    counts = Counters()
    transport.counters.reset()
    transport.exchange = counting
    try:
        yield counts
    finally:
        del transport.exchange
    counts.calls.update(transport.counters.calls)
    counts.bytes.update(transport.counters.bytes)
    if empty:
        counts.calls["exchange"] -= empty


def take_turns(
    sides: dict[str, Callable[[], float]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds, and seconds of this process on a core, of each step, from a barrier to this rank's end.

    Who begins changes by round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    work: dict[str, list[float]] = {name: [] for name in sides}
    for index in range(rounds):
        for name in list(sides) if index % 2 == 0 else list(reversed(sides)):
            dist.barrier()
            begin, busy = time.perf_counter(), time.process_time()
            sides[name]()
            seconds[name].append(time.perf_counter() - begin)
            work[name].append(time.process_time() - busy)
    return seconds, work
