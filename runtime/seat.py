"""One rank of an elastic run: its runner, and its share of the sequences that are running."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from plancc.ir.layout import Part
from plancc.runtime.artifact import Artifact
from plancc.runtime.kv import KVCache
from plancc.runtime.owners import Owners, Table, key_of
from plancc.runtime.runner import Runner
from plancc.runtime.runner import Sequence as Running
from plancc.runtime.transport import Transport


class Seat:
    """What one rank does when it is told to; the same in a thread and in a process of its own."""

    def __init__(self, artifact: Artifact, weights: Any, rank: int) -> None:
        self.artifact = artifact
        self.weights = weights
        self.rank = rank
        self.runner: Runner | None = None
        self.sequences: dict[int, Running] = {}

    def join(self, transport: Transport) -> None:
        """Go on over this transport."""
        if self.runner is None:
            self.runner = Runner(self.artifact, transport, self.weights)
        else:
            self.runner.rebind(transport)

    def step(
        self, number: int, phase: str, tokens: Sequence[Sequence[int]], variant: int
    ) -> list[int]:
        """Run a prefill (tokens [B, T]) or a decode step (tokens [B, 1]); the new tokens [B]."""
        runner = self.runner
        assert runner is not None
        ids = torch.tensor(tokens, dtype=torch.long)
        state = self.sequences.setdefault(number, Running())
        with torch.no_grad():
            placed = runner.run(phase, {runner.input_name(phase): ids}, state, variant=variant)
            found: list[int] = runner.everywhere(placed["next_token"]).tolist()
        return found

    def drop(self, number: int) -> None:
        """Forget a sequence and its cache."""
        self.sequences.pop(number, None)

    def states(self, numbers: Sequence[int]) -> dict[str, Any]:
        """What a newcomer must know of these sequences, as plain data; no cache."""
        rows = self.artifact.manifest["programs"]
        return {
            str(number): {
                "past": state.past,
                "row": rows.index(state.row),
                "caches": len(state.caches),
                "owners": [_table_json(table) for table in state.owners.tables.values()],
            }
            for number, state in self.sequences.items()
            if number in numbers and state.row is not None
        }

    def adopt(self, states: Mapping[str, Any]) -> None:
        """Take part in running sequences from here on, with no share of their caches yet."""
        rows = self.artifact.manifest["programs"]
        self.sequences = {
            int(number): Running(
                past=state["past"],
                row=rows[state["row"]],
                caches=[KVCache() for _ in range(state["caches"])],
                owners=_owners(state["owners"]),
            )
            for number, state in states.items()
        }


def _table_json(table: Table) -> dict[str, Any]:
    part = table.part
    return {
        "part": [part.mesh, part.axis, part.stride, part.count, part.size, part.rule],
        "owned": table.owned, "total": table.total, "turn": table.turn, "left": table.left,
    }  # fmt: skip


def _owners(tables: Sequence[Mapping[str, Any]]) -> Owners:
    owners = Owners()
    for row in tables:
        table = Table(Part(*row["part"]), 0)
        table.owned = [tuple((lo, hi) for lo, hi in ranges) for ranges in row["owned"]]
        table.total, table.turn, table.left = row["total"], row["turn"], row["left"]
        owners.tables[key_of(table.part)] = table
    return owners
