"""Experts written as products over all of them are recognised where no value changes, else left alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from lowered import explain_failure, lower
from moe_cases import ratio
from torch import Tensor, nn

from plancc.dsl import PlanError
from plancc.ir.graph import Graph
from plancc.ir.interpret import run_graph
from plancc.passes.capture import capture
from plancc.verification.reference import in_dtype

HIDDEN, FFN, EXPERTS, TOP = 12, 5, 6, 2
Mix = Callable[["Mixture", Tensor], Tensor]


class Experts(nn.Module):
    """The matrices of all experts."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(EXPERTS, wide, HIDDEN))
        self.down = nn.Parameter(torch.randn(EXPERTS, HIDDEN, FFN))


class Mixture(nn.Module):
    """A mixture whose way of mixing is given."""

    def __init__(self, mix: Mix, wide: int = 2 * FFN) -> None:
        super().__init__()
        self.router = nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.experts = Experts(wide)
        self.mix = mix

    def share(self, x: Tensor) -> Tensor:
        """The weight of each expert [batch, seq, experts], zero for those not chosen."""
        logits = self.router(x)
        scores, chosen = logits.topk(TOP, dim=-1)
        return torch.zeros_like(logits).scatter(-1, chosen, scores.softmax(-1))

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self, x)


class Block(nn.Module):
    """One layer: nothing but the mixture."""

    def __init__(self, moe: Mixture) -> None:
        super().__init__()
        self.moe = moe

    def forward(self, x: Tensor) -> Tensor:
        return x + self.moe(x)


