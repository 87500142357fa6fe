"""Routed experts in real processes: gloo ranks of one host give the tokens and losses of one device."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from pydoc_data import topics
from typing import Any

import pytest
import torch
from lowered import EXAMPLES, Lowered, lower, plan_file, prompt
from moe_cases import MA, ONE_MESH, ratio
from moe_plans import Plan, graph_of, overlap
from test_moe_extremes import PLANS, broken

import plancc
from plancc.runtime.deploy import Deployment
from plancc.runtime.failure import RankFailure
from plancc.runtime.launch import launch

SLOW = pytest.mark.slow
MODEL = str(EXAMPLES / "models.py") + ":moe"
SIZES = {
    "layers": "2", "hidden": "32", "heads": "4", "kv_heads": "2", "experts": "16", "ffn": "8",
    "vocab": "260", "max_len": "64",
}  # fmt: skip
ALONE = "plan alone, edition 1\nmesh base[x = 1] on local\nplace ** on base\n"


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Any:
    """Processes take the number of threads from the environment."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    yield
    if before is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = before


def by_processes(lowered: Lowered, ids: torch.Tensor, new: int) -> list[dict]:
    """What each process generates, and the bytes that it moved."""
    payload = {"folder": str(lowered.artifact.folder), "ids": ids.tolist(), "new_tokens": new}
    return launch(
        lowered.artifact.world, "plancc.runtime.deploy:run_rank", payload,
        describe=lowered.artifact.describe,
    )  # fmt: skip


GENERATE = {
    "12 + 4": replace(MA, tail=overlap()), "4 + 2": ratio(4, 2, tail=overlap(3)),
    "one mesh": ONE_MESH, "some shared": ratio(4, 4, first=2),
}  # fmt: skip


@pytest.mark.parametrize("case", GENERATE)
def test_processes_generate_the_tokens_of_one_device(case: str) -> None:
    """All processes the same tokens, those of one device on the same weights."""
    lowered = lower(GENERATE[case].text, graph_of("moe"))
    ids = prompt(lowered.compiled.graph, 3, 4)
    alone = Deployment(lower(ALONE, graph_of("moe")).artifact).generate(ids, 6)
    found = by_processes(lowered, ids, 6)
    assert len(found) == lowered.artifact.world
    assert all(one["tokens"] == alone.tokens.tolist() for one in found)
    assert all(sum(one["bytes"].values()) > 0 for one in found)


@cache
def artifact(plan: str) -> Path:
    """One of the plans below, compiled for training."""
    text = ALONE if plan == "alone" else TRAIN[plan].text
    path = plan_file(text)
    folder = path.parent / "artifact"
    plancc.compile(path, MODEL, folder, model_args=SIZES, for_="train", verify=False)
    return folder


TRAIN: dict[str, Plan] = {
    "4 + 2": ratio(4, 2, tail=overlap()), "one mesh": ONE_MESH,
    "12 + 4": replace(MA, tail=overlap()),
}  # fmt: skip


def losses(plan: str, steps: int, **wanted: Any) -> tuple[float, ...]:
    """The losses of some steps of 8 x 32 tokens, clipped, in float64."""
    usual = {"batch": 8, "seq_len": 32, "lr": 3e-3, "precision": "fp64", "clip": 1.0}
    return plancc.train(artifact(plan), data=topics.__file__, steps=steps, **usual, **wanted).losses


@pytest.mark.parametrize(
    "plan", ["4 + 2", *(pytest.param(name, marks=SLOW) for name in ("one mesh", "12 + 4"))]
)
def test_processes_train_as_threads_and_one_device(plan: str) -> None:
    """The losses of threads and of one device, but for the order of sums."""
    found = losses(plan, 3, backend="gloo")
    assert len(found) == 3
    assert found == pytest.approx(losses(plan, 3), rel=1e-12)
    assert found == pytest.approx(losses("alone", 3), rel=1e-9)


def test_a_broken_router_in_processes() -> None:
    """The rank, the instruction and the plan's line, as with threads; nobody hangs."""
    lowered = lower(PLANS["3+2"].text, broken())
    with pytest.raises(RankFailure, match=r"experts are 0\.\.15") as caught:
        by_processes(lowered, prompt(broken(), 3, 5), 2)
    assert "comm.route(" in str(caught.value) and "inline.plan:" in str(caught.value)
