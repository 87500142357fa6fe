"""Dynamic balance: where experts and their copies go, and how many tokens each rank attends to.

In come measured times, out go placements, the moves between two of them and shares of tokens.
Plain Python; everything is deterministic, so that every rank computes the same by itself.
"""

from __future__ import annotations

from plancc.balance.estimate import Estimate, expert_times, predict
from plancc.balance.moves import Move, moves, settle
from plancc.balance.place import POLICIES, place_experts
from plancc.balance.placement import Placement
from plancc.balance.shares import token_shares

__all__ = [
    "POLICIES", "Estimate", "Move", "Placement", "expert_times", "moves", "place_experts",
    "predict", "settle", "token_shares",
]  # fmt: skip
