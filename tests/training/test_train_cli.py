"""`plancc train` from the command line: what is written and printed, wrong input, signals."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import ALONE, ROOT, TEXT, WORDS, artifact, plan_file

from plancc.cli.main import main

Say = Callable[..., tuple[int, str, str]]
DATA = ("--data", TEXT, "--seq-len", "32", "--batch", "4")


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    def call(*words: object) -> tuple[int, str, str]:
        code = main([str(w) for w in words])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def test_from_a_plan_to_a_resumed_run(say: Say, tmp_path: Path) -> None:
    """A plan compiled aside and verified; log and checkpoints; the second run doubles no step."""
    log, folder = tmp_path / "log.jsonl", tmp_path / "run"
    keep = ("--checkpoint", folder, "--log", log)
    words = ("train", plan_file("tp2"), *WORDS, "--set", "tp=2")
    code, out, err = say(*words, *DATA, *keep, "--steps", 6, "--checkpoint-every", 2, "--keep", 2)
    assert code == 0 and "6 steps, loss" in out and "seed 0" in out and "step 6/6" in err
    assert sorted(p.name for p in folder.iterdir()) == ["latest", "step-00000004", "step-00000006"]
    log.write_text(log.read_text() + '{"step": 7, "loss": 1.0}\n{"step": 8, "lo')
    code, out, _ = say(*words, *keep, "--resume", "--steps", 9, "--json")
    found = json.loads(out)
    assert code == 0 and found["steps"] == 9 and found["ran"] == 3
    assert found["backend"] == "local" and found["ranks"] == 2 and found["weights"] == "checkpoint"
    assert found["checkpoint"] == str(folder / "step-00000009")
    rows = rows_of(log)
    assert [row["step"] for row in rows] == list(range(1, 10))
    assert rows[-1]["loss"] == found["loss"] and rows[-1]["tokens"] == 9 * 4 * 32
    keys = {"step", "loss", "lr", "grad_norm", "tokens", "tokens_per_s", "seconds", "epoch"}
    assert rows[-1].keys() == keys | {"skipped"}
    code, out, _ = say(*words, *keep, "--resume")
    assert code == 0 and "nothing is left to do: 9 steps are done" in out


def test_compile_and_verify_for_training(say: Say, tmp_path: Path) -> None:
    """`--for train`, and `mode = train` without it."""
    out = tmp_path / "art"
    assert say("compile", plan_file("dp2"), *WORDS, "--for", "train", "-o", out)[0] == 0
    code, text, _ = say("verify", out, "--json")
    found = json.loads(text)
    assert code == 0 and found["variants"][0]["phase"] == "train"
    assert found["variants"][0]["max_grad_error"] < 1e-9
    assert say("verify", out, "--for", "infer")[0] == 1
    assert say("run", out, "--tokens", 3)[0] == 1
    code, text, _ = say("train", out, *DATA, "--steps", 2, "--json")
    assert code == 0 and json.loads(text)["steps"] == 2
    plan = tmp_path / "t.plan"
    plan.write_text(ALONE + "model m { mode = train; batch = 4 }\n")
    code, text, _ = say("verify", plan, *WORDS)
    assert code == 0 and "train" in text and "gradients" in text
    assert say("verify", plan, *WORDS, "--for", "infer")[0] in (0, 1)


def test_bf16_programs(say: Say, tmp_path: Path) -> None:
    """Compiled in bf16, an artifact trains in bf16 only, and is verified as every other."""
    out = tmp_path / "art"
    words = ("compile", plan_file("tp2"), *WORDS, "--set", "tp=2", "--for", "train")
    assert say(*words, "--precision", "bf16", "-o", out)[0] == 0
    code, text, _ = say("train", out, *DATA, "--steps", 2, "--json")
    assert code == 0 and json.loads(text)["precision"] == "bf16"
    code, _, err = say("train", out, *DATA, "--steps", 2, "--precision", "fp32")
    assert code == 1 and "compiled in bf16, not fp32" in err
    assert say("verify", out)[0] == 0
    words = ("compile", plan_file("alone"), *WORDS, "--precision", "bf16", "-o", tmp_path / "no")
    code, _, err = say(*words)
    assert code == 1 and "only training programs" in err and not (tmp_path / "no").exists()


WRONG = [
    (["--steps", "2"], 2, "--data is missing"),
    ([*DATA], 2, "how long?"),
    ([*DATA, "--steps", "0"], 1, "steps is 0"),
    ([*DATA, "--steps", "2", "--batch", "0"], 1, "batch is 0"),
    ([*DATA, "--steps", "2", "--batch", "2"], 1, "2 has fewer sequences than the plan's 4"),
    ([*DATA, "--steps", "2", "--seq-len", "65"], 1, "longer than the 64 positions"),
    ([*DATA, "--steps", "2", "--lr", "-1"], 1, "lr: -1.0 is not in"),
    ([*DATA, "--steps", "2", "--optimizer", "adamm"], 1, "torch.optim has no `adamm`"),
    ([*DATA, "--steps", "2", "--optimizer", "Muon"], 1, "needs whole matrices"),
    ([*DATA, "--epochs", "1", "--schedule", "cosine"], 1, "needs the number of all steps"),
    ([*DATA, "--steps", "2", "--warmup", "3"], 1, "warmup"),
    ([*DATA, "--steps", "2", "--tokenizer", "nowhere"], 1, "no such tokenizer file"),
    ([*DATA, "--steps", "2", "--checkpoint-every", "2"], 1, "needs --checkpoint DIR"),
    ([*DATA, "--steps", "2", "--resume"], 2, "--resume needs a folder"),
    ([*DATA, "--steps", "2", "--resume", "nowhere"], 1, "does not exist"),
    ([*DATA, "--steps", "2", "--log", "no/such/log"], 1, "there is no folder"),
    ([*DATA, "--steps", "2", "--export", "no/such/file"], 1, "there is no such folder"),
    (["--data", "nowhere", "--steps", "2"], 1, "nowhere: no such file"),
    ([*DATA, "--steps", "2", "--backend", "nccl"], 1, "a GPU for each of the 3 ranks"),
    ([*DATA, "--steps", "2", "--set", "pp=2"], 2, "compiled in"),
    ([*DATA, "--steps", "2", "--model", "m.py:m"], 2, "--model goes with a plan"),
]


@pytest.mark.parametrize(("words", "code", "text"), WRONG, ids=lambda x: str(x)[:40])
def test_wrong_words(
    say: Say, words: list[str], code: int, text: str, tmp_path: Path, monkeypatch: Any
) -> None:
    """Each with its message; nothing is written."""
    monkeypatch.chdir(tmp_path)
    found, out, err = say("train", artifact("pp3"), *words)
    assert (found, out) == (code, "") and text in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_data_that_is_too_short(say: Say, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("hardly a sentence")
    words = ("--batch", 4, "--seq-len", 32, "--steps", 3, "--checkpoint", tmp_path / "run")
    code, _, err = say("train", artifact("tp2"), "--data", text, *words)
    assert code == 1 and "the data is shorter than one batch" in err
    assert not (tmp_path / "run").exists()


def test_vocabulary_that_is_too_small(say: Say) -> None:
    small = [w.replace("vocab=260", "vocab=250") for w in WORDS]
    words = ("--no-verify", *DATA, "--steps", 1)
    code, _, err = say("train", plan_file("alone"), *small, *words)
    assert code == 1 and "vocabulary has 250 tokens, the data (bytes) needs 257" in err


def test_programs_that_do_not_train(say: Say, tmp_path: Path) -> None:
    """Inference artifacts, plans of inference phases, and models without logits."""
    out = tmp_path / "art"
    assert say("compile", plan_file("alone"), *WORDS, "--no-verify", "-o", out)[0] == 0
    code, _, err = say("train", out, *DATA, "--steps", 1)
    assert code == 1 and "no training programs" in err and "--for train" in err
    plan = tmp_path / "p.plan"
    plan.write_text("plan p, edition 1\nmodel m { phase = prefill }\n" + ALONE.split("\n", 1)[1])
    code, _, err = say("train", plan, *WORDS, *DATA, "--steps", 1)
    assert code == 1 and "is one for prefill" in err and "mode = train" in err
    model = tmp_path / "m.py"
    model.write_text(
        "import torch\n\nclass M(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.e = torch.nn.Embedding(300, 8)\n"
        "    def forward(self, ids):\n        return self.e(ids)\n\n"
        "def make():\n    return M()\n"
    )
    words = ("train", plan_file("alone"), "--model", f"{model}:make", *DATA, "--steps", 1)
    code, _, err = say(*words)
    assert code == 1 and "models that give logits" in err


def test_folders_of_other_runs(say: Say, tmp_path: Path) -> None:
    """A new run neither mixes with an old one's checkpoints nor writes over its log."""
    keep = ("--checkpoint", tmp_path / "run", "--log", tmp_path / "log")
    words = ("train", artifact("alone"), *DATA, "--steps", 2)
    assert say(*words, *keep)[0] == 0
    code, _, err = say(*words, "--checkpoint", tmp_path / "run")
    assert code == 1 and "has checkpoints of a run already" in err
    code, _, err = say(*words, "--log", tmp_path / "log")
    assert code == 1 and "is there already" in err
    code, _, err = say("train", artifact("alone"), "--resume", "--checkpoint", tmp_path / "none")
    assert code == 1 and "does not exist" in err
    (tmp_path / "empty").mkdir()
    code, _, err = say("train", artifact("alone"), "--resume", tmp_path / "empty")
    assert code == 1 and "there is no checkpoint" in err


