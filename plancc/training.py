"""Train a plan or an artifact: what was asked for, filled up and checked, then run on a backend."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import plancc.api as api
from plancc.dsl import Diagnostic
from plancc.failover import spares_aside
from plancc.runtime.artifact import Artifact, load_artifact
from plancc.runtime.checkpoint import Checkpoint, CheckpointError, export_safetensors
from plancc.runtime.data import FolderTokens, open_corpus
from plancc.runtime.failover import OnEvent, Spares, ignore, train_with_failover
from plancc.runtime.optimizer import OptimizerSpec
from plancc.runtime.training import backends
from plancc.runtime.training.job import (
    Job,
    TrainError,
    check_data,
    check_folders,
    check_precision,
    check_programs,
    check_sizes,
    precision_of,
)
from plancc.runtime.training.loop import DONE, FAILED, Outcome, Row
from plancc.runtime.training.state import SCHEMA, check_same, open_resumed

BATCH, SEQ_LEN, TIME_LIMIT = 8, 256, 600.0
"""Where neither the plan nor the user says: sequences in a batch, tokens in one; seconds."""

Saved = tuple[Mapping[str, Any], Path] | None
"""State and folder of a step to resume from."""


@dataclass(frozen=True)
class Request:
    """What a user asks for; None: what a resumed run had, else a default.

    `resume` is a step's folder, a folder of checkpoints, or True for `checkpoint`. `optimizer` holds
    fields of OptimizerSpec. `failover` is the axis (or True) whose replicas stand in for each other.
    """

    data: Sequence[str | Path] = ()
    batch: int | None = None
    seq_len: int | None = None
    steps: int | None = None
    epochs: int | None = None
    seed: int | None = None
    precision: str | None = None
    tokenizer: str | None = None
    checkpoint: str | Path | None = None
    every: int | None = None
    keep: int = 3
    accumulate: int | None = None
    resume: str | Path | bool = False
    log: str | Path | None = None
    export: str | Path | None = None
    backend: str = "local"
    time_limit: float = TIME_LIMIT
    failover: str | bool = False
    rejoin: bool = True
    optimizer: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """What a run gave: how it ended, and the losses of the steps that this process ran."""

    outcome: Outcome
    losses: tuple[float, ...]
    job: Job
    ranks: int
    weights: str
    exported: str | None = None


class TrainFailed(Exception):
    """A run ended early: a loss or gradient that is not finite, or a checkpoint that cannot be saved."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        good = outcome.checkpoint
        end = f"the last good checkpoint is {good}" if good else "no checkpoint was saved"
        super().__init__(f"{outcome.message}\n{end}")


@dataclass(frozen=True)
class Prepared:
    """A run that can start from `state`; `over` where nothing is left to do. `notes` are for the user."""

    artifact: Artifact
    job: Job
    request: Request
    state: Mapping[str, Any] | None
    over: bool
    notes: tuple[str, ...]
    spares: Spares | None = None

    @property
    def start(self) -> int:
        """The steps that lie behind."""
        return int(self.state["step"]) if self.state is not None else 0

    @property
    def weights(self) -> str:
        """Where the weights come from: checkpoint, files, stored or seed."""
        kind = self.artifact.manifest["weights"]["kind"]
        return "checkpoint" if self.state is not None else str(kind)


def resumed_step(request: Request) -> Path | None:
    """The folder to resume from; TrainError where none is named."""
    if request.resume is False:
        return None
    chosen = request.checkpoint if request.resume is True else request.resume
    if chosen is None:
        raise TrainError("--resume needs a folder, or --checkpoint DIR")
    return Path(str(chosen))


def saved_run(request: Request) -> Saved:
    """State and folder of the step to resume from, checked; None for a new run."""
    path = resumed_step(request)
    if path is None:
        return None
    checkpoint = Checkpoint.open(path)
    if checkpoint.state.get("schema") != SCHEMA:
        raise CheckpointError([f"`{checkpoint.folder}` is not the checkpoint of a training run"])
    return checkpoint.state, checkpoint.folder


