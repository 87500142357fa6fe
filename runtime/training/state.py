"""What of a training run a checkpoint holds, and how a rank of any plan takes it up again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from plancc.runtime.artifact import Artifact
from plancc.runtime.checkpoint import Checkpoint, CheckpointError, Piece
from plancc.runtime.loading import open_weights
from plancc.runtime.optimizer import Owned, RankOptimizer
from plancc.runtime.seeded import SeededWeights
from plancc.runtime.training.job import Job, TrainError
from plancc.runtime.training.slices import OwnedSlice
from plancc.runtime.view import dtype_named
from plancc.runtime.weights import find, whole
from plancc.runtime.wires import Wires

SCHEMA = "plancc/train@1"
MODEL, OPTIM, SCALE, WIRE = "model/", "optim/", "loss_scale", "wire/"


class Typed:
    """A source of weights whose parameters come in the dtypes that the programs compute in."""

    def __init__(self, source: Any, dtypes: Mapping[str, torch.dtype]) -> None:
        self.source = source
        self.dtypes = dtypes

    def shape(self, fqn: str) -> tuple[int, ...]:
        """The whole tensor's shape."""
        found: tuple[int, ...] = self.source.shape(fqn)
        return found

    def read(self, fqn: str, ranges: Any) -> Tensor:
        """The slice at `ranges`."""
        found: Tensor = self.source.read(fqn, ranges)
        return found.to(self.dtypes.get(fqn, found.dtype))


def names_of(artifact: Artifact) -> dict[str, Mapping[str, Any]]:
    """First name -> manifest row of every parameter."""
    rows = artifact.manifest["params"].values()
    return {row["fqns"][0]: row for row in rows if row["kind"] == "param"}


def first_weights(artifact: Artifact, seed: int) -> Any:
    """Where a new run's weights come from; from a seed they are float32 (masters keep all of it)."""
    if artifact.manifest["weights"]["kind"] != "seed":
        return open_weights(artifact)
    table = {
        name: (tuple(row["shape"]), widened(dtype_named(row["dtype"])), "")
        for name, row in names_of(artifact).items()
    }
    return SeededWeights(seed, table)


def widened(dtype: torch.dtype) -> torch.dtype:
    """float32 for what is narrower."""
    return torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else dtype


def in_program_dtypes(artifact: Artifact, source: Any, job: Job) -> Any:
    """A source as the programs of a run read it."""
    if job.dtype is not None:
        return source
    dtypes = {
        fqn: dtype_named(row["dtype"]) for row in names_of(artifact).values() for fqn in row["fqns"]
    }
    return Typed(source, dtypes)


def optimizer_names(slices: Sequence[OwnedSlice]) -> dict[str, str]:
    """Weight key -> the name under which this rank's optimizer has it, once each."""
    count: dict[str, int] = {}
    for item in slices:
        count[item.name] = count.get(item.name, 0) + 1
    return {item.key: item.name if count[item.name] == 1 else item.key for item in slices}


def fill(
    optimizer: RankOptimizer, names: Mapping[str, str], artifact: Artifact, source: Any,
    checkpoint: Checkpoint | None,
) -> None:  # fmt: skip
    """Give an optimizer its state: that of a checkpoint, or only masters from the first weights.

    `names` are the parameters' names by those that the optimizer has.
    """
    rows = names_of(artifact)

    def read(kind: str, item: Owned | None) -> Tensor | None:
        if checkpoint is None:
            if kind != "master" or item is None:
                return None
            fqn = find(source, rows[names[item.name]]["fqns"])
            found: Tensor = source.read(fqn, item.ranges)
            return found
        name = SCALE if item is None else f"{OPTIM}{names[item.name]}/{kind}"
        if name not in checkpoint.manifest.tensors:
            return None
        shape = checkpoint.shape(name)
        part = item is not None and shape == item.shape
        return checkpoint.read(name, item.ranges if part and item else whole(shape))

    try:
        optimizer.load_state(read)
    except ValueError as problem:
        raise CheckpointError([f"the optimizer's state does not fit: {problem}"]) from problem


