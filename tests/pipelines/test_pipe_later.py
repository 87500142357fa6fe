"""Split backwards: I gives gradients of inputs, and the weights' products of linear layers wait for W."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lowered import Lowered
from pipe_cases import HEAD, plain, schedule, table, three, trained
from torch import Tensor

from plancc.ops.later import WeightGrad
from plancc.runtime.local import run_local
from plancc.runtime.pieces import cut
from plancc.runtime.training import step as steps
from plancc.verification import Verification
from plancc.verification import training as checks

LINEARS = 7  # of a dense layer


def texts(lowered: Lowered) -> str:
    """All emitted programs."""
    return "\n".join(p.read_text() for p in sorted(lowered.artifact.folder.glob("*.py")))


def gradients(lowered: Lowered) -> tuple[checks.Expected, list[tuple[str, Any, Tensor]]]:
    """What one device gives, and every piece of every rank."""
    work = Verification(lowered.compiled, lowered.artifact)
    unit = lowered.compiled.unit("train")
    graph = checks.training_graph(work)
    inputs = checks.training_inputs(work, unit, graph)
    found = run_local(lowered.artifact.world, lambda t: checks.train_on_rank(work, unit, inputs, t))
    return checks.expected_step(graph, work.params, inputs), [p for _, ps, _ in found for p in ps]


def sharded(dims: str) -> str:
    """Two data-parallel copies of a zero-bubble pipeline, with some of their state shared out."""
    text = three(2, 2, 1, schedule("zero_bubble", 2)).replace("(block = balanced)", "")
    head = f"{HEAD}model m {{ mode = train }}\n"
    return text.replace(HEAD, head).replace(
        "split batch over dp", f"split batch over dp; split {dims} over dp"
    )


def test_only_split_backwards_wait() -> None:
    """Programs of 1F1B call the plain operator, those of zero-bubble the late one."""
    assert "linear_later" not in texts(trained(plain(2, schedule("1F1B", 2))))
    found = texts(trained(plain(2, schedule("zero_bubble", 2))))
    assert found.count("ops.linear_later(") == 4 * LINEARS + 1
    assert "aten.linear" not in found and ", None, r.later)" in found
    assert "linear_later" not in texts(trained(plain(1, schedule("zero_bubble", 2))))


@pytest.mark.parametrize("model", ["dense", "llama_tied"])
def test_w_does_the_products(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what W runs, exactly the weights of linear layers have no gradient; biases have theirs."""
    lowered = trained(plain(2, schedule("zero_bubble", 3)), model=model)
    calls = []
    monkeypatch.setattr(WeightGrad, "__call__", lambda self: calls.append(self.weight.shape))
    expected, pieces = gradients(lowered)
    late = {n for n in expected.gradients if n.endswith(("proj.weight", "lm_head.weight"))}
    assert late and len(calls) == 3 * texts(lowered).count("ops.linear_later(")
    for name, ranges, tensor in pieces:
        want = cut(expected.gradients[name], ranges)
        if name in late and (model == "dense" or "lm_head" not in name):
            assert not tensor.any(), name
        elif "embed" not in name:
            assert torch.allclose(tensor, want, atol=1e-12), name
    assert (model == "dense") or any(n.endswith("proj.bias") for n, _, _ in pieces)


def test_each_w_does_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """W of one chunk and micro-batch runs the products of that chunk and micro-batch only."""
    rows = ("F0.0 F1.0 F0.1 F1.1 I0.1 I1.1 I0.0 W1.1 I1.0 W0.0 W0.1 W1.0",) * 2
    lowered = trained(plain(2, table(*rows, virtual=2)))
    seen: list[tuple[int, int]] = []
    inside: list[str] = []
    plain_call, plain_function = WeightGrad.__call__, steps.function

    def counted(self: WeightGrad) -> None:
        seen.append((id(self.weight), self.x.shape[0]))
        assert not inside, "a weight's product inside a function of the program"
        plain_call(self)

    def watched(module: Any, kind: str, chunk: int) -> Any:
        call = plain_function(module, kind, chunk)

        def run(*args: Any) -> Any:
            inside.append(kind)
            found = call(*args)
            inside.pop()
            return found

        return run

    monkeypatch.setattr(WeightGrad, "__call__", counted)
    held: dict[int, int] = {}

    class Watched(dict):
        """The `later` of a micro-batch: how many products each chunk has when W comes."""

        def setdefault(self, chunk: int, default: Any) -> Any:
            found = super().setdefault(chunk, default)
            held[chunk] = max(held.get(chunk, 0), len(found))
            return found

    plain_init = steps.MicroBatch.__init__

    def init(self: Any, *args: Any, **options: Any) -> None:
        plain_init(self, *args, **options)
        self.later = Watched()

    monkeypatch.setattr(steps.MicroBatch, "__init__", init)
    result = lowered.verify()
    assert result.ok, result
    assert held == {0: LINEARS, 1: LINEARS, 2: LINEARS, 3: LINEARS + 1}
    assert len(seen) == 2 * (4 * LINEARS + 1)


def test_gathered_weights_are_computed_at_once() -> None:
    """With ZeRO-3 a weight is gathered before its use: its gradient cannot wait on a leaf."""
    lowered = trained(sharded("params, grads, optim"))
    assert "linear_later" not in texts(lowered)
    assert lowered.verify().ok


def test_scattered_gradients_are_computed_at_once() -> None:
    """With ZeRO-2 a gradient is scattered after each micro-batch: it cannot come after that."""
    lowered = trained(sharded("grads, optim"))
    assert "linear_later" not in texts(lowered)
    assert lowered.verify().ok


def test_pieces_of_weights_wait() -> None:
    """Weights cut by tensor parallelism are leaves of their own: they wait."""
    lowered = trained(three(1, 2, 2, schedule("zero_bubble", 2)))
    assert texts(lowered).count("ops.linear_later(") == 4 * LINEARS + 1
    assert lowered.verify().ok


def test_gradients_that_wait_are_summed_at_the_end() -> None:
    """Buckets start in the backward of the last micro-batch, unless parts of them wait for W."""
    overlap = "comm grads over base.dp { overlap = async(bucket = 1MB) }\n"
    head = f"{HEAD}model m {{ mode = train }}\n"
    rows = ("F0 F1 F2 B2 I0 W0 B1", "F0 F1 F2 B2 B0 B1")
    for line, last in (
        (schedule("1F1B", 3), True), (schedule("zero_bubble", 3), False), (table(*rows), False),
        (table("F0 F1 F2 B2 B0 B1", rows[1]), True),
    ):  # fmt: skip
        lowered = trained(three(2, 2, 1, line).replace(HEAD, head) + overlap)
        assert ("r.last" in texts(lowered)) == last
        assert ("linear_later" in texts(lowered)) != last
        assert lowered.verify().ok
