"""Batches for the steps of a run: whole ones, or of each the rows that this rank's program reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from plancc.runtime.artifact import Artifact
from plancc.runtime.data import Batches, merge_states
from plancc.runtime.sizes import build_dim
from plancc.runtime.training.job import Job
from plancc.runtime.training.step import split
from plancc.runtime.transport import Transport
from plancc.runtime.view import View

SumAll = Callable[[Tensor, int], Tensor]


class Feed:
    """Batches by step, for all ranks of this process: each is read once.

    With `rows` only these are read, and all others of a batch are zeros.
    """

    def __init__(self, batches: Batches, rows: Sequence[int] | None = None) -> None:
        self.batches = batches
        self.rows = rows
        self.last: tuple[int, tuple[Tensor, Tensor]] | None = None

    def ready(self, step: int) -> bool:
        """Whether there is a batch for a step: the one read last, or the next."""
        return (self.last is not None and self.last[0] == step) or self.batches.ready()

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a step, whole batches; ranks are at most one step apart."""
        if self.last is None or self.last[0] != step:
            ids, targets = next(self.batches)
            self.last = (step, (self.whole(ids), self.whole(targets)))
        return self.last[1]

    def whole(self, x: Tensor) -> Tensor:
        """Put the rows that are here into a batch of zeros."""
        if self.rows is None:
            return x
        out = x.new_zeros((self.batches.run["batch"], x.shape[1]))
        out[list(self.rows)] = x
        return out

    def state(self, transport: Transport, sum_all: SumAll, at: int) -> dict[str, Any]:
        """The place in the data of all rows, of this rank's peers too; all ranks call it."""
        mine = self.batches.state()
        if self.rows is None:
            return mine
        return merge_states(gather_json(transport, mine, sum_all, at))


def feed_of_rank(artifact: Artifact, job: Job, rank: int, state: Mapping[str, Any] | None) -> Feed:
    """The rows that one rank of many processes reads, from a saved state or from the begin."""
    rows = rows_of(artifact, job, rank)
    return Feed(job.batches(state, rows), rows)


def rows_of(artifact: Artifact, job: Job, rank: int) -> list[int]:
    """The rows of a batch that a rank's program reads; one, for the sake of the count, if it reads none."""
    env = {"batch": job.batch, "seq_len": job.seq_len, "tokens": job.batch * job.seq_len}
    row, cls = artifact.program("train", rank, env)
    tree = artifact.manifest.get("training", {}).get("rows", {}).get(cls["file"])
    if tree is None:
        return list(range(job.batch))
    view = View(rank, artifact.grids, cls["mesh"])
    found: list[int] = []
    for low, high in split(job.batch, row["microbatches"] * job.accumulate) if tree else ():
        dim = build_dim(view, tree, {"B": high - low})
        for first, last in dim.ranges(view.coord_of(rank)):
            found += range(low + first, low + last)
    return found or [0]


def gather_json(transport: Transport, value: Any, sum_all: SumAll, at: int) -> list[Any]:
    """Every rank's value, in the order of ranks."""
    data = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = torch.zeros(transport.world, dtype=torch.float64)
    sizes[transport.rank] = data.numel()
    shapes = [(int(size),) for size in sum_all(sizes, at).tolist()]
    everyone = tuple(range(transport.world))
    found = transport.all_gather(data.to(transport.device), everyone, shapes, at)
    return [json.loads(bytes(part.cpu().tolist())) for part in found]
