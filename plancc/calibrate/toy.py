"""A decoder so small that its kernels take no time: what is left is Python."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCAB, HIDDEN, HEADS = 260, 16, 2


class _Norm(nn.Module):
    """Root mean square norm."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (HIDDEN,), self.weight, 1e-5)


class _Layer(nn.Module):
    """Attention and a gated MLP, each behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = _Norm(), _Norm()
        self.qkv = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN, bias=False) for _ in range(3))
        self.out, self.down = (nn.Linear(HIDDEN, HIDDEN, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(HIDDEN, HIDDEN, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        batch, seq, _ = x.shape
        y = self.first(x)
        q, k, v = (one(y).view(batch, seq, HEADS, -1).transpose(1, 2) for one in self.qkv)
        found = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(found.transpose(1, 2).reshape(batch, seq, -1))
        y = self.second(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Toy(nn.Module):
    """A causal language model of `layers` layers: ids [B, T] to logits [B, T, 260]."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCAB, HIDDEN)
        self.layers = nn.ModuleList(_Layer() for _ in range(layers))
        self.norm = _Norm()
        self.lm_head = nn.Linear(HIDDEN, VOCAB, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the logits [B, T, vocabulary] of token ids [B, T]."""
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))
