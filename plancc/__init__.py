"""plancc: a declarative parallel-plan compiler for PyTorch.

built = plancc.compile("examples/tp8_pp2.plan", model, out="build/")
plancc.load("build/").generate(ids, new_tokens=8)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plancc.api import Built, VerifyError, compile, load, simulate, train, verify
    from plancc.dsl import PlanError
    from plancc.models import ModelError
    from plancc.passes.rows import register_op
    from plancc.runtime.artifact import ArtifactError
    from plancc.runtime.failure import RankFailure
    from plancc.runtime.training.job import TrainError
    from plancc.runtime.weights import WeightsError
    from plancc.simulator.errors import SimulateError
    from plancc.training import TrainFailed

_HOME = {
    "compile": "plancc.api", "load": "plancc.api", "train": "plancc.api", "simulate": "plancc.api",
    "verify": "plancc.api", "Built": "plancc.api",
    "VerifyError": "plancc.api", "PlanError": "plancc.dsl", "ModelError": "plancc.models",
    "register_op": "plancc.passes.rows", "ArtifactError": "plancc.runtime.artifact",
    "RankFailure": "plancc.runtime.failure", "WeightsError": "plancc.runtime.weights",
    "SimulateError": "plancc.simulator.errors", "TrainError": "plancc.runtime.training.job",
    "TrainFailed": "plancc.training",
}  # fmt: skip

__all__ = [
    "ArtifactError", "Built", "ModelError", "PlanError", "RankFailure", "SimulateError",
    "TrainError", "TrainFailed", "VerifyError", "WeightsError", "compile", "load", "register_op",
    "simulate", "train", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: `plancc check` must not load torch."""
    import importlib

    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'plancc' has no attribute {name!r}")
