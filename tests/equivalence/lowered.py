"""What the tests of lowering share: small models, plans from text, artifacts, tokens.

Models are captured once a process; all is computed in float64, where 1e-10 means right.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from model_zoo import ZOO, randomise
from torch import Tensor, nn

from plancc.codegen.manifest import write_artifact
from plancc.compiler import Compiled, compile_graph
from plancc.dsl import PlanError, load_plan
from plancc.ir.graph import Graph
from plancc.ir.interpret import run_graph
from plancc.passes.capture import capture
from plancc.runtime.artifact import Artifact, load_artifact
from plancc.runtime.generate import Generated, generate
from plancc.runtime.loading import Loaded
from plancc.runtime.local import run_local
from plancc.runtime.runner import Runner
from plancc.verification import Verification, VerifyResult
from plancc.verification.reference import buffers_of, in_dtype, random_params, with_buffers

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRATCH = tempfile.TemporaryDirectory(prefix="plancc-tests-")


def example_models():
    """The module examples/models.py."""
    import importlib.util
    import sys

    if "example_models" not in sys.modules:
        spec = importlib.util.spec_from_file_location("example_models", EXAMPLES / "models.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["example_models"] = module
        spec.loader.exec_module(module)
    return sys.modules["example_models"]


def dense(**sizes: int) -> nn.Module:
    """The repository's dense model, small unless told otherwise."""
    small = dict(layers=2, hidden=32, heads=8, ffn=48, vocab=60, max_len=64)
    return randomise(example_models().dense(**{**small, **sizes}))


def moe(**sizes: int) -> nn.Module:
    """The repository's mixture of experts, small unless told otherwise."""
    small = dict(layers=2, hidden=32, heads=8, ffn=24, experts=8, vocab=60, max_len=64)
    return randomise(example_models().moe(**{**small, **sizes}))


@cache
def captured(model: str, sizes: tuple[tuple[str, int], ...] = ()) -> Graph:
    """The forward graph of "dense", "moe" (with sizes) or a model of the zoo."""
    makers: Mapping[str, Callable[..., nn.Module]] = {"dense": dense, "moe": moe}
    return capture(makers[model](**dict(sizes)) if model in makers else ZOO[model]())


@dataclass(frozen=True)
class Lowered:
    """A compiled plan with its artifact."""

    compiled: Compiled
    artifact: Artifact

    def verify(self, **options: object) -> VerifyResult:
        """All ranks against one device."""
        return Verification(self.compiled, self.artifact, **options).run()  # type: ignore[arg-type]


def plan_file(text: str) -> Path:
    """A file with the text of a plan."""
    path = Path(tempfile.mkdtemp(dir=SCRATCH.name)) / "inline.plan"
    path.write_text(text)
    return path


def lower(
    plan: str | Path, graph: Graph, sets: Mapping[str, object] | None = None, **options: object
) -> Lowered:
    """Compile an example (by name), a plan file or the text of one; PlanError if it is wrong."""
    if isinstance(plan, str):
        plan = EXAMPLES / plan if plan.endswith(".plan") else plan_file(plan)
    resolved, report = load_plan(plan, {k: str(v) for k, v in (sets or {}).items()})
    if resolved is None:
        raise PlanError(report.diagnostics)
    compiled = compile_graph(resolved, graph, report, **options)  # type: ignore[arg-type]
    folder = Path(tempfile.mkdtemp(dir=SCRATCH.name)) / "artifact"
    write_artifact(
        folder,
        resolved,
        compiled.world,
        compiled.sets,
        graph,
        {"weights": {"kind": "seed", "seed": 0}},
    )
    return Lowered(compiled, load_artifact(folder))


def tokens_of_ranks(lowered: Lowered, ids: Tensor, count: int) -> list[Generated]:
    """What every rank generates in float64, all of them in this process."""
    graph = lowered.compiled.graph
    source = Loaded(random_params(graph, torch.float64), buffers_of(graph, torch.float64))

    def one(transport) -> Generated:
        return generate(
            Runner(lowered.artifact, transport, source, dtype=torch.float64), ids, count
        )

    return run_local(lowered.artifact.world, one)


def tokens_of_one(graph: Graph, ids: Tensor, count: int) -> Tensor:
    """What one device generates in float64, without a cache [B, count]."""
    whole = in_dtype(with_buffers(graph, buffers_of(graph, torch.float64)), torch.float64)
    params = random_params(graph, torch.float64)
    name, start = graph.inputs[0].name, ids.shape[1]
    with torch.no_grad():
        for _ in range(count):
            logits = next(iter(run_graph(whole, params, {name: ids}).values()))
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
    return ids[:, start:]


def prompt(graph: Graph, batch: int = 2, tokens: int = 5) -> Tensor:
    """Random ids [batch, tokens] below 60."""
    return torch.randint(60, (batch, tokens), generator=torch.Generator().manual_seed(1))


def explain_failure(result: VerifyResult) -> str:
    """Why a verification failed, on a few lines."""
    bad = [
        f"{v.phase} ({v.guard}): {v.max_rel_error:.2g} {v.message}"
        for v in result.variants
        if not v.ok
    ]
    return "\n".join([*bad, str(result.first_divergence or "")])
