"""The KV cache of one rank and micro-batch: per attention, keys and values of all positions so far."""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Grows by doubling, so that appending one position copies nothing most of the time."""

    def __init__(self) -> None:
        self.slots: dict[int, tuple[Tensor, Tensor]] = {}
        self._room: dict[int, tuple[Tensor, Tensor]] = {}

    def append(self, k: Tensor, v: Tensor, slot: int) -> tuple[Tensor, Tensor]:
        """Add k [B, K, T, D] and v [B, K, T, Dv] behind what slot holds; return all P + T positions."""
        if slot not in self.slots:
            self.slots[slot] = (k, v)
            return k, v
        old_k, old_v = self.slots[slot]
        past, total = old_k.shape[2], old_k.shape[2] + k.shape[2]
        room = self._room.get(slot)
        if room is None or room[0].shape[2] < total:
            room = (_grown(old_k, 2 * total), _grown(old_v, 2 * total))
            self._room[slot] = room
        room[0][:, :, past:total] = k
        room[1][:, :, past:total] = v
        self.slots[slot] = (room[0][:, :, :total], room[1][:, :, :total])
        return self.slots[slot]

    def put(self, slot: int, k: Tensor, v: Tensor) -> None:
        """Replace what slot holds (after a move to other owners)."""
        self.slots[slot] = (k, v)
        self._room.pop(slot, None)

    def drop(self, slot: int) -> None:
        """Forget what slot holds (after it moved to other ranks)."""
        self.slots.pop(slot, None)
        self._room.pop(slot, None)


def _grown(x: Tensor, room: int) -> Tensor:
    out = torch.empty((*x.shape[:2], room, *x.shape[3:]), dtype=x.dtype, device=x.device)
    out[:, :, : x.shape[2]] = x
    return out
