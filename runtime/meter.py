"""Measure a generation: time in transport calls, bytes that leave a rank, the least that must.

The bound of a step follows from layouts alone. A rank gives its share of what other meshes compute
with (q to every rank of a key axis, k and v to their owner, results to those who go on), and of a
merge over g ranks (1 - 1/g) of its partial result, with a column of logsumexp. Heads first has no
merge and sends just that; blocks add what they round up, where ranks do not divide heads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

from torch import Tensor

from plancc.ir.mesh import mesh_of
from plancc.runtime.artifact import STRIDE, Artifact
from plancc.runtime.generate import Generated, generate
from plancc.runtime.runner import Runner
from plancc.runtime.runner import Sequence as Running
from plancc.runtime.sizes import build_dim
from plancc.runtime.transport import Group, Shape, Transport
from plancc.runtime.wrapped import VERBS, Wrapped

BETWEEN_MESHES = ("exchange", "all_to_all")
PHASES = ("prefill", "decode")


class Meter(Wrapped):
    """A transport around another: seconds inside its verbs, bytes given to other ranks by verb.

    Reductions and gatherings count as rings do them; the runner's own transfers as `moves`.
    """

    def __init__(self, inner: Transport) -> None:
        super().__init__(inner)
        self.inside = 0.0
        self.sent: dict[str, int] = {}
        for verb in VERBS:
            setattr(self, verb, partial(self._timed, getattr(inner, verb), _COUNTS[verb]))

    def reset(self) -> None:
        """Count from nothing."""
        self.inside, self.sent = 0.0, {}

    def _timed(self, verb: Callable[..., Any], count: Callable[..., Any], *args: Any) -> Any:
        begin = time.perf_counter()
        try:
            return verb(*args)
        finally:
            self.inside += time.perf_counter() - begin
            kind, number = count(self.rank, *args)
            at = args[2] if verb.__name__ == "exchange" else args[-1]
            kind = "moves" if at < STRIDE else kind
            self.sent[kind] = self.sent.get(kind, 0) + number


def ring_bytes(kind: str, size: int, ranks: int) -> int:
    """The bytes that a rank gives in an all_reduce or all_gather of its `size` bytes around a ring."""
    return 2 * size * (ranks - 1) // ranks if kind == "all_reduce" else size * (ranks - 1)


def _all_reduce(rank: int, x: Tensor, group: Group, at: int) -> tuple[str, int]:
    return "all_reduce", ring_bytes("all_reduce", x.nbytes, len(group))


def _all_gather(
    rank: int, x: Tensor, group: Group, shapes: Sequence[Shape], at: int
) -> tuple[str, int]:
    return "all_gather", ring_bytes("all_gather", x.nbytes, len(group))


def _to_others(
    kind: str, rank: int, parts: Sequence[Tensor], group: Group, *rest: Any
) -> tuple[str, int]:
    return kind, sum(t.nbytes for other, t in zip(group, parts, strict=True) if other != rank)


def _exchange(
    rank: int, sends: Sequence[tuple[int, Tensor]], recvs: Any, at: int, channel: int = 0
) -> tuple[str, int]:
    return "exchange", sum(tensor.nbytes for other, tensor in sends if other != rank)


def _barrier(rank: int, group: Group, at: int) -> tuple[str, int]:
    return "barrier", 0


_COUNTS: Mapping[str, Callable[..., tuple[str, int]]] = {
    "all_reduce": _all_reduce, "all_gather": _all_gather,
    "reduce_scatter": partial(_to_others, "reduce_scatter"),
    "all_to_all": partial(_to_others, "all_to_all"),
    "exchange": _exchange, "barrier": _barrier,
}  # fmt: skip


def metered(
    artifact: Artifact, transport: Transport, weights: Any, ids: Tensor, new_tokens: int
) -> tuple[Generated, dict[str, Any]]:
    """Generate on one rank and say what it measured: `summary` joins the records of all ranks.

    Times cover all steps of a phase; bytes are those of the prefill and of the last decode step.
    """
    meter = Meter(transport)
    runner = Runner(artifact, meter, weights)  # type: ignore[arg-type]
    record: dict[str, Any] = {}
    begin = time.perf_counter()

    def on_step(state: Running, index: int) -> None:
        nonlocal begin
        row = record.setdefault(
            PHASES[min(index, 1)], {"seconds": 0.0, "inside": 0.0, "stages": set()}
        )
        row["seconds"] += time.perf_counter() - begin
        row["inside"] += meter.inside
        row["sent"] = dict(meter.sent)
        row["stages"] |= stages_of(artifact, state, meter.rank)
        if index in (0, new_tokens - 1):
            row |= least(runner, state, ids.shape[0], 1 if index else ids.shape[1])
        meter.reset()
        begin = time.perf_counter()

    found = generate(runner, ids, new_tokens, on_step=on_step)
    for row in record.values():
        row["stages"] = sorted(row["stages"])
    return found, record


def stages_of(artifact: Artifact, state: Running, rank: int) -> set[str]:
    """The meshes on which a rank took part in the last step."""
    assert state.row is not None
    found = class_of(state, rank)
    return {
        mesh_of(name)
        for name in found["stages"]
        if rank in artifact.grids[name].ranks
    }  # fmt: skip


def class_of(state: Running, rank: int) -> Mapping[str, Any]:
    """The row of the class that a rank had in the last step."""
    assert state.row is not None
    return next(row for row in state.row["classes"] if rank in row["ranks"])


def least(runner: Runner, state: Running, batch: int, tokens: int) -> dict[str, Any]:
    """What this rank needed of each mesh in the last step, what its merges must send: bytes."""
    program = class_of(state, runner.transport.rank)
    view, _, _ = runner.ready(program)
    env = {"B": batch, "T": tokens, "P": state.past - tokens}
    needs: dict[str, float] = {}
    merges = 0.0
    for row in program["traffic"]:
        view.batch, view.tokens, view.past = env["B"], env["T"], env["P"]
        here = view.on(row["stage"]["mesh"])
        dims = [int(build_dim(here, tree, env)) for tree in row["dims"]]
        size = view.dtype_of(row["dtype"]).itemsize * row["count"]
        if row["kind"] == "receive":
            source = mesh_of(row["from"]["mesh"])
            needs[source] = needs.get(source, 0.0) + prod(dims) * size
        else:
            merges += prod(dims[:3]) * (dims[3] + 1) * size * (1 - 1 / row["over"])
    return {"needs": needs, "merges": merges}


def summary(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Phase -> mesh -> ranks, shares of time, bytes sent to other meshes and in merges, bound.

    Shares are means over the mesh's ranks: time outside and inside transport calls over the time of
    the steps; waiting counts as inside. Bytes are per rank: the mean, the largest, the bound.
    """
    out: dict[str, Any] = {}
    for phase in PHASES:
        rows = [record[phase] for record in records if phase in record]
        meshes = list(dict.fromkeys(name for row in rows for name in row["stages"]))
        out[phase] = {mesh: of_mesh(mesh, rows) for mesh in meshes}
    return {phase: found for phase, found in out.items() if found}


def of_mesh(mesh: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The numbers of one mesh in one phase."""
    mine = [row for row in rows if mesh in row["stages"]]
    count = len(mine)
    inside = sum(row["inside"] / row["seconds"] for row in mine if row["seconds"]) / count
    sent = [sum(row["sent"].get(verb, 0) for verb in BETWEEN_MESHES) for row in mine]
    asked = sum(row["needs"].get(mesh, 0.0) for row in rows)
    bound = (asked + sum(row["merges"] for row in mine)) / count
    return {
        "ranks": count, "busy": 1 - inside, "communication": inside,
        "sent": sum(sent) / count, "sent_most": max(sent), "bound": bound,
        "inside_mesh": max(
            sum(n for verb, n in row["sent"].items() if verb not in (*BETWEEN_MESHES, "moves"))
            for row in mine
        ),
    }  # fmt: skip
