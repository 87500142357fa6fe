"""What a training run is, as plain data that every rank gets; and what can be wrong with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from plancc.runtime.artifact import Artifact
from plancc.runtime.data import Batches, ByteTokens, FolderTokens, Tokens, open_corpus
from plancc.runtime.data import check_vocabulary as fits_vocabulary
from plancc.runtime.optimizer import OptimizerSpec

PRECISIONS = {"fp32": "f32", "fp64": "f64", "bf16": "bf16", "fp16": "f16"}
SCALARS = ("targets", "scale")
"""The inputs of a language model's training programs, besides its ids."""


class TrainError(Exception):
    """The run that was asked for is not possible: the user's side, exit code 1."""


@dataclass(frozen=True, slots=True)
class Job:
    """A run: what every rank needs to know of it.

    Ends after `steps` steps or with the data of `epochs`, whichever comes first. `resume` is the folder
    of one saved step; `seed` orders the data, and makes weights that come from a seed. The plan's
    micro-batches run `accumulate` times in a step.
    """

    folder: str
    data: tuple[str, ...]
    batch: int
    seq_len: int
    spec: OptimizerSpec
    steps: int | None = None
    epochs: int | None = None
    seed: int = 0
    precision: str = "fp32"
    tokenizer: str | None = None
    checkpoint: str | None = None
    every: int | None = None
    keep: int = 3
    resume: str | None = None
    log: str | None = None
    accumulate: int = 1

    def json(self) -> dict[str, Any]:
        """Plain data."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        found |= {"data": list(self.data), "spec": json.loads(self.spec.to_json())}
        return found

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> Job:
        """Take what `json` gave."""
        given = dict(found)
        given |= {"data": tuple(given["data"]), "spec": OptimizerSpec.from_json(given["spec"])}
        return Job(**given)

    def tokens(self) -> Tokens:
        """What makes ids of the texts."""
        return FolderTokens(self.tokenizer) if self.tokenizer else ByteTokens()

    def batches(
        self, state: Mapping[str, Any] | None = None, rows: Sequence[int] | None = None
    ) -> Batches:
        """The data (some rows of each batch, or all), from its begin or from a saved state."""
        return Batches(
            open_corpus(self.data), self.tokens(), batch=self.batch, seq_len=self.seq_len,
            seed=self.seed, epochs=self.epochs, state=state, rows=rows,
        )  # fmt: skip

    @property
    def dtype(self) -> torch.dtype | None:
        """What replaces the floating types of the programs; None: nothing does."""
        return torch.float64 if self.precision == "fp64" else None


def precision_of(artifact: Artifact) -> str:
    """The precision that an artifact was compiled in: that of its narrowest parameters."""
    rows = artifact.manifest["params"].values()
    held = {row["dtype"] for row in rows if row["kind"] == "param"}
    for name in ("fp16", "bf16", "fp32"):
        if PRECISIONS[name] in held:
            return name
    return "fp64"


def check_precision(artifact: Artifact, precision: str) -> None:
    """TrainError unless the artifact's programs can run so: as compiled, or fp32 ones in float64."""
    own = precision_of(artifact)
    if precision != own and (own, precision) != ("fp32", "fp64"):
        raise TrainError(f"the programs were compiled in {own}, not {precision}: compile them so")


def check_programs(artifact: Artifact) -> None:
    """TrainError unless the artifact trains a language model."""
    rows = [row for row in artifact.manifest["programs"] if row["phase"] == "train"]
    if not rows:
        raise TrainError(
            f"{artifact.folder} has no training programs, only {', '.join(artifact.phases)}: "
            "compile it with --for train"
        )
    names = {name for row in rows for cls in row["classes"] for name in cls["inputs"]}
    others = names - set(SCALARS)
    if "targets" not in names or len(others) != 1:
        raise TrainError(
            "text trains models that give logits [B, T, vocabulary] for ids [B, T]; "
            f"this one's programs take {', '.join(sorted(names))}"
        )


def check_sizes(artifact: Artifact, job: Job) -> None:
    """TrainError for a batch or length that plan or model do not admit."""
    sizes = {"batch": job.batch, "seq_len": job.seq_len, "tokens": job.batch * job.seq_len}
    for name, value in sizes.items():
        if value < 1:
            raise TrainError(f"{name} is {value}: it must be at least 1")
        known = artifact.manifest["inputs"].get(name)
        if known and not known[0] <= value <= known[1]:
            raise TrainError(
                f"{name} = {value} is outside {known[0]}..{known[1]}, the plan's range"
            )
    longest = artifact.manifest["limits"].get("T")
    if longest is not None and job.seq_len > longest:
        raise TrainError(
            f"a sequence of {job.seq_len} tokens is longer than the {longest} positions of the model"
        )
    row, _ = artifact.program("train", 0, sizes)
    wanted = row["microbatches"] * job.accumulate
    if job.batch < wanted:
        rounds = f" in {job.accumulate} rounds" if job.accumulate > 1 else ""
        raise TrainError(
            f"a batch of {job.batch} has fewer sequences than the plan's {wanted} "
            f"micro-batches{rounds}"
        )


def check_data(artifact: Artifact, job: Job, state: Mapping[str, Any] | None) -> bool:
    """Whether there is a next batch. Raises DataError for wrong data or too small a vocabulary."""
    known = artifact.manifest.get("training", {}).get("vocab")
    if known is not None:
        fits_vocabulary(job.tokens(), known)
    return job.batches(state).ready()


def check_folders(job: Job) -> None:
    """TrainError where a new run would go into an old one's folder or log, or cannot write there."""
    from plancc.runtime.checkpoint.shelf import Shelf

    if job.checkpoint is not None:
        home = Path(job.checkpoint)
        if home.exists() and not home.is_dir():
            raise TrainError(f"{home} is not a folder")
        steps = Shelf(home).steps() if home.is_dir() else []
        if steps and job.resume is None:
            raise TrainError(
                f"{home} has checkpoints of a run already ({steps[0].name}): go on with --resume, "
                "or name another folder"
            )
    if job.log is not None:
        log = Path(job.log)
        if not log.absolute().parent.is_dir():
            raise TrainError(f"{log}: there is no folder {log.absolute().parent}")
        if log.is_dir():
            raise TrainError(f"{log} is a folder")
        if log.exists() and log.stat().st_size and job.resume is None:
            raise TrainError(f"{log} is there already: move it away, or name another log")


def facts_of(job: Job) -> dict[str, Any]:
    """What a checkpoint records of its run, so that the next one can go on like it."""
    names = ("batch", "seq_len", "steps", "epochs", "seed", "precision")
    found = {name: getattr(job, name) for name in names}
    found["data"] = [str(Path(path).absolute()) for path in job.data]
    found["tokenizer"] = str(Path(job.tokenizer).absolute()) if job.tokenizer else None
    return found
