"""Blocks of tensors: taken at ranges of positions, put back, and joined from the pieces of several ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plancc.runtime.dims import Ranges, length, within


def resized(x: Tensor, dim: int, size: int) -> tuple[int, ...]:
    """The shape of `x` with another size of one dim."""
    return (*x.shape[:dim], size, *x.shape[dim + 1 :])


def take(x: Tensor, dim: int, spots: Ranges) -> Tensor:
    """The elements of `x` at positions `spots` of `dim`: a view where they are one range."""
    if len(spots) == 1:
        lo, hi = spots[0]
        return x if hi - lo == x.shape[dim] else x.narrow(dim, lo, hi - lo)
    if not spots:
        return x.narrow(dim, 0, 0)
    return torch.cat([x.narrow(dim, lo, hi - lo) for lo, hi in spots], dim)


def cut(x: Tensor, spots: tuple[Ranges, ...]) -> Tensor:
    """The block of `x` at positions `spots`, dim by dim."""
    for dim, ranges in enumerate(spots):
        x = take(x, dim, ranges)
    return x


def put(out: Tensor, spots: tuple[Ranges, ...], piece: Tensor) -> None:
    """Write `piece` into the block of `out` at positions `spots`."""
    if not spots:
        out.copy_(piece)
        return
    blocks: list[tuple[Tensor, Tensor]] = [(out, piece)]
    for dim, ranges in enumerate(spots):
        split: list[tuple[Tensor, Tensor]] = []
        for to, frm in blocks:
            base = 0
            for lo, hi in ranges:
                split.append((to.narrow(dim, lo, hi - lo), frm.narrow(dim, base, hi - lo)))
                base += hi - lo
        blocks = split
    for to, frm in blocks:
        to.copy_(frm)


def join(pieces: Sequence[Tensor], dim: int, frame: Ranges, held: Sequence[Ranges]) -> Tensor:
    """Put the pieces of the peers together along `dim`: a plain cat where they lie one after the other."""
    spots = [within(frame, ranges) for ranges in held]
    at = 0
    for found in spots:
        if len(found) > 1 or (found and found[0][0] != at):
            break
        at += length(found)
    else:
        return torch.cat(list(pieces), dim)
    out = pieces[0].new_empty(resized(pieces[0], dim, length(frame)))
    for found, piece in zip(spots, pieces, strict=True):
        base = 0
        for lo, hi in found:
            out.narrow(dim, lo, hi - lo).copy_(piece.narrow(dim, base, hi - lo))
            base += hi - lo
    return out
