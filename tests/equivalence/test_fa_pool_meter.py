"""What `plancc run` reports.

Shares of time by mesh, bytes of each rank against the least possible.
"""

from __future__ import annotations

import json

import pytest
from lowered import EXAMPLES, lower, prompt
from pools import PoolPlan, pool_model

from plancc.runtime.deploy import Deployment

WIDE = dict(heads=32, hidden=512)
HEADS_FIRST = PoolPlan(
    base=8, devices=16, per_node=8, axes="hp = 8, sp = 0..2",
    steps=(("1", "seq_len > 6"), ("2", "seq_len > 12")),
    jobs=("split heads over hp", "split kv_seq over sp (block = ceil(seq_len / sp))"),
)  # fmt: skip
MODEL = ["layers=2", "hidden=64", "heads=16", "ffn=96", "vocab=90"]


@pytest.mark.parametrize(("tokens", "size"), [(5, 8), (17, 16), (65, 32)])
@pytest.mark.parametrize("depth", [1, 2])
def test_blocks_send_the_least_possible_within_a_twentieth(
    depth: int, tokens: int, size: int
) -> None:
    """Of the example at every size of its pool: exact on average, the fullest rank within 5 %."""
    lowered = lower("fa_pool.plan", pool_model("dense", **WIDE), {"long": 4, "depth": depth})
    ids = prompt(lowered.compiled.graph, 2, tokens)
    result, found = Deployment(lowered.artifact).measure(ids, 3)
    assert result.tokens.shape == (2, 3)
    assert set(found) == {"prefill", "decode"}
    for phase in found.values():
        assert {name: row["ranks"] for name, row in phase.items()} == {"base": 8, "fa": size}
        for row in phase.values():
            assert row["sent"] == pytest.approx(row["bound"], rel=0.05)
            assert row["sent_most"] <= 1.05 * row["bound"]
            assert row["busy"] + row["communication"] == pytest.approx(1)
            assert 0 < row["busy"] < 1


def test_heads_first_sends_exactly_the_least_possible() -> None:
    """While the pool divides the heads there is no merge, and all ranks send the same."""
    lowered = lower(HEADS_FIRST.text(), pool_model("dense", **WIDE))
    _, found = Deployment(lowered.artifact).measure(prompt(lowered.compiled.graph, 2, 8), 3)
    row = 2 * 512 * 4  # bytes of q of one layer, two sequences, float32
    for phase, tokens in (("prefill", 8), ("decode", 1)):
        base, fa = found[phase]["base"], found[phase]["fa"]
        assert base["sent"] == base["sent_most"] == base["bound"] == 2 * 3 * row * tokens / 8
        assert fa["sent"] == fa["sent_most"] == fa["bound"] == 2 * row * tokens / 8


def test_a_plan_without_a_pool_has_no_bound() -> None:
    """Tensor parallelism sends inside its mesh only."""
    lowered = lower("tp.plan", pool_model("dense"), {"tp": 4})
    _, found = Deployment(lowered.artifact).measure(prompt(lowered.compiled.graph, 2, 8), 3)
    for phase in found.values():
        assert phase["base"]["bound"] == phase["base"]["sent"] == 0
        assert phase["base"]["inside_mesh"] > 0


def test_the_command_reports_them(capsys) -> None:
    """`plancc run --json` has the times and what was measured; the text has a line a mesh."""
    from plancc.cli.main import main

    args = ["run", str(EXAMPLES / "fa_pool.plan"), "--model", f"{EXAMPLES / 'models.py'}:dense"]
    args += [x for arg in MODEL for x in ("--model-arg", arg)]
    args += [
        "--set",
        "long=4",
        "--batch",
        "2",
        "--tokens",
        "15",
        "--new-tokens",
        "3",
        "--no-verify",
    ]
    assert main([*args, "--check", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["matches_reference"] is True
    assert (
        found["ttft_s"] > 0
        and found["tpot_s"] > 0
        and found["tps"] == pytest.approx(2 / found["tpot_s"])
    )
    assert set(found["measured"]["decode"]) == {"base", "fa"}
    assert main(args) == 0
    text = capsys.readouterr().out
    assert "-- decode fa: 16 ranks, busy" in text and "least possible" in text
