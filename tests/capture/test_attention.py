"""Attention written by hand in many ways becomes plancc.attention; its masks become options."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plancc.ir.graph import Graph, Node
from plancc.ir.interpret import run_graph
from plancc.passes.capture import capture

HEADS, KV_HEADS, WIDTH = 6, 3, 4
Attend = Callable[["Model", Tensor, Tensor, Tensor], Tensor]


class Model(nn.Module):
    """Projects embedded tokens to q, k, v and attends as `attend` says."""

    def __init__(self, attend: Attend, kv_heads: int = HEADS) -> None:
        super().__init__()
        hidden = HEADS * WIDTH
        self.embed = nn.Embedding(30, hidden)
        self.q, self.k, self.v = (
            nn.Linear(hidden, count * WIDTH) for count in (HEADS, kv_heads, kv_heads)
        )
        self.drop = nn.Dropout(0.3)
        full = torch.ones(40, 40, dtype=torch.bool).tril()
        self.register_buffer("tril", full.view(1, 1, 40, 40))
        self.register_buffer("local", (full & ~full.tril(-7)).view(1, 1, 40, 40))
        self.register_buffer(
            "chunks", (full & (torch.arange(40) // 8 == torch.arange(40)[:, None] // 8))[None, None]
        )
        self.attend = attend

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, WIDTH)).transpose(1, 2)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        out = self.attend(self, *(self.heads(f(x)) for f in (self.q, self.k, self.v)))
        return out.transpose(1, 2).reshape(x.shape)


def nano(model: Model, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    seq = q.shape[2]
    scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
    scores = scores.masked_fill(model.tril[:, :, :seq, :seq] == 0, float("-inf"))
    return model.drop(F.softmax(scores, dim=-1)) @ v


def triu_added(model: Model, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    seq = q.shape[2]
    mask = torch.triu(torch.full((seq, seq), float("-inf")), diagonal=1)
    scores = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(WIDTH) + mask
    return torch.matmul(F.softmax(scores.float(), dim=-1).type_as(q), v)


def scaled_query(model: Model, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    seq = q.shape[2]
    place = torch.arange(seq)
    scores = torch.where(place[:, None] >= place, (q * 0.5) @ k.mT, torch.tensor(-1e9))
    return scores.softmax(-1) @ v


def flattened(model: Model, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, heads, seq, _ = q.shape
    q, k, v = (x.reshape(batch * heads, seq, WIDTH) for x in (q, k, v))
    mask = torch.full((seq, seq), float("-inf")).triu(1).expand(batch * heads, seq, seq)
    weights = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=0.5).softmax(-1)
    return torch.bmm(weights, v).view(batch, heads, seq, WIDTH)


def local_window(model: Model, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    seq = q.shape[2]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=model.local[:, :, :seq, :seq])


def computed_window(model: Model, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    place = torch.arange(q.shape[2])
    ahead = place - place[:, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=(ahead <= 0) & (ahead > -9))


def soft_capped(model: Model, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    seq = q.shape[2]
    scores = torch.tanh(q @ k.mT * 0.5 / 2.0) * 2.0
    scores = scores.masked_fill(~model.tril[:, :, :seq, :seq], torch.finfo(q.dtype).min)
    return scores.softmax(-1) @ v


def plain_causal(model: Model, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)


def both_ways(model: Model, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def alibi(model: Model, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    place = torch.arange(q.shape[2])
    slopes = 2.0 ** -torch.arange(1, HEADS + 1)
    bias = slopes[:, None, None] * (place - place[:, None])
    scores = q @ k.mT * 0.5 + bias
    return scores.masked_fill(place > place[:, None], float("-inf")).softmax(-1) @ v


def chunked(model: Model, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    seq = q.shape[2]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=model.chunks[..., :seq, :seq])


def upper_left(model: Model, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.pad(F.scaled_dot_product_attention(q[:, :, 1:], k, v, is_causal=True), (0, 0, 1, 0))


CASES: list[tuple[Attend, dict[str, object], bool]] = [
    (nano, {"scale": 0.5, "causal": True}, False),
    (triu_added, {"scale": 0.5, "causal": True}, False),
    (scaled_query, {"scale": 1.0, "causal": True}, False),
    (flattened, {"scale": 0.5, "causal": True}, False),
    (local_window, {"scale": 0.5, "causal": True, "window": 7}, False),
    (computed_window, {"scale": 0.5, "causal": True, "window": 9}, False),
    (soft_capped, {"scale": 0.5, "causal": True, "softcap": 2.0}, False),
    (plain_causal, {"scale": 0.3, "causal": True}, False),
    (both_ways, {"scale": 0.5}, False),
    (alibi, {"scale": 0.5, "causal": True}, True),
    (chunked, {"scale": 0.5}, True),
    (upper_left, {"scale": 0.5, "causal": True, "q_start": 0}, False),
]


def only_attention(graph: Graph) -> Node:
    """Return the one attention of a graph, which has no softmax besides."""
    found = [node for node in graph.nodes if node.target == "plancc.attention.default"]
    assert len(found) == 1 and not any("softmax" in node.target for node in graph.nodes)
    return found[0]


def check(model: nn.Module, graph: Graph) -> None:
    """Compare graph and model at several sizes."""
    for batch, seq in ((2, 5), (1, 40), (3, 1 if "q_start" not in str(graph) else 2)):
        ids = torch.randint(0, 30, (batch, seq))
        with torch.no_grad():
            want = model(ids)
        got = next(iter(run_graph(graph, model.state_dict(), {"ids": ids}).values()))
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("attend", "options", "masked"), CASES, ids=[c[0].__name__ for c in CASES])
def test_recognised(attend: Attend, options: dict[str, object], masked: bool) -> None:
    torch.manual_seed(0)
    model = Model(attend).eval()
    graph = capture(model)
    node = only_attention(graph)
    assert node.kwargs == options
    assert (len(node.args) > 3) == masked
    check(model, graph)


def repeated_by_expand(model: Model, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, heads, seq, width = k.shape
    k, v = (
        x[:, :, None].expand(batch, heads, 2, seq, width).reshape(batch, 2 * heads, seq, width)
        for x in (k, v)
    )
    return plain_causal(model, q, k, v)


def repeated_by_interleave(model: Model, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
    return nano(model, q, k, v)


def grouped(model: Model, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


@pytest.mark.parametrize("attend", [repeated_by_expand, repeated_by_interleave, grouped])
def test_repeated_heads_are_folded(attend: Attend) -> None:
    torch.manual_seed(0)
    model = Model(attend, KV_HEADS).eval()
    graph = capture(model)
    values = {value.name: value for value in graph.values()}
    node = only_attention(graph)
    assert [values[arg.name].shape[1] for arg in node.args[:3]] == [HEADS, KV_HEADS, KV_HEADS]
    check(model, graph)


class SeesAFew(Model):
    """Its mask hides a key that no small size shows: a wrong proof would call it causal."""

    def __init__(self) -> None:
        super().__init__(lambda model, q, k, v: model.odd(q, k, v))
        odd = torch.ones(40, 40, dtype=torch.bool).tril()
        odd[30, 2] = False
        self.register_buffer("strange", odd[None, None])

    def odd(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seq = q.shape[2]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.strange[:, :, :seq, :seq])


def test_an_almost_causal_mask_is_not_called_causal() -> None:
    model = SeesAFew().eval()
    node = only_attention(capture(model))
    assert "causal" not in node.kwargs and len(node.args) == 4
    check(model, capture(model))


def test_a_mask_past_what_can_be_evaluated_stays() -> None:
    def far(model: Model, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        place = torch.arange(q.shape[2])
        ahead = place - place[:, None]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=(ahead <= 0) & (ahead > -(10**6)))

    node = only_attention(capture(Model(far).eval()))
    assert len(node.args) == 4
