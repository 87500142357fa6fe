"""Predicted times follow the measured ones; shares of tokens follow speeds and lose no token."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plancc.balance import Estimate, expert_times, place_experts, predict, token_shares

RANDOM = settings(max_examples=200, deadline=None, derandomize=True)
NAN = math.nan


def test_the_first_measurement_is_the_prediction() -> None:
    assert predict([[[1.0, 3.0]]]) == [[pytest.approx(1.0), pytest.approx(3.0)]]


def test_later_steps_weigh_more() -> None:
    (row,) = predict([[[0.0]], [[3.0]]], decay=0.5)
    assert row == [pytest.approx(2.0)]
    assert predict([[[0.0]], [[3.0]]], decay=0.0) == [[3.0]]
    (row,) = predict([[[9.0]]] + [[[1.0]]] * 40, decay=0.8)
    assert row == [pytest.approx(1.0, abs=2e-3)]


@RANDOM
@given(
    values=st.lists(st.floats(0, 100), min_size=1, max_size=20),
    decay=st.sampled_from([0.0, 0.5, 0.8, 0.99]),
)
def test_a_prediction_is_a_mean_with_falling_weights(values: list[float], decay: float) -> None:
    weights = [decay ** (len(values) - 1 - at) for at in range(len(values))]
    want = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    ((got,),) = predict([[[value]] for value in values], decay)
    assert got == pytest.approx(want, abs=1e-9)
    assert min(values) - 1e-9 <= got <= max(values) + 1e-9


def test_experts_that_were_not_measured() -> None:
    assert predict([[[2.0, NAN, 4.0]]]) == [[2.0, pytest.approx(3.0), pytest.approx(4.0)]]
    assert predict([[[NAN, NAN]]]) == [[1.0, 1.0]]
    (row,) = predict([[[2.0, 6.0]], [[NAN, 6.0]]])
    assert row == [pytest.approx(2.0), pytest.approx(6.0)]


def test_the_state_goes_on_where_it_was() -> None:
    source = random.Random(0)
    first, second = Estimate(0.7), Estimate(0.7)
    for _ in range(3):
        first.update([[source.random() for _ in range(4)] for _ in range(2)])
    second.load(first.state())
    more = [[source.random() for _ in range(4)] for _ in range(2)]
    first.update(more)
    second.update(more)
    assert first.predict() == second.predict()
    assert first.state() == second.state()


def test_wrong_measurements_are_refused() -> None:
    estimate = Estimate()
    estimate.update([[1.0, 2.0]])
    for measured, text in (
        ([[1.0]], "other layers or experts"),
        ([[1.0, -2.0]], "expert 1 of layer 0 took -2"),
        ([[math.inf, 2.0]], "expert 0 of layer 0 took inf"),
    ):
        with pytest.raises(ValueError, match=text):
            estimate.update(measured)
    assert estimate.predict() == [[pytest.approx(1.0), pytest.approx(2.0)]]
    with pytest.raises(ValueError, match="a decay of 1"):
        predict([[[1.0]]], decay=1.0)
    with pytest.raises(ValueError, match="no measured times"):
        predict([])


def test_times_of_experts_are_tokens_times_seconds() -> None:
    assert expert_times([[2, 0]], [[0.5, 3.0]]) == [[1.0, 0.0]]


def test_predictions_drive_a_placement() -> None:
    history = [[[1.0] * 7 + [20.0]]] * 3
    placement = place_experts(predict(history), 12, ranks=4, policy="flat")
    assert placement.hosts(0, 7) == (0, 1, 2, 3)


@RANDOM
@given(
    times=st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=20),
    tokens=st.integers(0, 10_000),
)
def test_shares_are_exact_and_follow_the_speeds(times: list[float], tokens: int) -> None:
    shares = token_shares(times, tokens)
    assert sum(shares) == tokens and min(shares) >= 0
    whole = sum(1 / Fraction(time) for time in times)
    for time, share in zip(times, shares, strict=True):
        assert abs(share - tokens / Fraction(time) / whole) < 1
    for a, b in zip(range(len(times)), range(1, len(times)), strict=False):
        assert times[a] >= times[b] or shares[a] >= shares[b]


def test_shares() -> None:
    assert token_shares([1.0] * 3, 10) == (4, 3, 3)
    assert token_shares([1.0, 2.0], 9) == (6, 3)
    assert token_shares([2.0, 1.0, 1.0], 100) == (20, 40, 40)
    assert token_shares([4.0, 2.0, 1.0], 3) == (0, 1, 2)
    assert token_shares([0.1], 7) == (7,)
    assert token_shares([1.0, 1.0], 0) == (0, 0)


@pytest.mark.parametrize("time", [0.0, -1.0, NAN, math.inf])
def test_times_that_are_none_are_refused(time: float) -> None:
    with pytest.raises(ValueError, match="rank 1 takes"):
        token_shares([1.0, time], 5)


def test_shares_of_nobody_are_refused() -> None:
    for times, tokens in (([], 5), ([1.0], -1)):
        with pytest.raises(ValueError, match="tokens for"):
            token_shares(times, tokens)
