"""The Python API: compile a plan and a model into an artifact, load it, run it, verify it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plancc.codegen.manifest import program_json, write_artifact
from plancc.codegen.python import emit_program
from plancc.codegen.rows import batch_cuts
from plancc.compiler import Compiled, Watch, compile_graph
from plancc.dsl import Diagnostic, load_plan
from plancc.dsl.errors import PlanError
from plancc.dsl.plan import ResolvedPlan
from plancc.ir.graph import Graph
from plancc.models import LoadedModel, ModelError, in_dtype, load_model
from plancc.passes.capture import capture
from plancc.passes.derive_training import NotTrainable, logits_of, loss_kind
from plancc.runtime.artifact import Artifact, ArtifactError, load_artifact
from plancc.runtime.deploy import Deployment
from plancc.verification import Verification, VerifyResult

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Precision -> dtype of a model; float64 needs no programs of its own."""


class VerifyError(Exception):
    """The compiled programs do not compute what one device computes; `result` says where."""

    def __init__(self, result: VerifyResult) -> None:
        self.result = result
        bad = next(v for v in result.variants if not v.ok)
        text = f"{bad.phase} ({bad.guard}) is off by {bad.max_rel_error:.3g}"
        if bad.message:
            text += f": {bad.message}"
        if result.first_divergence is not None:
            text += f"\n{result.first_divergence}"
        super().__init__(text)


@dataclass(frozen=True)
class Built:
    """What `compile` gives: the artifact on disk, what it was made from, what verification said."""

    folder: Path
    compiled: Compiled
    verified: VerifyResult | None
    warnings: tuple[Diagnostic, ...] = ()

    @property
    def artifact(self) -> Artifact:
        """The artifact, read back and checked against its hashes."""
        return load_artifact(self.folder)

    def load(self) -> Deployment:
        """Ready to run."""
        return load(self.folder)


def compile(
    plan: str | Path,
    model: nn.Module | str,
    out: str | Path,
    *,
    weights: Sequence[str | Path] | None = None,
    sets: Mapping[str, str] | None = None,
    model_args: Mapping[str, str] | None = None,
    for_: str | None = None,
    phases: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    verify: bool = True,
    watch: Watch | None = None,
) -> Built:
    """Compile `model` (an nn.Module, or a --model spec) under a plan file into the folder `out`.

    `for_` is "infer" or "train" (None: as the plan's `mode` says), `phases` names the phases instead;
    `dtype` replaces the model's own. Verifies all ranks against one device unless `verify` is False.
    Raises PlanError (the plan or the model is wrong), ModelError (the model cannot be captured),
    NotTrainable, WeightsError, VerifyError, ArtifactError (the folder cannot be written).
    """
    check_writable(Path(out))
    resolved, report = load_plan(plan, dict(sets or {}))
    if resolved is None:
        raise PlanError(report.diagnostics)
    phases = phases if phases is not None else wanted_phases(resolved, for_)
    if dtype is not None and tuple(phases or ()) != ("train",):
        raise ModelError("only training programs are compiled in another dtype than the model's")
    loaded = model if isinstance(model, str) else None
    found = load_model(loaded, dict(model_args or {}), dtype) if loaded else None
    module = found.module if found else model
    assert isinstance(module, nn.Module)
    graph = capture(module if found else in_dtype(module, dtype))
    compiled = compile_graph(resolved, graph, report, phases=phases, watch=watch)
    spec, stored = weight_spec(module, graph, found, weights)
    origin = {"plan_file": str(Path(plan).resolve()), "sets": dict(sets or {})}
    facts = {
        **versions(),
        **origin,
        "model": model_json(module, loaded, model_args, found, dtype),
        "weights": spec,
        **training_facts(module, compiled),
    }
    result = None
    folder = Path(out)
    if verify:
        result = verify_aside(compiled, resolved, graph, folder)
    try:
        write_artifact(folder, resolved, compiled.world, compiled.sets, graph, facts, stored)
    except OSError as problem:
        raise ArtifactError(f"cannot write {folder}: {problem.strerror or problem}") from problem
    return Built(folder, compiled, result, report.diagnostics)