class Model(nn.Module):
    """Ids to logits through one mixture."""

    def __init__(self, mix: Mix, wide: int = 2 * FFN) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(30, HIDDEN)
        self.layers = nn.ModuleList([Block(Mixture(mix, wide))])
        self.lm_head = nn.Linear(HIDDEN, 30, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(x)


def gated(act: Callable[[Tensor], Tensor], *, swapped: bool = False, split: bool = False) -> Mix:
    """Experts with a gate, in one of several spellings."""

    def mix(m: Mixture, x: Tensor) -> Tensor:
        both = torch.einsum("bth,eih->btei", x, m.experts.up)
        gate, up = both.split(FFN, dim=-1) if split else both.chunk(2, dim=-1)
        inner = up * act(gate) if swapped else act(gate) * up
        share = m.share(x).unsqueeze(-1)
        return torch.einsum("btei,ehi->bth", share * inner if swapped else inner * share,
                            m.experts.down)  # fmt: skip

    return mix


def plain(act: Callable[[Tensor], Tensor]) -> Mix:
    """Experts without a gate."""

    def mix(m: Mixture, x: Tensor) -> Tensor:
        inner = act(torch.einsum("bth,eih->btei", x, m.experts.up))
        return torch.einsum("btei,ehi->bth", inner * m.share(x).unsqueeze(-1), m.experts.down)

    return mix


def reversed_halves(m: Mixture, x: Tensor) -> Tensor:
    """The second half is the gate."""
    up, gate = torch.einsum("bth,eih->btei", x, m.experts.up).chunk(2, dim=-1)
    inner = F.silu(gate) * up * m.share(x).unsqueeze(-1)
    return torch.einsum("btei,ehi->bth", inner, m.experts.down)


def weighted_twice(m: Mixture, x: Tensor) -> Tensor:
    """The weights are squared after they were scattered."""
    gate, up = torch.einsum("bth,eih->btei", x, m.experts.up).chunk(2, dim=-1)
    inner = F.silu(gate) * up * (m.share(x) ** 2).unsqueeze(-1)
    return torch.einsum("btei,ehi->bth", inner, m.experts.down)


def onto_ones(m: Mixture, x: Tensor) -> Tensor:
    """Experts that are not chosen count too: they have the weight one."""
    logits = m.router(x)
    scores, chosen = logits.topk(TOP, dim=-1)
    share = torch.ones_like(logits).scatter(-1, chosen, scores.softmax(-1))
    gate, up = torch.einsum("bth,eih->btei", x, m.experts.up).chunk(2, dim=-1)
    return torch.einsum("btei,ehi->bth", F.silu(gate) * up * share.unsqueeze(-1), m.experts.down)


def along_tokens(m: Mixture, x: Tensor) -> Tensor:
    """Scattered along the positions, not the experts."""
    logits = m.router(x)
    scores, chosen = logits.topk(1, dim=1)
    share = torch.zeros_like(logits).scatter(1, chosen, scores.sigmoid())
    gate, up = torch.einsum("bth,eih->btei", x, m.experts.up).chunk(2, dim=-1)
    return torch.einsum("btei,ehi->bth", F.silu(gate) * up * share.unsqueeze(-1), m.experts.down)


def chosen_twice(m: Mixture, x: Tensor) -> Tensor:
    """Both choices may be one expert: the later weight replaces the earlier one."""
    logits = m.router(x)
    scores, first = logits.max(-1)
    chosen = torch.stack([first, first * 0], -1)
    weight = torch.stack([scores, scores * 2], -1)
    share = torch.zeros_like(logits).scatter(-1, chosen, weight)
    gate, up = torch.einsum("bth,eih->btei", x, m.experts.up).chunk(2, dim=-1)
    return torch.einsum("btei,ehi->bth", F.silu(gate) * up * share.unsqueeze(-1), m.experts.down)


def one_choice(m: Mixture, x: Tensor) -> Tensor:
    """A single choice, by the position of the largest score."""
    logits = m.router(x)
    scores, chosen = logits.max(-1, keepdim=True)
    share = torch.zeros_like(logits).scatter(-1, chosen, scores)
    gate, up = torch.einsum("bth,eih->btei", x, m.experts.up).chunk(2, dim=-1)
    return torch.einsum("btei,ehi->bth", F.silu(gate) * up * share.unsqueeze(-1), m.experts.down)


def other_act_of_up(m: Mixture, x: Tensor) -> Tensor:
    """Both halves pass through the activation."""
    gate, up = torch.einsum("bth,eih->btei", x, m.experts.up).chunk(2, dim=-1)
    inner = F.silu(gate) * F.silu(up) * m.share(x).unsqueeze(-1)
    return torch.einsum("btei,ehi->bth", inner, m.experts.down)


def other_token(m: Mixture, x: Tensor) -> Tensor:
    """The choices are those of another tensor than what the experts see: still the same sum."""
    gate, up = torch.einsum("bth,eih->btei", x * 2, m.experts.up).chunk(2, dim=-1)
    inner = F.silu(gate) * up * m.share(x).unsqueeze(-1)
    return torch.einsum("btei,ehi->bth", inner, m.experts.down)


RECOGNISED: dict[str, tuple[Mix, int]] = {
    "silu": (gated(F.silu), 2), "relu": (gated(torch.relu), 2), "tanh": (gated(torch.tanh), 2),
    "sigmoid": (gated(torch.sigmoid), 2), "swapped": (gated(F.silu, swapped=True), 2),
    "split": (gated(F.silu, split=True), 2), "plain relu": (plain(torch.relu), 1),
    "plain silu": (plain(F.silu), 1), "plain tanh": (plain(torch.tanh), 1),
    "other token": (other_token, 2),
}  # fmt: skip
LEFT: dict[str, tuple[Mix, int]] = {
    "gelu": (gated(F.gelu), 2), "reversed halves": (reversed_halves, 2),
    "weighted twice": (weighted_twice, 2), "onto ones": (onto_ones, 2),
    "chosen twice": (chosen_twice, 2), "along tokens": (along_tokens, 2), "act of both": (other_act_of_up, 2),
}  # fmt: skip


@pytest.mark.parametrize("case", RECOGNISED)
def test_recognised(case: str) -> None:
    """The captured graph has the experts as one operator, the model's values, and is routed."""
    mix, halves = RECOGNISED[case]
    graph = same_values(mix, halves)
    assert sum(n.target == "plancc.experts.default" for n in graph.nodes) == 1
    result = lower(text(), graph).verify()
    assert result.ok, explain_failure(result)


@pytest.mark.parametrize("case", LEFT)
def test_left_alone(case: str) -> None:
    """Anything else stays as it is written; a route for it is refused."""
    mix, halves = LEFT[case]
    graph = same_values(mix, halves)
    assert all(n.target != "plancc.experts.default" for n in graph.nodes)
    with pytest.raises(PlanError, match="no experts to route to"):
        lower(text(), graph)


def same_values(mix: Mix, halves: int) -> Graph:
    """The captured graph, which gives what the model gives."""
    torch.manual_seed(0)
    model = Model(mix, halves * FFN)
    graph = capture(model)
    ids = torch.randint(30, (2, 5), generator=torch.Generator().manual_seed(2))
    exact = model.double()
    params = dict(exact.named_parameters())
    with torch.no_grad():
        want = exact(ids)
        found = run_graph(in_dtype(graph, torch.float64), params, {graph.inputs[0].name: ids})
    assert torch.allclose(next(iter(found.values())), want, rtol=1e-10, atol=1e-12)
    return graph


def test_one_choice_by_another_operator() -> None:
    """A single choice cannot be made twice."""
    graph = same_values(one_choice, 2)
    assert sum(n.target == "plancc.experts.default" for n in graph.nodes) == 1
    plan = text().replace("top(2)", "top(1)")
    assert lower(plan, graph).verify().ok


def text() -> str:
    """A plan that routes the tokens of the mixture, whose products stand in the mixture itself."""
    return ratio(2, 3).text.replace("layers.*.moe.experts", "layers.*.moe")