def pieces(
    slices: Sequence[OwnedSlice], optimizer: RankOptimizer, names: Mapping[str, str],
    rank: int, rest: Callable[[], Iterator[Piece]],
) -> Iterator[Piece]:  # fmt: skip
    """What this rank brings to a checkpoint; `rest` gives what nobody trains, for rank 0."""
    counted = {names[item.key]: item for item in slices if item.counts}
    for item in counted.values():
        yield Piece(f"{MODEL}{item.name}", item.shape, *item.brought(item.tensor.detach()))
    for state in optimizer.state_pieces():
        if not state.name:
            if rank == 0:
                yield one(state.kind, state.tensor)
        elif (found := counted.get(state.name)) is not None:
            name = f"{OPTIM}{found.name}/{state.kind}"
            if state.whole:
                yield one(name, state.tensor)
            else:
                yield Piece(name, found.shape, *found.brought(state.tensor.detach()))
    if rank == 0:
        yield from rest()


def one(name: str, tensor: Tensor) -> Piece:
    """A piece that is all of its tensor."""
    return Piece(name, tuple(tensor.shape), whole(tensor.shape), tensor.detach())


def trained_names(row: Mapping[str, Any]) -> set[str]:
    """The parameters that have a gradient on some rank."""
    return {
        (weight["fqns"] or [weight["key"]])[0]
        for cls in row["classes"]
        for weight in cls["weights"]
        if weight["key"] in cls["gradients"]
    }


def wire_pieces(wires: Wires, rank: int) -> Iterator[Piece]:
    """What compression lost on this rank so far: added to what it sends next."""
    for text, kept in sorted(wires.kept.items()):
        for name, tensor in kept.state().items():
            yield one(f"{WIRE}{rank}/{text}:{name}", tensor)


def fill_wires(wires: Wires, rank: int, checkpoint: Checkpoint | None, same: bool) -> None:
    """Take up what compression had lost; under another plan (`same` is false) it begins from nothing."""
    if checkpoint is None or not same:
        return
    head = f"{WIRE}{rank}/"
    found: dict[str, dict[str, Tensor]] = {}
    for name in checkpoint.manifest.tensors:
        if name.startswith(head):
            text, _, key = name[len(head) :].partition(":")
            found.setdefault(text, {})[key] = checkpoint.read(name, whole(checkpoint.shape(name)))
    for text, state in found.items():
        wires.of(text).load(state)


def untrained(artifact: Artifact, row: Mapping[str, Any], source: Any) -> Iterator[Piece]:
    """Parameters without a gradient, whole: a checkpoint has all of the model."""
    trained = trained_names(row)
    for name, found in names_of(artifact).items():
        if name not in trained:
            shape = tuple(found["shape"])
            tensor = source.read(find(source, found["fqns"]), whole(shape))
            yield Piece(f"{MODEL}{name}", shape, whole(shape), tensor)


def open_resumed(path: str, artifact: Artifact, *, verify: bool = True) -> Checkpoint:
    """The checkpoint of a run of this model; CheckpointError where it is none, or of another model."""
    checkpoint = Checkpoint.open(path, verify=verify)
    if checkpoint.state.get("schema") != SCHEMA:
        raise CheckpointError([f"`{checkpoint.folder}` is not the checkpoint of a training run"])
    tensors = checkpoint.manifest.tensors
    model = {k: v for k, v in tensors.items() if k.startswith(MODEL)}
    table = {f"{MODEL}{k}": (tuple(v["shape"]), None) for k, v in names_of(artifact).items()}
    Checkpoint(checkpoint.folder, replace(checkpoint.manifest, tensors=model)).check_against(table)
    return checkpoint


def check_same(job: Job, state: Mapping[str, Any]) -> None:
    """TrainError where a run to resume had another precision or optimizer."""
    saved = state["run"]["precision"]
    if saved != job.precision:
        raise TrainError(f"the run to resume computes in {saved}, not {job.precision}")
    if state["spec"]["name"].lower() != job.spec.name.lower():
        raise TrainError(f"the run to resume uses {state['spec']['name']}, not {job.spec.name}")
