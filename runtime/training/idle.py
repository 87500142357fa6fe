"""The idle share of each mesh while training: time that its ranks wait in communication, of all their time.

Measured only where ranks are processes of their own: threads of one process wait for each other anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from plancc.ir.mesh import mesh_of
from plancc.runtime.local import LocalTransport
from plancc.runtime.meter import Meter
from plancc.runtime.transport import Transport


class Idle:
    """Meters one rank; `transport` is what its programs communicate over."""

    def __init__(
        self, transport: Transport, row: Mapping[str, Any], cls: Mapping[str, Any]
    ) -> None:
        names = [mesh_of(name) for found in row["classes"] for name in found["stages"]]
        self.meshes = tuple(dict.fromkeys(names))
        self.mine = {mesh_of(name) for name in cls["stages"]}
        local = isinstance(transport, LocalTransport)
        self.meter = None if local else Meter(transport)
        self.transport: Any = transport if self.meter is None else self.meter

    def measured(self, seconds: float) -> Tensor:
        """[2 * meshes] float64 to add up over the ranks: seconds inside communication, and in all."""
        out = torch.zeros(2 * len(self.meshes), dtype=torch.float64)
        if self.meter is None:
            return out
        for at, mesh in enumerate(self.meshes):
            if mesh in self.mine:
                out[2 * at], out[2 * at + 1] = self.meter.inside, seconds
        self.meter.reset()
        return out

    def shares(self, total: Tensor) -> dict[str, float]:
        """Mesh -> idle share of the step, from the sums; empty where nothing was measured."""
        rows = total.view(-1, 2).tolist()
        return {
            mesh: round(inside / spent, 4)
            for mesh, (inside, spent) in zip(self.meshes, rows, strict=True)
            if spent > 0
        }
