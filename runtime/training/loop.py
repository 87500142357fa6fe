"""The training loop of one rank: data in, steps, optimizer, checkpoints; the same on every backend.

Ranks agree on what they do next by sums of small tensors: the loss, a signal to stop, the gradient's
norm. Nothing here depends on how many ranks there are or what each of them holds.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from plancc.runtime.artifact import Artifact
from plancc.runtime.balance.balancer import Change
from plancc.runtime.balance.training import follow_tables, owned_of, settle_experts
from plancc.runtime.checkpoint import Checkpoint, CheckpointError, save_checkpoint
from plancc.runtime.optimizer import NonFinite, RankOptimizer, StepReport
from plancc.runtime.training import state as saved_state
from plancc.runtime.training.exact import ExactRunner
from plancc.runtime.training.feed import Feed
from plancc.runtime.training.idle import Idle
from plancc.runtime.training.job import Job, facts_of
from plancc.runtime.transport import Transport

READ, STEP, NORM, NAMES, SAVE = 11, 12, 13, 14, 15
"""Instruction numbers of the loop's own communication; those of programs are larger."""
WHERE = {
    READ: "reading the data", STEP: "agreeing on a step's loss", NORM: "summing the gradient's norm",
    NAMES: "telling which gradients are not finite", SAVE: "saving a checkpoint",
}  # fmt: skip
DONE, STOPPED, FAILED = "done", "stopped", "failed"

Row = dict[str, Any]
"""step, loss, lr, grad_norm, tokens, tokens_per_s, seconds, epoch, skipped."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: done, stopped by `signal`, or failed (`message` says why).

    `tokens` and `seconds` count from the run's begin, also over resumes; `ran` are the steps of this
    process. `checkpoint` is the last one that is good, `size` its bytes.
    """

    status: str
    steps: int
    ran: int
    loss: float | None
    tokens: int
    seconds: float
    tokens_per_s: float
    checkpoint: str | None = None
    signal: int = 0
    message: str = ""

    def json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


