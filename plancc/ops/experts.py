"""plancc::experts: the expert layer of a mixture, a loop over the experts that some token chose.

A shard of the experts (`first` ..) or of the inner dim gives a partial sum of the full result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from plancc.ops.routing.validity import check_routing

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}


def experts(
    x: Tensor,
    index: Tensor,
    weight: Tensor,
    gate_up: Tensor,
    down: Tensor,
    gate_up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    *,
    act: str,
    transposed: bool = False,
    interleaved: bool = False,
    first: int = 0,
    gated: bool = True,
    limit: float = 0.0,
    alpha: float = 0.0,
    total: int = 0,
) -> Tensor:
    """Return [N, h]: each token x [N, h] through its experts `index` [N, k], weighted by `weight`.

    gate_up is [E, 2i, h] ([E, i, h] when not `gated`), down [E, h, i]; both with the last two dims
    swapped when `transposed`. Gate and up are halves, or alternate when `interleaved`. With
    `alpha` the gate is `g * sigmoid(alpha * g) * (u + 1)`; `limit` > 0 clamps g and u. An index
    outside first .. first + E - 1 contributes nothing. With `total` > 0, the experts that there are,
    RoutingError for a choice that is none of them, and for weights that are no finite numbers.
    """
    if total:
        check_routing(index, weight, total)
    out = x.new_zeros((x.shape[0], down.shape[2 if transposed else 1]))
    picks, sizes = _by_expert(index, first, gate_up.shape[0])
    tokens = picks // index.shape[1]
    if not len(picks):
        return out + _nothing(x, weight, gate_up, down, gate_up_bias, down_bias)
    # one gather and one unbind for all experts: the backward of each is then one pass, not E
    gathered = zip(
        x.index_select(0, tokens).split(sizes),
        weight.reshape(-1).index_select(0, picks).split(sizes),
        tokens.split(sizes),
        _unbound(gate_up, gate_up_bias),
        _unbound(down, down_bias),
        strict=True,
    )
    for rows, shares, token, wide, narrow in gathered:
        if not len(token):
            continue
        inner = _project(rows, *wide, transposed)
        inner = activate(inner, act, gated, interleaved, limit, alpha)
        result = _project(inner, *narrow, transposed) * shares[:, None]
        out.index_add_(0, token, result.to(out.dtype))
    return out


def _by_expert(index: Tensor, first: int, count: int) -> tuple[Tensor, list[int]]:
    """Return the flat positions that chose an expert of the shard, by expert, and how many each."""
    local = index.reshape(-1) - first
    local = torch.where((local >= 0) & (local < count), local, count)
    sizes = torch.bincount(local, minlength=count + 1).tolist()
    order = local.argsort(stable=True)
    return order[: len(order) - sizes[count]], sizes[:count]


def _unbound(weight: Tensor, bias: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Give the matrix and the bias of each expert."""
    biases = [None] * len(weight) if bias is None else bias.unbind(0)
    return zip(weight.unbind(0), biases, strict=True)


def _nothing(*tensors: Tensor | None) -> Tensor | float:
    """Return a zero through which each tensor that asks for a gradient gets one of zeros."""
    asked = [x for x in tensors if x is not None and x.requires_grad]
    if not torch.is_grad_enabled() or not asked:
        return 0.0
    return torch.stack([x.reshape(-1)[:0].sum().to(asked[0].dtype) for x in asked]).sum()


def activate(
    inner: Tensor, act: str, gated: bool, interleaved: bool, limit: float, alpha: float
) -> Tensor:
    """Apply the activation to [n, 2i] (gate and up) or [n, i]; return [n, i]."""
    if not gated:
        return ACTIVATIONS[act](inner)
    gate, up = (inner[..., ::2], inner[..., 1::2]) if interleaved else inner.chunk(2, dim=-1)
    if limit:
        gate, up = gate.clamp(max=limit), up.clamp(min=-limit, max=limit)
    if alpha:
        return (up + 1) * (gate * torch.sigmoid(gate * alpha))
    return ACTIVATIONS[act](gate) * up


def _project(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    return F.linear(x, weight.T if transposed else weight, bias)


torch.library.define(
    "plancc::experts",
    "(Tensor x, Tensor index, Tensor weight, Tensor gate_up, Tensor down, "
    "Tensor? gate_up_bias=None, Tensor? down_bias=None, *, str act, bool transposed=False, "
    "bool interleaved=False, int first=0, bool gated=True, float limit=0.0, float alpha=0.0, "
    "int total=0) "
    "-> Tensor",
)
torch.library.impl("plancc::experts", "CompositeExplicitAutograd", experts)


@torch.library.register_fake("plancc::experts")
def _(x: Tensor, index: Tensor, weight: Tensor, *rest: Tensor | None, **options) -> Tensor:
    return torch.empty_like(x)
