"""What of the parameters a rank keeps for the optimizer: slices with their place in the whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from plancc.runtime.balance.balancer import placed_text
from plancc.runtime.balance.tables import joined, key_of
from plancc.runtime.dims import Ranges, within
from plancc.runtime.pieces import take
from plancc.runtime.sizes import build_dim
from plancc.runtime.view import View


@dataclass(frozen=True, slots=True)
class OwnedSlice:
    """A rank's slice of one parameter, which its optimizer updates in place.

    `shape` is the parameter's, `ranges` its (lo, hi) pieces for each dim. Of equal slices on several ranks
    exactly one `counts`: in the norm of all gradients, and in checkpoints. Where experts have copies, these
    are the rows `once` of it.
    """

    key: str
    name: str
    shape: tuple[int, ...]
    ranges: tuple[Ranges, ...]
    tensor: Tensor
    counts: bool
    once: Ranges | None = None

    @property
    def rows(self) -> tuple[int, ...] | None:
        """The positions of the rows that count; None for all."""
        if self.once is None:
            return None
        spots = within(self.ranges[0], self.once)
        return tuple(row for low, high in spots for row in range(low, high))

    def brought(self, tensor: Tensor) -> tuple[tuple[Ranges, ...], Tensor]:
        """What of a tensor that lies like the slice goes into a checkpoint: ranges and rows."""
        if self.once is None:
            return self.ranges, tensor
        return (self.once, *self.ranges[1:]), take(tensor, 0, within(self.ranges[0], self.once))


def slice_ranges(view: View, row: Mapping[str, Any], rank: int) -> tuple[Ranges, ...]:
    """The index ranges of a manifest row (dims of one stage) on a rank of that stage."""
    dims = [build_dim(view, tree, {}) for tree in row["dims"]]
    return tuple(d.ranges(view.coord_of(rank)) for d in dims)


def slice_shape(view: View, row: Mapping[str, Any]) -> tuple[int, ...]:
    """The global shape of a manifest row."""
    return tuple(build_dim(view, tree, {}).total for tree in row["dims"])


def first_holder(view: View, row: Mapping[str, Any]) -> bool:
    """Whether no lower rank of the stage has the same slice as this one."""
    stage = view.stage(row["stage"]["mesh"], **row["stage"]["coords"])
    mine = slice_ranges(view, row, view.rank)
    lower = (rank for rank in stage.ranks if rank < view.rank)
    return all(slice_ranges(view, row, rank) != mine for rank in lower)


def first_rows(view: View, row: Mapping[str, Any]) -> Ranges | None:
    """The experts of this rank that no lower rank has a copy of; None where there are no copies."""
    text = placed_text(row)
    if not text:
        return None
    part = view.part(text)
    table = view.tables.found[key_of(part)]
    index = view.index(view.rank, part)
    return joined(table.firsts(index)) if table.copied and index is not None else None


def first_stage(program: Mapping[str, Any], name: str, row: Mapping[str, Any]) -> bool:
    """Whether a parameter's slices on this stage count: on the first stage of all that hold it."""
    for cls in program["classes"]:
        for weight in cls["weights"]:
            if (weight["fqns"] or [weight["key"]])[0] == name:
                return bool(weight["stage"] == row["stage"])
    return True
