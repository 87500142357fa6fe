"""Greedy generation on one rank: prefill, then one token at a time, all ranks in step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from plancc.runtime.balance.balancer import Change
from plancc.runtime.runner import Runner, Sequence


@dataclass(frozen=True, slots=True)
class Generated:
    """New tokens [B, K], seconds to the first token and per further token, the variant of each step.

    `balance` are the looks at tables of experts, as they were taken.
    """

    tokens: Tensor
    ttft_s: float
    tpot_s: float
    variants: tuple[int, ...]
    balance: tuple[Change, ...] = ()

    def json(self) -> dict[str, object]:
        """Plain data."""
        return {
            "tokens": self.tokens.tolist(), "ttft_s": self.ttft_s, "tpot_s": self.tpot_s,
            "variants": list(self.variants),
            **({"balance": [change.json() for change in self.balance]} if self.balance else {}),
        }  # fmt: skip


def generate(
    runner: Runner,
    ids: Tensor,
    new_tokens: int,
    on_token: Callable[[Tensor], None] | None = None,
    on_step: Callable[[Sequence, int], None] | None = None,
) -> Generated:
    """Continue `ids` [B, T] by `new_tokens` greedy tokens. Every rank of the world calls this alike.

    `on_token` sees each new token [B], `on_step` the state after each step and its number.
    """
    state = Sequence()
    tokens, variants = [], []
    looks = len(runner.balance.changes)
    begin = first = time.perf_counter()
    step, phase = ids, "prefill"
    with torch.no_grad():
        for index in range(new_tokens):
            placed = runner.run(phase, {runner.input_name(phase): step}, state)
            token = runner.everywhere(placed["next_token"])
            variants.append(int(state.row["variant"]) if state.row else 0)
            tokens.append(token)
            if on_token is not None:
                on_token(token)
            if index == 0:
                first = time.perf_counter()
            if on_step is not None:
                on_step(state, index)
            step, phase = token.unsqueeze(1), "decode"
    end = time.perf_counter()
    later = (end - first) / (new_tokens - 1) if new_tokens > 1 else 0.0
    balance = tuple(runner.balance.changes[looks:])
    return Generated(torch.stack(tokens, 1), first - begin, later, tuple(variants), balance)
