"""A rank of a real artifact that dies, raises, hangs, skips or mismatches is named with its plan line."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

import plancc
from plancc.runtime.failure import RankFailure
from plancc.runtime.launch import launch

ROOT = Path(__file__).parents[2]
MODEL = f"{ROOT / 'examples' / 'models.py'}:dense"
ARGS = {"layers": "2", "hidden": "32", "heads": "6", "ffn": "48", "vocab": "64", "max_len": "64"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> plancc.Built:
    folder = tmp_path_factory.mktemp("failing") / "a"
    args = {**ARGS, "hidden": "48"}
    plan = ROOT / "examples" / "tp.plan"
    return plancc.compile(plan, MODEL, folder, sets={"tp": "3"}, model_args=args, verify=False)


@pytest.mark.parametrize("deed", ["kill", "raise", "hang", "skip", "mismatch"])
def test_failing_rank_is_named(deed: str, built: plancc.Built) -> None:
    sys.path.insert(0, str(ROOT))
    payload = {
        "folder": str(built.folder), "ids": [[1, 2, 3]], "new_tokens": 4,
        "victim": 1, "after": 8, "deed": deed,
    }  # fmt: skip
    begin = time.monotonic()
    with pytest.raises(RankFailure) as caught:
        launch(
            3, "tests.runtime.failing_entry:run", payload, time_limit=4.0,
            describe=built.artifact.describe,
        )  # fmt: skip
    text = str(caught.value)
    assert time.monotonic() - begin < 60
    assert "rank 1" in text
    assert "all_reduce" in text and "tp.plan:" in text, text


def test_the_same_entry_without_a_victim_runs(built: plancc.Built) -> None:
    payload = {
        "folder": str(built.folder), "ids": [[1, 2, 3]], "new_tokens": 3, "victim": -1,
        "after": 0, "deed": "",
    }  # fmt: skip
    found = launch(3, "tests.runtime.failing_entry:run", payload, describe=built.artifact.describe)
    assert found[0]["tokens"] == found[1]["tokens"] == found[2]["tokens"]
