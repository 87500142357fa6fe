"""The oracle: torch.distributed.pipelining on two gloo processes, against ours on two gloo processes."""

from __future__ import annotations

import time
from pathlib import Path

import pipe_entries
import pytest
import torch
import torch.nn.functional as F
from lowered import lower
from pipe_cases import beside, plain, schedule

from plancc.passes.capture import capture
from plancc.runtime.launch import launch
from plancc.runtime.processes import RankResult


def merged(found: list[RankResult]) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of the rank that has it, and the gradients of all."""
    (loss,) = [one.value for one in found if one.value is not None]
    return loss, {name: x for one in found for name, x in one.tensors.items()}


@pytest.mark.parametrize(("ours", "theirs", "virtual"), [
    ("GPipe", "ScheduleGPipe", 1), ("1F1B", "Schedule1F1B", 1),
    ("interleaved", "ScheduleInterleaved1F1B", 2),
    ("zero_bubble", "ScheduleInterleavedZeroBubble", 2),
])  # fmt: skip
def test_the_same_step(ours: str, theirs: str, virtual: int, tmp_path: Path) -> None:
    """Loss and every gradient of one step with four micro-batches."""
    text = plain(2, schedule(ours, 4, virtual))
    lowered = lower(text, capture(pipe_entries.model()), phases=("train",))
    begin = time.perf_counter()
    payload = {"folder": str(lowered.artifact.folder)}
    loss, gradients = merged(launch(2, "pipe_entries:ours", payload))
    middle = time.perf_counter()
    payload = {"schedule": theirs, "virtual": virtual, "batches": 4,
               "meeting": str(tmp_path / "meeting")}  # fmt: skip
    want, wanted = merged(launch(2, "pipe_entries:theirs", payload))
    print(f"{middle - begin:.1f} s, {time.perf_counter() - middle:.1f} s")
    assert abs(loss - want) <= 1e-12 * abs(want)
    assert set(gradients) == set(wanted) == {n for n, _ in pipe_entries.model().named_parameters()}
    for name, expected in wanted.items():
        assert torch.allclose(gradients[name], expected, rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize("name", ["1F1B", "zero_bubble"])
def test_attention_beside_in_processes(name: str) -> None:
    """Four processes, two of them beside the pipeline: no order of messages that blocks on gloo."""
    text = beside(schedule(name, 4, 1 if name == "1F1B" else 2)).replace(".self_attn", "")
    lowered = lower(text, capture(pipe_entries.model()), phases=("train",))
    payload = {"folder": str(lowered.artifact.folder)}
    loss, gradients = merged(launch(4, "pipe_entries:ours", payload))
    whole, given = pipe_entries.model(), pipe_entries.step_inputs()
    logits = whole(given["ids"]).flatten(0, 1)
    want = F.cross_entropy(logits, given["targets"].flatten(), reduction="mean")
    want.backward()
    assert abs(loss - want.item()) <= 1e-12 * want.item()
    for key, p in whole.named_parameters():
        assert p.grad is not None and torch.allclose(gradients[key], p.grad, atol=1e-12), key
