"""Verify a training unit: the loss and the gradient of every parameter against one device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from plancc.ir.graph import Graph
from plancc.ir.interpret import run_graph
from plancc.passes.base import Unit
from plancc.passes.derive_training import LOSS, SCALE, TARGETS, derive_training, logits_of
from plancc.runtime.pieces import cut, put
from plancc.runtime.training.step import StepResult, TrainRunner
from plancc.verification.cases import BATCH_SIZE, chosen_sizes
from plancc.verification.divergence import difference, scale
from plancc.verification.reference import in_dtype, random_inputs

if TYPE_CHECKING:
    from plancc.verification.check import Verification

TOLERANCE: Mapping[torch.dtype, float] = {
    torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 1e-1, torch.float16: 5e-2
}  # fmt: skip
SMALL = 1e-4
"""A gradient is held against its own largest element, or this share of the largest of all gradients."""
IGNORED = -100


@dataclass(frozen=True, slots=True)
class Expected:
    """What one device gives: the loss, and gradients by every name of a parameter."""

    loss: Tensor
    gradients: Mapping[str, Tensor]
    largest: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Errors of one training unit: of the loss, of gradients, and the worst parameter."""

    loss_error: float
    max_abs_error: float
    max_rel_error: float
    worst: str
    missing: tuple[str, ...]


def training_inputs(work: Verification, unit: Unit, graph: Graph) -> dict[str, Tensor]:
    """Inputs of a step: random ids and targets, some of them ignored; a sequence for each micro-batch."""
    batch, tokens = chosen_sizes(unit, graph)
    assert unit.programs is not None
    if batch == BATCH_SIZE:
        batch = max(batch, unit.programs.microbatches)
    inputs = random_inputs(graph, batch, tokens, work.dtype, work.seed)
    if TARGETS in {v.name for v in graph.inputs}:
        logits = logits_of(work.reference.graph)
        assert logits is not None
        generator = torch.Generator().manual_seed(work.seed + 1)
        size = (batch, tokens)
        targets = torch.randint(int(logits.shape[2]), size, generator=generator)
        targets[torch.rand(size, generator=generator) < 0.1] = IGNORED
        targets[0, 0] = 0
        inputs[TARGETS] = targets
    if SCALE in {v.name for v in graph.inputs}:
        valid = int((inputs[TARGETS] != IGNORED).sum()) if TARGETS in inputs else batch * tokens
        inputs[SCALE] = torch.tensor(1.0 / valid, dtype=work.dtype)
    return inputs


def expected_step(
    graph: Graph, params: Mapping[str, Tensor], inputs: Mapping[str, Tensor]
) -> Expected:
    """Loss and gradients of the captured model on one device."""
    leaves: dict[str, Tensor] = {}
    by_name: dict[str, Tensor] = {}
    for param in graph.params.values():
        if param.kind == "param":
            name = next(f for f in param.fqns if f in params)
            leaf = params[name].detach().clone()
            leaves[name] = leaf.requires_grad_(leaf.is_floating_point() and not param.frozen)
            by_name.update(dict.fromkeys(param.fqns, leaf))
    with torch.enable_grad():
        loss = run_graph(graph, by_name, inputs)[LOSS]
        loss.backward()
    found = {n: leaf.grad for n, leaf in by_name.items() if leaf.grad is not None}
    largest = max((scale(g) for g in found.values()), default=0.0)
    return Expected(loss.detach(), found, largest)


def training_graph(work: Verification) -> Graph:
    """The reference's graph with its loss."""
    return in_dtype(derive_training(work.reference.graph), work.dtype)


def train_on_rank(work: Verification, unit: Unit, inputs: Mapping[str, Tensor], transport: Any):
    """One rank's step: its runner's result, its located gradients and what it sent."""
    runner = TrainRunner(
        work.artifact, transport, work.source(), sizes=work.sizes, dtype=work.dtype
    )
    runner.exact = True
    found = runner.step(inputs, variant=unit.variant.index)
    sent = dict(transport.counters.bytes)
    return found, runner.located_gradients(found), sent


def compare(
    expected: Expected, results: Sequence[tuple[StepResult, list, Mapping[str, int]]]
) -> Comparison:
    """Hold every rank's loss and every piece of every gradient against one device."""
    losses = [found.loss for found, _, _ in results if found.loss is not None]
    loss_error = max(
        (difference(x, expected.loss) / max(scale(expected.loss), 1e-30) for x in losses),
        default=float("inf"),
    )
    covered = {n: torch.zeros(g.shape, dtype=torch.bool) for n, g in expected.gradients.items()}
    worst, error, relative = "", 0.0, 0.0
    for _, pieces, _ in results:
        for name, ranges, tensor in pieces:
            want = expected.gradients.get(name)
            if want is None:
                gap, size = scale(tensor), expected.largest
            else:
                part = cut(want, ranges)
                gap = difference(tensor, part)
                put(covered[name], ranges, torch.ones(part.shape, dtype=torch.bool))
                size = max(scale(want), SMALL * expected.largest)
            error = max(error, gap)
            if gap / max(size, 1e-30) >= relative:
                relative, worst = gap / max(size, 1e-30), name
    seen: dict[int, bool] = {}
    for name, mask in covered.items():
        key = id(expected.gradients[name])
        seen[key] = seen.get(key, False) or bool(mask.all())
    missing = tuple(n for n, g in expected.gradients.items() if not seen[id(g)])
    return Comparison(loss_error, error, relative, worst, missing)
