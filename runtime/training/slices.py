"""What of the parameters a rank keeps for the optimizer: slices with their place in the whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from plancc.runtime.dims import Ranges
from plancc.runtime.sizes import build_dim
from plancc.runtime.view import View


@dataclass(frozen=True, slots=True)
class OwnedSlice:
    """A rank's slice of one parameter, which its optimizer updates in place.

    `shape` is the parameter's, `ranges` its (lo, hi) pieces for each dim. Of equal slices on several ranks
    exactly one `counts`: in the norm of all gradients, and in checkpoints.
    """

    key: str
    name: str
    shape: tuple[int, ...]
    ranges: tuple[Ranges, ...]
    tensor: Tensor
    counts: bool


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


def first_stage(program: Mapping[str, Any], name: str, row: Mapping[str, Any]) -> bool:
    """Whether a parameter's slices on this stage count: on the first stage of all that hold it."""
    for cls in program["classes"]:
        for weight in cls["weights"]:
            if (weight["fqns"] or [weight["key"]])[0] == name:
                return bool(weight["stage"] == row["stage"])
    return True
