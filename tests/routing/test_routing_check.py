"""A router that returns experts that do not exist, or weights that are no numbers, is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plancc.ops.routing import RoutingError, check_routing, start_check

NAN, INF = float("nan"), float("inf")


def test_a_sound_routing_passes() -> None:
    check_routing(torch.tensor([[0, 3], [3, 3]]), torch.tensor([[0.5, -0.5], [0.0, 1.0]]), 4)
    check_routing(torch.tensor([[0], [3]], dtype=torch.int32), torch.ones(2, 1).half(), 4)
    check_routing(torch.empty(0, 2, dtype=torch.int64), torch.empty(0, 2), 4)


@pytest.mark.parametrize(
    ("index", "weight", "text"),
    [
        ([[0, 4]], [[0.5, 0.5]], r"token 0 chose expert 4, experts are 0\.\.3$"),
        ([[0, 1], [2, -1]], [[0.5, 0.5]] * 2, r"token 1 chose expert -1, experts are 0\.\.3$"),
        ([[0, 1], [2, 3]], [[0.5, 0.5], [NAN, 1.0]], r"token 1 has weight nan for expert 2, not"),
        ([[0, 1], [2, 3]], [[0.5, INF], [NAN, 1.0]], r"token 0 has weight inf .*; 2 choices are"),
        ([[9, 9], [2, 3]], [[0.5, 0.5], [0.5, NAN]], r"token 0 chose expert 9.*; 3 choices are"),
    ],
)
def test_a_wrong_routing_is_named(index: list, weight: list, text: str) -> None:
    with pytest.raises(RoutingError, match=text):
        check_routing(torch.tensor(index), torch.tensor(weight), 4)


def test_shapes_and_kinds_that_do_not_fit() -> None:
    with pytest.raises(RoutingError, match=r"not \[2, 2\] and \[2, 1\]"):
        check_routing(torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 1), 4)
    with pytest.raises(RoutingError, match=r"index is torch\.float32"):
        check_routing(torch.zeros(2, 2), torch.zeros(2, 2), 4)
    with pytest.raises(RoutingError, match=r"weight torch\.int64"):
        check_routing(*torch.zeros(2, 2, 2, dtype=torch.int64), 4)


def test_a_started_check_raises_when_it_is_finished() -> None:
    check = start_check(torch.tensor([[7]]), torch.tensor([[1.0]]), 4)
    with pytest.raises(RoutingError, match="token 0 chose expert 7"):
        check.finish()


def test_weights_with_a_gradient_can_be_checked() -> None:
    check_routing(torch.tensor([[0]]), torch.tensor([[1.0]], requires_grad=True), 1)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_found_exactly_where_it_is_wrong(data: st.DataObject) -> None:
    t, k, experts = (data.draw(st.integers(1, most)) for most in (9, 4, 6))
    index = torch.randint(0, experts, (t, k), generator=torch.Generator().manual_seed(t * 8 + k))
    weight = torch.rand(t, k)
    check_routing(index, weight, experts)
    token, choice = data.draw(st.integers(0, t - 1)), data.draw(st.integers(0, k - 1))
    if data.draw(st.booleans()):
        index[token, choice] = data.draw(st.sampled_from([-1, -100, experts, 10**9]))
    else:
        weight[token, choice] = data.draw(st.sampled_from([NAN, INF, -INF]))
    with pytest.raises(RoutingError, match=f"^token {token} "):
        check_routing(index, weight, experts)
