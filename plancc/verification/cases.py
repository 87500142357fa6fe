"""What a phase is run on when it is verified: inputs, the steps before it, what must come out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from plancc.ir.graph import BATCH, TOKENS, Graph
from plancc.passes.base import Unit
from plancc.verification.reference import random_inputs

BATCH_SIZE, TOKEN_COUNT, PROMPT = 4, 12, 7


@dataclass(frozen=True, slots=True)
class Case:
    """`inputs` for the reference; `steps` of (phase, inputs) for the programs, the last one compared."""

    inputs: Mapping[str, Tensor]
    steps: tuple[tuple[str, Mapping[str, Tensor]], ...]
    tokens: int
    past: int

    def expected(self, name: str, reference: Mapping[str, Tensor]) -> Tensor | None:
        """What output `name` of the last step must be; None if the reference has nothing to say."""
        if name == "next_token":
            logits = reference.get("logits", next(iter(reference.values())))
            return logits[:, -1].argmax(-1)
        full = reference.get(name)
        if full is not None and self.past and full.dim() > 1:
            return full[:, self.past :]
        return full


def choose_case(unit: Unit, graph: Graph, dtype: torch.dtype, seed: int = 0) -> Case:
    """A batch of 4 x 12 random tokens (fewer where the plan declares less): whole, or prompt and steps."""
    batch, tokens = chosen_sizes(unit, graph)
    inputs = random_inputs(graph, batch, tokens, dtype, seed)
    phase = unit.graph.phase
    if phase == "decode" and tokens < 2:
        tokens = 2
        inputs = random_inputs(graph, batch, tokens, dtype, seed)
    if phase != "decode":
        return Case(inputs, ((phase, inputs),), tokens, 0)
    name, ids = next(iter(inputs.items()))
    prompt = max(1, min(PROMPT, tokens - 2))
    steps = [("prefill", {name: ids[:, :prompt]})]
    steps += [("decode", {name: ids[:, t : t + 1]}) for t in range(prompt, tokens)]
    return Case(inputs, tuple(steps), 1, tokens - 1)


def chosen_sizes(unit: Unit, graph: Graph) -> tuple[int, int]:
    """(batch, tokens) within what the model's fixed shapes and the plan's ranges allow."""
    batch, tokens = BATCH_SIZE, TOKEN_COUNT
    declared = unit.plan.inputs
    if "batch" in declared:
        batch = min(max(batch, declared["batch"][0]), declared["batch"][1])
    if "seq_len" in declared:
        tokens = min(max(tokens, min(declared["seq_len"][0], 64)), declared["seq_len"][1])
    tokens = min(tokens, graph.limits.get("T", tokens))
    for value in graph.inputs:
        if value.shape and isinstance(value.shape[0], int):
            batch = value.shape[0]
        if len(value.shape) > 1 and value.shape[0] == BATCH and value.shape[1] == TOKENS:
            return batch, tokens
    return batch, tokens
