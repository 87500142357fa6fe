"""In-place operators: the captured graph gives what eager Python gives, or refuses by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from plancc.ir.interpret import run_graph
from plancc.models import ModelError
from plancc.passes.capture import capture
from plancc.passes.capture.functionalize import written_argument


class Probe(nn.Module):
    """Embeds token ids and runs a body on the result."""

    def __init__(self, body: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.register_buffer("table", torch.zeros(8))
        self.body = body

    def forward(self, ids: Tensor) -> Tensor:
        return self.body(self.embed(ids))


def add_to_view(x: Tensor) -> Tensor:
    y = x * 2
    y[:, 1:].add_(1.0)
    return y


def view_made_before(x: Tensor) -> Tensor:
    y = x * 2
    left, right = y.chunk(2, dim=-1)
    y.mul_(3.0)
    left.add_(right)
    return torch.cat((y, left), -1)


def transposed_write(x: Tensor) -> Tensor:
    y = x.clone()
    y.transpose(1, 2)[:, 0].zero_()
    return y


def filled_slices(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    y[..., :3] = x[..., 5:]
    y[..., 3:] = x[..., :5] * 2
    return y


def interleaved(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[..., 0] = x[..., 1]
    y[..., 1] = 7.0
    return y


def masked(x: Tensor) -> Tensor:
    y = x + 1
    y.masked_fill_(x > 0, -1.0)
    y[y < 0] = 5.0
    return y


def reshaped_write(x: Tensor) -> Tensor:
    y = x + 0.5
    y.view(-1, 2, 4)[:, 1] *= 3
    return y


def scattered(x: Tensor) -> Tensor:
    y = torch.zeros(x.shape[0], x.shape[1], 8)
    index = x.topk(2, dim=-1).indices
    return y.scatter_(-1, index, 1.0) + x


def half_steps(x: Tensor) -> Tensor:
    y = x + 1
    y[..., ::2] = x[..., 1::2]
    return y


def copied_through_alias(x: Tensor) -> Tensor:
    y = x + 1
    z = y.unsqueeze(1)
    z.copy_(x.unsqueeze(1))
    y.neg_()
    return z.squeeze(1) + y


def mixed_dtypes(x: Tensor) -> Tensor:
    y = (x * 10).to(torch.int64)
    y.add_(1)
    z = x + 1
    z.mul_(y)
    return z


BODIES = [
    add_to_view,
    view_made_before,
    transposed_write,
    filled_slices,
    interleaved,
    masked,
    reshaped_write,
    scattered,
    half_steps,
    copied_through_alias,
    mixed_dtypes,
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_equals_eager(body: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = Probe(body)
    graph = capture(model)
    assert not [node for node in graph.nodes if written_argument(node.target)]
    for batch, seq in ((2, 5), (3, 9)):
        ids = torch.randint(0, 20, (batch, seq))
        with torch.no_grad():
            want = model(ids)
        got = next(iter(run_graph(graph, model.state_dict(), {"ids": ids}).values()))
        torch.testing.assert_close(got, want)


def test_slices_become_a_concatenation() -> None:
    graph = capture(Probe(filled_slices))
    targets = [node.target for node in graph.nodes]
    assert "aten.cat.default" in targets
    assert not any("scatter" in target or "empty" in target for target in targets)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (lambda x: x.expand(3, *x.shape).add_(1), "add_"),
        (lambda x: x.bernoulli_(0.5), "bernoulli_"),
    ],
)
def test_refused_by_name(body: Callable[[Tensor], Tensor], named: str) -> None:
    with pytest.raises(ModelError) as refused:
        capture(Probe(body))
    assert named in str(refused.value)


class Counter(Probe):
    """Counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__(lambda x: x)

    def forward(self, ids: Tensor) -> Tensor:
        self.table.add_(1)
        return self.embed(ids) + self.table


def test_write_to_a_buffer_is_refused() -> None:
    with pytest.raises(ModelError) as refused:
        capture(Counter())
    assert "`table`" in str(refused.value)
    assert "test_functionalize.py:" in str(refused.value)