def wanted_phases(plan: ResolvedPlan, for_: str | None) -> tuple[str, ...] | None:
    """The phases to compile; None: all of inference. NotTrainable for a plan of inference phases."""
    if for_ not in (None, "infer", "train"):
        raise ValueError(f"for_ is {for_!r}, neither infer nor train")
    if (for_ or plan.facts.get("mode")) != "train":
        return None
    stated = plan.facts.get("phase")
    held = [str(stated)] if stated else [v.phase for v in plan.variants if v.phase]
    if held and "train" not in held and (stated or None not in {v.phase for v in plan.variants}):
        phases = " and ".join(dict.fromkeys(held))
        raise NotTrainable(
            f"the plan `{plan.name}` is one for {phases}: state `mode = train` in its model block, "
            "and guards that do not name these phases"
        )
    return ("train",)


def training_facts(module: nn.Module, compiled: Compiled) -> dict[str, Any]:
    """What a training artifact records: its kind of loss, vocabulary, unused dropout, rows it reads."""
    if all(unit.graph.phase != "train" for unit in compiled.units):
        return {}
    from plancc.passes.capture.dropout import dropout_in

    logits = logits_of(compiled.graph)
    row = {
        "loss": loss_kind(compiled.graph),
        "vocab": int(logits.shape[2]) if logits is not None else None,
        "dropout": [[path, p] for path, p in dropout_in(module)],
        "rows": batch_cuts(compiled.sets),
    }
    return {"training": row}