def wanted_dtype(request: Request, saved: Saved) -> torch.dtype | None:
    """What to compile a model in: nothing of its own for fp64, which replaces the types at run time."""
    precision = request.precision or (saved[0]["run"]["precision"] if saved else "")
    return api.DTYPES.get(precision)


def check_early(request: Request, saved: Saved) -> None:
    """What can be wrong without a compiled plan: data files, tokenizer, optimizer."""
    files = [str(p) for p in request.data] or (saved[0]["run"]["data"] if saved else [])
    open_corpus(files)
    if request.tokenizer not in (None, "bytes"):
        FolderTokens(str(request.tokenizer))
    steps = saved[0]["run"]["steps"] if saved and request.steps is None else request.steps
    spec_of(request, saved[0]["spec"] if saved else {}, steps, [])


def prepare(artifact: Artifact, request: Request, saved: Saved) -> Prepared:
    """Fill the request up and check all of it, with the run to resume; nothing is written yet.

    Raises TrainError, DataError, SpecError, CheckpointError, ArtifactError: the user's side.
    """
    check_programs(artifact)
    job, notes = fill(artifact, request, saved)
    check_precision(artifact, job.precision)
    check_sizes(artifact, job)
    check_devices(artifact, request)
    state = None
    if saved is not None:
        check_same(job, saved[0])
        state = open_resumed(str(saved[1]), artifact, verify=False).state
    if backends.rank_here() == 0:
        check_folders(job)
    ignored = open_corpus(job.data).ignored
    if ignored:
        many = "1 file of the folders is" if len(ignored) == 1 else f"{len(ignored)} files are"
        notes.append(f"{many} no data: {', '.join(map(str, ignored[:3]))}")
    ready = check_data(artifact, job, state["data"] if state is not None else None)
    start = int(state["step"]) if state is not None else 0
    over = not ready or (job.steps is not None and start >= job.steps)
    if request.export is not None and not Path(request.export).absolute().parent.is_dir():
        raise TrainError(f"{request.export}: there is no such folder")
    return Prepared(artifact, job, request, state, over, tuple(notes))


def check_devices(artifact: Artifact, request: Request) -> None:
    """TrainError where this host has too few GPUs for the ranks."""
    if request.backend == "nccl" and not backends.under_launcher():
        count = torch.cuda.device_count()
        if count < artifact.world:
            raise TrainError(
                f"nccl needs a GPU for each of the {artifact.world} ranks, this host has {count}: "
                "try --backend gloo"
            )


def fill(artifact: Artifact, request: Request, saved: Saved) -> tuple[Job, list[str]]:
    """The job of a request, and what differs from the run to resume."""
    run: Mapping[str, Any] = saved[0]["run"] if saved else {}
    notes = []

    def chosen(name: str, default: Any) -> Any:
        given = getattr(request, name)
        if saved is not None and given is not None and given != run[name] and name != "data":
            notes.append(f"{name} is {given}; the run to resume had {run[name]}")
        return given if given is not None else run.get(name, default)

    data = tuple(str(p) for p in request.data) or tuple(run.get("data", ()))
    steps, epochs = chosen("steps", None), chosen("epochs", None)
    if steps is None and epochs is None:
        raise TrainError("how long? --steps N or --epochs N")
    rounds = chosen("accumulate", 1)
    for name, value in (
        ("steps", steps), ("epochs", epochs), ("keep", request.keep), ("accumulate", rounds)
    ):  # fmt: skip
        if value is not None and value < 1:
            raise TrainError(f"{name} is {value}: it must be at least 1")
    if request.every is not None and request.every < 1:
        raise TrainError(f"checkpoint-every is {request.every}: it must be at least 1")
    home = request.checkpoint
    if home is None and saved is not None:
        home = saved[1].parent
    if request.every is not None and home is None:
        raise TrainError("--checkpoint-every needs --checkpoint DIR")
    job = Job(
        folder=str(artifact.folder.resolve()), data=data,
        batch=chosen("batch", first_batch(artifact)), seq_len=chosen("seq_len", length(artifact)),
        spec=spec_of(request, saved[0]["spec"] if saved else {}, steps, notes),
        steps=steps, epochs=epochs, seed=chosen("seed", 0),
        precision=chosen("precision", precision_of(artifact)),
        tokenizer=tokenizer_of(artifact, request, run), checkpoint=str(home) if home else None,
        every=request.every, keep=request.keep, resume=str(saved[1]) if saved else None,
        log=str(request.log) if request.log else None, accumulate=rounds,
    )  # fmt: skip
    return job, notes


