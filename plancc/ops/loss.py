"""Cross entropy of token ids, whole or with the vocabulary cut over ranks.

A shard gives (logsumexp of its columns, logit of the target if it lies here); `join_cross_entropy`
puts the pairs of all ranks together. Backward keeps the logits as they came, never a float32 copy
of them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORE = -100
NEG_INF = float("-inf")
_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 25}  # logits that are taken to float32 at a time


def cross_entropy(logits: Tensor, targets: Tensor, *, ignore: int = IGNORE) -> Tensor:
    """Return -log p(target) [...], at least float32, for logits [..., V]; 0 where ignored.

    `targets` [...] are int64. Raises IndexError for a target that is neither `ignore` nor in 0..V
    (on a CPU; elsewhere the device stops).
    """
    ignored = targets == ignore
    held = targets.masked_fill(ignored, 0)
    inside = ((held >= 0) & (held < logits.shape[-1])).all()
    words = f"a target is not in 0..{logits.shape[-1]} and is not {ignore}"
    if inside.device.type != "cpu":
        torch._assert_async(inside, words)
    elif not bool(inside):
        raise IndexError(words)
    return _Whole.apply(logits, held).masked_fill(ignored, 0.0)


def cross_entropy_shard(
    logits: Tensor, targets: Tensor, start: int, *, ignore: int = IGNORE
) -> Tensor:
    """Return [..., 2] for the columns start .. start + v of the vocabulary, logits [..., v].

    First the logsumexp of the columns (-inf if there are none), then the logit of the target if it
    is one of them, else 0; at least float32.
    """
    local = (targets - start).masked_fill(targets == ignore, -1)
    return _Shard.apply(logits, local)


def join_cross_entropy(pairs: Sequence[Tensor], targets: Tensor, ignore: int = IGNORE) -> Tensor:
    """Return -log p(target) [...] from the `cross_entropy_shard` of every part of the vocabulary.

    It is the logsumexp over the parts' first, less the sum of their second; 0 where ignored. Each
    target must lie in one of the parts.
    """
    both = torch.stack(tuple(pairs))
    total = both[0, ..., 0] if len(pairs) == 1 else both[..., 0].logsumexp(0)
    return (total - both[..., 1].sum(0)).masked_fill(targets == ignore, 0.0)


class _Shard(torch.autograd.Function):
    """The pair of one shard; targets outside 0 .. v are not here."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, local: Tensor) -> Tensor:
        width = logits.shape[-1]
        exact = torch.promote_types(logits.dtype, torch.float32)
        flat, spots = _flat(logits), local.reshape(-1)
        pair = torch.zeros((len(flat), 2), dtype=exact, device=logits.device)
        here = (spots >= 0) & (spots < width)
        if width == 0:
            pair[:, 0] = NEG_INF
        elif len(flat):
            for rows in _chunks(flat):
                # max x - max log p: torch has a fused kernel for log p and none for logsumexp
                most = flat[rows].amax(-1).to(exact)
                less = torch.log_softmax(flat[rows], -1, dtype=exact).amax(-1)
                pair[rows, 0] = (most - less).masked_fill(most == NEG_INF, NEG_INF)
            found = flat.gather(1, spots.masked_fill(~here, 0)[:, None])[:, 0]
            pair[:, 1] = found.to(exact).masked_fill(~here, 0.0)
        ctx.save_for_backward(logits, local, pair[:, 0] == NEG_INF)
        return pair.reshape(*logits.shape[:-1], 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dpair: Tensor) -> tuple[Tensor, None]:
        logits, local, dead = ctx.saved_tensors
        width, exact = logits.shape[-1], dpair.dtype
        flat, spots, grads = _flat(logits), local.reshape(-1), dpair.reshape(-1, 2)
        out = torch.empty_like(flat, memory_format=torch.contiguous_format)
        if flat.numel():
            here = (spots >= 0) & (spots < width)
            column = spots.masked_fill(~here, 0)[:, None]
            direct = grads[:, 1:].masked_fill(~here[:, None], 0.0)
            # softmax gives NaN for these
            veiled = dead.dim() > 0 and (dead.device.type != "cpu" or bool(dead.any()))
            for rows in _chunks(flat):
                part = out[rows] if out.dtype == exact else grads.new_empty(out[rows].shape)
                torch.softmax(flat[rows], -1, dtype=exact, out=part)
                if veiled:
                    part.masked_fill_(dead[rows, None], 0.0)
                part.mul_(grads[rows, :1]).scatter_add_(1, column[rows], direct[rows])
                if out.dtype != exact:
                    out[rows] = part
        return out.reshape(logits.shape), None


class _Whole(torch.autograd.Function):
    """-log p(target) where all columns are here; every target is one of them."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        exact = torch.promote_types(logits.dtype, torch.float32)
        flat, spots = _flat(logits), targets.reshape(-1, 1)
        nll = torch.empty((len(flat), 1), dtype=exact, device=logits.device)
        for rows in _chunks(flat):
            found = torch.log_softmax(flat[rows], -1, dtype=exact).gather(1, spots[rows])
            torch.neg(found, out=nll[rows])
        ctx.save_for_backward(logits, targets, torch.zeros((), dtype=torch.bool))
        return nll.reshape(targets.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dnll: Tensor) -> tuple[Tensor, None]:
        return _Shard.backward(ctx, torch.stack((dnll, -dnll), -1))


def _flat(x: Tensor) -> Tensor:
    """Return x [..., v] as [n, v], also where v is 0."""
    return x.unsqueeze(0).flatten(0, -2)


def _chunks(flat: Tensor) -> Iterator[slice]:
    """Cut rows [n, v] into slices of about `_CHUNK` numbers."""
    step = max(1, _CHUNK.get(flat.device.type, 1 << 18) // max(1, flat.shape[1]))
    for start in range(0, len(flat), step):
        yield slice(start, start + step)
