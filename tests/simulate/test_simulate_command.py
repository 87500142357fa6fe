"""`plancc simulate` as a user meets it: rows, JSON, crossings, and everything that can be asked wrongly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from plain_cluster import const, plain

from plancc.cli.main import main

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZES = ("layers=2", "hidden=64", "heads=8", "ffn=128", "vocab=264", "max_len=256")
KEYS = {
    "devices", "fits", "ttft_s", "tpot_s", "step_s", "tps", "tps_per_device", "utilisation", "comm_share",
    "exposed_comm_share", "bubble_share", "memory_gb", "microbatches", "energy_j_per_token",
}  # fmt: skip


def words(plans: tuple[str, ...], cluster: Path | str, *more: str) -> list[str]:
    """The words of a command."""
    found = ["simulate", *(str(EXAMPLES / plan) for plan in plans)]
    found += ["--model", f"{EXAMPLES / 'models.py'}:dense", "--cluster", str(cluster)]
    for size in SIZES:
        found += ["--model-arg", size]
    return [*found, *more]


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """The file of a cluster of round numbers."""
    return written(tmp_path, plain(64))


def written(folder: Path, raw: dict[str, Any]) -> Path:
    """A cluster file."""
    path = folder / "plain.json"
    path.write_text(json.dumps(raw))
    return path


def document(capsys: pytest.CaptureFixture[str], *command: str) -> dict[str, Any]:
    """What a command prints with --json."""
    assert main([*command, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_rows_say_what_they_stand_on(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One row a phase, batch and length; documented keys; predicted, and on which cluster."""
    found = document(
        capsys, *words(("tp8_pp2.plan",), cluster, "--batch", "4,8", "--seq-len", "16,64")
    )
    assert found["predicted"] is True and found["cluster"] == str(cluster)
    assert [(r["phase"], r["batch"], r["seq_len"]) for r in found["rows"]] == [
        (phase, batch, seq_len)
        for phase in ("prefill", "decode") for batch in (4, 8) for seq_len in (16, 64)
    ]  # fmt: skip
    for row in found["rows"]:
        assert set(row) >= KEYS
        assert row["devices"] == 16 and row["microbatches"] == 2 and row["fits"]
        time = row["ttft_s"] if row["phase"] == "prefill" else row["tpot_s"]
        tokens = row["batch"] * (row["seq_len"] if row["phase"] == "prefill" else 1)
        assert row["tps"] == pytest.approx(tokens / time)
        assert row["tps_per_device"] == pytest.approx(row["tps"] / 16)
        total = row["utilisation"]["busy"] + row["exposed_comm_share"] + row["bubble_share"]
        assert total == pytest.approx(1, abs=1e-6)
        assert row["energy_j_per_token"] > 0


