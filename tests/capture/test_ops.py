"""plancc's operators against the plainest possible formulas; shards add up; gradients are right."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from plancc.ops import attention, embedding_shard, experts, resolve

INF = float("inf")


def slow(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    sinks: Tensor | None = None,
    *,
    scale: float,
    causal: bool = False,
    window: int = 0,
    softcap: float = 0.0,
    q_start: int = -1,
) -> Tensor:
    """Compute attention row by row."""
    heads, tq, tk = q.shape[1], q.shape[2], k.shape[2]
    groups = heads // k.shape[1]
    start = tk - tq if q_start < 0 else q_start
    out = torch.zeros(*q.shape[:3], v.shape[3], dtype=v.dtype)
    full = None if mask is None else mask.expand(q.shape[0], heads, tq, tk)
    for b, h, i in itertools.product(range(q.shape[0]), range(heads), range(tq)):
        logits = k[b, h // groups] @ q[b, h, i] * scale
        if softcap:
            logits = (logits / softcap).tanh() * softcap
        for j in range(tk):
            position = start + i
            hidden = (causal and j > position) or (window and j <= position - window)
            hidden = hidden or (window and not causal and j >= position + window)
            hidden = hidden or (
                full is not None and full.dtype == torch.bool and not full[b, h, i, j]
            )
            logits[j] = -INF if hidden else logits[j]
        if full is not None and full.dtype != torch.bool:
            logits = logits + full[b, h, i]
        if sinks is not None:
            weights = torch.cat((logits, sinks[h : h + 1])).softmax(0)[:-1]
        elif bool((logits == -INF).all()):
            continue
        else:
            weights = logits.softmax(0)
        out[b, h, i] = weights @ v[b, h // groups]
    return out


def operands(heads: int, kv: int, tq: int, tk: int, width: int = 4) -> tuple[Tensor, ...]:
    torch.manual_seed(heads * 100 + kv * 10 + tq + tk)
    shapes = ((2, heads, tq, width), (2, kv, tk, width), (2, kv, tk, width))
    return tuple(torch.randn(shape, dtype=torch.float64) for shape in shapes)


@pytest.mark.parametrize("mask", [None, "bool", "float", "heads", "keys"])
@pytest.mark.parametrize("window", [0, 1, 3, 50])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("heads", "kv", "tq", "tk"), [(6, 3, 5, 5), (4, 1, 1, 7), (2, 2, 3, 8)])
def test_attention(
    heads: int, kv: int, tq: int, tk: int, causal: bool, window: int, mask: str | None
) -> None:
    q, k, v = operands(heads, kv, tq, tk)
    masks = {
        None: None,
        "bool": torch.rand(2, 1, tq, tk) > 0.6,
        "float": torch.randn(1, 1, tq, tk, dtype=q.dtype),
        "heads": torch.randn(2, heads, tq, tk, dtype=q.dtype),
        "keys": (torch.rand(2, 1, 1, tk) > 0.3),
    }
    options = {"scale": 0.6, "causal": causal, "window": window}
    for more in ({}, {"softcap": 2.0}, {"sinks": torch.randn(heads, dtype=q.dtype)}):
        got = attention(q, k, v, masks[mask], **options, **more)
        torch.testing.assert_close(got, slow(q, k, v, masks[mask], **options, **more))


@pytest.mark.parametrize("q_start", [0, 2, 5, 20])
def test_attention_at_a_position(q_start: int) -> None:
    q, k, v = operands(4, 2, 3, 8)
    options = {"scale": 0.5, "causal": True, "q_start": q_start}
    torch.testing.assert_close(attention(q, k, v, **options), slow(q, k, v, **options))
    options["window"] = 2
    torch.testing.assert_close(attention(q, k, v, **options), slow(q, k, v, **options))


@pytest.mark.parametrize("sinks", [None, torch.zeros(4, dtype=torch.float64)])
def test_nothing_to_see_gives_zeros(sinks: Tensor | None) -> None:
    q, k, v = operands(4, 2, 3, 5)
    empty = attention(q, k[:, :, :0], v[:, :, :0], None, sinks, scale=0.5, causal=True)
    assert empty.shape == (2, 4, 3, 4) and not empty.any()
    none = torch.ones(2, 1, 3, 5, dtype=torch.bool)
    none[0, :, 1] = False
    for mask in (none, torch.zeros(2, 1, 3, 5, dtype=q.dtype).masked_fill(~none, -INF)):
        out = attention(q, k, v, mask, sinks, scale=0.5)
        assert torch.isfinite(out).all() and not out[0, :, 1].any() and out[1].all()


def test_no_heads_on_a_rank() -> None:
    q, k, v = operands(4, 2, 3, 5)
    out = attention(q[:, :0], k[:, :0], v[:, :0], scale=0.5, causal=True)
    assert out.shape == (2, 0, 3, 4)


@pytest.mark.parametrize("more", [{}, {"softcap": 2.0}, {"window": 2}, {"masked": True}])
def test_attention_gradients(more: dict[str, object]) -> None:
    tensors = tuple(x.requires_grad_() for x in operands(4, 2, 3, 4, 2))
    options = dict(more)
    mask = None
    if options.pop("masked", False):
        mask = torch.ones(1, 1, 3, 4, dtype=torch.bool)
        mask[..., 1, :] = False
    assert torch.autograd.gradcheck(
        lambda *args: attention(*args, mask, scale=0.5, causal=True, **options), tensors
    )


def test_half_types_keep_softmax_in_single() -> None:
    q, k, v = (x.to(torch.bfloat16) for x in operands(4, 2, 3, 40))
    sinks = torch.zeros(4, dtype=torch.bfloat16)
    got = attention(q, k, v, None, sinks, scale=0.5)
    want = slow(q.double(), k.double(), v.double(), None, sinks.double(), scale=0.5)
    assert got.dtype == torch.bfloat16 and (got.double() - want).abs().max() < 2e-2


def slow_experts(x: Tensor, index: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for token, slot in itertools.product(range(x.shape[0]), range(index.shape[1])):
        expert = int(index[token, slot])
        gate, up = (gate_up[expert] @ x[token]).chunk(2)
        out[token] += weight[token, slot] * (down[expert] @ (F.silu(gate) * up))
    return out


def expert_operands() -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    index = torch.stack([torch.randperm(5)[:2] for _ in range(7)])
    return (
        torch.randn(7, 4, dtype=torch.float64),
        index,
        torch.rand(7, 2, dtype=torch.float64),
        torch.randn(5, 6, 4, dtype=torch.float64),
        torch.randn(5, 4, 3, dtype=torch.float64),
    )


def test_experts() -> None:
    x, index, weight, gate_up, down = expert_operands()
    want = slow_experts(x, index, weight, gate_up, down)
    torch.testing.assert_close(experts(x, index, weight, gate_up, down, act="silu"), want)
    turned = experts(x, index, weight, gate_up.mT, down.mT, act="silu", transposed=True)
    torch.testing.assert_close(turned, want)
    gate, up = gate_up.chunk(2, dim=1)
    mixed = torch.stack((gate, up), dim=2).flatten(1, 2)
    woven = experts(x, index, weight, mixed, down, act="silu", interleaved=True)
    torch.testing.assert_close(woven, want)
    assert experts(x[:0], index[:0], weight[:0], gate_up, down, act="silu").shape == (0, 4)


@pytest.mark.parametrize("cuts", [[0, 5], [0, 2, 5], [0, 1, 1, 4, 5]])
def test_expert_shards_add_up(cuts: list[int]) -> None:
    x, index, weight, gate_up, down = expert_operands()
    parts = [
        experts(x, index, weight, gate_up[a:b], down[a:b], act="silu", first=a)
        for a, b in itertools.pairwise(cuts)
    ]
    torch.testing.assert_close(sum(parts), slow_experts(x, index, weight, gate_up, down))


def test_expert_gradients() -> None:
    x, index, weight, gate_up, down = expert_operands()
    tensors = tuple(item.requires_grad_() for item in (x, weight, gate_up, down))
    assert torch.autograd.gradcheck(
        lambda x, w, g, d: experts(x, index, w, g, d, act="silu"), tensors
    )


@pytest.mark.parametrize("cuts", [[0, 11], [0, 4, 11], [0, 4, 4, 11]])
def test_embedding_shards_add_up(cuts: list[int]) -> None:
    table, ids = torch.randn(11, 3), torch.randint(0, 11, (2, 5))
    parts = [embedding_shard(ids, table[a:b], a) for a, b in itertools.pairwise(cuts)]
    assert torch.equal(sum(parts), F.embedding(ids, table))


def test_library_operators_agree_with_the_functions() -> None:
    q, k, v = operands(4, 2, 3, 3)
    torch.library.opcheck(
        torch.ops.plancc.attention.default,
        (q, k, v),
        {"scale": 0.5},
        test_utils=("test_schema", "test_faketensor"),
    )
    x, index, weight, gate_up, down = expert_operands()
    torch.library.opcheck(
        torch.ops.plancc.experts.default,
        (x, index, weight, gate_up, down),
        {"act": "silu"},
        test_utils=("test_schema", "test_faketensor"),
    )


def test_resolve() -> None:
    assert resolve("aten.linear.default") is torch.ops.aten.linear.default
    assert resolve("plancc.attention.default") is attention
    for wrong in ("aten.nothing.default", "aten.linear", "x"):
        with pytest.raises(KeyError):
            resolve(wrong)
