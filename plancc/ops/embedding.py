"""Embedding look-up in a shard of the table: rows that live elsewhere give zeros; shards add up."""

from __future__ import annotations

import torch
from torch import Tensor


def embedding_shard(ids: Tensor, weight: Tensor, first: int = 0, padding: int = -1) -> Tensor:
    """Return rows `ids - first` of `weight` [rows, h]; ids outside the shard give zero rows.

    Row `padding` of the whole table, if not negative, gets no gradient.
    """
    rows = weight.shape[0]
    if rows == 0:
        return weight.sum(0).expand(*ids.shape, *weight.shape[1:])  # zeros that autograd follows
    local = ids - first
    inside = (local >= 0) & (local < rows)
    still = padding - first if padding >= first and padding - first < rows else -1
    found = torch.embedding(weight, torch.where(inside, local, 0), still)
    return found.masked_fill(~inside.unsqueeze(-1), 0)


torch.library.define(
    "plancc::embedding_shard",
    "(Tensor ids, Tensor weight, int first=0, int padding=-1) -> Tensor",
)
torch.library.impl("plancc::embedding_shard", "CompositeExplicitAutograd", embedding_shard)


@torch.library.register_fake("plancc::embedding_shard")
def _(ids: Tensor, weight: Tensor, first: int = 0, padding: int = -1) -> Tensor:
    return weight.new_empty((*ids.shape, *weight.shape[1:]))
