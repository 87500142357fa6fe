"""Gradients in eight bits: close to the exact curve, resumed bit by bit, and their error is told."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch
from tiny_runs import ROOT, TEXT, tensors

import plancc

MODEL = str(ROOT / "examples" / "models.py") + ":moe"
ARGS = {"layers": "2", "hidden": "24", "heads": "4", "ffn": "16", "experts": "4", "vocab": "260"}
PLAN = """plan small, edition 1
model m { mode = train }
mesh attn[rep = 2, hp = 2] on local[0:4]
mesh moe[ep = 2]           on local[4:6]
place ** on attn
place layers.* { replicate params over rep; split batch over rep }
place layers.*.self_attn { split heads over hp }
place layers.*.moe.experts on moe { split experts over ep; route = top(2) }
"""
EDGE = "comm attn <-> moe { op = all_to_all; grad_dtype = int8(block = 64); overlap = async(chunks = 2) }\n"
SUMS = "comm grads over attn.rep { dtype = int8(block = 64, error_feedback = true) }\n"


@functools.cache
def artifact(folder: Path, lossy: str) -> Path:
    """The small plan with some comm lines, compiled for training."""
    plan = folder / f"{len(lossy)}.plan"
    plan.write_text(PLAN + lossy)
    out = folder / f"art{len(lossy)}"
    plancc.compile(plan, MODEL, out, model_args=ARGS, verify=False)
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wires")


def train(out: Path, **wanted):
    usual = {"data": TEXT, "batch": 8, "seq_len": 16, "lr": 3e-3, "steps": 12}
    return plancc.train(out, **({} if wanted.get("resume") else usual) | wanted)


@pytest.mark.parametrize("lossy", [EDGE, SUMS, EDGE + SUMS])
def test_close_to_the_exact_curve(folder: Path, lossy: str) -> None:
    """Within some percent after twelve steps, but not equal: the values did travel in eight bits."""
    log = folder / f"log{len(lossy)}.jsonl"
    exact, found = (
        train(artifact(folder, "")).losses,
        train(artifact(folder, lossy), log=log).losses,
    )
    gaps = [abs(a - b) / a for a, b in zip(exact, found, strict=True)]
    assert 0 < max(gaps) < 0.05
    errors = json.loads(log.read_text().splitlines()[-1])["wire_error"]
    assert errors and all(0 < error < 0.02 for error in errors.values())


def test_resumed_bit_by_bit(folder: Path) -> None:
    """What compression lost is part of a checkpoint."""
    out = artifact(folder, EDGE + SUMS)
    whole, home = folder / "whole", folder / "parts"
    straight = train(out, checkpoint=whole)
    first = train(out, checkpoint=home, steps=5)
    rest = train(out, resume=home, steps=12)
    assert (*first.losses, *rest.losses) == straight.losses
    a, b = tensors(whole), tensors(home)
    assert a.keys() == b.keys() and any(name.startswith("wire/") for name in a)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_error_feedback_on_messages_is_refused(folder: Path) -> None:
    """Routed rows have another shape in each step: nothing could be added to the next."""
    plan = folder / "bad.plan"
    plan.write_text(PLAN + EDGE.replace("block = 64", "block = 64, error_feedback = true"))
    with pytest.raises(plancc.dsl.errors.PlanError, match="error feedback on messages"):
        plancc.compile(plan, MODEL, folder / "bad", model_args=ARGS)


def test_idle_shares_of_both_meshes_are_told(folder: Path) -> None:
    """With processes of their own: how much of a step attention and experts wait."""
    log = folder / "gloo.jsonl"
    found = train(artifact(folder, EDGE), log=log, steps=2, backend="gloo")
    assert found.losses[0] == pytest.approx(train(artifact(folder, EDGE), steps=1).losses[0], 1e-4)
    idle = json.loads(log.read_text().splitlines()[-1])["idle"]
    assert set(idle) == {"attn", "moe"} and all(0 < share < 1 for share in idle.values())