def test_checkpoints_that_do_not_fit(say: Say, tmp_path: Path) -> None:
    """Of another model, another precision, other data, damaged: nothing begins."""
    run = tmp_path / "run"
    text = tmp_path / "text.txt"
    text.write_text(Path(TEXT).read_text()[:20000])
    data = ("--data", text, "--seq-len", 32, "--batch", 4)
    words = ("train", artifact("alone"), *data, "--checkpoint", run, "--keep", 9)
    assert say(*words, "--steps", 4, "--checkpoint-every", 2)[0] == 0
    other = [w.replace("hidden=24", "hidden=36") for w in WORDS]
    resume = ("--resume", run, "--steps", 6)
    code, _, err = say("train", plan_file("alone"), *other, "--no-verify", *resume)
    assert code == 1 and "does not fit" in err and "has shape" in err
    code, _, err = say("train", artifact("alone"), *resume, "--precision", "fp64")
    assert code == 1 and "computes in fp32, not fp64" in err
    code, _, err = say("train", artifact("alone"), *resume, "--batch", 2)
    assert code == 1 and "batch = 4" in err
    code, _, err = say("train", artifact("alone"), *resume, "--optimizer", "sgd")
    assert code == 1 and "uses adamw" in err
    text.write_text("x" + text.read_text())
    code, _, err = say("train", artifact("alone"), *resume)
    assert code == 1 and "text.txt has changed" in err
    file = run / "step-00000004" / "rank-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-8] + b"damaged!")
    code, _, err = say("train", artifact("alone"), *resume)
    assert code == 1 and "was damaged" in err and "step-00000002` is good" in err


