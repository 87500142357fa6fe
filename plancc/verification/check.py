"""Run every program of a compiled plan, all ranks in one process, against one device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plancc.compiler import Compiled
from plancc.ir.graph import Graph
from plancc.ir.program import Bucket, Collective, Launch, Transfer
from plancc.passes.base import Unit
from plancc.passes.check_programs import LOCAL
from plancc.runtime.artifact import Artifact, load_artifact
from plancc.runtime.failure import RankFailure
from plancc.runtime.loading import Loaded
from plancc.runtime.local import run_local
from plancc.runtime.pieces import cut, put
from plancc.runtime.runner import Runner
from plancc.runtime.runner import Sequence as Running
from plancc.runtime.transport import Transport
from plancc.verification import training
from plancc.verification.cases import Case, choose_case
from plancc.verification.divergence import Divergence, difference, scale
from plancc.verification.locate import locate_divergence
from plancc.verification.reference import (
    Reference,
    buffers_of,
    cast,
    in_dtype,
    random_params,
    with_buffers,
)
from plancc.verification.shrink import shrink_graph, shrunk_sizes

SMALL_MODEL = 4_000_000
"""Models with at most this many parameters are verified as they are, others on shrunk dims."""
TOLERANCE: Mapping[torch.dtype, float] = {
    torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class VariantResult:
    """One phase of one variant: errors against one device, and what was communicated."""

    guard: str
    phase: str
    variant: int
    ok: bool
    max_abs_error: float
    max_rel_error: float
    collectives: Mapping[str, int]
    bytes: Mapping[str, int]
    message: str = ""
    max_grad_error: float | None = None


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What `plancc verify` reports."""

    ok: bool
    ranks: int
    classes: int
    reference_dtype: str
    shrunk: Mapping[str, int]
    variants: tuple[VariantResult, ...]
    first_divergence: Any = None

    def json(self) -> dict[str, Any]:
        """The documented keys as plain data."""
        out = {k: v for k, v in asdict(self).items() if k not in ("variants", "first_divergence")}
        out["variants"] = [asdict(v) for v in self.variants]
        if self.first_divergence is not None:
            out["first_divergence"] = asdict(self.first_divergence)
        return out


