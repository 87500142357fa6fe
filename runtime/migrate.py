"""Move the KV cache to its owners under another variant: once, when a guard switches the program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from plancc.runtime.comm import Comm
from plancc.runtime.dims import Dim
from plancc.runtime.kv import KVCache
from plancc.runtime.owners import Owners
from plancc.runtime.sizes import build_dim
from plancc.runtime.view import View


def cache_rows(program: Mapping[str, Any]) -> dict[str, Any]:
    """slot -> [key row, value row] over all classes of one variant."""
    rows: dict[str, Any] = {}
    for cls in program["classes"]:
        rows.update(cls["caches"])
    return rows


def move_caches(
    view: View,
    comm: Comm,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    caches: Sequence[KVCache],
    batches: Sequence[tuple[int, int]],
    past: int,
    at: int,
    owners: tuple[Owners, Owners],
) -> int:
    """Redistribute every slot whose layout differs between two variants; returns how many moved.

    `owners` are the tables before and after the switch, both for the `past` positions.
    """
    before, after = cache_rows(old), cache_rows(new)
    moved = 0
    for slot, rows in before.items():
        if all(map(partial(same_place, view, positions(1, past), owners), rows, after[slot])):
            continue
        moved += 1
        for cache, (lo, hi) in zip(caches, batches, strict=True):
            env = positions(hi - lo, past)
            pair = []
            for part, (row, want) in enumerate(zip(rows, after[slot], strict=True)):
                held = cache.slots.get(int(slot))
                piece = None if held is None else held[part]
                pair.append(move_one(view, comm, (row, want), piece, env, at, owners))
            if pair[0] is not None and pair[1] is not None:
                cache.put(int(slot), pair[0], pair[1])
            else:
                cache.drop(int(slot))
    return moved


def dims_of(
    view: View, row: Mapping[str, Any], env: Mapping[str, int], owners: Owners
) -> list[Dim]:
    """The Dims of a row under one state of the tables."""
    here = view.on(row["stage"]["mesh"])
    here.owners = owners
    return [build_dim(here, tree, env) for tree in row["dims"]]


def positions(batch: int, past: int) -> dict[str, int]:
    """The sizes under which a cache has `past` positions: T in prefill, P + T in decode."""
    return {"B": batch, "T": past, "P": 0}


def same_place(
    view: View, env: Mapping[str, int], owners: tuple[Owners, Owners],
    a: Mapping[str, Any], b: Mapping[str, Any],
) -> bool:  # fmt: skip
    """Whether two rows put a tensor on the same stage in the same layout."""
    keys = [
        [d.key for d in dims_of(view, row, env, own)]
        for row, own in zip((a, b), owners, strict=True)
    ]
    return a["stage"] == b["stage"] and keys[0] == keys[1]


def move_one(
    view: View, comm: Comm, rows: tuple[Mapping[str, Any], Mapping[str, Any]],
    piece: torch.Tensor | None, env: Mapping[str, int], at: int, owners: tuple[Owners, Owners],
) -> torch.Tensor | None:  # fmt: skip
    """One tensor from one row's layout to the other's; None on ranks that then hold none of it."""
    row, want = rows
    source = view.stage(row["stage"]["mesh"], **row["stage"]["coords"])
    target = view.stage(want["stage"]["mesh"], **want["stage"]["coords"])
    has = dims_of(view, row, env, owners[0])
    wants = dims_of(view, want, env, owners[1])
    gives, takes = view.rank in source.ranks, view.rank in target.ranks
    if gives and takes:
        assert piece is not None
        return comm.transfer(piece, source, has, target, wants, at)
    if gives:
        assert piece is not None
        comm.send(piece, source, has, target, wants, at)
        return None
    return comm.recv(view.dtype_of(row["dtype"]), source, has, target, wants, at) if takes else None
