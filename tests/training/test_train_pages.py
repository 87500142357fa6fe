"""What the docs of training state: stored curves, the page and picture made of them, excerpts, commands."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tiny_runs import ARGS, MODEL, artifact

from plancc.cli.main import main

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "training"
SHORT = {"fp32": (8, 1e-5), "fp64": (5, 1e-9)}
"""Steps, and how far rounding can have grown by then."""


def load_curves() -> ModuleType:
    """examples/training/curves.py."""
    spec = importlib.util.spec_from_file_location("training_curves", FOLDER / "curves.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


CURVES = load_curves()
STORED: dict[str, Any] = json.loads((FOLDER / "losses.json").read_text())


def test_page_and_picture_are_in_step(golden: Callable[[Path, str], None]) -> None:
    """Both are what the script makes of the stored losses."""
    golden(CURVES.PICTURE, CURVES.picture_text(STORED))
    golden(CURVES.PAGE, CURVES.page_text(STORED, CURVES.PAGE.read_text()))
    assert CURVES.stored_text(STORED) == CURVES.STORED.read_text()


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_stored_curves_agree(precision: str) -> None:
    """Within the stated tolerance of one device over 200 steps; and they learn."""
    curves = STORED[precision]
    assert {len(c) for c in curves.values()} == {200}
    for run in CURVES.RUNS:
        far = CURVES.apart(curves[run.name], curves[run.base])[-1]
        assert far <= CURVES.TOLERANCE[precision][run.model], run.name
        assert sum(curves[run.name][-10:]) < 0.55 * sum(curves[run.name][:10])


@pytest.mark.slow
@pytest.mark.parametrize("precision", SHORT)
def test_plans_give_the_stored_curves_again(precision: str) -> None:
    """A few steps of every plan against one device, and, where Python ships the same text, as stored."""
    steps, tolerance = SHORT[precision]
    found: dict[str, list[float]] = {}
    for run in CURVES.RUNS:
        found[run.name], ranks = CURVES.losses_of(run, precision, steps)
        assert ranks == STORED["facts"]["ranks"][run.name]
        assert CURVES.apart(found[run.name], found[run.base])[-1] <= tolerance, run.name
        if STORED["facts"]["text_sha256"] == CURVES.text_hash():
            stored = STORED[precision][run.name][:steps]
            assert CURVES.apart(found[run.name], stored)[-1] <= tolerance, run.name


def blocks(path: Path, section: str) -> list[str]:
    """The fenced blocks of one section of a page."""
    text = path.read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)


def words_of(command: str) -> list[str]:
    """What follows `plancc` in a command of several lines."""
    return shlex.split(command.replace("\\\n", " "))[1:]


def test_excerpt_of_a_training_program() -> None:
    """Every line of the excerpt in passes/README.md stands in the emitted program, in this order."""
    emitted = (ROOT / "tests/golden/emit/training_tensor_parallel.txt").read_text().split("\n")
    lines = [line.partition("  #")[0].strip() for line in emitted]
    excerpt = blocks(ROOT / "passes" / "README.md", "How the backward is derived")[0]
    at = 0
    for line in excerpt.split("\n"):
        if line and not line.startswith("#"):
            at = lines.index(line, at) + 1


def test_run_names_the_command_that_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`plancc run` on an artifact compiled for training."""
    assert main(["run", str(artifact("dp2")), "--tokens", "3"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "is for training" in err and "use `plancc train`" in err


def test_run_generates_under_a_plan_that_trains(capsys: pytest.CaptureFixture[str]) -> None:
    """What a plan trains can also be asked for tokens: `run` compiles for inference."""
    model = ("--model", MODEL, *(w for k, v in ARGS.items() for w in ("--model-arg", f"{k}={v}")))
    plan = str(ROOT / "examples" / "fsdp.plan")
    assert (
        main(["run", plan, *model, "--tokens", "3", "--batch", "4", "--new-tokens", "2", "--check"])
        == 0
    )
    assert "the same tokens as one device" in capsys.readouterr().out


@pytest.mark.slow
def test_readme_training_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A new user's way: the plans as printed, both commands, the lines that are printed."""
    first = blocks(ROOT / "README.md", "30 seconds")[0]
    plan, train, printed, resume, _ = blocks(ROOT / "README.md", "Training")
    (tmp_path / "tp.plan").write_text(first.split("\n", 1)[1])
    (tmp_path / "fsdp.plan").write_text(plan)
    for name in ("LICENSE", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    assert main(words_of(train)) == 0
    out, err = capsys.readouterr()
    shape = [re.sub(r"[\d.,]+(e[-+]\d+)?", "0", line) for line in printed.strip().split("\n")]
    shown = {re.sub(r"[\d.,]+(e[-+]\d+)?", "0", line.strip()) for line in (out + err).split("\n")}
    assert set(shape) - shown == {"0"}, shape
    assert main(words_of(resume)) == 0
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 30