def test_a_loss_that_is_not_finite(say: Say, tmp_path: Path) -> None:
    """Exit code 3; the step before it is kept and named."""
    words = ("train", artifact("dp2"), *DATA, "--steps", 60, "--checkpoint", tmp_path / "run")
    words = (*words, "--checkpoint-every", 1, "--lr", 1e18, "--optimizer", "sgd")
    code, _, err = say(*words)
    assert code == 3 and "step 2: the loss is nan" in err
    assert "the last good checkpoint is" in err and "Traceback" not in err
    assert (tmp_path / "run" / "latest").exists()


@pytest.mark.parametrize("whole", [True, False])
def test_a_full_disk(say: Say, tmp_path: Path, monkeypatch: Any, whole: bool) -> None:
    """A checkpoint that cannot be saved ends the run; the one before is kept, named and good."""
    from plancc.runtime.checkpoint import save

    write, run = save.write_safetensors, tmp_path / "run"

    def full(path: Path, *given: Any) -> Any:
        if "step-00000004" in str(path) and (whole or "rank-00001" in str(path)):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, *given)

    monkeypatch.setattr(save, "write_safetensors", full)
    words = ("train", artifact("dp2"), *DATA, "--checkpoint", run, "--checkpoint-every", 2)
    code, _, err = say(*words, "--steps", 9)
    assert code == 3 and "No space left on device" in err and "step 4" in err
    assert f"the last good checkpoint is {run}/step-00000002" in err
    assert sorted(p.name for p in run.iterdir()) == ["latest", "step-00000002"]
    monkeypatch.undo()
    code, out, _ = say("train", artifact("dp2"), "--resume", run, "--json")
    assert code == 0 and json.loads(out)["steps"] == 9


