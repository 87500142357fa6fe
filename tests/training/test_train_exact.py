"""Sums over micro-batches: in float32 for narrow weights, rounded once."""

from __future__ import annotations

import pytest
import torch
from tiny_runs import artifact

from plancc.ir.mesh import Grid
from plancc.runtime.artifact import load_artifact
from plancc.runtime.local import run_local
from plancc.runtime.training.exact import ExactRecorder, ExactRunner
from plancc.runtime.training.state import first_weights
from plancc.runtime.training.step import TrainRunner


def recorder() -> ExactRecorder:
    return ExactRecorder(0, {"m": Grid("m", (("x", 1),), (0,))}, "m")


def test_many_small_gradients_are_not_lost() -> None:
    """1 + 512 * 2^-9 is 2; bf16 sums would stay at 1."""
    view, weight = recorder(), torch.zeros(3, dtype=torch.bfloat16, requires_grad=True)
    view.follow(weight)
    for factor in (1.0, *[2.0**-9] * 512):
        view.backward([(weight * factor).sum()], [torch.ones((), dtype=torch.bfloat16)], [])
    found = view.gradient(weight)
    assert found.dtype is torch.bfloat16 and found.tolist() == [2.0] * 3
    assert view.gradient(weight).tolist() == [0.0] * 3
    view.accumulate_slice("w", torch.ones(2, dtype=torch.bfloat16))
    for _ in range(512):
        view.accumulate_slice("w", torch.full((2,), 2.0**-9, dtype=torch.bfloat16))
    kept = view.gradient_slice("w")
    assert kept.dtype is torch.bfloat16 and kept.tolist() == [2.0, 2.0]


@pytest.mark.parametrize("name", ["alone", "pp3"])
def test_wide_weights_are_left_alone(name: str) -> None:
    """float32 programs give the same gradients with either runner, bit by bit."""
    found = load_artifact(artifact(name))
    ids = torch.arange(8 * 16).reshape(8, 16) % 257
    inputs = {"input_ids": ids, "targets": ids.roll(1), "scale": torch.tensor(1.0 / ids.numel())}
    both = [
        run_local(
            found.world,
            lambda t, kind=kind: dict(
                kind(found, t, first_weights(found, 0)).step(inputs).gradients
            ),
        )
        for kind in (TrainRunner, ExactRunner)
    ]
    for plain, exact in zip(*both, strict=True):
        assert plain.keys() == exact.keys()
        assert all(torch.equal(plain[key], exact[key]) for key in plain)
