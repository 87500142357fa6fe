"""Custom operators that graphs and emitted programs call: attention, experts, look-ups, losses.

The functions here are plain torch code; `register` makes each a `torch.library` operator of the
namespace `plancc` so that torch.export records one node for it. `resolve` gives the callable of a
graph's target, without going through the dispatcher for our own operators.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from plancc.ops.attention import attention
from plancc.ops.embedding import embedding_shard
from plancc.ops.experts import experts
from plancc.ops.joined import joined_nll, joined_rows_backward
from plancc.ops.keys import attention_over_keys, attention_over_keys_backward
from plancc.ops.later import linear_later
from plancc.ops.loss import cross_entropy, cross_entropy_shard, join_cross_entropy
from plancc.ops.reduce import partial_mean

__all__ = [
    "attention",
    "attention_over_keys",
    "attention_over_keys_backward",
    "cross_entropy",
    "cross_entropy_shard",
    "embedding_shard",
    "experts",
    "join_cross_entropy",
    "joined_nll",
    "joined_rows_backward",
    "linear_later",
    "partial_mean",
    "resolve",
]

_OWN: dict[str, Callable[..., Any]] = {
    "plancc.attention.default": attention,
    "plancc.attention_over_keys.default": attention_over_keys,
    "plancc.attention_over_keys_backward.default": attention_over_keys_backward,
    "plancc.cross_entropy.default": cross_entropy,
    "plancc.cross_entropy_shard.default": cross_entropy_shard,
    "plancc.joined_nll.default": joined_nll,
    "plancc.joined_rows_backward.default": joined_rows_backward,
    "plancc.experts.default": experts,
    "plancc.embedding_shard.default": embedding_shard,
    "plancc.partial_mean.default": partial_mean,
}


@cache
def resolve(target: str) -> Callable[..., Any]:
    """Return the callable that `target` ("aten.linear.default") names, or raise KeyError."""
    if target in _OWN:
        return _OWN[target]
    try:
        namespace, name, overload = target.split(".")
        return getattr(getattr(getattr(torch.ops, namespace), name), overload)
    except (AttributeError, ValueError) as missing:
        raise KeyError(f"no operator `{target}` in this torch") from missing
