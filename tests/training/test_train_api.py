"""`plancc.train` in Python, and the parts of a run that need no plan: progress, log."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import ARGS, MODEL, TEXT, artifact, plan_file, tensors

import plancc
from plancc.cli.progress import Progress, clock
from plancc.models import load_model
from plancc.runtime.artifact import load_artifact
from plancc.runtime.data import DataError
from plancc.runtime.local import run_local
from plancc.runtime.optimizer import OptimizerSpec
from plancc.runtime.training.exact import ExactRunner
from plancc.runtime.training.feed import Feed
from plancc.runtime.training.job import Job
from plancc.runtime.training.journal import Journal
from plancc.runtime.training.loop import Training


def live_model() -> torch.nn.Module:
    """The tiny model with values."""
    torch.manual_seed(3)
    module = load_model(MODEL, ARGS).module.to_empty(device="cpu")
    fresh = load_model(MODEL, ARGS).module
    for name, buffer in fresh.named_buffers():
        module.get_buffer(name).copy_(buffer)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return module


def one_device(module: torch.nn.Module, batches: list[Any], lr: float) -> list[float]:
    """The same training, written as anyone would."""
    module = module.double()
    decayed = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=0.0)
    losses = []
    for ids, targets in batches:
        logits = module(ids)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        decayed.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 0.5)
        decayed.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("backend", ["local", "gloo"])
def test_a_live_module_trains_as_torch_does(backend: str, tmp_path: Path) -> None:
    """Its own values are the first weights; it is not changed; a plain loop gives the same losses."""
    module = live_model()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    done = plancc.train(
        plan_file("dp2_tp2"), module, data=TEXT, steps=6, batch=8, seq_len=32, lr=1e-2, clip=0.5,
        precision="fp64", verify=False, backend=backend, checkpoint=tmp_path,
    )  # fmt: skip
    assert done.weights == "stored" and done.outcome.checkpoint == str(tmp_path / "step-00000006")
    assert all(torch.equal(before[name], p) for name, p in module.named_parameters())
    job = Job("", (TEXT,), 8, 32, OptimizerSpec())
    batches = [pair for pair, _ in zip(job.batches(), range(6), strict=False)]
    expected = one_device(module, batches, 1e-2)
    assert max(abs(a - b) / b for a, b in zip(done.losses, expected, strict=True)) < 1e-9
    trained = tensors(tmp_path)["model/lm_head.weight"]
    assert torch.allclose(trained, module.get_parameter("lm_head.weight"), rtol=0, atol=1e-9)


def test_bf16_leaves_a_live_module_alone(tmp_path: Path) -> None:
    """The artifact keeps all bits of the module, so that masters begin with them."""
    module = live_model()
    plancc.train(
        plan_file("tp2"), module, data=TEXT, steps=1, batch=4, seq_len=16, lr=1e-30,
        precision="bf16", verify=False, sets={"tp": "2"}, checkpoint=tmp_path,
    )  # fmt: skip
    name = "layers.1.mlp.down_proj.weight"
    assert module.get_parameter(name).dtype is torch.float32
    found = tensors(tmp_path)
    assert torch.equal(found[f"optim/{name}/master"], module.get_parameter(name))
    assert found[f"model/{name}"].dtype is torch.bfloat16


def test_mistakes_in_python() -> None:
    with pytest.raises(TypeError, match="'learning_rate'"):
        plancc.train(artifact("tp2"), data=TEXT, steps=1, learning_rate=1)
    with pytest.raises(plancc.TrainError, match="needs a model"):
        plancc.train(plan_file("tp2"), data=TEXT, steps=1)
    with pytest.raises(plancc.TrainError, match="how long"):
        plancc.train(artifact("tp2"), data=TEXT)
    with pytest.raises(DataError, match="no data file"):
        plancc.train(artifact("tp2"), steps=1)


@pytest.mark.parametrize("rank", [0, 1])
def test_gradients_that_are_not_finite_are_named(rank: int, monkeypatch: Any) -> None:
    """On every rank, also where the rank itself saw nothing; the step changes nothing."""
    whole = ExactRunner.step

    def broken(self: Any, inputs: Any, **more: Any) -> Any:
        found = whole(self, inputs, **more)
        if self.transport.rank == rank:
            found.gradients["layers.1.mlp.up_proj.weight"][0, 0] = float("inf")
        return found

    monkeypatch.setattr(ExactRunner, "step", broken)
    job = Job(str(artifact("tp2")), (TEXT,), 4, 16, OptimizerSpec(), steps=3)
    feed, found = Feed(job.batches()), load_artifact(artifact("tp2"))
    ended = run_local(2, lambda t: Training(found, t, job, feed).run())
    for outcome in ended:
        assert outcome.status == "failed" and outcome.steps == 0
        assert outcome.message == (
            "step 1: gradients are not finite: `layers.1.mlp.up_proj.weight`"
        )


def test_the_log_keeps_what_lies_behind(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text('{"step": 1}\n{"step": 2, "loss": 3.5}\n{"step": 3}\n[]\n{"st')
    log = Journal(path, 2)
    log.write({"step": 3, "loss": float("nan"), "skipped": True})
    log.close()
    rows = [json.loads(text) for text in path.read_text().splitlines()]
    assert rows == [
        {"step": 1},
        {"step": 2, "loss": 3.5},
        {"step": 3, "loss": None, "skipped": True},
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def row(step: int, **more: Any) -> dict[str, Any]:
    usual = {"loss": 2.5, "tokens_per_s": 1234.5, "lr": 1e-3, "grad_norm": 0.5, "skipped": False}
    return {"step": step, **usual, **more}


def test_a_bar_on_a_terminal(monkeypatch: Any) -> None:
    """One line, written over; as wide as the terminal."""
    monkeypatch.setenv("COLUMNS", "100")
    out = Terminal()
    bar = Progress(10, out=out)
    for step in range(1, 6):
        bar.row(row(step))
    bar.close()
    lines = out.getvalue().split("\r")[1:]
    assert len(lines) == 5 and all(len(line.rstrip("\n")) == 99 for line in lines)
    assert "step 5/10 [##########..........]  loss 2.5000, 1,234 tokens/s" in lines[-1]
    assert "to go, lr 1.00e-03, norm 0.5" in lines[-1] and lines[-1].endswith("\n")


def test_lines_where_nobody_watches() -> None:
    """About ten of a run, the first and the last among them; each as good as the bar."""
    out = io.StringIO()
    bar = Progress(100, 40, out)
    for step in range(41, 101):
        bar.row(row(step, skipped=step == 48, grad_norm=None if step == 48 else 1.0, loss=None))
    bar.close()
    steps = [int(line.split()[1].partition("/")[0]) for line in out.getvalue().splitlines()]
    assert steps == sorted({41, *range(42, 101, 6), 100})
    assert "skipped (fp16 overflow)" in out.getvalue() and "loss -" in out.getvalue()
    endless = io.StringIO()
    bar = Progress(None, out=endless)
    bar.row(row(1))
    assert "step 1  loss" in endless.getvalue() and "to go" not in endless.getvalue()


def test_clock() -> None:
    assert [clock(s) for s in (0.4, 61, 3723)] == ["0:00", "1:01", "1:02:03"]


def test_files_that_are_no_data_are_told_of(tmp_path: Path) -> None:
    """Of a folder, those without a known suffix."""
    (tmp_path / "a.txt").write_text(Path(TEXT).read_text()[:9000])
    (tmp_path / "b.csv").write_text("1,2")
    notes: list[str] = []
    plancc.train(
        artifact("alone"), data=tmp_path, steps=1, batch=2, seq_len=16,
        on_ready=lambda ready: notes.extend(ready.notes),
    )  # fmt: skip
    assert notes == [f"1 file of the folders is no data: {tmp_path / 'b.csv'}"]