def spec_of(
    request: Request, saved: Mapping[str, Any], steps: int | None, notes: list[str]
) -> OptimizerSpec:
    """The optimizer: of the run to resume, with what is given in its place."""
    given = {k: v for k, v in request.optimizer.items() if v is not None}
    before = OptimizerSpec.from_json(saved) if saved else None
    spec = OptimizerSpec.from_json({**saved, "steps": steps or 0, **given})
    if before is not None:
        for one in fields(OptimizerSpec):
            now, was = getattr(spec, one.name), getattr(before, one.name)
            if now != was and one.name != "steps":
                notes.append(f"{one.name} is {now}; the run to resume had {was}")
    return spec


def tokenizer_of(artifact: Artifact, request: Request, run: Mapping[str, Any]) -> str | None:
    """The tokenizer's folder; None: bytes. Without a word, that of the model's folder if it has one."""
    if request.tokenizer == "bytes":
        return None
    if request.tokenizer is not None:
        return request.tokenizer
    if "tokenizer" in run:
        return str(run["tokenizer"]) if run["tokenizer"] else None
    folder = artifact.manifest["model"]["tokenizer"]
    held = folder is not None and (Path(folder) / "tokenizer.json").is_file()
    return str(folder) if held else None


def first_batch(artifact: Artifact) -> int:
    """A batch that the plan admits, with a sequence for each micro-batch."""
    low, high = artifact.manifest["inputs"].get("batch", (1, BATCH))
    rows = [r for r in artifact.manifest["programs"] if r["phase"] == "train"]
    most = max((row["microbatches"] for row in rows), default=1)
    return int(max(low, min(BATCH, high), most))


def length(artifact: Artifact) -> int:
    """A length that plan and model admit."""
    low, high = artifact.manifest["inputs"].get("seq_len", (1, SEQ_LEN))
    limit = artifact.manifest["limits"].get("T", SEQ_LEN)
    return int(max(low, min(SEQ_LEN, high, limit)))


def execute(ready: Prepared, on_row: Callable[[Row], None], on_event: OnEvent = ignore) -> Trained:
    """Run, and export; `on_row` sees each step, on rank 0 only. Raises RankFailure, or TrainFailed."""
    losses: list[float] = []

    def told(row: Row) -> None:
        losses.append(row["loss"])
        on_row(row)

    request, job = ready.request, ready.job
    if ready.over:
        return finished(ready)
    with ExitStack() as stack:
        if request.export is not None and job.checkpoint is None:
            target = Path(request.export).absolute()
            aside = target.with_name(f".{target.name}.checkpoint")
            if backends.rank_here() == 0:
                shutil.rmtree(aside, ignore_errors=True)
                stack.callback(shutil.rmtree, aside, ignore_errors=True)
            job = replace(job, checkpoint=str(aside))
        outcome = run_on(ready, job, told, on_event)
        if outcome.status == FAILED:
            raise TrainFailed(outcome)
        exported = export(request, outcome)
        if ready.job.checkpoint is None:
            outcome = replace(outcome, checkpoint=None)
    world = ready.artifact.world
    return Trained(outcome, tuple(losses), ready.job, world, ready.weights, exported)


