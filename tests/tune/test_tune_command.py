"""`plancc tune` as a user calls it: what it prints, its JSON, its limits, wrong input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_cluster import EXPERTS, MODEL, TINY, cluster_data

from plancc.cli.main import main
from plancc.tune.report import KEYS

GRID = """plan grid, edition 1
param dp = 1 in 1..4
param tp = 1 in 1..64
param free = 1
let more = 0 * free
mesh base[dp = dp, tp = tp + more] on local
place ** on base { split batch over dp }
place layers.*.self_attn { split heads over tp }
place layers.*.mlp { split ffn over tp }
"""
POOL = """plan pooled, edition 1
param long = 64 in 8..256
model m { batch in 1..64; seq_len in 1..512 }
mesh base[tp = 1] on local[0:1]
pool fa[sp = 0..2] on local[1:3] { sp = 2 when seq_len > long }
place ** on base
when seq_len > long {
  place op attention in layers.*.self_attn on fa {
    split kv_seq over sp (block = ceil(seq_len / sp))
    combine out by logsumexp over sp
  }
}
"""
SPLIT = """plan split, edition 1
param a = 1 in 1..3
param x = 1 in 1..3
mesh attn[dp = a] on local[0:a]
mesh moe[ep = x] on local[a:a + x]
place ** on attn { split batch over dp (block = balanced) }
place layers.*.moe.experts on moe { split experts over ep (block = balanced); route = top(2) }
"""
Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Say:
    """Writes the plans and a cluster of four devices, and calls the command."""
    for name, text in (("grid", GRID), ("pooled", POOL), ("split", SPLIT)):
        (tmp_path / f"{name}.plan").write_text(text)
    (tmp_path / "clusters").mkdir()
    for name, data in (
        ("toy", cluster_data(4, latency=1e-6)),
        ("small", cluster_data(4, memory=1000.0)),
        ("wires", cluster_data(4, latency=3e-6, flops=1e15)),
    ):
        (tmp_path / "clusters" / f"{name}.json").write_text(json.dumps(data))

    def call(plan: str, *words: object, model: str = MODEL) -> tuple[int, str, str]:
        given = [x for pair in TINY.items() for x in ("--model-arg", "=".join(pair))]
        path = tmp_path / plan
        code = main(["tune", str(path), "--model", model, *given, *map(str, words)])
        out, err = capsys.readouterr()
        return code, out, err.replace(f"{tmp_path}/", "")

    return call


def document(say: Say, plan: str, *words: object, model: str = MODEL) -> dict[str, Any]:
    code, out, err = say(plan, *words, "--json", model=model)
    assert code == 0 and err == ""
    found: dict[str, Any] = json.loads(out)
    return found


CASE = ("--cluster", "toy", "--batch", 4, "--seq-len", 64)


def test_what_is_printed(say: Say) -> None:
    code, out, err = say("grid.plan", *CASE, "--metric", "tpot")
    assert code == 0 and err == ""
    lines = out.splitlines()
    assert lines[0] == "predicted, on toy: grid, least time per output token"
    assert lines[1].startswith("decode, batch 4 x 64: best is --set dp=")
    assert lines[2] == "  front of time against memory:"
    assert lines[3].split() == [
        "TPOT", "memory", "devices", "micro", "tokens/s", "per", "device", "busy", "setting"
    ]  # fmt: skip
    assert lines[4].endswith("  best") and "--set dp=" in lines[4]
    assert "  tp: 1, 2, 4, 8, 16, 32, 64; 57 other values of its domain: --search tp=..." in lines
    assert "  free: as it is, for it has no domain: --search free=..." in lines
    assert any(
        line.startswith("searched: all 28 settings tried (7 simulated, 21 refused)")
        for line in lines
    )
    assert any(line.startswith("  too few devices: 21, such as --set") for line in lines)
    assert lines[-1].startswith("note: ")


def paths(value: Any, at: str = "") -> set[str]:
    """The documented level of keys: two deep, rows and settings as a whole."""
    found = set()
    for item in value if isinstance(value, list) else [value]:
        for key, inner in item.items():
            found.add(f"{at}{key}")
            if not at and key in ("cases", "searched"):
                found |= paths(inner, f"{key}.")
    return found


def test_every_key_of_the_document_is_explained(say: Say) -> None:
    facts = document(say, "grid.plan", *CASE)
    given = {
        path for path in paths(facts) if path not in ("cases.phase", "cases.batch", "cases.seq_len")
    }
    assert given == set(KEYS) - {"ratios", "thresholds"}
    assert facts["predicted"] and facts["metric"] == "time" and facts["plan"] == "grid"
    (case,) = facts["cases"]
    assert (case["phase"], case["batch"], case["seq_len"]) == ("decode", 4, 64)
    assert case["best"]["set"] == facts["best"]["set"] == case["front"][0]["set"]
    times = [row["row"]["tpot_s"] for row in case["front"]]
    memory = [max(row["row"]["memory_gb"].values()) for row in case["front"]]
    assert times == sorted(times) and memory == sorted(memory, reverse=True)
    assert facts["best"]["meshes"] == {"base": int(case["best"]["row"]["devices"])}


def test_the_page_explains_every_key() -> None:
    page = (Path(__file__).parents[2] / "plancc" / "tune" / "README.md").read_text()
    assert all(f"| `{key}` | {text} |" in page for key, text in KEYS.items())


def test_several_cases_have_a_best_each_and_one_together(say: Say) -> None:
    words = (
        "--cluster",
        "toy",
        "--batch",
        "1,4",
        "--seq-len",
        "32,64",
        "--phase",
        "prefill,decode",
    )
    facts = document(say, "grid.plan", *words)
    assert len(facts["cases"]) == 8 and facts["best"] is not None
    code, out, _ = say("grid.plan", *words)
    assert code == 0 and "over all cases (geometric mean): --set dp=" in out


def test_metrics_choose(say: Say) -> None:
    least = document(say, "grid.plan", *CASE, "--metric", "memory")["cases"][0]
    assert least["best"]["set"] == {"dp": "1", "tp": "4"}
    assert least["best"] == least["front"][-1]
    most = document(say, "grid.plan", *CASE, "--metric", "tps")["cases"][0]
    assert most["best"]["row"]["tps"] == max(row["row"]["tps"] for row in most["front"])


def test_several_processes_say_what_one_says(say: Say) -> None:
    words = (*CASE, "--search", "tp=1,2", "--search", "free=1,2", "--search", "dp=1,2")
    one, two = (document(say, "grid.plan", *words, "--jobs", jobs) for jobs in (1, 2))
    assert one == two and one["searched"]["same"] == 4


def test_limits_are_kept_and_said(say: Say) -> None:
    code, out, _ = say("grid.plan", *CASE, "--points", 3)
    assert (
        code == 0 and "searched: stopped by --points 3: " in out and " left out (3 simulated" in out
    )
    facts = document(say, "grid.plan", *CASE, "--points", 3)["searched"]
    assert facts["stopped"] == "--points 3" and facts["simulated"] == 3 and not facts["complete"]
    assert facts["tried"] + facts["left_out"] == facts["settings"] == 28
    facts = document(say, "grid.plan", *CASE, "--points", 8)["searched"]
    assert facts["complete"] and not facts["stopped"]
    code, out, _ = say("grid.plan", *CASE, "--limit", "0.001")
    assert "searched: stopped by --limit 0.001 s" in out


def test_nothing_fits_is_told_with_exit_code_1(say: Say) -> None:
    code, out, _ = say("grid.plan", "--cluster", "small", "--seq-len", 64)
    assert code == 1 and "nothing fits (" in out and "do not fit in memory" in out
    code, out, _ = say("grid.plan", "--cluster", "toy", "--seq-len", 4096)
    assert code == 1 and "seq_len = 4096 is more than the model's 512 positions" in out


def test_sizes_of_a_pool_are_told_with_the_settings_that_give_them(say: Say) -> None:
    code, out, _ = say("pooled.plan", "--cluster", "toy", "--seq-len", 100)
    assert code == 0 and "sizes of the pools here:" in out
    facts = document(say, "pooled.plan", "--cluster", "toy", "--seq-len", 100)
    pools = facts["cases"][0]["pools"]
    assert [p["sizes"]["fa.sp"] for p in pools] == [0, 1, 2] and sum(p["taken"] for p in pools) == 1
    assert pools[1]["set"] is None and "no value of a parameter gives it here" in out
    fixed = document(say, "pooled.plan", "--cluster", "toy", "--seq-len", 100, "--set", "long=64")
    assert len(fixed["cases"][0]["pools"]) == 3  # no parameter is left, the sizes still are


def test_a_threshold_as_printed(say: Say) -> None:
    words = ("--cluster", "wires", "--batch", "1,4", "--seq-len", "16,512", "--threshold")
    code, out, err = say("pooled.plan", *words)
    assert code == 0 and err == ""
    lines = out.splitlines()
    assert (
        lines[0] == "predicted, on toy: pooled, decode, from which length a pool pays (16 to 512)"
    )
    facts = document(say, "pooled.plan", *words, "long")["thresholds"]
    assert [one["batch"] for one in facts] == [1, 4]
    assert f"batch 1: --set long={facts[0]['best']}   (" in out
    assert facts[0]["crossovers"][0]["closed"] is None  # one device of a pool never pays
    assert "what decides is tokens in flight (batch x length), not length" in out
    assert "  the fastest at every length: no pool, then fa.sp = 2 when seq_len > " in out


def test_ratios_as_printed(say: Say) -> None:
    words = ("--cluster", "toy", "--batch", 4, "--seq-len", 64, "--ratio", "attn:moe")
    code, out, err = say("split.plan", *words, model=EXPERTS)
    assert code == 0 and err == ""
    assert "attention : experts" in out and "prefill, batch 4 x 64, 4 devices" in out
    assert "  closed form: balanced at " in out and "  search: " in out
    facts = document(say, "split.plan", *words, model=EXPERTS)["ratios"]
    for one in facts:
        splits = [(s["attention"], s["experts"]) for s in one["splits"]]
        assert (
            sorted(splits) == [(1, 3), (2, 2), (3, 1)] and one["devices"] == 4 and one["fewer"] == 3
        )
        times = [s["row"]["ttft_s"] or s["row"]["tpot_s"] for s in one["splits"]]
        assert times == sorted(times)
        # A layer: attention 4 x 32^2 parameters, two experts of 3 x 32 x 64: experts need more devices.
        assert one["closed_form"]["whole"] in ([1, 3], [2, 2])
        closed = one["closed_form"]
        assert closed["attention"] + closed["experts"] == pytest.approx(4)


WRONG = [
    (("grid.plan", "--cluster", "toy", "--search", "tq=1,2"), 1, "cannot find parameter `tq`"),
    (("grid.plan", "--cluster", "toy", "--search", "tp=1,65"), 1, "`tp = 65` is outside its domain, 1..64"),
    (("grid.plan", "--cluster", "toy", "--search", "tp"), 1, "write NAME=V,V or NAME=LO..HI"),
    (("grid.plan", "--cluster", "toy", "--set", "dq=1"), 1, "cannot find parameter `dq`"),
    (("grid.plan", "--cluster", "toy", "--set", "dp=9"), 1, "P105"),
    (("grid.plan", "--cluster", "toy", "--set", "tp=1", "--search", "tp=2"), 1, "both fixed by --set"),
    (("grid.plan", "--cluster", "toy", "--metric", "tpot", "--phase", "prefill"), 1,
     "--metric tpot is of decode, not of prefill"),
    (("grid.plan", "--cluster", "toy", "--phase", "dream"), 1, "there is no phase `dream`"),
    (("grid.plan", "--cluster", "toy", "--set", "tp=1", "--set", "dp=1"), 1,
     "grid.plan has no parameter to search; `free` has no domain: --search free=V,V"),
    (("grid.plan", "--cluster", "toy", "--set", "tp=1", "--set", "dp=1", "--set", "free=1"), 1,
     "grid.plan has no parameter to search; --set fixes `tp`, `dp`, `free`"),
    (("grid.plan",), 1, "--cluster says which hardware"),
    (("grid.plan", "--cluster", "toys"), 1, "no cluster file `toys`"),
    (("none.plan", "--cluster", "toy"), 1, "none.plan does not exist"),
    (("grid.plan", "--cluster", "toy", "--points", "0"), 2, "a number from 1"),
    (("grid.plan", "--cluster", "toy", "--limit", "-1"), 2, "more than 0 seconds"),
    (("grid.plan", "--cluster", "toy", "--metric", "joy"), 2, "invalid choice"),
    (("grid.plan", "--cluster", "toy", "--ratio", "attn"), 2, "name two meshes"),
    (("grid.plan", "--cluster", "toy", "--ratio", "a:b"), 1, "the plan has no mesh `a`; it has base"),
    (("pooled.plan", "--cluster", "toy", "--threshold"), 1, "--seq-len 1024,131072"),
    (("pooled.plan", "--cluster", "toy", "--threshold", "short", "--seq-len", "16,64"), 1, "it may be long"),
    (("grid.plan", "--cluster", "toy", "--threshold", "--seq-len", "16,64"), 1, "no parameter moves"),
    (("grid.plan", "--cluster", "toy", "--threshold", "--ratio", "a:b"), 2, "two searches"),
    (("grid.plan", "--cluster", "toy", "--threshold", "--metric", "tps"), 2, "leave --metric tps out"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "code", "told"), WRONG)
def test_wrong_input(say: Say, words: tuple[str, ...], code: int, told: str) -> None:
    found, out, err = say(*words)
    assert found == code and told in err and out == ""


def test_help_says_what_the_options_do(say: Say) -> None:
    code, out, _ = say("grid.plan", "--help")
    assert code == 0
    for option in (
        "--metric",
        "--search",
        "--threshold",
        "--ratio",
        "--limit",
        "--points",
        "--jobs",
    ):
        assert option in out
