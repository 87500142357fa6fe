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


def load(name: str) -> ModuleType:
    """A script of examples/training; under its own name, for others import it so."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


CURVES = load("curves")
EIGHT_BITS = load("eight_bits")
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


def test_page_and_picture_of_eight_bits(golden: Callable[[Path, str], None]) -> None:
    """Both are what the script makes of the stored losses: ten seeds, 200 steps, two plans."""
    found = json.loads(EIGHT_BITS.STORED.read_text())
    golden(EIGHT_BITS.PICTURE, EIGHT_BITS.picture_text(found))
    golden(EIGHT_BITS.PAGE, EIGHT_BITS.page_text(found, EIGHT_BITS.PAGE.read_text()))
    assert EIGHT_BITS.stored_text(found) == EIGHT_BITS.STORED.read_text()
    for name in ("exact", "eight"):
        runs = EIGHT_BITS.runs_of(found, name)
        assert [len(run) for run in runs] == [200] * 10 and len(found[name]) == 10
    assert found["exact"] != found["eight"]


@pytest.mark.parametrize(
    ("gaps", "p"),
    [([1.0, 1.0], 2 / 4), ([1.0, 2.0, 3.0], 2 / 8), ([1.0, -1.0], 1.0), ([2.0, 1.0, -1.0], 6 / 8)],
)
def test_exact_paired_test(gaps: list[float], p: float) -> None:
    """By hand: of the sums 4, 2, 2, 0, 0, -2, -2, -4 of (2, 1, 1) six are as far from 0 as 2."""
    assert EIGHT_BITS.sign_flips(gaps) == p


def test_table_by_hand() -> None:
    """Two plans that differ by 0.5 for every seed; only the last 20 steps count."""
    runs = {str(seed): [9.0] * 5 + [float(seed)] * 20 for seed in range(10)}
    more = {seed: [9.0] * 5 + [x + 0.5 for x in run[5:]] for seed, run in runs.items()}
    text = EIGHT_BITS.table({"steps": 25, "exact": runs, "eight": more})
    assert (
        "| float32 | 4.5000 | 3.0277 |" in text
        and "| int8, blocks of 128 | 5.0000 | 3.0277 |" in text
    )
    assert "| difference, by seed | +0.5000 | 0.0000 |" in text
    assert "over all 1,024 sign flips" in text and "p = 0.002." in text
    assert "for 10 of 10 seeds" in text


def test_an_interrupted_study_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has run is kept, and not run again; runs of another length are not mixed in."""
    ran: list[tuple[str, int]] = []
    failing = iter([True])

    def train(name: str, seed: int, steps: int) -> list[float]:
        if (name, seed) == ("eight", 1) and next(failing, False):
            raise ChildProcessError
        ran.append((name, seed))
        return [1.0] * steps

    monkeypatch.setattr(EIGHT_BITS, "STORED", tmp_path / "eight_bits.json")
    monkeypatch.setattr(EIGHT_BITS, "train", train)
    with pytest.raises(ChildProcessError):
        EIGHT_BITS.measure(2, 1)
    assert ran[:3] == [("exact", 0), ("eight", 0), ("exact", 1)]
    EIGHT_BITS.measure(2, 1)
    every = {(name, seed) for name in EIGHT_BITS.NAMES for seed in range(10)}
    assert set(ran) == every and ran.count(("exact", 0)) == ran.count(("eight", 0)) == 1
    EIGHT_BITS.measure(2, 1)
    assert set(map(len, json.loads(EIGHT_BITS.STORED.read_text())["eight"].values())) == {2}
    with pytest.raises(SystemExit, match="of another kind"):
        EIGHT_BITS.measure(3, 1)


def test_only_missing_curves_are_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that losses.json lacks; with --again all of them."""
    kept = {**STORED, "fp64": {k: v for k, v in STORED["fp64"].items() if k != "edp"}}
    kept["facts"] = {**CURVES.facts(), "ranks": STORED["facts"]["ranks"]}
    monkeypatch.setattr(CURVES, "STORED", tmp_path / "losses.json")
    CURVES.STORED.write_text(CURVES.stored_text(kept))
    ran: list[tuple[str, str]] = []

    def losses_of(run: Any, precision: str, steps: int) -> tuple[list[float], int]:
        ran.append((precision, run.name))
        return STORED[precision][run.name], STORED["facts"]["ranks"][run.name]

    monkeypatch.setattr(CURVES, "losses_of", losses_of)
    CURVES.measure(200, False)
    assert ran == [("fp64", "edp")]
    assert json.loads(CURVES.STORED.read_text())["fp64"] == STORED["fp64"]
    CURVES.measure(200, True)
    assert len(ran) == 1 + 2 * len(CURVES.RUNS)
    kept["facts"]["torch"] = "0.1"
    CURVES.STORED.write_text(CURVES.stored_text(kept))
    with pytest.raises(SystemExit, match="another torch: use --again"):
        CURVES.measure(200, False)


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