def test_under_torchrun(tmp_path: Path) -> None:
    """One rank a process; rank 0 tells, writes and exports."""
    log, run, out = tmp_path / "log", tmp_path / "run", tmp_path / "w.safetensors"
    words = [artifact("dp2_tp2"), *DATA, "--steps", 4, "--backend", "gloo", "--checkpoint", run]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4",
         "-m", "plancc", "train", *map(str, words), "--log-file", log, "--export", out],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=180,
        cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 steps, loss") == 1 and out.is_file()
    assert [row["step"] for row in rows_of(log)] == [1, 2, 3, 4]
    assert (run / "latest").read_text().strip() == "step-00000004"


def test_broken_data_in_the_middle(say: Say, tmp_path: Path) -> None:
    """A line that is no JSON, met after some steps: named with its file and line, exit code 3."""
    text = tmp_path / "data.jsonl"
    good = [json.dumps({"text": f"{i} " * 60}) for i in range(700)]
    text.write_text("\n".join([*good, "{no json", *good]))
    words = ("--seq-len", 32, "--batch", 4, "--epochs", 1, "--checkpoint", tmp_path / "run")
    words = (*words, "--checkpoint-every", 10)
    code, _, err = say("train", artifact("alone"), "--data", text, *words)
    assert code == 3 and "reading the data): " in err and "data.jsonl:701" in err
    assert "the last good checkpoint is" in err and "Traceback" not in err
    assert (tmp_path / "run" / "latest").exists()


def test_dropout_is_told_of(say: Say, tmp_path: Path) -> None:
    model = tmp_path / "m.py"
    model.write_text(
        "import torch\n\nclass M(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.e = torch.nn.Embedding(300, 8)\n        self.d = torch.nn.Dropout(0.25)\n"
        "        self.h = torch.nn.Linear(8, 300)\n"
        "    def forward(self, ids):\n        return {'logits': self.h(self.d(self.e(ids)))}\n\n"
        "def make():\n    return M()\n"
    )
    code, _, err = say("train", plan_file("alone"), "--model", f"{model}:make", *DATA, "--steps", 1)
    assert code == 0 and "dropout is not applied: the model has `d` (p = 0.25)" in err


def program(*words: object, **more: Any) -> subprocess.Popen[str]:
    """`plancc` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "plancc", *map(str, words)], text=True, cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("backend", "number"),
    [
        ("local", signal.SIGINT),
        ("gloo", signal.SIGTERM),
        pytest.param("gloo", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_signals_save_and_tell_how_to_go_on(
    backend: str, number: signal.Signals, say: Say, tmp_path: Path
) -> None:
    """The running step ends, a checkpoint is saved, the exit code is the signal's."""
    log, run = tmp_path / "log", tmp_path / "run"
    keep = ("--checkpoint", run, "--log", log)
    words = ("train", artifact("dp2"), *DATA, *keep, "--steps", 100000, "--backend", backend)
    started = program(*words)
    limit = time.monotonic() + 60
    while not (log.exists() and log.read_text().count("\n") > 5):
        assert time.monotonic() < limit and started.poll() is None
        time.sleep(0.05)
    started.send_signal(number)
    _, err = started.communicate(timeout=60)
    assert started.returncode == 128 + number and f"stopped by {number.name}" in err
    done = len(rows_of(log))
    assert f"--resume {run}/step-{done:08d}" in err
    code, out, _ = say("train", artifact("dp2"), *keep, "--resume", "--steps", done + 2, "--json")
    assert code == 0 and json.loads(out)["ran"] == 2
    assert [row["step"] for row in rows_of(log)] == list(range(1, done + 3))
