"""Merge attention results over disjoint keys by their log-sum-exp: exact, in any order and tree.

A part is (out [B, H, Tq, Dv], lse [B, H, Tq], natural log); out 0 with lse -inf is neutral. Sums
are at least float32. There is no gradient here: the backward of each block takes the merged
(out, lse) instead, see `plancc.ops.blocks`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Union

import torch
from torch import Tensor

Part = tuple[Tensor, Tensor]
Tree = Union[int, Sequence["Tree"]]  # noqa: UP007 - a recursive alias
NEG_INF = float("-inf")


def merge(parts: Sequence[Part], dtype: torch.dtype | None = None) -> Part:
    """Return the merged (out, lse); out has `dtype`, by default that of the first part's out.

    Raises ValueError for no parts, RuntimeError where a gradient would be lost.
    """
    if not parts:
        raise ValueError("nothing to merge")
    refuse_graph(*(out for out, _ in parts))
    with torch.no_grad():
        first = parts[0][0].dtype
        exact = _exact(parts)
        lses = torch.stack([lse.to(exact) for _, lse in parts])
        shares, total = _shares(lses)
        merged = parts[0][0].to(exact) * shares[0].unsqueeze(-1)
        for (out, _), share in zip(parts[1:], shares[1:], strict=True):
            merged.addcmul_(out.to(exact), share.unsqueeze(-1))
        return merged.to(dtype or first), total


def merge_pair(a: Part, b: Part, dtype: torch.dtype | None = None) -> Part:
    """Return the merge of two parts."""
    return merge((a, b), dtype)


def merge_into(total: Part, part: Part) -> None:
    """Merge `part` into `total` in place; total's out should be at least float32."""
    out, lse = total
    more, more_lse = part
    refuse_graph(out, more)
    with torch.no_grad():
        shares, both = _shares(torch.stack((lse, more_lse.to(lse.dtype))))
        shares = shares.to(out.dtype).unsqueeze(-1)
        out.mul_(shares[0]).addcmul_(more.to(out.dtype), shares[1])
        lse.copy_(both)


def merge_tree(parts: Sequence[Part], tree: Tree, dtype: torch.dtype | None = None) -> Part:
    """Merge along a tree of part numbers, e.g. [[0, 1], [2, 3]]: inside the groups, then across.

    Between the levels out stays in the precision of the sums. Raises ValueError unless the tree
    names each part once.
    """
    if sorted(_leaves(tree)) != list(range(len(parts))):
        raise ValueError(f"the tree {tree} does not name each of {len(parts)} parts once")
    out, lse = _merged(parts, tree, _exact(parts))
    return out.to(dtype or parts[0][0].dtype), lse


def add_sinks(out: Tensor, lse: Tensor, sinks: Tensor) -> Part:
    """Give sinks [H], one more logit per head without a value, their share; once per attention."""
    refuse_graph(out, sinks)
    with torch.no_grad():
        logits = sinks.to(lse.dtype).view(1, -1, 1).expand_as(lse)
        shares, total = _shares(torch.stack((lse, logits)))
        return (out.to(lse.dtype) * shares[0].unsqueeze(-1)).to(out.dtype), total


def sink_backward(dout: Tensor, out: Tensor, lse: Tensor, sinks: Tensor) -> Tensor:
    """Return the gradient of sinks [H] from the merged out and lse, sinks included."""
    with torch.no_grad():
        exact = lse.dtype
        delta = (dout.to(exact) * out.to(exact)).sum(-1)
        logits = sinks.to(exact).view(1, -1, 1)
        share = torch.exp(logits - lse).masked_fill(lse == NEG_INF, 0.0)
        return -(share * delta).sum((0, 2)).to(sinks.dtype)


def refuse_graph(*tensors: Tensor | None) -> None:
    """Raise RuntimeError if autograd would record here, since the lse carries no gradient."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        raise RuntimeError(
            "attention on blocks has no graph: use plancc.ops.blocks.attend_blocks, or "
            "block_forward and block_backward under torch.no_grad()"
        )


def _shares(lses: Tensor) -> tuple[Tensor, Tensor]:
    """Return the share of each part and the total lse of lses [parts, ...].

    Shares sum to 1 also where exp(lse - total) would not, for lses too large to hold a log of 2.
    """
    most = lses.amax(0)
    most = most.masked_fill(most == NEG_INF, 0.0)
    weights = torch.exp(lses - most)
    sums = weights.sum(0)
    return weights / sums.masked_fill(sums == 0.0, 1.0), most + sums.log()


def _merged(parts: Sequence[Part], tree: Tree, exact: torch.dtype) -> Part:
    if isinstance(tree, int):
        return parts[tree]
    return merge([_merged(parts, branch, exact) for branch in tree], exact)


def _leaves(tree: Tree) -> Iterator[int]:
    if isinstance(tree, int):
        yield tree
    else:
        for branch in tree:
            yield from _leaves(branch)


def _exact(parts: Sequence[Part]) -> torch.dtype:
    exact = torch.float32
    for out, lse in parts:
        exact = torch.promote_types(torch.promote_types(exact, out.dtype), lse.dtype)
    return exact
