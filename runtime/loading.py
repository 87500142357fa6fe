"""Fill a rank's weight table: slices of a checkpoint, buffers from the artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from plancc.ir.layout import Part
from plancc.runtime.artifact import Artifact
from plancc.runtime.dims import Dim
from plancc.runtime.pieces import cut
from plancc.runtime.sizes import build_dim
from plancc.runtime.view import View, dtype_named
from plancc.runtime.weights import WeightsError, find


def load_weights(
    rows: Sequence[Mapping[str, Any]],
    view: View,
    source: Any,
    artifact: Artifact,
    shared: dict[str, Tensor],
    dtype: torch.dtype | None,
) -> dict[str, Tensor]:
    """Key -> this rank's slice, for one class's weight table.

    `source.read(fqn, ranges)` gives slices of parameters; `shared` keeps slices that several programs
    of one rank have in common. Floating tensors become `dtype` where one is given.
    """
    out = {}
    for row in rows:
        dims = [build_dim(view, tree, {}) for tree in row["dims"]]
        ranges = tuple(d.ranges(view.coord_of(view.rank)) for d in dims)
        placed = placed_part(dims)
        key = f"{row['fqns'] or row['key']}:{placed or ranges}"
        if key not in shared:
            found = _read(row, ranges, source, artifact, view.device, dtype)
            shared[key] = found if placed is None else found.clone()
        if (
            placed is not None
        ):  # these rows are written when the table changes: not the source's own
            view.tables.keep(placed, key, shared[key])
        out[row["key"]] = shared[key]
    return out


def placed_part(dims: Sequence[Dim]) -> Part | None:
    """The part whose table says which rows of a weight a rank has; None where no table does."""
    return dims[0].parts[0] if dims and dims[0].room else None


def _read(row, ranges, source, artifact: Artifact, device, dtype) -> Tensor:
    if row["kind"] == "param":
        tensor = source.read(find(source, row["fqns"]), ranges)
    else:
        name = stored_name(row, artifact)
        own = source.buffer(name) if isinstance(source, Loaded) else None
        tensor = cut(artifact.buffers[name] if own is None else own, ranges)
    if dtype is not None and tensor.is_floating_point():
        tensor = tensor.to(dtype)
    return tensor.to(device).contiguous()


def stored_name(row: Mapping[str, Any], artifact: Artifact) -> str:
    """The value name of a buffer or constant of the weight table."""
    for name, param in artifact.manifest["params"].items():
        same = param["fqns"] == row["fqns"] if row["fqns"] else name == row["key"]
        if same and param["stored"]:
            return name
    raise KeyError(row["key"])


class Loaded:
    """Tensors in memory, in place of a checkpoint: parameters by any name, buffers by value name."""

    def __init__(self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
        self.params = params
        self.buffers = buffers

    def shape(self, fqn: str) -> tuple[int, ...]:
        """The shape of a parameter; WeightsError if there is none of that name."""
        if fqn not in self.params:
            raise WeightsError([f"no weight `{fqn}`"])
        return tuple(self.params[fqn].shape)

    def names(self) -> list[str]:
        """Every parameter's names."""
        return sorted(self.params)

    def read(self, fqn: str, ranges: Sequence[tuple[tuple[int, int], ...]]) -> Tensor:
        """The block of a parameter at `ranges`, dim by dim."""
        return cut(self.params[fqn], tuple(ranges))

    def buffer(self, name: str) -> Tensor | None:
        """A buffer, or None for the one that the artifact holds."""
        return self.buffers.get(name)


def open_weights(artifact: Artifact) -> Any:
    """The weight source that an artifact names: checkpoint files, its own file, or a seed."""
    from plancc.runtime.seeded import SeededWeights
    from plancc.runtime.weights import SafetensorsWeights

    spec = artifact.manifest["weights"]
    if spec["kind"] == "files":
        return SafetensorsWeights(spec["paths"])
    if spec["kind"] == "stored":
        return SafetensorsWeights([str(artifact.folder / "weights.safetensors")])
    table = {
        row["fqns"][0]: (tuple(row["shape"]), dtype_named(row["dtype"]), "")
        for row in artifact.manifest["params"].values()
        if row["kind"] == "param"
    }
    return SeededWeights(spec["seed"], table)
