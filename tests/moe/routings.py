"""Routers with a bias of our choice, what they choose, and the bytes that must then travel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from moe_plans import block_of
from torch import Tensor

from plancc.ir.graph import Graph
from plancc.verification.reference import random_params

EXPERTS = "plancc.experts.default"


def biased(
    graph: Graph, model: str, bias: Sequence[float], noise: float = 0.0
) -> dict[str, Tensor]:
    """Random parameters with which every router prefers experts by `bias`, plus noise by token."""
    params = random_params(graph, torch.float64)
    embed = params["embed_tokens.weight"] = params["embed_tokens.weight"].clone()
    embed[:, 0] = 50.0  # what every token has; norms keep its sign
    for name in [n for n in params if ".norm" in n or "_norm" in n or "layernorm" in n]:
        params[name] = params[name].abs() + 0.1
    for name in [n for n in params if is_router(n, model)]:
        weight = params[name] * noise
        weight[:, 0] = torch.tensor(bias, dtype=torch.float64)
        params[name] = weight
    return params


def is_router(name: str, model: str) -> bool:
    """Whether a parameter is a router's matrix."""
    block = block_of(model)
    return name.endswith((f".{block}.router.weight", f".{block}.gate.weight"))


def choices(graph: Graph, recorded: dict[str, Tensor]) -> list[Tensor]:
    """The experts [t, k] that the tokens of each layer chose on one device, from recorded values."""
    return [recorded[n.args[1].name] for n in graph.nodes if n.target == EXPERTS]


def hosts_of(choice: Tensor, experts: int, ranks: int) -> int:
    """Sum over tokens of the distinct ranks that have one of its experts, shared out evenly."""
    return sum(
        len({rank_of(int(e), experts, ranks) for e in token}) for token in choice
    )  # fmt: skip


def rank_of(expert: int, experts: int, ranks: int) -> int:
    """The rank of an expert: shares differ by one at most, the first are larger or as large."""
    bounds = [experts * i // ranks for i in range(ranks + 1)]
    return next(i for i in range(ranks) if bounds[i] <= expert < bounds[i + 1])
