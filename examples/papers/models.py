"""The two models of the papers: 4 layers, hidden 4096, 32 heads, and a feed-forward without a gate.

The papers give no vocabulary; it is small here, so that times are those of the layers.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_PLACE = importlib.util.spec_from_file_location(
    "papers_base_models", Path(__file__).parents[1] / "models.py"
)
assert _PLACE is not None and _PLACE.loader is not None
base = importlib.util.module_from_spec(_PLACE)
_PLACE.loader.exec_module(base)


class MLP(nn.Module):
    """Two matrices and a ReLU between them."""

    def __init__(self, hidden: int, ffn: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(hidden, ffn, bias=False)
        self.down_proj = nn.Linear(ffn, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return [batch, seq, hidden] of x [batch, seq, hidden]."""
        return self.down_proj(F.relu(self.up_proj(x)))


class Experts(nn.Module):
    """As many such MLPs as experts; a token is answered by those that have a share of it."""

    def __init__(self, hidden: int, ffn: int, experts: int) -> None:
        super().__init__()
        self.up_proj = nn.Parameter(torch.randn(experts, ffn, hidden) / hidden**0.5)
        self.down_proj = nn.Parameter(torch.randn(experts, hidden, ffn) / ffn**0.5)

    def forward(self, x: Tensor, share: Tensor) -> Tensor:
        """Mix every expert's answer to x [batch, seq, hidden] by `share` [batch, seq, experts]."""
        inner = F.relu(torch.einsum("bth,eih->btei", x, self.up_proj)) * share.unsqueeze(-1)
        return torch.einsum("btei,ehi->bth", inner, self.down_proj)


def dense(
    layers: int = 4, hidden: int = 4096, heads: int = 32, kv_heads: int | None = None,
    ffn: int = 16384, vocab: int = 256, max_len: int = 131072,
) -> nn.Module:  # fmt: skip
    """The model of FA Pool: 0.81 B parameters in its layers; `kv_heads` defaults to `heads`."""
    blocks = [base.DenseBlock(hidden, heads, kv_heads or heads, ffn) for _ in range(layers)]
    for block in blocks:
        block.mlp = MLP(hidden, ffn)
    return base.CausalLM(blocks, hidden, heads, vocab, max_len)  # type: ignore[no-any-return]


def moe(
    layers: int = 4, hidden: int = 4096, heads: int = 32, kv_heads: int | None = None,
    experts: int = 16, top_k: int = 2, ffn: int = 16384, vocab: int = 256, max_len: int = 32768,
) -> nn.Module:  # fmt: skip
    """The model of MA Separation: 16 experts a layer, two of them for a token; 8.86 B parameters."""
    blocks = []
    for _ in range(layers):
        mixture = base.MoE(hidden, 1, experts, top_k)
        mixture.experts = Experts(hidden, ffn, experts)
        blocks.append(base.MoEBlock(hidden, heads, kv_heads or heads, mixture))
    return base.CausalLM(blocks, hidden, heads, vocab, max_len)  # type: ignore[no-any-return]
