"""Operators inside autograd: attention with every option, experts, look-ups, means."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from plancc.ops import attention, embedding_shard, experts, partial_mean

F64 = torch.float64


def masks(kind: str | None, heads: int, tq: int, tk: int) -> Tensor | None:
    """A mask by name; "learned" ones ask for a gradient, "dead" has a row that sees nothing."""
    if kind in ("learned", "bias"):
        return torch.randn(1 if kind == "bias" else 2, heads, tq, tk, dtype=F64).requires_grad_()
    if kind == "dead":
        seen = torch.rand(2, 1, tq, tk) > 0.3
        seen[:, :, 0] = False
        return seen
    return torch.rand(2, 1, 1, tk) > 0.3 if kind == "keys" else None


@pytest.mark.parametrize("kind", [None, "dead", "keys", "learned", "bias"])
@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("heads", "kv", "tq", "tk"), [(4, 2, 3, 5), (2, 2, 4, 4), (4, 1, 1, 6)])
def test_attention(
    heads: int, kv: int, tq: int, tk: int, causal: bool, window: int, kind: str | None
) -> None:
    torch.manual_seed(0)
    for softcap, sunk in ((0.0, False), (1.5, False), (0.0, True), (1.5, True)):
        q = torch.randn(2, heads, tq, 2, dtype=F64, requires_grad=True)
        k = torch.randn(2, kv, tk, 2, dtype=F64, requires_grad=True)
        v = torch.randn(2, kv, tk, 3, dtype=F64, requires_grad=True)
        mask = masks(kind, heads, tq, tk)
        sinks = torch.randn(heads, dtype=F64, requires_grad=True) if sunk else None
        leaves = [x for x in (q, k, v, mask, sinks) if x is not None and x.requires_grad]

        def run(*_: Tensor, given=(q, k, v, mask, sinks), softcap: float = softcap) -> Tensor:
            return attention(*given, scale=0.6, causal=causal, window=window, softcap=softcap)

        assert torch.autograd.gradcheck(run, leaves)
        single = [x.detach().float().requires_grad_() if x in leaves_of(leaves, x) else x
                  for x in (q, k, v, mask, sinks)]  # fmt: skip
        fast = run(given=single)
        dout = torch.randn(fast.shape)
        got = torch.autograd.grad(
            fast, [x for x in single if x is not None and x.requires_grad], dout
        )
        want = torch.autograd.grad(run(), leaves, dout.double())
        for one, two in zip(got, want, strict=True):
            torch.testing.assert_close(one.double(), two, rtol=1e-4, atol=1e-5)


def leaves_of(leaves: list[Tensor], x: Tensor | None) -> tuple[Tensor | None, ...]:
    """(x,) if it is one of the leaves, by identity, else ()."""
    return (x,) if any(x is leaf for leaf in leaves) else ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(4, 2, 65, 65), (4, 4, 33, 80)])
def test_long_attention_in_every_dtype(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    heads, kv, tq, tk = shape
    torch.manual_seed(0)
    made = [torch.randn(1, h, t, 16, dtype=F64) for h, t in ((heads, tq), (kv, tk), (kv, tk))]
    runs = []
    for kind in (dtype, F64):
        leaves = [x.to(dtype).to(kind).requires_grad_() for x in made]
        out = attention(*leaves, scale=0.25, causal=True)
        runs.append(torch.autograd.grad(out.double().square().sum(), leaves))
    for one, two in zip(*runs, strict=True):
        assert one.dtype == dtype
        bound = (1e-5 if dtype == torch.float32 else 3e-2) * float(two.abs().max())
        assert float((one.double() - two).abs().max()) < bound


def test_attention_over_nothing_reaches_every_leaf() -> None:
    q = torch.randn(1, 2, 3, 4, requires_grad=True)
    k, v = (torch.randn(1, 1, 0, 4, requires_grad=True) for _ in range(2))
    attention(q, k, v, scale=0.5).sum().backward()
    assert not q.grad.any() and k.grad.shape == v.grad.shape == (1, 1, 0, 4)


def operands(count: int = 5) -> dict[str, Tensor]:
    torch.manual_seed(0)
    index = torch.stack([torch.randperm(5)[:2] for _ in range(7)])
    index[index == 3] = 2  # one expert that nobody chooses, and one twice by the same token
    shapes = {"x": (7, 4), "weight": (7, 2), "gate_up": (count, 6, 4), "down": (count, 4, 3),
              "gate_up_bias": (count, 6), "down_bias": (count, 4)}  # fmt: skip
    made = {name: torch.randn(s, dtype=F64).requires_grad_() for name, s in shapes.items()}
    return {"index": index, **made}


ORDER = ("x", "weight", "gate_up", "down", "gate_up_bias", "down_bias")


@pytest.mark.parametrize("options", [
    {"act": "silu"}, {"act": "gelu", "interleaved": True}, {"act": "silu", "alpha": 1.7, "limit": 7.0},
    {"act": "silu", "transposed": True}, {"act": "silu", "first": 2}, {"act": "silu", "first": 9},
])  # fmt: skip
@pytest.mark.parametrize("biased", [False, True])
def test_experts(options: dict, biased: bool) -> None:
    held = operands()
    if options.get("transposed"):
        held |= {name: held[name].detach().mT.contiguous().requires_grad_()
                 for name in ("gate_up", "down")}  # fmt: skip
    names = ORDER if biased else ORDER[:4]

    def run(*leaves: Tensor) -> Tensor:
        x, weight, *rest = leaves
        return experts(x, held["index"], weight, *rest, **options)

    leaves = [held[name] for name in names]
    assert torch.autograd.gradcheck(run, leaves)
    grads = torch.autograd.grad(run(*leaves).sum(), leaves)
    assert all(grad is not None for grad in grads)
    assert not grads[2][3].any() or options.get("first")


@pytest.mark.parametrize("tokens", [0, 7])
@pytest.mark.parametrize("count", [0, 5])
def test_experts_without_work_are_still_followed(tokens: int, count: int) -> None:
    held = operands(count)
    leaves = [held[name] for name in ORDER]
    x, weight = held["x"][:tokens], held["weight"][:tokens]
    first = 90 if count else 0
    out = experts(x, held["index"][:tokens], weight, *leaves[2:], act="silu", first=first)
    assert out.requires_grad and out.shape == (tokens, 4) and not out.any()
    grads = torch.autograd.grad(out.sum(), leaves)
    assert all(not grad.any() for grad in grads)


def test_shards_of_experts_add_up_in_gradients() -> None:
    held = operands()
    leaves = [held[name] for name in ORDER]
    whole = experts(held["x"], held["index"], held["weight"], *leaves[2:], act="silu")
    parts = [
        experts(held["x"], held["index"], held["weight"], *(w[a:b] for w in leaves[2:]),
                act="silu", first=a)
        for a, b in itertools.pairwise((0, 1, 1, 4, 5))
    ]  # fmt: skip
    dout = torch.randn(whole.shape, dtype=F64)
    want = torch.autograd.grad(whole, leaves, dout)
    for one, two in zip(torch.autograd.grad(sum(parts), leaves, dout), want, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cuts", [(0, 11), (0, 4, 11), (0, 4, 4, 11)])
def test_embedding_shards(cuts: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 11, (2, 5))
    for a, b in itertools.pairwise(cuts):
        table = torch.randn(b - a, 3, dtype=F64, requires_grad=True)
        out = embedding_shard(ids, table, a)
        assert out.requires_grad and out.shape == (2, 5, 3)
        assert torch.autograd.gradcheck(lambda w, a=a: embedding_shard(ids, w, a), (table,))
        embedding_shard(ids, table, a).sum().backward()
        count = torch.bincount(ids.flatten(), minlength=11)[a:b, None].expand(-1, 3)
        assert torch.equal(table.grad, count.to(F64))


@pytest.mark.parametrize("cuts", [(0, 11), (0, 4, 11), (0, 4, 4, 11), (0, 3, 7, 11)])
def test_the_padding_row_gets_no_gradient(cuts: tuple[int, ...]) -> None:
    """Whichever shard holds it, as with one table."""
    torch.manual_seed(0)
    ids, padding = torch.randint(0, 11, (4, 9)), 4
    assert (ids == padding).any()
    count = torch.bincount(ids.flatten(), minlength=11)[:, None].expand(-1, 3).to(F64).clone()
    count[padding] = 0
    for a, b in itertools.pairwise(cuts):
        table = torch.randn(b - a, 3, dtype=F64, requires_grad=True)
        embedding_shard(ids, table, a, padding).sum().backward()
        assert torch.equal(table.grad, count[a:b])


def test_partial_mean() -> None:
    x = torch.randn(3, 4, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: partial_mean(x, [1], True, 9), (x,))
