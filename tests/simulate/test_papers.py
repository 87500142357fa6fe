"""The page of examples/papers says what its results say, and the results are what is simulated now."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "papers"
sys.path.append(str(FOLDER.parent))  # the package `papers`

from papers import claims, grid, plots, report  # noqa: E402
from papers.cases import CASES, Point, points  # noqa: E402
from papers.look import Results, crossing  # noqa: E402

from plancc.cli.main import main  # noqa: E402
from plancc.simulator.actors import FEW  # noqa: E402

STORED: dict[str, Any] = json.loads((FOLDER / "results.json").read_text("utf-8"))
RESULTS = Results(STORED["facts"], STORED["rows"])
SAID = (
    "3.2x TPOT", "2.8x tokens/s", "near-linear up to 16K", "85-92 % in the pool, 45-60 %",
    "less than 15 % of compute", "TPOT -34.2 %", "tokens/s +52.8 %", "89.7 % against 71.2 %",
    "87 % scaling efficiency", "break-even at 8 devices", "energy -33.9 %", "123.7 GB",
    "p < 0.001",
)  # fmt: skip
"""Every claim of the papers with a figure."""
AGAIN = (
    Point("base", "decode", 64, 16384, 2), Point("base", "decode", 1024, 32768, 1),
    Point("pool2", "decode", 64, 16384), Point("heads", "prefill", 1, 4096),
    Point("replicas", "decode", 16, 512), Point("ma2@16384", "decode", 1024, 2048),
    Point("dp_ep@16384", "train", 64, 2048),
)  # fmt: skip


def test_page_and_pictures_are_of_the_stored_results(golden: Callable[[Path, str], None]) -> None:
    """All are what the command makes of results.json."""
    golden(report.PAGE, report.page_text(STORED, report.PAGE.read_text("utf-8")))
    for name, draw in plots.PICTURES.items():
        golden(FOLDER / name, draw(RESULTS))
    assert grid.stored_text(STORED) == report.STORED.read_text("utf-8")


def test_every_point_is_stored_once() -> None:
    """No row is missing, none is left from before."""
    keys = [(r["case"], r["phase"], r["batch"], r["seq_len"], r["asked"]) for r in RESULTS.rows]
    assert keys == [(p.case, p.phase, p.batch, p.seq_len, p.micro) for p in points()]
    assert len(set(keys)) == len(keys)
    assert {row["case"] for row in RESULTS.rows} == set(CASES)


def test_stored_constants_are_those_of_the_cluster_file() -> None:
    """Who changes the cluster, or a plan's parameters, must run the command again."""
    cluster = grid.hardware()
    assert STORED["facts"]["constants"] == dict(cluster.values)
    assert STORED["facts"]["cases"] == grid.facts([])["cases"]


@pytest.mark.parametrize("point", AGAIN, ids=lambda p: f"{p.case}-{p.phase}-{p.batch}-{p.seq_len}")
def test_rows_again(point: Point) -> None:
    """Simulated now, every figure of a row is the stored one; so it is with every rank told apart."""
    key = (point.case, point.phase, point.batch, point.seq_len)
    stored = next(row for row in RESULTS.all(*key) if row["asked"] == point.micro)
    for few in (None, FEW):
        found = grid.record_of(point, grid.row_of(point, few))
        assert_like(found, stored)


def assert_like(found: Any, stored: Any) -> None:
    """Equal, numbers up to a millionth."""
    if isinstance(found, dict):
        assert found.keys() == stored.keys()
        for name in found:
            assert_like(found[name], stored[name])
    elif isinstance(found, float):
        assert found == pytest.approx(stored, rel=1e-6, abs=1e-9)
    else:
        assert found == stored


def test_rows_keep_the_rules() -> None:
    """Devices and micro-batches on each row; no times without room; shares that add up to a whole."""
    tight = 0
    for row in RESULTS.rows:
        assert row["devices"] >= 4 and row["microbatches"] >= 1
        times = [row[name] for name in ("tpot_s", "ttft_s", "step_s") if row[name] is not None]
        assert len(times) == row["fits"]
        full = [m for m, gb in row["memory_gb"].items() if gb > row["budget_gb"][m]]
        assert bool(full) == (not row["fits"])
        tight += not row["fits"]
        if not row["fits"]:
            assert row["tps"] is None and row["utilisation"] is None and row["reason"]
            continue
        per_device = row["tps"] / row["devices"]
        assert row["tps_per_device"] == pytest.approx(per_device, rel=1e-6)
        whole = row["utilisation"]["busy"] + row["exposed_comm_share"] + row["bubble_share"]
        assert whole == pytest.approx(1, abs=0.02)
    assert tight > 20


def test_every_claim_has_its_figure_and_verdict() -> None:
    """Each stands in the page with what is predicted beside it."""
    text = report.PAGE.read_text("utf-8")
    every = (*claims.FA_POOL, *claims.MA_SEPARATION)
    for said in SAID:
        assert sum(said in claim.says for claim in every) == 1, said
    for claim in every:
        predicted, verdict = claim.predicted(RESULTS)
        assert f"| {claim.says} | {predicted} | {verdict} | {claim.stands} |" in text
        assert any(c.isdigit() for c in predicted) or verdict == claims.UNSAID
    assert "predicted, nothing was measured" in text


def test_verdicts() -> None:
    """A gain counts as reached against the best baseline only."""
    assert claims.verdict(3.2, 4.0, 2.1) == claims.AGAINST_ONE
    assert claims.verdict(3.2, 4.0, 3.2) == claims.REACHED
    assert claims.verdict(3.2, 3.1, 2.1) == claims.MISSED


def test_where_one_overtakes() -> None:
    """On lines in log space; never, always, and with rows that do not fit."""
    assert crossing([(512, 0.5), (1024, 2.0)]) == round(512 * 2**0.5)
    assert crossing([(512, 0.5), (1024, 0.9)]) is None
    assert crossing([(512, 1.5), (1024, 2.0)]) == 512
    assert crossing([(512, 2.0), (1024, 0.5), (2048, 2.0)]) == round(1024 * 2**0.5)
    assert crossing([(512, None), (1024, 2.0)]) == 1024
    assert crossing([]) is None


def test_the_printed_command_gives_the_stored_rows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the page says of how to get a row again."""
    monkeypatch.chdir(FOLDER.parents[1])
    command = report.commands(RESULTS).split("```")[1].replace("\\\n", " ")
    assert main([*shlex.split(command)[1:], "--json"]) == 0
    for row in json.loads(capsys.readouterr().out)["rows"]:
        stored = RESULTS.best("pool2", "decode", row["batch"], row["seq_len"])
        assert row["tpot_s"] == pytest.approx(stored["tpot_s"], rel=1e-6)
