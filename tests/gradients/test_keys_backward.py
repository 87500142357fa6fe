"""The backward of attention over some of the keys, over any ranks, against one device in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from plancc.ops import attention_over_keys, attention_over_keys_backward
from plancc.ops.attention import attention
from plancc.ops.merge import merge

BLOCKS = {
    "one": [[(0, 12)]],
    "two": [[(0, 7)], [(7, 12)]],
    "empty": [[(0, 5)], [], [(5, 12)], []],
    "zigzag": [[(0, 2), (10, 12)], [(2, 4), (8, 10)], [(4, 6), (6, 8)]],
    "uneven": [[(3, 4)], [(0, 3), (4, 5)], [(5, 12)]],
}
N = 12


def take(x: Tensor, keys: list[tuple[int, int]], dim: int = 2) -> Tensor:
    if x.shape[dim] == 1:
        return x
    return torch.cat([x.narrow(dim, 0, 0), *(x.narrow(dim, a, b - a) for a, b in keys)], dim)


def masks(kind: str | None, heads: int, tq: int) -> Tensor | None:
    if kind == "bool":
        return torch.rand(2, 1, tq, N) > 0.3
    if kind == "heads":
        return torch.randn(1, heads, tq, N, dtype=torch.float64)
    return torch.rand(2, 1, 1, N) > 0.3 if kind == "keys" else None


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("kind", [None, "bool", "heads", "keys"])
@pytest.mark.parametrize(("causal", "window"), [(False, 0), (True, 0), (True, 3), (False, 4)])
@pytest.mark.parametrize(("heads", "groups", "tq"), [(4, 2, 12), (2, 2, 5), (3, 1, 1)])
def test_parts_sum_to_the_gradient(
    blocks: str, kind: str | None, causal: bool, window: int, heads: int, groups: int, tq: int
) -> None:
    torch.manual_seed(0)
    q = torch.randn(2, heads, tq, 4, dtype=torch.float64)
    k, v = (torch.randn(2, groups, N, width, dtype=torch.float64) for width in (4, 3))
    mask, dout = masks(kind, heads, tq), torch.randn(2, heads, tq, 3, dtype=torch.float64)
    for softcap, sinks in ((0.0, None), (1.5, None), (0.0, torch.randn(heads).double())):
        options = {"scale": 0.6, "causal": causal, "window": window, "softcap": softcap}
        options["q_start"] = N - tq
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        sink = None if sinks is None else sinks.clone().requires_grad_()
        wanted = [*leaves, *([] if sink is None else [sink])]
        whole = attention(*leaves, mask, sink, **options)
        want = torch.autograd.grad(whole, wanted, dout)
        parts = []
        for keys in BLOCKS[blocks]:
            own = None if mask is None else take(mask, keys, 3)
            parts.append((take(k, keys), take(v, keys), own, keys))
        out, rows = merge(
            [
                attention_over_keys(q, a, b, own, sinks, **options, keys=keys)
                for a, b, own, keys in parts
            ]
        )
        torch.testing.assert_close(out, whole.detach(), rtol=0, atol=1e-12)
        got = [torch.zeros_like(x) for x in want]
        for a, b, own, keys in parts:
            grads = attention_over_keys_backward(
                dout, out, rows, q, a, b, own, sinks, **options, keys=keys
            )
            assert len(grads) == len(want)
            got[0] += grads[0]
            base = 0
            for lo, hi in keys:
                for index in (1, 2):
                    got[index][:, :, lo:hi] += grads[index][:, :, base : base + hi - lo]
                base += hi - lo
            if sinks is not None:
                assert (keys[:1] and keys[0][0] == 0) or not grads[3].any()
                got[3] += grads[3]
        for one, two in zip(got, want, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-11)


def test_a_mask_that_asks_for_a_gradient_is_refused() -> None:
    x = torch.zeros(1, 1, 2, 2)
    mask = torch.zeros(1, 1, 2, 2, requires_grad=True)
    with pytest.raises(ValueError, match="mask"):
        attention_over_keys_backward(x, x, x[..., 0], x, x, x, mask, scale=1.0, keys=[(0, 2)])
