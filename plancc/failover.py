"""Programs for fewer replicas: the same plan and model with one axis shrunk, compiled beforehand."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from plancc.codegen.manifest import write_artifact
from plancc.compiler import compile_graph
from plancc.dsl import load_plan
from plancc.dsl.errors import PlanError
from plancc.dsl.plan import Mesh, ResolvedPlan
from plancc.models import in_dtype, load_model
from plancc.passes.capture import capture
from plancc.runtime.artifact import Artifact, ArtifactError, load_artifact
from plancc.runtime.failover import FailoverError, Replicas, Spares, find_replicas
from plancc.runtime.training.backends import under_launcher


def spare_programs(
    artifact: Artifact, folder: Path, axis: str | bool = True, *,
    model: nn.Module | str | None = None, model_args: Mapping[str, str] | None = None,
    verify: bool = True,
) -> Spares:  # fmt: skip
    """Compile what runs on when replicas along `axis` ("rep" or "attn.rep") are gone, into `folder`.

    There is an artifact for each number of replicas down to one. True is the axis that the plan
    replicates over; `model` is needed where the artifact came from a live module. Raises what
    `compile` raises, and FailoverError for an axis that replicates nothing.
    """
    if any(row.get("balance") or row.get("loaded") for row in artifact.manifest["programs"]):
        raise FailoverError(
            "failover does not know what a balance has moved: leave out `balance`, `spare` and "
            "`assign`, or --failover"
        )
    replicas = find_replicas(artifact, axis if isinstance(axis, str) else None)
    plan, report = load_plan(
        artifact.manifest["plan_file"], {k: str(v) for k, v in artifact.manifest["sets"].items()}
    )
    if plan is None:
        raise PlanError(report.diagnostics)
    module = model_of(artifact, model, model_args)
    graph = capture(module)
    known = ("plancc", "torch", "plan_file", "sets", "model", "weights", "training")
    facts = {key: artifact.manifest[key] for key in known if key in artifact.manifest}
    levels = {len(replicas.ranks): artifact}
    for count in range(len(replicas.ranks) - 1, 0, -1):
        smaller = shrunk(plan, replicas, count)
        compiled = compile_graph(smaller, graph, report, phases=artifact.phases)
        if verify:
            from plancc.api import verify_aside

            verify_aside(compiled, smaller, graph, folder)
        out = folder / f"{replicas.axis}-{count}"
        if "training" in facts:
            from plancc.api import training_facts

            facts |= training_facts(module, compiled)
        write_artifact(out, smaller, compiled.world, compiled.sets, graph, facts)
        levels[count] = load_artifact(out)
    return Spares(replicas, levels).checked()


def spares_aside(artifact: Artifact, request: Any, stack: ExitStack, **how: Any) -> Spares:
    """The `spare_programs` that a request to train needs, kept as long as `stack`.

    Raises FailoverError where the ranks are not ours to watch and to start again.
    """
    if request.backend != "gloo" or under_launcher():
        raise FailoverError(
            "failover needs ranks that plancc starts as processes of this host: --backend gloo, "
            "without torchrun"
        )
    aside = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    return spare_programs(artifact, aside, request.failover, **how)


def model_of(
    artifact: Artifact, model: nn.Module | str | None, model_args: Mapping[str, str] | None
) -> nn.Module:
    """The model that an artifact was compiled from. Raises ArtifactError for an unknown live one."""
    record = artifact.manifest["model"]
    dtype = getattr(torch, record["dtype"]) if record.get("dtype") else None
    if isinstance(model, nn.Module):
        return in_dtype(model, dtype)
    if record["spec"] is None:
        raise ArtifactError(f"{artifact.folder} was compiled from a live module: give the model")
    return load_model(record["spec"], dict(model_args or record["args"]), dtype).module


def shrunk(plan: ResolvedPlan, replicas: Replicas, count: int) -> ResolvedPlan:
    """The plan with only the first `count` replicas along their axis; one alone has no traffic there."""
    mesh = plan.meshes[replicas.mesh]
    meshes = {**plan.meshes, mesh.name: narrowed(mesh, replicas.axis, count)}
    there = (replicas.mesh, replicas.axis)
    comms = tuple(one for one in plan.comms if count > 1 or (one.mesh, one.axis) != there)
    return replace(plan, meshes=meshes, comms=comms)


def narrowed(mesh: Mesh, axis: str, count: int) -> Mesh:
    """A mesh with the first `count` places of an axis, and their devices."""
    place = [one.name for one in mesh.axes].index(axis)
    points = product(*(range(one.size) for one in mesh.axes))
    held = [d for d, at in zip(mesh.devices, points, strict=True) if at[place] < count]
    axes = tuple(replace(one, size=count) if one.name == axis else one for one in mesh.axes)
    return replace(mesh, axes=axes, devices=tuple(held))