class Training:
    """One rank's part of a run."""

    def __init__(
        self, artifact: Artifact, transport: Transport, job: Job, feed: Feed,
        checkpoint: Checkpoint | None = None, *,
        on_row: Callable[[Row], None] = lambda row: None,
        signalled: Callable[[], int] = lambda: 0,
    ) -> None:  # fmt: skip
        """Load weights and optimizer; `on_row` (rank 0) sees each step, `signalled` says when to stop."""
        self.artifact, self.transport, self.job, self.feed = artifact, transport, job, feed
        self.on_row, self.signalled = on_row, signalled
        self.everyone = tuple(range(transport.world))
        state = checkpoint.state if checkpoint is not None else {"step": 0}
        self.step = self.first = int(state["step"])
        self.tokens, self.spent = int(state.get("tokens", 0)), float(state.get("seconds", 0.0))
        self.loss: float | None = state.get("loss")
        self.good = str(checkpoint.folder) if checkpoint is not None else None
        self.saved_at = self.step if checkpoint is not None else -1
        source = (
            saved_state.first_weights(artifact, job.seed)
            if checkpoint is None
            else checkpoint.under(saved_state.MODEL)
        )
        self.source = source
        typed = saved_state.in_program_dtypes(artifact, source, job)
        sizes = {"batch": job.batch, "seq_len": job.seq_len, "tokens": job.batch * job.seq_len}
        self.row, cls = artifact.program("train", transport.rank, sizes)
        self.idle = Idle(transport, self.row, cls)
        self.idle_shares: dict[str, float] = {}
        self.runner = ExactRunner(artifact, self.idle.transport, typed, dtype=job.dtype)
        self.runner.accumulate = job.accumulate
        same = checkpoint is not None and checkpoint.state["plan_hash"] == self.plan_hash
        if same and "balance" in state:
            self.runner.balance.load(state["balance"])
        self.view, comm, _ = self.runner.ready(cls)
        self.wires = comm.wires
        saved_state.fill_wires(self.wires, transport.rank, checkpoint, same)
        self.ids = next(name for name in self.ids_of(self.row))
        self.slices = self.runner.owned(job.batch, job.seq_len)
        self.names = saved_state.optimizer_names(self.slices)
        self.optimizer = RankOptimizer(
            job.spec, owned_of(self.slices, self.names), sum_all=self.sum_all,
            precision=job.precision,
        )  # fmt: skip
        follow_tables(self)
        self.changes: list[Change] = []
        plain = {self.names[s.key]: s.name for s in self.slices}
        saved_state.fill(self.optimizer, plain, artifact, source, checkpoint)
        self.runner.refresh(job.batch, job.seq_len)
        self.report: StepReport | None = None
        self.begin = time.monotonic()

    @property
    def plan_hash(self) -> str:
        """What tells plans apart."""
        return str(self.artifact.manifest["files"]["resolved-plan.json"])

    @staticmethod
    def ids_of(row: Mapping[str, Any]) -> list[str]:
        """The input that takes the ids."""
        names = {name for cls in row["classes"] for name in cls["inputs"]}
        return sorted(names - {"targets", "scale"})

    def sum_all(self, x: Tensor, at: int = NORM) -> Tensor:
        """Add a small tensor up over all ranks; the result is on the CPU."""
        return self.transport.all_reduce(x.to(self.transport.device), self.everyone, at).cpu()

    def run(self) -> Outcome:
        """Step until the run ends; every rank gives the same outcome but for times."""
        signal = 0
        try:
            while not signal and self.goes_on():
                signal = self.train_step()
                every = self.job.every
                if every and self.step % every == 0:
                    self.save()
            self.save()
        except NonFinite as problem:
            return self.outcome(FAILED, 0, self.explained(problem))
        except CheckpointError as problem:
            return self.outcome(FAILED, 0, str(problem))
        return self.outcome(STOPPED if signal else DONE, signal)

    def goes_on(self) -> bool:
        """Whether there is a next step; where the data may end, all ranks say so."""
        most = self.job.steps
        if most is not None and self.step >= most:
            return False
        self.transport.set_position(READ)
        ready = self.feed.ready(self.step)
        if self.job.epochs is None:
            return ready
        return not self.sum_all(torch.tensor([0.0 if ready else 1.0]), STEP).any()

    def train_step(self) -> int:
        """One step on the next batch; the signal that any rank has got, or 0.

        Raises NonFinite, on all ranks; the step has then changed nothing.
        """
        began = time.monotonic()
        ids, targets = self.feed.at(self.step)
        wide = torch.float64 if self.job.precision == "fp64" else torch.float32
        inputs = {
            self.ids: ids, "targets": targets,
            "scale": torch.tensor(1.0 / targets.numel(), dtype=wide),
        }  # fmt: skip
        self.view.loss_scale = self.optimizer.loss_scale
        begun = time.perf_counter()
        found = self.runner.step(inputs)
        loss, signal = self.agree(found, time.perf_counter() - begun)
        if not math.isfinite(loss) and self.job.precision != "fp16":
            raise NonFinite(f"the loss is {loss}", ())
        gradients = {self.names[key]: grad for key, grad in found.gradients.items()}
        self.update(gradients, loss, targets.numel())
        self.runner.refresh(self.job.batch, self.job.seq_len)
        self.changes = settle_experts(self)
        self.note(self.report, targets.numel() / max(time.monotonic() - began, 1e-9))
        return signal

    def update(self, gradients: Mapping[str, Tensor], loss: float, tokens: int) -> None:
        """Let the optimizer step with reduced gradients; until it has agreed, nothing has changed."""
        self.report = self.optimizer.step(self.step, gradients)
        self.step += 1
        self.loss = loss
        self.tokens += tokens

    def agree(self, found: Any, seconds: float = 0.0) -> tuple[float, int]:
        """The loss, from the first rank that has it, and the highest signal that a rank has got.

        Also how much of the step's `seconds` the ranks of each mesh waited.
        """
        rows = [cls["outputs"]["loss"] for cls in found.row["classes"] if cls["outputs"]]
        stage = self.view.stage(rows[0]["stage"]["mesh"], **rows[0]["stage"]["coords"])
        mine = found.loss is not None and self.transport.rank == min(stage.ranks)
        one = torch.zeros(1 + self.transport.world, dtype=torch.float64)
        one[0] = float(found.loss) if mine else 0.0
        one[1 + self.transport.rank] = self.signalled()
        waited = self.idle.measured(seconds)
        both = self.sum_all(torch.cat([one, waited]), STEP)
        self.idle_shares = self.idle.shares(both[len(one) :])
        return float(both[0]), int(both[1 : len(one)].max())

    def note(self, report: StepReport | None, rate: float) -> None:
        """Tell of a step."""
        if self.transport.rank == 0 and report is not None:
            self.on_row(self.row_of(report, rate))

    def row_of(self, report: StepReport, rate: float) -> Row:
        """What the log says of the step that was done last."""
        return {
            "step": self.step, "loss": self.loss, "lr": report.lr,
            "grad_norm": report.grad_norm, "tokens": self.tokens,
            "tokens_per_s": round(rate, 1), "seconds": round(self.seconds(), 4),
            "epoch": self.feed.batches.epoch, "skipped": report.skipped,
            **({"idle": self.idle_shares} if self.idle_shares else {}),
            **({"balance": [change.json() for change in self.changes]} if self.changes else {}),
            **({"wire_error": errors} if (errors := self.wires.errors()) else {}),
        }  # fmt: skip

    def seconds(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return self.spent + time.monotonic() - self.begin

    def save(self) -> None:
        """Save a checkpoint of the steps so far, if there is none yet; CheckpointError on all ranks."""
        job = self.job
        if job.checkpoint is None or self.saved_at == self.step:
            return
        rank = self.transport.rank
        data = self.feed.state(self.transport, self.sum_all, SAVE)
        brought = saved_state.pieces(
            self.slices, self.optimizer, self.names, rank,
            lambda: saved_state.untrained(self.artifact, self.row, self.source),
        )  # fmt: skip
        brought = chain(brought, saved_state.wire_pieces(self.wires, rank))
        done = save_checkpoint(
            job.checkpoint, self.step, brought, self.state(data) if rank == 0 else {}, rank=rank,
            world=self.transport.world, keep=job.keep,
            barrier=lambda: self.transport.barrier(self.everyone, SAVE),
        )  # fmt: skip
        self.good, self.saved_at = str(done.path), self.step

    def state(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """What a checkpoint says of the run; `data` is the place in it."""
        manifest = self.artifact.manifest
        return {
            "schema": saved_state.SCHEMA, "step": self.step, "loss": self.loss,
            "tokens": self.tokens, "seconds": round(self.seconds(), 4),
            "plan": manifest["plan"], "plan_hash": self.plan_hash,
            "model": manifest["model"], "weights": manifest["weights"],
            "run": facts_of(self.job), "spec": json.loads(self.job.spec.to_json()),
            "data": data,
            **({"balance": self.runner.balance.state()} if self.row.get("balance") else {}),
        }  # fmt: skip

    def explained(self, problem: NonFinite) -> str:
        """What is not finite, by the names that all ranks have; a rank may know of none itself."""
        step = self.step + 1
        if not problem.names and str(problem).startswith("the loss"):
            return f"step {step}: {problem}"
        known = sorted(saved_state.names_of(self.artifact))
        plain = {self.names[s.key]: s.name for s in self.slices}
        bad = torch.zeros(len(known), dtype=torch.float64)
        for name in problem.names:
            bad[known.index(plain[name])] = 1
        found = [
            n for n, count in zip(known, self.sum_all(bad, NAMES).tolist(), strict=True) if count
        ]
        shown = ", ".join(f"`{name}`" for name in found[:5])
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        scale = self.optimizer.loss_scale
        least = f", even at a loss scale of {scale:g}" if self.job.precision == "fp16" else ""
        return f"step {step}: gradients are not finite{least}: {shown}{more}"

    def outcome(self, status: str, signal: int = 0, message: str = "") -> Outcome:
        """How the run ended."""
        ran, seconds = self.step - self.first, self.seconds() - self.spent
        rate = ran * self.job.batch * self.job.seq_len / max(seconds, 1e-9)
        return Outcome(
            status, self.step, ran, self.loss, self.tokens, round(self.seconds(), 4),
            round(rate, 1), self.good, signal, message,
        )  # fmt: skip
