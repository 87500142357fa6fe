"""Predicted against measured: errors, order, and `plancc simulate --check`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic import certain, findings

from plancc.calibrate.check import Checked, point_of, score
from plancc.calibrate.document import document
from plancc.calibrate.measure import save
from plancc.calibrate.point import WARM, Point, Truth
from plancc.cli.main import main
from plancc.simulator.errors import SimulateError
from plancc.simulator.rows import Row

EXAMPLES = Path(__file__).parents[2] / "examples"
ROW = Row("tp", "prefill", 2, 16, 2, "", 1, True, {}, {}, ttft_s=0.5)


def one(contest: str, predicted: float, measured: float) -> Checked:
    spread = certain(measured)
    truth = Truth(Point("prefill", 1, 8), 1, spread, spread, (0.0,), (0.0,), 0.0)
    return Checked("tp", contest, predicted, truth)


def test_errors_and_order() -> None:
    """10 % too long, 20 % too short, exact; of three pairs of one contest one is turned round."""
    found = score([one("a", 1.1, 1.0), one("a", 1.6, 2.0), one("a", 1.5, 1.5), one("b", 9.0, 9.0)])
    assert found.mean == pytest.approx((0.1 + 0.2) / 4)
    assert found.worst == pytest.approx(0.2)
    assert (found.steps, found.pairs, found.ordered) == (4, 3, 3)
    turned = score([one("a", 1.1, 1.0), one("a", 1.0, 2.0)])
    assert (turned.pairs, turned.ordered, turned.turned) == (1, 0, (1.0,))


def test_the_step_of_a_row() -> None:
    assert point_of(ROW, "gloo") == Point("prefill", 2, 16, 0, "gloo", 9)
    decode = replace(ROW, phase="decode", seq_len=65)
    assert point_of(decode, "local") == Point("decode", 2, 1, 64, "local", 25)
    # a short past leaves room for few steps
    short = point_of(replace(decode, seq_len=8), "local")
    assert (short.past, short.steps) == (7, 6) and short.prompt == 1
    assert short.prompt + WARM + short.steps // 2 == 7
    with pytest.raises(SimulateError, match="decode 2 x 3"):
        point_of(replace(decode, seq_len=3), "local")
    with pytest.raises(SimulateError, match="forward"):
        point_of(replace(ROW, phase="forward"), "local")


def test_a_check_is_said_with_its_noise() -> None:
    text = str(one("prefill 1 x 8", 0.0394, 0.0404))
    assert text == (
        "tp, prefill 1 x 8: 40.4 ms measured on 1 ranks (local), 39.4 ms predicted, -2%"
    )
    shaky = one("x", 1.0, 1.0)
    spread = replace(shaky.truth.seconds, low=0.5)
    assert "quartiles 50% apart" in str(replace(shaky, truth=replace(shaky.truth, seconds=spread)))


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    save(document(findings("local")), tmp_path / "here.json")
    sizes = ("layers=1", "hidden=32", "heads=2", "ffn=32", "vocab=260", "max_len=64")
    found = ["simulate", str(EXAMPLES / "tp.plan"), "--model", f"{EXAMPLES / 'models.py'}:dense"]
    for size in sizes:
        found += ["--model-arg", size]
    return [*found, "--set", "tp=2", "--cluster", str(tmp_path / "here.json"), "--seq-len", "24"]


def test_simulate_runs_what_it_predicted(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--check"]) == 0
    told = capsys.readouterr().out
    for phase in ("prefill", "decode"):
        assert f"tp, {phase} 1 x 24: " in told
    assert "measured on 2 ranks (local" in told and "ms predicted" in told
    assert main([*words, "--batch", "2", "--phase", "train", "--check", "local", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (truth,) = map(Truth.from_json, found["measured"])
    assert truth.point == Point("train", 2, 24, 0, "local", 7) and truth.ranks == 2


def test_without_check_nothing_is_run(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--phase", "prefill", "--json"]) == 0
    assert "measured" not in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("more", [["--dtype", "bf16"], ["--microbatches", "2"]])
def test_a_check_is_of_the_plan_and_model_as_they_are(
    words: list[str], more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--check", *more]) == 2
    assert "as they are" in capsys.readouterr().err
