"""Cross entropy whole and over shards, and linear layers whose weights' gradients come later."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from plancc import ops
from plancc.ops import loss

V = 11


def data(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    logits = (torch.randn(2, 5, V, dtype=torch.float64) * 4).to(dtype)
    targets = torch.randint(0, V, (2, 5))
    targets[0, 2] = targets[1, 0] = -100
    return logits, targets


def torch_nll(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(2, 5)


@pytest.mark.parametrize("chunk", [1 << 22, 30])
def test_cross_entropy_is_that_of_torch(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loss._CHUNK, "cpu", chunk)
    logits, targets = data()
    logits.requires_grad_()
    nll = ops.cross_entropy(logits, targets)
    want = torch_nll(logits, targets)
    torch.testing.assert_close(nll, want, rtol=0, atol=1e-13)
    weight = torch.randn(2, 5, dtype=torch.float64)
    one, two = (torch.autograd.grad(x, logits, weight, retain_graph=True)[0] for x in (nll, want))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-13)
    assert not one[0, 2].any()
    assert torch.autograd.gradcheck(lambda x: ops.cross_entropy(x, targets), (logits,))


@pytest.mark.parametrize("cuts", [[0, V], [0, 4, V], [0, 4, 4, V], [0, 0, 3, 7, V, V]])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_shards_join(cuts: list[int], dtype: torch.dtype) -> None:
    logits, targets = data(dtype)
    parts = [logits[..., a:b].clone().requires_grad_() for a, b in itertools.pairwise(cuts)]
    pairs = [ops.cross_entropy_shard(x, targets, a) for x, a in zip(parts, cuts, strict=False)]
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    assert all(pair.dtype == exact and pair.shape == (2, 5, 2) for pair in pairs)
    nll = ops.join_cross_entropy(pairs, targets)
    whole = logits.double().requires_grad_()
    want = torch_nll(whole, targets)
    bound = 1e-12 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(nll.double(), want, rtol=bound, atol=bound)
    nll.sum().backward()
    want.sum().backward()
    got = torch.cat([part.grad for part in parts], -1)
    assert got.dtype == dtype and torch.isfinite(got).all()
    torch.testing.assert_close(
        got.double(), whole.grad, rtol=1e-2 if dtype == torch.bfloat16 else bound, atol=bound
    )


def test_logits_of_minus_infinity_and_no_rows() -> None:
    logits = torch.full((2, 3), -torch.inf, requires_grad=True)
    pair = ops.cross_entropy_shard(logits, torch.tensor([7, 8]), 0)
    pair[:, 1].sum().backward()
    assert torch.isfinite(logits.grad).all()
    none = torch.zeros(0, V, requires_grad=True)
    ops.cross_entropy(none, torch.zeros(0, dtype=torch.long)).sum().backward()
    assert none.grad.shape == (0, V)


@pytest.mark.parametrize("wrong", [V, -1])
def test_a_target_outside_the_vocabulary_is_refused(wrong: int) -> None:
    logits, targets = data()
    targets[1, 1] = wrong
    with pytest.raises(IndexError, match=f"0..{V}"):
        ops.cross_entropy(logits, targets)


def test_operators_are_resolved() -> None:
    for name in ("cross_entropy", "cross_entropy_shard", "attention_over_keys_backward"):
        assert ops.resolve(f"plancc.{name}.default") is getattr(ops, name)


@pytest.mark.parametrize("shape", [(6, 4), (2, 3, 4), (0, 4), (4,)])
@pytest.mark.parametrize("biased", [False, True])
def test_input_then_weight_equals_plain_backward(shape: tuple[int, ...], biased: bool) -> None:
    torch.manual_seed(1)
    runs = []
    for late in (False, True):
        torch.manual_seed(1)
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
        bias = torch.randn(5, dtype=torch.float64, requires_grad=True) if biased else None
        later: list = []
        held = None
        for step in range(2):
            out = (
                ops.linear_later(x * 2, weight, bias, later)
                if late
                else F.linear(x * 2, weight, bias)
            )
            out.square().sum().backward()
            if late:
                assert len(later) == 1 and (weight.grad is None) == (step == 0)
                later.pop()()
                held = held if held is not None else weight.grad
                assert weight.grad is held
        runs.append([x.grad, weight.grad, *([bias.grad] if biased else [])])
    for one, two in zip(*runs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_late_weights_are_leaves_and_may_be_frozen() -> None:
    x, weight = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4)
    later: list = []
    ops.linear_later(x, weight, None, later).sum().backward()
    assert not later and x.grad is not None
    with pytest.raises(ValueError, match="leaf"):
        ops.linear_later(x, weight.requires_grad_() * 2, None, later)
