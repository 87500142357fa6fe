"""Error feedback: what one step loses comes with the next, so that means converge."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plancc.ops.wire import ErrorFeedback, WireType, wire_type

RANDOM = settings(max_examples=60, deadline=None, derandomize=True)


def feedback_of(name: str = "int8", block: int = 16, on: bool = True) -> ErrorFeedback:
    return ErrorFeedback(wire_type(name, {"block": block, "error_feedback": on}))


def sent(feedback: ErrorFeedback, key: str, x: torch.Tensor) -> torch.Tensor:
    return feedback.wire.unpack(feedback.compress(key, x), x.shape, torch.float64)


@RANDOM
@given(
    seed=st.integers(0, 10_000),
    name=st.sampled_from(["int8", "fp8", "fp8_e5m2"]),
    steps=st.integers(1, 40),
    same=st.booleans(),
)
def test_what_was_sent_and_what_is_kept_is_all_there_was(
    seed: int, name: str, steps: int, same: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(5, 7, generator=generator)
    feedback, given_sum, sent_sum = feedback_of(name), 0.0, 0.0
    for _ in range(steps):
        x = first if same else torch.randn(5, 7, generator=generator)
        given_sum, sent_sum = given_sum + x.double(), sent_sum + sent(feedback, "w", x)
    kept = feedback.residuals["w"].double()
    assert torch.allclose(given_sum, sent_sum + kept, atol=1e-5 * steps)
    coarse = {"int8": 1 / 254, "fp8": 1 / 16, "fp8_e5m2": 1 / 8}[name] * 4.5  # a part of the peak
    assert kept.abs().max() <= coarse * 1.5  # does not grow with the steps


def test_means_converge_with_feedback_and_not_without() -> None:
    x = torch.randn(64, generator=torch.Generator().manual_seed(3))
    errors = {}
    for on in (True, False):
        for steps in (10, 1000):
            feedback = feedback_of(block=64, on=on)
            mean = sum(sent(feedback, "w", x) for _ in range(steps)) / steps
            errors[on, steps] = (mean - x.double()).abs().max().item()
    assert errors[True, 1000] < errors[True, 10] / 50
    assert errors[False, 1000] == pytest.approx(errors[False, 10])
    assert errors[True, 1000] < errors[False, 1000] / 100


def test_small_gradients_beside_a_large_one_arrive_in_the_end() -> None:
    x = torch.full((16,), 0.001)
    x[0] = 1.0
    feedback, plain = feedback_of(), feedback_of(on=False)
    total = sum(sent(feedback, "w", x) for _ in range(100))
    assert not sent(plain, "w", x)[1:].any()
    assert torch.allclose(total / 100, x.double(), atol=1e-4)


def test_without_feedback_nothing_is_kept_but_errors() -> None:
    feedback = feedback_of(on=False)
    feedback.compress("w", torch.randn(8))
    assert not feedback.residuals and feedback.mean_error("w") > 0


def test_each_key_is_its_own() -> None:
    feedback, alone = feedback_of(), feedback_of()
    x, y = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        both = sent(feedback, "x", x), sent(feedback, "y", y)
        assert torch.equal(both[0], sent(alone, "x", x))
    assert list(feedback.mean_errors()) == ["x", "y"]
    with pytest.raises(ValueError, match=r"x had the shape \[32\], now \[16\]"):
        feedback.compress("x", x[:16])


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_step_that_overflows_does_not_poison_the_next(wrong: float) -> None:
    x = torch.randn(40, generator=torch.Generator().manual_seed(0))
    feedback = feedback_of(block=16)
    feedback.compress("w", x)
    before, error = feedback.residuals["w"].clone(), feedback.mean_error("w")
    bad = x.clone()
    bad[20] = wrong
    assert torch.isnan(sent(feedback, "w", bad)).sum() == 16
    after = feedback.residuals["w"]
    assert torch.equal(after[16:32], before[16:32]) and torch.isfinite(after).all()
    assert feedback.mean_error("w") == error
    assert torch.isfinite(sent(feedback, "w", x)).all()


def test_the_mean_error_is_the_mean() -> None:
    feedback = feedback_of(on=False, block=4)
    exact = torch.tensor([127.0, 1.0, 0.0, 0.0])
    half = torch.tensor([127.0, 0.5, 0.0, 0.0])  # 0.5 is rounded to 0
    feedback.compress("w", exact)
    assert feedback.mean_error("w") == 0
    feedback.compress("w", half)
    assert feedback.mean_error("w") == pytest.approx(0.5 / half.norm().item() / 2)


def test_the_state_is_plain_tensors_and_goes_on_where_it_was() -> None:
    generator = torch.Generator().manual_seed(0)
    first = feedback_of()
    for _ in range(3):
        first.compress("a.b", torch.randn(30, generator=generator))
    state = {name: value.clone() for name, value in first.state().items()}
    assert sorted(state) == ["error/a.b", "residual/a.b"]
    assert all(type(value) is torch.Tensor for value in state.values())
    second = feedback_of()
    second.compress("old", torch.ones(3))
    second.load(state)
    for value in state.values():
        value.zero_()
    x = torch.randn(30, generator=generator)
    assert all(map(torch.equal, first.compress("a.b", x), second.compress("a.b", x)))
    assert first.mean_errors() == second.mean_errors()
    with pytest.raises(ValueError, match="`momentum/w` is no state"):
        second.load({"momentum/w": torch.zeros(1)})


def test_nothing_is_compressed_too() -> None:
    feedback = feedback_of()
    assert [len(part) for part in feedback.compress("w", torch.zeros(0, 4))] == [0, 0]
    assert feedback.mean_error("w") == 0


def test_feedback_of_a_plain_type_measures_the_rounding() -> None:
    feedback = ErrorFeedback(WireType("bf16", torch.bfloat16))
    feedback.compress("w", torch.randn(100))
    assert 0 < feedback.mean_error("w") < 2**-8