def test_the_table_is_for_people(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Columns, units and the word predicted; the note on what a decode step is."""
    assert main(words(("tp8_pp2.plan",), cluster, "--phase", "decode")) == 0
    out = capsys.readouterr().out
    assert out.startswith("predicted, on ") and "TPOT" in out and " us" in out and "GB" in out
    assert "--lockstep" in out


def test_a_pipeline_that_waits_for_all_is_slower(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In lockstep a decode step has a bubble; `best` is never worse than the plan's own number."""

    def tpot(*more: str) -> float:
        command = words(("tp8_pp2.plan",), cluster, "--phase", "decode", "--batch", "8", *more)
        found: float = document(capsys, *command)["rows"][0]["tpot_s"]
        return found

    assert tpot("--lockstep") > tpot()
    assert tpot("--microbatches", "best") <= min(tpot(), tpot("--microbatches", "1"))


def test_what_does_not_fit_has_no_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Devices of 1 kB: exit code 1, a row without times that says what is missing."""
    raw = plain(64)
    raw["kinds"]["gpu"]["memory"] = const(1000)
    assert main([*words(("tp8_pp2.plan",), written(tmp_path, raw)), "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert all(not row["fits"] and row["ttft_s"] is None and row["tps"] is None for row in rows)
    assert "does not fit: base needs" in rows[0]["reason"]


def test_the_length_at_which_a_pool_pays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where reading the cache is slow, and messages too, a pool overtakes its base as sequences grow."""
    raw = plain(64)
    raw["kinds"]["gpu"]["bandwidth"] = const(1e9)
    raw["links"]["network"]["message_latency"] = const(1e-3)
    cluster = written(tmp_path, raw)
    text = (EXAMPLES / "fa_pool.plan").read_text().replace("in 1..131072", "in 1..2097152")
    base, pool = tmp_path / "base.plan", tmp_path / "pool.plan"
    base.write_text(text.replace("plan fa_pool", "plan base").replace("= 4096 in", "= 16384 in"))
    pool.write_text(text.replace("= 4096 in", "= 4 in"))
    ask = ("--phase", "decode", "--batch", "64", "--model-arg", "max_len=4096")
    command = words((), cluster, *ask)
    command[1:1] = [str(base), str(pool)]
    found = document(capsys, *command, "--crossover", "--seq-len", "8,4000")
    assert [c["faster"] for c in found["crossings"]] == ["fa_pool"]
    at = found["crossings"][0]
    assert at["tokens"] == 64 * at["seq_len"]
    around = f"{at['seq_len'] * 9 // 10},{at['seq_len'] * 11 // 10}"
    rows = document(capsys, *command, "--seq-len", around)["rows"]
    before, after = ([r["tpot_s"] for r in rows[i::2]] for i in (0, 1))
    assert before[0] < before[1] and after[0] > after[1]


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "no cluster of that name": (("--cluster", "dgx_z"), "dgx_z"),
    "a length beyond the plan's": (("--seq-len", "100000"), "outside 1..4096"),
    "a length beyond the model's": (("--seq-len", "300"), "256 positions"),
    "a batch beyond the plan's": (("--batch", "1000"), "outside 1..64"),
    "a phase that is none": (("--phase", "decoding"), "decoding"),
    "a constant that is none": (("--hardware", "links.node.speed=1"), "links.node.speed"),
    "no bandwidth": (("--hardware", "links.node.bandwidth=0"), "no bandwidth"),
    "too few devices": (("--hardware", "devices.0.count=8"), "8 devices"),
    "a preset that is none": (("--preset", "best"), "no preset"),
    "a parameter that is none": (("--set", "q=3"), "q"),
    "a skew below one": (("--skew", "0.5"), "factor"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_questions_have_clear_answers(
    case: str, cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, one error that names what is wrong, nothing on stdout."""
    more, said = WRONG[case]
    assert main(words(("tp8_pp2.plan",), cluster, *more)) == 1
    out, err = capsys.readouterr()
    assert said in err and "error" in err and not out


def test_wrong_usage(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 for what cannot be meant; 1 without a cluster or a plan."""
    assert main(words(("tp8_pp2.plan",), cluster, "--crossover")) == 2
    assert main(words(("tp8_pp2.plan",), cluster, "--microbatches", "many")) == 2
    assert main(words(("tp8_pp2.plan",), cluster, "--batch", "0")) == 2
    assert main(words(("none.plan",), cluster)) == 1
    command = words(("tp8_pp2.plan",), cluster)
    at = command.index("--cluster")
    assert main(command[:at] + command[at + 2 :]) == 1
    assert "which hardware" in capsys.readouterr().err


def test_a_missing_constant_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Hardware without a peak in the model's type: an error with the path, no guess; no power, no energy."""
    raw = plain(64)
    del raw["kinds"]["gpu"]["power"]
    command = words(("tp8_pp2.plan",), written(tmp_path, raw), "--phase", "decode")
    assert document(capsys, *command)["rows"][0]["energy_j_per_token"] is None
    del raw["kinds"]["gpu"]["flops"]["f32"]
    written(tmp_path, raw)
    assert main(command) == 1
    assert "kinds.gpu.flops.f32: missing" in capsys.readouterr().err
