"""What a rank holds of a run, in memory: taken from one training, handed to the next or to another rank."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from plancc.runtime.checkpoint import CheckpointError, Piece
from plancc.runtime.dims import within
from plancc.runtime.pieces import cut
from plancc.runtime.training import state as saved_state
from plancc.runtime.training.state import MODEL, OPTIM, SCALE
from plancc.runtime.transport import Transport
from plancc.runtime.view import dtype_named
from plancc.runtime.weights import Ranges

HAND_OVER = 21
"""Instruction number of handing state to ranks that come back."""
CODES = {str(dtype_named(code)): code for code in ("f64", "f32", "bf16", "f16", "i64", "i32")}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a piece lies: its tensor's name, that tensor's shape, and the ranges."""

    name: str
    shape: tuple[int, ...]
    ranges: Ranges


class Held:
    """One rank's weights and optimizer state; training takes it up as it does a checkpoint.

    `source` gives the parameters that nobody trains, which never change.
    """

    def __init__(
        self, facts: Mapping[str, Any], pieces: Sequence[Piece], source: Any, good: str | None
    ) -> None:
        self.facts = facts
        self.pieces = {(piece.name, piece.ranges): piece for piece in pieces}
        self.source = source
        self.good = good
        self.manifest = SimpleNamespace(tensors={piece.name: piece.shape for piece in pieces})

    @property
    def state(self) -> Mapping[str, Any]:
        """Step, tokens, seconds, loss; residuals of wire types are not kept."""
        return {**self.facts, "plan_hash": ""}

    @property
    def folder(self) -> Path:
        """The last good checkpoint."""
        return Path(self.good or ".")

    def under(self, prefix: str) -> Part:
        """The tensors whose names begin with `prefix`, as a source of weights."""
        return Part(self, prefix)

    def shape(self, name: str) -> tuple[int, ...]:
        """The whole tensor's shape; CheckpointError if nothing of it is here."""
        if name not in self.manifest.tensors:
            raise CheckpointError([f"nothing of `{name}` is on this rank"])
        found: tuple[int, ...] = self.manifest.tensors[name]
        return found

    def read(self, name: str, ranges: Ranges) -> Tensor:
        """A copy of the slice at `ranges`; CheckpointError where this rank does not hold it."""
        exact = self.pieces.get((name, ranges))
        if exact is not None:
            return exact.tensor.detach().clone()
        for (other, held), piece in self.pieces.items():
            if other == name and len(held) == len(ranges):
                spots = tuple(within(a, b) for a, b in zip(held, ranges, strict=True))
                if tuple(map(extent, spots)) == tuple(map(extent, ranges)):
                    return cut(piece.tensor.detach(), spots).clone()
        raise CheckpointError([f"`{name}` at {ranges} is not on this rank"])


class Part:
    """The weights of a `Held`, and those that nobody trains."""

    def __init__(self, held: Held, prefix: str) -> None:
        self.held, self.prefix = held, prefix

    def shape(self, fqn: str) -> tuple[int, ...]:
        """The whole tensor's shape."""
        name = self.prefix + fqn
        if name in self.held.manifest.tensors:
            return self.held.shape(name)
        found: tuple[int, ...] = self.held.source.shape(fqn)
        return found

    def read(self, fqn: str, ranges: Ranges) -> Tensor:
        """The slice at `ranges`."""
        name = self.prefix + fqn
        if name in self.held.manifest.tensors:
            return self.held.read(name, ranges)
        found: Tensor = self.held.source.read(fqn, ranges)
        return found


def extent(pieces: Sequence[tuple[int, int]]) -> int:
    """The length of a dim's pieces."""
    return sum(high - low for low, high in pieces)


def pieces_of(training: Any) -> list[Piece]:
    """All that a rank's training holds, counted elsewhere or not: nothing is copied."""
    names = training.names
    owned = {names[item.key]: item for item in training.slices}
    found = [
        Piece(f"{MODEL}{item.name}", item.shape, item.ranges, item.tensor.detach())
        for item in training.slices
    ]
    found += training.computed_with()
    for state in training.optimizer.state_pieces():
        if not state.name:
            found.append(saved_state.one(SCALE, state.tensor))
            continue
        item = owned[state.name]
        name = f"{OPTIM}{item.name}/{state.kind}"
        if state.whole:
            found.append(saved_state.one(name, state.tensor))
        else:
            found.append(Piece(name, item.shape, item.ranges, state.tensor.detach()))
    return list({(p.name, p.ranges): p for p in reversed(found)}.values())


def send(transport: Transport, target: int, held: Held) -> None:
    """Give another rank all that this one holds."""
    pieces = list(held.pieces.values())
    told = {
        "facts": held.facts, "good": held.good,
        "pieces": [
            [p.name, p.shape, p.ranges, CODES[str(p.tensor.dtype)], list(p.tensor.shape)]
            for p in pieces
        ],
    }  # fmt: skip
    text = torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)
    size = torch.tensor([text.numel()], dtype=torch.int64)
    tensors = [size, text, *(p.tensor.contiguous() for p in pieces)]
    transport.exchange([(target, one.to(transport.device)) for one in tensors], [], HAND_OVER)


def receive(transport: Transport, source: int, weights: Any) -> Held:
    """Take what another rank sends; `weights` gives the parameters that nobody trains."""
    (size,) = transport.exchange([], [(source, (1,), torch.int64)], HAND_OVER)
    wanted = [(source, (int(size),), torch.uint8)]
    (text,) = transport.exchange([], wanted, HAND_OVER)
    told = json.loads(bytes(text.cpu().tolist()))
    wanted = [(source, tuple(row[4]), dtype_named(row[3])) for row in told["pieces"]]
    found = transport.exchange([], wanted, HAND_OVER)
    pieces = [
        Piece(row[0], tuple(row[1]), _ranges(row[2]), tensor)
        for row, tensor in zip(told["pieces"], found, strict=True)
    ]
    return Held(told["facts"], pieces, weights, told["good"])


def _ranges(rows: Sequence[Sequence[Sequence[int]]]) -> Ranges:
    return tuple(tuple((lo, hi) for lo, hi in row) for row in rows)
