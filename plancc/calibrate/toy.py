"""The decoder that is run to measure calls as programs make them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Width:
    """The sizes of a decoder. Few heads make its products those of a rank under tensor parallelism."""

    layers: int
    hidden: int
    heads: int
    ffn: int
    vocab: int
    head_dim: int = 64
    length: int = 1024


class _Norm(nn.Module):
    """Root mean square norm."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, 1e-5)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: x [batch, heads, seq, head_dim] turned by the angles of its positions."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


class _Layer(nn.Module):
    """Attention and a gated MLP, each behind a norm."""

    def __init__(self, width: Width) -> None:
        super().__init__()
        hidden, inner, self.heads = width.hidden, width.heads * width.head_dim, width.heads
        self.first, self.second = _Norm(hidden), _Norm(hidden)
        self.q, self.k, self.v = (nn.Linear(hidden, inner, bias=False) for _ in range(3))
        self.out = nn.Linear(inner, hidden, bias=False)
        self.gate, self.up = (nn.Linear(hidden, width.ffn, bias=False) for _ in range(2))
        self.down = nn.Linear(width.ffn, hidden, bias=False)

    def projected(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.q(y), self.k(y), self.v(y)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, seq, _ = x.shape
        y = self.first(x)
        heads = (x.view(batch, seq, self.heads, -1).transpose(1, 2) for x in self.projected(y))
        q, k, v = heads
        q, k = _turned(q, cos, sin), _turned(k, cos, sin)
        found = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(found.transpose(1, 2).reshape(batch, seq, -1))
        y = self.second(x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return x


class Decoder(nn.Module):
    """A causal language model: ids [B, T] to logits [B, T, vocabulary]."""

    cos: Tensor
    sin: Tensor

    def __init__(self, width: Width) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(width.vocab, width.hidden)
        self.layers = nn.ModuleList(_Layer(width) for _ in range(width.layers))
        self.norm = _Norm(width.hidden)
        self.lm_head = nn.Linear(width.hidden, width.vocab, bias=False)
        half = width.head_dim // 2
        angles = torch.outer(torch.arange(width.length), 10000.0 ** (-torch.arange(half) / half))
        angles = torch.cat((angles, angles), dim=-1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the logits of token ids."""
        seq = input_ids.shape[1]
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x, self.cos[:seq], self.sin[:seq])
        logits: Tensor = self.lm_head(self.norm(x))
        return logits