class Verification:
    """The reference, the weights and the shrunk sizes of one verification."""

    def __init__(
        self, compiled: Compiled, artifact: Artifact, *, full_size: bool = False,
        dtype: torch.dtype = torch.float64, params: Mapping[str, Tensor] | None = None,
        seed: int = 0,
    ) -> None:  # fmt: skip
        self.compiled, self.artifact, self.dtype, self.seed = compiled, artifact, dtype, seed
        graph = compiled.graph
        self.sizes: dict[str, int] = {}
        if not full_size and params is None and parameter_count(graph) > SMALL_MODEL:
            self.sizes = shrunk_sizes(compiled.named, compiled.units)
            graph = shrink_graph(compiled.named, self.sizes)
        chosen = params if params is not None else random_params(graph, dtype, seed)
        self.params = {k: cast(v, dtype) for k, v in chosen.items()}
        self.buffers = buffers_of(graph, dtype)
        whole = in_dtype(with_buffers(graph, self.buffers), dtype)
        self.reference = Reference(whole, self.params, self.buffers, dtype)

    def run(self) -> VerifyResult:
        """Verify every phase and variant."""
        variants, divergence = [], None
        for unit in self.compiled.units:
            result, found = self.verify_unit(unit)
            variants.append(result)
            divergence = divergence or found
        classes = len(
            {p.name for u in self.compiled.units if u.programs for p in u.programs.programs}
        )
        return VerifyResult(
            bool(variants) and all(v.ok for v in variants), self.artifact.world, classes,
            str(self.dtype).removeprefix("torch."), self.sizes, tuple(variants), divergence,
        )  # fmt: skip

    def verify_unit(self, unit: Unit) -> tuple[VariantResult, Divergence | None]:
        """Run one phase and variant and compare its logits (or other outputs) with the reference."""
        if unit.graph.phase == "train":
            return self.verify_training(unit)
        case = choose_case(unit, self.reference.graph, self.dtype, self.seed)
        expected = self.reference.run(case.inputs)
        try:
            found = run_local(
                self.artifact.world,
                lambda t: self.on_rank(t, unit, case),
                describe=self.artifact.describe,
            )
        except RankFailure as problem:
            result = self.result(unit, float("inf"), float("inf"), {}, str(problem))
            return result, self.locate(unit, case)
        error, relative, sent, blank = 0.0, 0.0, {}, False
        covered: dict[str, Tensor] = {}
        for shards, counted in found:
            sent = merged(sent, counted)
            for name, (lo, hi), ranges, piece in shards:
                want = case.expected(name, expected)
                if want is not None:
                    blank = blank or not_a_number(want)
                    seen = covered.setdefault(name, torch.zeros(want.shape, dtype=torch.bool))
                    part = cut(want[lo:hi], ranges)
                    put(seen[lo:hi], ranges, torch.ones(part.shape, dtype=torch.bool))
                    gap = difference(piece, part)
                    error = max(error, gap)
                    relative = max(relative, gap / max(scale(want), 1e-30))
        missing = [name for name, seen in covered.items() if not bool(seen.all())]
        if missing or not covered:
            return self.result(
                unit,
                float("inf"),
                float("inf"),
                sent,
                f"no rank has all of {', '.join(missing) or 'it'}",
            ), self.locate(unit, case)
        message = (
            "one device gives nothing but NaN: there is nothing to compare with" if blank else ""
        )
        result = self.result(unit, error, relative, sent, message)
        return result, None if result.ok else self.locate(unit, case)

    def verify_training(self, unit: Unit) -> tuple[VariantResult, Divergence | None]:
        """Run one step of a training unit and compare its loss and gradients with the reference."""
        graph = training.training_graph(self)
        inputs = training.training_inputs(self, unit, graph)
        expected = training.expected_step(graph, self.params, inputs)
        try:
            found = run_local(
                self.artifact.world,
                lambda t: training.train_on_rank(self, unit, inputs, t),
                describe=self.artifact.describe,
            )
        except RankFailure as problem:
            return self.result(unit, float("inf"), float("inf"), {}, str(problem)), None
        sent: dict[str, int] = {}
        for _, _, counted in found:
            sent = merged(sent, counted)
        gap = training.compare(expected, found)
        worst = max(gap.max_rel_error, gap.loss_error)
        message = ""
        if gap.missing:
            message = f"no rank has the gradient of {', '.join(gap.missing)}"
        elif not worst <= training.TOLERANCE[self.dtype]:
            what = (
                "the loss"
                if gap.loss_error >= gap.max_rel_error
                else f"the gradient of {gap.worst}"
            )
            message = f"{what} is off by {worst:.3g}"
        return VariantResult(
            unit.variant.text, "train", unit.variant.index, not message, gap.max_abs_error,
            worst, count_moves(unit), sent, message, gap.max_rel_error,
        ), None  # fmt: skip

    def on_rank(self, transport: Transport, unit: Unit, case: Case) -> tuple[list, dict[str, int]]:
        """One rank: the steps of the case; its pieces of the last one's outputs, bytes it gave."""
        runner = self.runner(transport)
        state = Running()
        with torch.no_grad():
            for phase, inputs in case.steps[:-1]:
                runner.run(phase, inputs, state)
            transport.counters.reset()
            phase, inputs = case.steps[-1]
            placed = runner.run(phase, inputs, state, variant=unit.variant.index)
            sent = dict(transport.counters.bytes)
        shards = [(name, *piece) for name, out in placed.items() for piece in runner.located(out)]
        return shards, sent

    def runner(self, transport: Transport) -> Runner:
        """One rank on the verification's weights."""
        found = Runner(self.artifact, transport, self.source(), sizes=self.sizes, dtype=self.dtype)
        found.exact = True
        return found

    def source(self) -> Loaded:
        """The weights that all ranks read."""
        return Loaded(self.params, self.buffers)

    def result(
        self, unit: Unit, error: float, relative: float, sent: Mapping[str, int], message: str = ""
    ) -> VariantResult:
        """The row of one phase and variant."""
        return VariantResult(
            unit.variant.text, unit.graph.phase, unit.variant.index,
            relative <= TOLERANCE[self.dtype] and not message,
            error, relative, count_moves(unit), sent, message,
        )  # fmt: skip

    def locate(self, unit: Unit, case: Case) -> Divergence | None:
        """Run once more with probes and find the first wrong value."""
        return locate_divergence(self, unit, case)


def count_moves(unit: Unit) -> dict[str, int]:
    """Collectives and transfers of one step (one micro-batch), by kind; each group's counts once."""
    found: dict[str, int] = {}
    entries = list(unit.instructions)
    if unit.training is not None:
        entries += [*unit.training.backward, *unit.training.reduce, *unit.training.refresh]
    for _, given in entries:
        step = given.step if isinstance(given, Launch) else given
        if isinstance(step, Transfer):
            found["transfer"] = found.get("transfer", 0) + 1
        elif isinstance(step, Bucket) or (isinstance(step, Collective) and step.kind not in LOCAL):
            found[step.kind] = found.get(step.kind, 0) + 1
    return found


def not_a_number(x: Tensor) -> bool:
    """Whether a tensor has elements and all of them are NaN."""
    return x.is_floating_point() and x.numel() > 0 and bool(x.isnan().all())


def parameter_count(graph: Graph) -> int:
    """How many parameters the model has."""
    return sum(prod(int(s) for s in p.value.shape) for p in graph.params.values())


def merged(a: Mapping[str, int], b: Mapping[str, int]) -> dict[str, int]:
    """Sums by key."""
    return {k: a.get(k, 0) + b.get(k, 0) for k in {**a, **b}}


def verify(
    compiled: Compiled, folder: Path, *, full_size: bool = False,
    dtype: torch.dtype = torch.float64, params: Mapping[str, Tensor] | None = None,
) -> VerifyResult:  # fmt: skip
    """Verify the artifact in `folder`, compiled as `compiled`, against one device."""
    artifact = load_artifact(folder)
    return Verification(compiled, artifact, full_size=full_size, dtype=dtype, params=params).run()
