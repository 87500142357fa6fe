"""The same artifacts as real processes: gloo ranks of one host, and ranks that torchrun started."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from lowered import Lowered, captured, lower, prompt
from plans import LLAMA, experts, three, tp, written

from plancc.runtime.deploy import Deployment
from plancc.runtime.launch import launch

PLANS = {
    "tp3_pp2": (three(LLAMA, 1, 2, 3, 2), "llama"),
    "experts4": (experts(4, "mlp"), "qwen3_moe"),
}
SCRIPT = """
import json, pathlib, sys, torch
torch.set_num_threads(1)
from plancc.runtime.artifact import load_artifact
from plancc.runtime.deploy import Deployment
rank = Deployment(load_artifact(sys.argv[1])).this_rank()
with rank.transport:
    out = rank.generate(torch.tensor(json.loads(sys.argv[2])), 32)
    mine = pathlib.Path(sys.argv[3]) / f"{rank.number}.json"  # a shared stdout would mix lines
    mine.write_text(json.dumps({"rank": rank.number, "tokens": out.tokens.tolist()}))
"""


def compiled(plan: str) -> Lowered:
    """One of PLANS, with weights from a seed."""
    text, model = PLANS[plan]
    return lower(written(text, model), captured(model))


@pytest.mark.parametrize("plan", PLANS)
def test_processes_give_the_tokens_of_local_ranks(plan: str) -> None:
    """Every process has the same 32 tokens, and every rank has moved the same bytes."""
    lowered = compiled(plan)
    ids = prompt(lowered.compiled.graph)
    expected = Deployment(lowered.artifact).generate(ids, 32)
    folder = str(lowered.artifact.folder)
    payload = {"folder": folder, "ids": ids.tolist(), "new_tokens": 32}
    found = launch(lowered.artifact.world, "plancc.runtime.deploy:run_rank", payload)
    assert len(found) == lowered.artifact.world
    assert all(one["tokens"] == expected.tokens.tolist() for one in found)
    assert all(sum(one["bytes"].values()) > 0 for one in found)


def test_ranks_under_torchrun_give_the_tokens_of_local_ranks(tmp_path) -> None:
    """Deployment.this_rank() finds its place in the environment."""
    lowered = lower(written(tp(3), "gpt2"), captured("gpt2"))
    ids = prompt(lowered.compiled.graph)
    script = tmp_path / "ranks.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3",
            script, str(lowered.artifact.folder), json.dumps(ids.tolist()),
            tmp_path,
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert sorted(one["rank"] for one in found) == [0, 1, 2]
    expected = Deployment(lowered.artifact).generate(ids, 32).tokens.tolist()
    assert all(one["tokens"] == expected for one in found)