def check_writable(folder: Path) -> None:
    """ArtifactError where the folder that will hold the artifact cannot be written, before any work."""
    parent = folder.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise ArtifactError(f"cannot write {folder}: {parent} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ArtifactError(f"cannot write {folder}: no permission in {parent}")


def reopen(
    folder: Path,
    *,
    model: nn.Module | str | None = None,
    model_args: Mapping[str, str] | None = None,
) -> Built:
    """An artifact with what it was compiled from, lowered again from its recorded plan and model.

    Raises ArtifactError if the folder was changed, or if today's plan or model give other programs.
    """
    artifact = load_artifact(folder)
    record = artifact.manifest["model"]
    chosen = model or record["spec"]
    if chosen is None:
        raise ArtifactError(f"{folder} was compiled from a live module: give the model")
    sets = {k: str(v) for k, v in artifact.manifest["sets"].items()}
    resolved, report = load_plan(artifact.manifest["plan_file"], sets)
    if resolved is None:
        raise PlanError(report.diagnostics)
    args = dict(model_args or record["args"])
    dtype = getattr(torch, record["dtype"]) if record.get("dtype") else None
    module = (
        load_model(chosen, args, dtype).module
        if isinstance(chosen, str)
        else in_dtype(chosen, dtype)
    )
    phases = artifact.phases
    compiled = compile_graph(resolved, capture(module), report, phases=phases)
    rows = [row["classes"] for row in artifact.manifest["programs"]]
    sets_today = [programs.programs for _, programs in compiled.sets]
    if [len(classes) for classes in rows] != [len(programs) for programs in sets_today]:
        raise ArtifactError(
            f"{folder} does not hold the programs that its plan and model give today"
        )
    for classes, programs in zip(rows, sets_today, strict=True):
        for cls, program in zip(classes, programs, strict=True):
            if emit_program(program, resolved.name) != (folder / cls["file"]).read_text():
                raise ArtifactError(
                    f"{folder / cls['file']} is not what its plan and model give today"
                )
            if {**program_json(program, cls["file"])} != {k: cls[k] for k in cls}:
                raise ArtifactError(f"{folder}: the weight table of {cls['file']} has changed")
    return Built(folder, compiled, None)


def verify_aside(compiled: Compiled, resolved: Any, graph: Graph, folder: Path) -> VerifyResult:
    """Verify before the artifact appears: a wrong one is never left on disk."""
    import tempfile

    with tempfile.TemporaryDirectory() as aside:
        trial = Path(aside) / "artifact"
        write_artifact(trial, resolved, compiled.world, compiled.sets, graph, {})
        result = Verification(compiled, load_artifact(trial)).run()
    if not result.ok:
        raise VerifyError(result)
    return result


def train(plan: str | Path, model: nn.Module | str | None = None, **wanted: Any) -> Any:
    """Train a plan with `model`, or an artifact folder, on text files; see plancc.training.train.

    `train("tp.plan", model, data=["a.txt"], steps=200, lr=3e-4).losses` are the losses step by step.
    """
    from plancc.training import train as run

    return run(plan, model, **wanted)


def simulate(plan: Built | str | Path, model: nn.Module | str | None = None, **wanted: Any) -> Any:
    """Predict a plan with `model`, or what `compile` gave, on a cluster; see plancc.simulator.ask.simulate.

    `simulate("tp.plan", model, cluster="dgx_a100_16", batch=8).rows` are the predicted rows.
    """
    from plancc.simulator.ask import simulate as run

    return run(plan, model, **wanted)


def load(folder: str | Path) -> Deployment:
    """An artifact folder, ready to run; ArtifactError if it is none or was changed."""
    return Deployment(load_artifact(folder))


def verify(
    built: Built,
    *,
    full_size: bool = False,
    dtype: torch.dtype = torch.float64,
    params: Mapping[str, Tensor] | None = None,
) -> VerifyResult:
    """Verify the artifact on disk against one device; the result says whether it is right."""
    work = Verification(
        built.compiled, built.artifact, full_size=full_size, dtype=dtype, params=params
    )
    return work.run()


def weight_spec(
    module: nn.Module,
    graph: Graph,
    found: LoadedModel | None,
    weights: Sequence[str | Path] | None,
) -> tuple[dict[str, Any], Mapping[str, Tensor] | None]:
    """Where the artifact's weights come from, and the tensors to store in it (a live module's own)."""
    from plancc.runtime.weights import SafetensorsWeights, WeightsError

    files = [str(w) for w in weights] if weights else list(found.weights or []) if found else []
    if files:
        source = SafetensorsWeights(files)
        source.check(parameter_table(graph, source.names()))
        return {"kind": "files", "paths": [str(Path(f).resolve()) for f in files]}, None
    live = {
        p.fqns[0]: dict(module.named_parameters(remove_duplicate=False))[p.fqns[0]].detach()
        for p in graph.params.values()
        if p.kind == "param"
    }
    if live and not any(t.is_meta for t in live.values()):
        return {"kind": "stored"}, live
    if any(not t.is_meta for t in live.values()):
        raise WeightsError(["some parameters of the model have values and others are on meta"])
    return {"kind": "seed", "seed": 0}, None


def parameter_table(
    graph: Graph, names: Sequence[str]
) -> dict[str, tuple[tuple[int, ...], torch.dtype | None]]:
    """Name -> (shape, any dtype) of every parameter that a checkpoint with `names` must hold.

    A tied parameter is looked for under each of its names.
    """
    known = set(names)
    return {
        next((f for f in p.fqns if f in known), p.fqns[0]): (tuple(map(int, p.value.shape)), None)
        for p in graph.params.values()
        if p.kind == "param"
    }


def versions() -> dict[str, str]:
    """The versions that made an artifact."""
    from importlib.metadata import version

    return {"plancc": version("plancc"), "torch": torch.__version__.partition("+")[0]}


def model_json(
    module: nn.Module, spec: str | None, args: Mapping[str, str] | None,
    found: LoadedModel | None, dtype: torch.dtype | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What an artifact records of its model; `dtype` only where it is not the model's own."""
    return {
        "spec": rooted(spec) if spec else None,
        "args": dict(args or {}),
        "class": type(module).__name__,
        "tokenizer": str(found.tokenizer.resolve()) if found and found.tokenizer else None,
        **({"dtype": str(dtype).removeprefix("torch.")} if dtype is not None else {}),
    }


def rooted(spec: str) -> str:
    """A --model spec that means the same in every working directory: files and folders made absolute."""
    if spec.startswith("hf:"):
        return f"hf:{Path(spec.removeprefix('hf:')).resolve()}"
    place, _, name = spec.rpartition(":")
    return f"{Path(place).resolve()}:{name}" if place.endswith(".py") else spec
