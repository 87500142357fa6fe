"""An artifact ready to run: all ranks in this process, or this process as one rank."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from plancc.runtime.artifact import Artifact, ArtifactError, load_artifact
from plancc.runtime.generate import Generated, generate
from plancc.runtime.loading import open_weights
from plancc.runtime.local import run_local
from plancc.runtime.meter import metered, summary
from plancc.runtime.runner import Runner
from plancc.runtime.transport import Transport


class Deployment:
    """`forward` and `generate` run every rank as a thread of this process."""

    def __init__(self, artifact: Artifact, weights: Any = None) -> None:
        self.artifact = artifact
        self.weights = weights if weights is not None else open_weights(artifact)

    def rank(self, rank: int, transport: Transport | None = None) -> RankHandle:
        """One rank; without a transport it can be inspected but not run with others."""
        return RankHandle(self.artifact, self.weights, rank, transport)

    def this_rank(self, backend: str | None = None) -> RankHandle:
        """The rank that this process is under torchrun; use it as a context manager.

        `backend` is gloo or nccl; without it nccl where there is CUDA. Raises ArtifactError if the
        launcher started another number of ranks than the artifact has.
        """
        from plancc.runtime.distributed import transport_from_env

        started = int(os.environ.get("WORLD_SIZE", "1"))
        if started != self.artifact.world:
            raise ArtifactError(
                f"the artifact needs {self.artifact.world} ranks, the launcher started {started}"
            )
        transport = transport_from_env(backend)
        return self.rank(transport.rank, transport)

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """The model's outputs for whole inputs, by name."""
        return self._everyone(lambda handle: handle.forward(**inputs))[0]

    def generate(
        self, ids: Tensor, new_tokens: int, on_token: Callable[[Tensor], None] | None = None
    ) -> Generated:
        """Greedy continuation of `ids` [B, T]; `on_token` sees each new token [B].

        Raises ArtifactError, before anything runs, for lengths that the plan or the model does not admit.
        """
        self.artifact.admit(ids.shape[0], ids.shape[1], new_tokens)

        def one(handle: RankHandle) -> Generated:
            return handle.generate(ids, new_tokens, on_token if handle.number == 0 else None)

        return self._everyone(one)[0]

    def measure(self, ids: Tensor, new_tokens: int) -> tuple[Generated, dict[str, Any]]:
        """Generate as `generate` does; and what `runtime.meter` measured, by phase and mesh."""
        self.artifact.admit(ids.shape[0], ids.shape[1], new_tokens)
        found = run_local(
            self.artifact.world,
            lambda t: metered(self.artifact, t, self.weights, ids, new_tokens),
            describe=self.artifact.describe,
        )
        return found[0][0], summary([record for _, record in found])

    def _everyone(self, call: Callable[[RankHandle], Any]) -> list[Any]:
        return run_local(
            self.artifact.world,
            lambda t: call(self.rank(t.rank, t)),
            describe=self.artifact.describe,
        )


class RankHandle:
    """One rank of an artifact with its transport."""

    def __init__(
        self, artifact: Artifact, weights: Any, number: int, transport: Transport | None
    ) -> None:
        if not 0 <= number < artifact.world:
            raise ValueError(f"rank {number} is not one of the artifact's {artifact.world} ranks")
        self.artifact = artifact
        self.number = number
        self.weights = weights
        self.transport = transport
        self.runner = Runner(artifact, transport, weights) if transport is not None else None

    def __enter__(self) -> RankHandle:
        return self

    def __exit__(self, *problem: object) -> None:
        close = getattr(self.transport, "close", None)
        if close is not None:
            close()

    @property
    def files(self) -> tuple[str, ...]:
        """The program files that this rank runs, one a phase and variant."""
        rows = self.artifact.manifest["programs"]
        return tuple(
            cls["file"] for row in rows for cls in row["classes"] if self.number in cls["ranks"]
        )

    def source(self, file: str) -> str:
        """The text of one of its programs."""
        return (self.artifact.folder / file).read_text()

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Run the forward phase with the other ranks; every rank gets whole outputs."""
        runner = self._running()
        with torch.no_grad():
            placed = runner.run("forward", inputs)
            return {name: runner.everywhere(value) for name, value in placed.items()}

    def generate(
        self, ids: Tensor, new_tokens: int, on_token: Callable[[Tensor], None] | None = None
    ) -> Generated:
        """Greedy generation with the other ranks; ArtifactError as in `Deployment.generate`."""
        self.artifact.admit(ids.shape[0], ids.shape[1], new_tokens)
        return generate(self._running(), ids, new_tokens, on_token)

    def _running(self) -> Runner:
        if self.runner is None:
            raise ValueError(
                "this rank has no transport: use Deployment.this_rank() under torchrun"
            )
        return self.runner


def run_rank(transport: Transport, payload: Mapping[str, Any]) -> dict[str, Any]:
    """Entry of a launched process: load the artifact, generate or run forward, return plain data."""
    torch.set_num_threads(int(payload.get("threads", 1)))
    artifact = load_artifact(payload["folder"])
    handle = RankHandle(artifact, open_weights(artifact), transport.rank, transport)
    ids = torch.tensor(payload["ids"], dtype=torch.long)
    out: dict[str, Any]
    if payload.get("measure"):
        found, record = metered(artifact, transport, handle.weights, ids, payload["new_tokens"])
        out = {**found.json(), "record": record}
    else:
        out = handle.generate(ids, payload["new_tokens"]).json()
    counters = transport.counters
    return {**out, "calls": dict(counters.calls), "bytes": dict(counters.bytes)}
