"""Every so many steps: predict what each expert will take, place experts anew, move their weights.

All ranks add up what was measured and then compute the same; programs do not change, and neither do results.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from plancc.balance import Estimate, place_experts, settle
from plancc.balance.placement import placed, rank_loads
from plancc.dsl.errors import Bug
from plancc.runtime.balance.paces import PacesUsed
from plancc.runtime.balance.rows import move_rows, sum_copies, travels
from plancc.runtime.balance.tables import Key, Table, key_of
from plancc.runtime.view import View

if TYPE_CHECKING:
    from plancc.runtime.runner import Runner

MEASURE, MOVE, COPIES, PACES = 17, 18, 19, 20
"""Instruction numbers of what balance itself sends."""


@dataclass(frozen=True, slots=True)
class Change:
    """One look at a layer after a step: greatest load over the mean, and what came of it.

    `before` and `after` are predicted, without and with the new table (equal where it stays); `tokens`
    is what was counted since the last look. `moves` are experts that travelled.
    """

    step: int
    layer: str
    tokens: float
    before: float
    after: float
    moves: int

    def json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


class Balancer:
    """The tables of one rank's runner, as they change; every rank keeps the same ones.

    `states` gives further tensors with the rows of a layer's experts that move with the weights.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.steps = 0
        self.changes: list[Change] = []
        self.estimates: dict[Key, Estimate] = {}
        self.work: dict[str, list[float]] = {}  # seconds and tokens of this rank by part of rows
        self.states: Callable[[Key], Sequence[Tensor]] = lambda key: ()

    def after(self, row: Mapping[str, Any]) -> list[Change]:
        """Count a step of the programs of `row`; where it is time, look at its layers."""
        layers = row.get("balance", ())
        if not layers:
            return []
        self.steps += 1
        due = [one for one in layers if one["every"] and self.steps % one["every"] == 0]
        return self.look(due) if due and not self.runner.sizes else []

    def look(self, layers: Sequence[Mapping[str, Any]]) -> list[Change]:
        """Change the tables of some layers where that helps; all ranks call this alike."""
        found = []
        for one, (given, seconds) in zip(layers, self.measured(layers), strict=True):
            view = self.runner.view_on("")
            part = view.part(one["part"])
            table = self.runner.tables.of(part, one["experts"])
            estimate = self.estimates.setdefault(key_of(part), Estimate())
            tokens, load = loads_of(table, given, seconds)
            if not sum(given):
                continue
            estimate.update([load])
            predicted = estimate.predict()[0]
            new = better(table, predicted, one)
            count = self.change(view, one, table, new) if new is not None else 0
            self.runner.tables.forget(key_of(part))
            self.changes.append(Change(
                self.steps, one["path"], uneven(tokens), spread(table, predicted),
                spread(new or table, predicted), count,
            ))  # fmt: skip
            found.append(self.changes[-1])
        return found

    def measured(
        self, layers: Sequence[Mapping[str, Any]]
    ) -> list[tuple[list[float], list[float]]]:  # fmt: skip
        """What all ranks together counted of each layer: choices by seat, seconds by rank of the part."""
        tables, transport = self.runner.tables, self.runner.transport
        view = self.runner.view_on("")
        rows, sizes = [], []
        for one in layers:
            part = view.part(one["part"])
            key, table = key_of(part), tables.of(part, one["experts"])
            seats = table.ranks * table.room
            given = tables.given.get(key)
            seconds = torch.zeros(table.ranks, dtype=torch.float64)
            mine = view.index(view.rank, part)
            if mine is not None:
                seconds[mine] = tables.spent(key)
            rows += [torch.zeros(seats) if given is None else given.cpu(), seconds]
            sizes.append((seats, table.ranks))
        flat = torch.cat([x.to(torch.float64) for x in rows])
        group = tuple(getattr(transport, "members", None) or range(transport.world))
        total = transport.all_reduce(flat.to(transport.device), group, MEASURE).cpu().tolist()
        out, at = [], 0
        for seats, ranks in sizes:
            out.append((total[at : at + seats], total[at + seats : at + seats + ranks]))
            at += seats + ranks
        return out

    def change(self, view: View, one: Mapping[str, Any], old: Table, new: Table) -> int:
        """Move to another table; how many experts travelled."""
        part = view.part(one["part"])
        key = key_of(part)
        way = travels(old, new, one["nodes"])
        if view.index(view.rank, part) is not None:
            weights = self.runner.tables.weights.get(key, {})
            tensors = [weights[name] for name in sorted(weights)] + list(self.states(key))
            move_rows(self.runner.transport, view, part, (old, new), way, tensors, MOVE)
        self.runner.tables.change(key, new)
        return len(way)

    def state(self) -> dict[str, Any]:
        """What another rank, or this one later, needs to go on alike: plain data."""
        paces = self.runner.tables.paces
        return {
            "steps": self.steps,
            "tables": [
                [list(key), one.experts, list(one.slots), [list(mine) for mine in one.held]]
                for key, one in self.runner.tables.found.items()
            ],
            "estimates": [[list(key), one.state()] for key, one in self.estimates.items()],
            "newest": [[list(key), list(found)] for key, found in paces.newest.items()],
            "paces": [[list(key), one.state()] for key, one in paces.estimates.items()],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave; before the runner has loaded any weights."""
        tables = self.runner.tables
        if any(tables.weights.values()):
            raise Bug("tables change under weights that are loaded")
        self.steps = int(state["steps"])
        for key, experts, slots, held in state["tables"]:
            tables.found[tuple(key)] = Table(experts, tuple(slots), tuple(map(tuple, held)))
        for key, found in state["newest"]:
            tables.paces.newest[tuple(key)] = tuple(found)
        for into, rows in (
            (self.estimates, state["estimates"]), (tables.paces.estimates, state["paces"])
        ):  # fmt: skip
            for key, found in rows:
                into[tuple(key)] = Estimate()
                into[tuple(key)].load(found)

    def paces(self, row: Mapping[str, Any]) -> PacesUsed:
        """What a batch that begins now shares its rows out by; every rank computes the same."""
        loaded = row.get("loaded", ())
        if not loaded:
            return {}
        runner, view = self.runner, self.runner.view_on("")
        parts = [view.part(text) for text in loaded]
        flat = torch.zeros(sum(2 * part.count for part in parts), dtype=torch.float64)
        at = 0
        for text, part in zip(loaded, parts, strict=True):
            index = view.index(view.rank, part)
            if index is not None:
                flat[at + index], flat[at + part.count + index] = self.work.pop(text, (0.0, 0.0))
            at += 2 * part.count
        transport = runner.transport
        group = tuple(getattr(transport, "members", None) or range(transport.world))
        total = transport.all_reduce(flat.to(transport.device), group, PACES).cpu().tolist()
        for part in parts:
            mine, total = total[: 2 * part.count], total[2 * part.count :]
            runner.tables.paces.note(part, mine[: part.count], mine[part.count :])
        return dict(runner.tables.paces.newest)

    @contextmanager
    def working(
        self, row: Mapping[str, Any], batches: Sequence[int], tokens: int
    ) -> Iterator[None]:  # fmt: skip
        """Time what this rank does for its rows of `batches`; on the CPU alone, where waiting takes none."""
        loaded = row.get("loaded", ())
        begin = time.thread_time()
        yield
        spent = time.thread_time() - begin
        if not loaded or not self.runner.tables.measures or self.on_device():
            return
        view = self.runner.view_on("")
        for text in loaded:
            part = view.part(text)
            index = view.index(view.rank, part)
            if index is not None:
                mine = sum(
                    high - low
                    for rows in batches
                    for low, high in self.runner.tables.paces.shares(part, rows)[index]
                )
                found = self.work.setdefault(text, [0.0, 0.0])
                found[0] += spent
                found[1] += mine * tokens

    def on_device(self) -> bool:
        """Whether this rank computes on an accelerator: the thread's time then says nothing."""
        device = getattr(self.runner.transport, "device", None)
        return device is not None and device.type != "cpu"

    def summed(self, cls: Mapping[str, Any], gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gradients with those of copies of one expert added up, by weight key as they are given."""
        out = dict(gradients)
        view = self.runner.view_on("")
        groups: dict[str, list[str]] = {}
        for key in gradients:
            text = placed_text(cls["gradients"][key])
            if text:
                groups.setdefault(text, []).append(key)
        for text, keys in groups.items():
            part = view.part(text)
            table = self.runner.tables.found[key_of(part)]
            grads = [gradients[key] for key in keys]
            found = sum_copies(self.runner.transport, view, part, table, grads, COPIES)
            out.update(zip(keys, found, strict=True))
        return out


def placed_text(row: Mapping[str, Any]) -> str:
    """The part whose table says which rows of a manifest row a rank has; empty where none does."""
    tree = row["dims"][0] if row["dims"] else ["leaf", "", 0, []]
    parts = tree[3] if tree[0] == "leaf" else []
    return parts[0] if parts and ":placed" in parts[0] else ""


def loads_of(
    table: Table, given: Sequence[float], seconds: Sequence[float]
) -> tuple[list[float], list[float]]:
    """Choices by rank, and the load of each expert: the time that its choices took, by their rank's pace.

    Without times on all ranks that had choices, a load is a number of choices.
    """
    room = table.room
    tokens = [math.fsum(given[r * room : (r + 1) * room]) for r in range(table.ranks)]
    timed = all(spent > 0 for spent, count in zip(seconds, tokens, strict=True) if count)
    load = [0.0] * table.experts
    for rank, held in enumerate(table.held):
        pace = seconds[rank] / tokens[rank] if timed and tokens[rank] else 1.0
        for row, expert in enumerate(held):
            load[expert] += given[rank * room + row] * pace
    return tokens, load


def uneven(loads: Sequence[float]) -> float:
    """The greatest load over the mean; 1 where there is none."""
    total = math.fsum(loads)
    return max(loads) * len(loads) / total if total else 1.0


def spread(table: Table, load: Sequence[float]) -> float:
    """The greatest load of a rank over the mean, under a table."""
    return uneven(rank_loads(table.slots, load, table.ranks))


def better(table: Table, load: Sequence[float], one: Mapping[str, Any]) -> Table | None:
    """A table for these loads, if the present one is out of tolerance and the new one is better."""
    before = spread(table, load)
    if before <= 1 + one["tolerance"]:
        return None
    groups, nodes = one["groups"], one["nodes"]
    whole = groups % nodes == 0 and table.experts % groups == 0
    policy = one["policy"] if whole else "flat"  # groups that do not fit nodes are no help
    slots = len(table.slots)
    wanted = place_experts([load], slots, groups, nodes, table.ranks, policy)
    old = placed([table.slots], [load], table.ranks, nodes)
    new = filled(table, settle(old, wanted).physical[0])
    return new if spread(new, load) < before else None


def filled(old: Table, slots: Sequence[int]) -> Table:
    """The table of these slots: a rank with an expert twice goes on to hold another one beside it."""
    each, held = len(slots) // old.ranks, []
    for rank in range(old.ranks):
        wanted = set(slots[rank * each : (rank + 1) * each])
        others = [*old.held[rank], *range(old.experts)]
        more = [e for e in dict.fromkeys(others) if e not in wanted]
        held.append(tuple(sorted([*wanted, *more[: old.room - len(wanted)]])))
    return Table(old.experts, tuple(slots), tuple(held))