def finished(ready: Prepared) -> Trained:
    """What a run gives that has nothing left to do."""
    state, job = ready.state or {}, ready.job
    outcome = Outcome(
        DONE, ready.start, 0, state.get("loss"), int(state.get("tokens", 0)),
        float(state.get("seconds", 0.0)), 0.0, job.resume,
    )  # fmt: skip
    exported = export(ready.request, outcome)
    return Trained(outcome, (), job, ready.artifact.world, ready.weights, exported)


def export(request: Request, outcome: Outcome) -> str | None:
    """Write the weights of the last checkpoint as one safetensors file, if one is asked for."""
    if request.export is None or outcome.checkpoint is None or backends.rank_here() != 0:
        return None
    export_safetensors(Checkpoint.open(str(outcome.checkpoint)), request.export)
    return str(request.export)


def run_on(ready: Prepared, job: Job, on_row: Callable[[Row], None], on_event: OnEvent) -> Outcome:
    """Run on the backend that the request names."""
    artifact, request = ready.artifact, ready.request
    if ready.spares is not None:
        limits = {"rejoin": request.rejoin, "time_limit": request.time_limit}
        return train_with_failover(ready.spares, job, on_row, on_event, **limits)
    if request.backend == "local":
        return backends.train_local(artifact, job, on_row)
    if backends.under_launcher():
        return backends.train_here(artifact, job, on_row, request.backend)
    return backends.train_launched(artifact, job, on_row, request.backend, request.time_limit)


def train(
    plan: str | Path,
    model: nn.Module | str | None = None,
    *,
    data: Sequence[str | Path] | str | Path = (),
    weights: Sequence[str | Path] | None = None,
    sets: Mapping[str, str] | None = None,
    model_args: Mapping[str, str] | None = None,
    verify: bool = True,
    on_row: Callable[[Row], None] = lambda row: None,
    on_compiled: Callable[[Sequence[Diagnostic]], None] = lambda warnings: None,
    on_ready: Callable[[Prepared], None] = lambda ready: None,
    on_event: OnEvent = ignore,
    **wanted: Any,
) -> Trained:
    """Train a plan file with `model`, or an artifact folder, on text; see `Request` for `wanted`.

    Fields of OptimizerSpec (lr, weight_decay, clip, ...) may stand beside them; `optimizer` is its
    name; `on_event` sees ranks that are lost or come back. Raises what `compile` raises, TrainError,
    DataError, SpecError, CheckpointError (nothing has begun then), TrainFailed and RankFailure.
    """
    request = request_of(data, wanted)
    saved = saved_run(request)
    check_early(request, saved)
    with ExitStack() as stack:
        folder = Path(plan)
        if not (folder / "manifest.json").is_file():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "artifact"
            if model is None:
                raise TrainError("a plan needs a model")
            built = api.compile(
                plan, model, folder, weights=weights, sets=sets, model_args=model_args,
                for_="train", dtype=wanted_dtype(request, saved),
                verify=verify and backends.rank_here() == 0,
            )  # fmt: skip
            on_compiled(built.warnings)
        ready = prepare(load_artifact(folder), request, saved)
        if request.failover and not ready.over:
            how = {"model": model, "model_args": model_args, "verify": verify}
            ready = replace(ready, spares=spares_aside(ready.artifact, request, stack, **how))
        on_ready(ready)
        return execute(ready, on_row, on_event)


def request_of(data: Sequence[str | Path] | str | Path, wanted: Mapping[str, Any]) -> Request:
    """Sort keyword arguments into a request and an optimizer; TypeError for unknown ones."""
    known = {f.name for f in fields(Request)} - {"optimizer", "data"}
    numbers = {f.name for f in fields(OptimizerSpec)} - {"steps", "name"}
    for name in wanted:
        if name not in known | numbers | {"optimizer"}:
            raise TypeError(f"train() got an unexpected keyword argument {name!r}")
    spec = {k: v for k, v in wanted.items() if k in numbers}
    if wanted.get("optimizer") is not None:
        spec["name"] = wanted["optimizer"]
    files = [data] if isinstance(data, (str, os.PathLike)) else list(data)
    return Request(data=files, optimizer=spec, **{k: v for k, v in wanted.items() if k in known})
